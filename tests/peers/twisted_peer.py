"""Twisted's protocols that frame messages: each message is answered as answers.py says.

python twisted_peer.py PROTOCOL [PORT]
"""

import sys
from typing import Any

from answers import answer, answer_text
from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import (
    Int8StringReceiver,
    Int16StringReceiver,
    Int32StringReceiver,
    LineOnlyReceiver,
    LineReceiver,
    NetstringReceiver,
)
from twisted.protocols.wire import Chargen, Echo

reactor: Any = installed_reactor
HOST = "127.0.0.1"
LARGEST = 2**20


class Once:
    """Ends the program together with the connection."""

    def connectionLost(self, reason: object = None) -> None:  # noqa: N802 - Twisted's name
        reactor.stop()


class Strings(Once):
    MAX_LENGTH = LARGEST

    def stringReceived(self, string: bytes) -> None:  # noqa: N802
        self.sendString(answer(string))  # type: ignore[attr-defined]


class Lines(Once):
    MAX_LENGTH = LARGEST

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        self.sendLine(answer_text(line.decode()).encode())  # type: ignore[attr-defined]


class Int8(Strings, Int8StringReceiver):
    pass


class Int16(Strings, Int16StringReceiver):
    pass


class Int32(Strings, Int32StringReceiver):
    pass


class Netstring(Strings, NetstringReceiver):
    pass


class Line(Lines, LineReceiver):
    pass


class LineOnly(Lines, LineOnlyReceiver):
    pass


class NulTerminated(Once, LineOnlyReceiver):
    MAX_LENGTH = LARGEST
    delimiter = b"\0"

    def lineReceived(self, line: bytes) -> None:  # noqa: N802
        send: Any = self.sendLine
        send(answer(line))


class EchoOnce(Once, Echo):
    pass


class ChargenOnce(Once, Chargen):
    pass


PROTOCOLS: dict[str, type[Protocol]] = {
    "Int8StringReceiver": Int8,
    "Int16StringReceiver": Int16,
    "Int32StringReceiver": Int32,
    "NetstringReceiver": Netstring,
    "LineReceiver": Line,
    "LineOnlyReceiver": LineOnly,
    "LineOnlyReceiver-nul": NulTerminated,
    "Echo": EchoOnce,
    "Chargen": ChargenOnce,
}


def main(protocol: str, port: str | None = None) -> None:
    factory: Any = Factory.forProtocol(PROTOCOLS[protocol])
    if port is None:
        listening = TCP4ServerEndpoint(reactor, 0, interface=HOST).listen(factory)
        listening.addCallback(lambda it: print(f"listening on port {it.getHost().port}"))
    else:
        TCP4ClientEndpoint(reactor, HOST, int(port)).connect(factory)
    reactor.run()


main(*sys.argv[1:])
