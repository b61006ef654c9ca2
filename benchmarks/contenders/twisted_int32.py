"""Twisted's ``Int32StringReceiver``, on the reactor that Twisted chooses for this platform."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.protocols.basic import Int32StringReceiver

from benchmarks.contenders._serving import LOOPBACK, announce, parse_options

reactor = cast(Any, _reactor)  # a module that Twisted replaces by an object


class Echo(Int32StringReceiver):
    def connectionMade(self) -> None:  # noqa: N802
        # Every other contender's library turns Nagle's algorithm off by itself.
        cast(Any, self.transport).setTcpNoDelay(True)

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        self.sendString(string)  # type: ignore[no-untyped-call]


def main() -> None:
    options = parse_options("max-size")
    Echo.MAX_LENGTH = options.max_size
    port = reactor.listenTCP(0, Factory.forProtocol(Echo), interface=LOOPBACK)
    announce(port.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main()
