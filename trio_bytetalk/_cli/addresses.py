"""Addresses on the command line: ports, hosts with ports, and paths of Unix sockets."""

from __future__ import annotations

import ipaddress
import re
import ssl
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack

import attrs
import click
from click.shell_completion import CompletionItem

from .._client import open_tcp_connection, open_unix_connection
from .._codec import Codec
from .._connection import Connection
from .._limits import LimitOptions
from .._log import address_in_words

_TCP = re.compile(
    r"""(?:(?:\[(?P<ipv6>[^][]*)\]|(?P<host>[^][:/\s'"]*)):)?(?P<port>[0-9]+)""", re.ASCII
)

_HOST = re.compile(r"""[^][:/\s'"]+""")

# What is more likely one, where it may also be the last group of an IPv6 address.
_PORT = re.compile(r"[1-9][0-9]{1,4}", re.ASCII)

# What stands for all addresses of the machine, and one of these.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is looked for, not bound to

GRAMMAR = "HOST:PORT, [IPV6]:PORT, :PORT, PORT, unix:PATH, or a path with a slash in it"


@attrs.frozen
class Address:
    """Where a server is: a host and a port, or the path of a Unix socket.

    Args:
      host: A name or an address; None stands for the machine itself, and for all its addresses
          where it is listened on.
      port: 0 to 65535; 0, which a client cannot connect to, has the system choose one.
      path: Of a Unix socket; then there is neither host nor port.
    """

    host: str | None = None
    port: int = 0
    path: str | None = None

    @property
    def certified(self) -> str:
        """What the server's certificate is for, unless another name is given."""
        return (self.host or "localhost").partition("%")[0]  # no zone

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = "" if self.host is None else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """What `GRAMMAR` says.

    Raises:
      ValueError: for anything else; on one line.
    """
    if "://" in text and not text.startswith(("unix:", "/", ".")):
        raise ValueError(f"an address is {GRAMMAR}, and no URL such as {text!r}")
    if text.startswith("unix:") or "/" in text:
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("a path must stand behind 'unix:'")
        return Address(path=path)
    match = _TCP.fullmatch(text)
    if match is None or not text.isprintable():
        raise ValueError(f"an address is {GRAMMAR}, not {text!r}{_hint(text)}")
    port = match["port"]
    if len(port) > 5 or int(port) > 65535:
        raise ValueError(f"a port is 0 to 65535, not {port}")
    if match["ipv6"] is not None and not _is_ipv6(match["ipv6"]):
        raise ValueError(f"in brackets stands an IPv6 address, not {match['ipv6']!r}")
    return Address(match["ipv6"] or match["host"] or None, int(port))


def _hint(text: str) -> str:
    # An IPv6 address, too, if its last group is none, but a port.
    front, _, port = text.rpartition(":")
    if _is_ipv6(front) and _PORT.fullmatch(port) and int(port) <= 65535:
        return f"; with brackets, for example [{front}]:{port}"
    host = text.partition(":")[0]
    if _is_ipv6(text.strip("[]")):
        return f"; with brackets and a port, for example [{text.strip('[]')}]:5555"
    if host.isprintable() and re.match(r"\w", host) and _TCP.fullmatch(f"{host}:5555"):
        return f"; with a port, for example {host}:5555"
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def parse_host(text: str) -> str:
    """A host to listen on: a name or an address; one of IPv6 may stand in brackets.

    Raises:
      ValueError: for anything else; on one line.
    """
    host = text.removeprefix("[").removesuffix("]")
    if _is_ipv6(host) or (host == text and _HOST.fullmatch(text) and text.isprintable()):
        return host
    raise ValueError(f"a host is a name or an address, not {text!r}; the port is for --port")


def for_clients(address: Any) -> Any:
    """Where who listens on an address of the `socket` module's is reached on this machine."""
    if isinstance(address, tuple) and address[0] in _LOOPBACK:
        return (_LOOPBACK[address[0]], *address[1:])
    return address


def name_of(address: Any) -> str:
    """An address as the `socket` module gives it, in this grammar; printable, whoever chose it."""
    words = address_in_words(address)
    if words is None:
        return "unix"
    return words if isinstance(address, tuple) else f"unix:{words}"


class AddressType(click.ParamType[Address]):
    """An `Address` as a parameter of a command.

    Args:
      is_server: It is connected to.
    """

    name = "address"

    def __init__(self, *, is_server: bool = False) -> None:
        self.is_server = is_server

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        try:
            address = parse_address(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self.is_server and address.path is None and not address.port:
            self.fail(f"a server's port is 1 to 65535, not 0: {value!r}", param, ctx)
        return address

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        is_path = "/" in incomplete or incomplete.startswith((".", "unix:"))
        return [CompletionItem(incomplete, type="file")] if is_path else []


class HostType(click.ParamType[str]):
    """What `parse_host` takes, as a parameter of a command."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return parse_host(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


HOST = HostType()
ADDRESS = AddressType()
SERVER = AddressType(is_server=True)


def open_connection(
    address: Address,
    codec: Codec[Any, Any],
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    **limits: Unpack[LimitOptions],
) -> AbstractAsyncContextManager[Connection[Any, Any]]:
    """Connect to an address: ``async with open_connection(address, codec) as connection:``.

    The arguments, and what is raised, are as for `open_tcp_connection`; a host that is not given
    is localhost.
    """
    if ssl_context is not None and server_hostname is None:
        server_hostname = address.certified
    if address.path is not None:
        return open_unix_connection(
            address.path,
            codec=codec,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            **limits,
        )
    return open_tcp_connection(
        address.host or "localhost",
        address.port,
        codec=codec,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
        **limits,
    )
