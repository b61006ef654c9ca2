"""Handlers of Python's logging that send to a syslog server over TCP: thousands of records.

python syslog_peer.py FRAMING PORT

The text of a record is its number and some letters; how many these are is printed.
"""

import logging
import logging.handlers
import random
import socket
import sys

from rfc5424logging import Rfc5424SysLogHandler
from rfc5424logging.transport import FRAMING_OCTET_COUNTING

HOST = "127.0.0.1"


def handler(framing: str, port: int) -> logging.Handler:
    if framing == "NUL":
        return logging.handlers.SysLogHandler((HOST, port), socktype=socket.SOCK_STREAM)
    counting: logging.Handler = Rfc5424SysLogHandler(
        (HOST, port), socktype=socket.SOCK_STREAM, framing=FRAMING_OCTET_COUNTING, timeout=60
    )
    return counting


def main(framing: str, port: str) -> None:
    log = logging.getLogger("peer")
    log.setLevel(logging.INFO)
    log.addHandler(handler(framing, int(port)))
    dice = random.Random(1)
    sizes = [*range(300), 99_999, 100_000, 400_000]
    sizes += [int(4096 ** dice.random()) for _ in range(2700)]
    for number, size in enumerate(sizes):
        log.info("%d %s", number, "x" * size)
        print(size)
    logging.shutdown()


main(*sys.argv[1:])
