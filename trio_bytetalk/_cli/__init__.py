"""The command-line program ``bytetalk``: one command a module, on what the others share."""
