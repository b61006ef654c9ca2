"""How fast trio_bytetalk is, next to what people use today.

Run it with ``python -m benchmarks`` from the root of the repository; ``README.md`` in this folder
says what is measured and how to read it.
"""
