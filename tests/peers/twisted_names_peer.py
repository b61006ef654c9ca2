"""Twisted's DNS server, over TCP: N bytes of text for a question for ``N.example.``.

python twisted_names_peer.py dns
"""

from typing import Any

from twisted.internet import defer
from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.names import dns, server

reactor: Any = installed_reactor


class Resolver:
    def query(self, query: Any, timeout: object = None) -> Any:
        size = int(query.name.name.split(b".")[0])
        text = (b"%d " % size * size)[:size]
        strings = [text[begin : begin + 255] for begin in range(0, size, 255)] or [b""]
        texts: Any = dns.Record_TXT(*strings)
        record = dns.RRHeader(query.name.name, dns.TXT, payload=texts)
        return defer.succeed(([record], [], []))


class Factory(server.DNSServerFactory):
    def connectionLost(self, protocol: object) -> None:  # noqa: N802 - Twisted's name
        reactor.stop()


factory = Factory(clients=[Resolver()], verbose=0)  # type: ignore[no-untyped-call]
listening = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
listening.addCallback(lambda it: print(f"listening on port {it.getHost().port}"))
reactor.run()
