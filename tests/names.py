"""A network as a test wants it: host names, and kinds of sockets that cannot be had."""

from __future__ import annotations

import os
import socket
from typing import Any

import trio


class Names(trio.abc.HostnameResolver):
    """From now on, in this Trio run, there are these host names and no others."""

    def __init__(self, **addresses: list[str]) -> None:
        self.addresses = addresses
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(
        self, host: bytes | None, port: bytes | str | int | None, *_args: int, **_kwargs: int
    ) -> Any:
        await trio.lowlevel.checkpoint()
        assert host is not None
        if host.decode() not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                0,
                "",
                (address, port),
            )
            for address in self.addresses[host.decode()]
        ]

    async def getnameinfo(self, *_args: object) -> Any:
        raise NotImplementedError


class Sockets(trio.abc.SocketFactory):
    """From now on, in this Trio run, making a socket of one of these families fails."""

    def __init__(self, number: int, *families: int) -> None:
        self.number = number
        self.families = families
        self.made: list[trio.socket.SocketType] = []
        trio.socket.set_custom_socket_factory(self)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> trio.socket.SocketType:
        if family in self.families:
            raise OSError(self.number, os.strerror(self.number))
        made = trio.socket.from_stdlib_socket(socket.socket(family, kind, proto))
        self.made.append(made)
        return made
