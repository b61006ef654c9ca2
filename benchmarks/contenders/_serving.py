"""What every server program here shares: its options, its deadline, and the line that it prints.

Nothing in this module runs while a server is being measured.
"""

from __future__ import annotations

import argparse
import resource
import signal
import ssl
from collections.abc import Sequence
from typing import Any

LIFETIME = 900
"""Seconds after which a server ends by itself, so that none outlives a runner that was killed."""

LOOPBACK = "127.0.0.1"

_OPTIONS: dict[str, dict[str, Any]] = {
    "--tls": {"metavar": "PEM", "help": "serve TLS with this certificate and key"},
    "--max-size": {"type": int, "default": 1 << 20, "help": "the largest message to accept"},
    "--framing": {
        "choices": ["length", "lines", "delimited"],
        "default": "length",
        "help": "how messages are told apart",
    },
    "--loop": {"choices": ["default", "uvloop"], "default": "default", "help": "the event loop"},
    "--subscriber": {
        "action": "store_true",
        "help": "have one task iterate over a subscription to message_received",
    },
    "--buffered-stream": {
        "action": "store_true",
        "help": "frame with the library's buffered stream instead of a bytearray",
    },
}


def parse_options(*names: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options that this server has; any other is an error.

    A server that ignored an option it does not have would be measured at something else than what
    the table says.

    Args:
      names: which of the shared options to accept, without the dashes.
      argv: the command line; by default, this process's.

    Returns:
      The values, one attribute for each name.
    """
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[f"--{name}"])
    # What any program that has run for a while has done: freed a large block. Until then glibc maps
    # and unmaps memory for each buffer above 128 KiB. asyncio reads into 256 KiB, and would come to
    # a third of what it does in a program that has been running.
    bytes(4 << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.alarm(LIFETIME)
    return parser.parse_args(argv)


def announce(port: int) -> None:
    """Tell whoever started this server where it listens."""
    print(f"LISTENING {port}", flush=True)


def listener_port(listener: Any) -> int:
    """The port of one of the listeners that Trio's ``serve_*`` functions return."""
    listener = getattr(listener, "transport_listener", listener)  # an SSLListener has one inside
    port: int = listener.socket.getsockname()[1]
    return port


def server_tls_context(pem: str | None) -> ssl.SSLContext | None:
    """A server's TLS context for ``--tls``, with the settings that the standard library advises."""
    if pem is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context
