"""Addresses: what is one, what is none and why, and that a connection gets there."""

from __future__ import annotations

import functools
import socket
import ssl
from pathlib import Path
from typing import Any

import click
import pytest
import trio
import trustme
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from names import Names
from pairs import has_ipv6

from trio_bytetalk import Connection, Lines, Server
from trio_bytetalk._cli.addresses import (
    ADDRESS,
    GRAMMAR,
    HOST,
    SERVER,
    Address,
    for_clients,
    name_of,
    open_connection,
    parse_address,
    parse_host,
)

HAS_IPV6 = has_ipv6()


async def echo(connection: Connection[Any, Any]) -> None:
    async for message in connection:
        await connection.send(message)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("5555", Address(None, 5555)),
        (":5555", Address(None, 5555)),
        (":0", Address(None, 0)),
        (":65535", Address(None, 65535)),
        ("localhost:5555", Address("localhost", 5555)),
        ("127.0.0.1:00080", Address("127.0.0.1", 80)),
        ("bücher.example:1", Address("bücher.example", 1)),
        ("[::1]:5555", Address("::1", 5555)),
        ("[fe80::1%eth0]:5555", Address("fe80::1%eth0", 5555)),
        ("unix:socket", Address(path="socket")),
        ("unix:/run/a b:1", Address(path="/run/a b:1")),
        ("/run/socket", Address(path="/run/socket")),
        ("./socket", Address(path="./socket")),
        ("./a://b", Address(path="./a://b")),
        ("unix:a://b", Address(path="a://b")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert (address.path is None) or (address.host, address.port) == (None, 0)


@pytest.mark.parametrize(
    ("text", "what_to_do"),
    [
        ("localhost", "; with a port, for example localhost:5555"),
        ("localhost:", "; with a port, for example localhost:5555"),
        ("localhost:http", "; with a port, for example localhost:5555"),
        ("127.0.0.1:-1", "; with a port, for example 127.0.0.1:5555"),
        ("::1", "; with brackets and a port, for example [::1]:5555"),
        ("[::1]", "; with brackets and a port, for example [::1]:5555"),
        ("::1:5555", "; with brackets, for example [::1]:5555"),
        ("::1:99999", ""),
        ("fe80::1%eth0:443", "; with brackets, for example [fe80::1%eth0]:443"),
        ("1:2:3:4:5:6:7:8:65535", "; with brackets, for example [1:2:3:4:5:6:7:8]:65535"),
        ("::1:5", "; with brackets and a port, for example [::1:5]:5555"),
        ("::1:55f5", "; with brackets and a port, for example [::1:55f5]:5555"),
        ("", ""),
        (":", ""),
        ("a b:5555", ""),
        ("'':5555", ""),
        ('"a":5555', ""),
        ("\x1b[2J:5555", ""),
        ("a\u202eb:5555", ""),
        ("\u0665\u0665\u0665\u0665", "; with a port, for example \u0665\u0665\u0665\u0665:5555"),
    ],
)
def test_what_is_no_address_and_what_it_may_have_been(text: str, what_to_do: str) -> None:
    with pytest.raises(ValueError, match=r"^an address is ") as caught:
        parse_address(text)
    assert str(caught.value) == f"an address is {GRAMMAR}, not {text!r}{what_to_do}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":65536", "a port is 0 to 65535, not 65536"),
        ("localhost:100000", "a port is 0 to 65535, not 100000"),
        ("localhost:000080", "a port is 0 to 65535, not 000080"),
        ("[localhost]:5555", "in brackets stands an IPv6 address, not 'localhost'"),
        ("[127.0.0.1]:5555", "in brackets stands an IPv6 address, not '127.0.0.1'"),
        ("[]:5555", "in brackets stands an IPv6 address, not ''"),
        ("unix:", "a path must stand behind 'unix:'"),
        (
            "http://localhost:80",
            f"an address is {GRAMMAR}, and no URL such as 'http://localhost:80'",
        ),
        ("tcp://[::1]:80/x", f"an address is {GRAMMAR}, and no URL such as 'tcp://[::1]:80/x'"),
    ],
)
def test_addresses_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^(a|an|in) ") as caught:
        parse_address(text)
    assert str(caught.value) == message


def test_a_port_of_very_many_digits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a port is 0 to 65535, not 999"):
        parse_address("9" * 10_000)


@given(st.text() | st.text(":[]0123456789/abf%.", max_size=12))
@example("[::1%]:1")
@example("[[::1]]:1")
@example(":::1")
@example("\n:1")
def test_any_text_is_an_address_or_refused_on_one_line(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError as error:
        shown = str(error)
    else:
        assert parse_address(str(address)) == address
        assert 0 <= address.port <= 65535
        shown = str(address) if address.path is None else ""
    assert shown.isprintable()


# -- names of sockets' addresses


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("127.0.0.1", 5555), "127.0.0.1:5555"),
        (("::1", 5555, 0, 0), "[::1]:5555"),
        (("fe80::1", 5555, 0, 2), "[fe80::1%2]:5555"),
        ("/run/socket", "unix:/run/socket"),
        ("/run/\x1b[2J\n", r"unix:/run/\x1b[2J\n"),
        (b"\0name\xff", r"unix:@name\xff"),
        (b"\0a\0b", r"unix:@a\x00b"),
        ("", "unix"),
        (b"", "unix"),
        (None, "unix"),
    ],
)
def test_names_of_addresses_are_printable(address: Any, name: str) -> None:
    assert name_of(address) == name


@pytest.mark.parametrize("host", ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])])
def test_the_name_of_a_sockets_address_is_an_address(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        address = listener.getsockname()
    assert parse_address(name_of(address)) == Address(host, address[1])


# -- as a parameter


@click.command()
@click.argument("address", type=ADDRESS, default=Address("localhost", 5555))
def show(address: Address) -> None:
    print(repr(address))


def test_an_address_as_a_parameter() -> None:
    assert CliRunner().invoke(show, [":1"]).output == "Address(host=None, port=1, path=None)\n"
    assert CliRunner().invoke(show).output == "Address(host='localhost', port=5555, path=None)\n"
    result = CliRunner().invoke(show, [":65536"])
    assert result.exit_code == 2
    assert "a port is 0 to 65535, not 65536" in result.output


@click.command()
@click.argument("address", type=SERVER)
def show_server(address: Address) -> None:
    print(address)


@pytest.mark.parametrize("address", ["localhost:1", "unix:/x"])
def test_the_address_of_a_server(address: str) -> None:
    assert CliRunner().invoke(show_server, [address]).output == f"{address}\n"


def test_a_server_has_no_port_0() -> None:
    result = CliRunner().invoke(show_server, [":0"])
    assert result.exit_code == 2
    assert "a server's port is 1 to 65535, not 0: ':0'" in result.output


# -- connecting


async def said(address: Address, **options: Any) -> str:
    """What comes back from the server there."""
    async with open_connection(address, Lines(), **options) as connection:
        await connection.send("hello")
        message: str = await connection.receive()
        return message


async def test_connections_to_hosts_and_to_the_machine_itself(nursery: trio.Nursery) -> None:
    serve = functools.partial(Server(echo, codec=Lines()).serve_tcp, 0, host="127.0.0.1")
    [listener] = await nursery.start(serve)
    port = listener.socket.getsockname()[1]
    assert await said(Address("127.0.0.1", port)) == "hello"
    Names(localhost=["127.0.0.1"])
    assert await said(Address(None, port), handshake_timeout=5) == "hello"


async def test_a_connection_to_a_unix_socket(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    await nursery.start(Server(echo, codec=Lines()).serve_unix, path)
    assert await said(Address(path=path)) == "hello"


async def test_a_path_too_long_for_a_socket_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match=r"cannot connect to '/x+': AF_UNIX path too long"):
        await said(Address(path="/" + "x" * 200))


@pytest.mark.parametrize(
    ("host", "certified"),
    [(None, "localhost"), ("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")],
)
async def test_certificates_are_checked_for_the_host(
    nursery: trio.Nursery, host: str | None, certified: str
) -> None:
    Names(localhost=["127.0.0.1"])
    authority = trustme.CA()
    right, wrong = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert(certified).configure_cert(right)
    authority.issue_cert("other.example").configure_cert(wrong)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    for context, name in ((right, None), (wrong, "other.example")):
        server = Server(echo, codec=Lines())
        serve = functools.partial(server.serve_tcp, 0, host="127.0.0.1", ssl_context=context)
        [listener] = await nursery.start(serve)
        address = Address(host, listener.socket.getsockname()[1])
        assert await said(address, ssl_context=client, server_hostname=name) == "hello"
    with pytest.raises(trio.BrokenResourceError, match="handshake failed"):
        await said(address, ssl_context=client)


async def test_certificates_of_unix_sockets_are_for_localhost_or_the_name_that_is_given(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    path = str(tmp_path / "socket")
    server = Server(echo, codec=Lines())
    await nursery.start(functools.partial(server.serve_unix, path, ssl_context=context))
    assert await said(Address(path=path), ssl_context=client) == "hello"
    with pytest.raises(trio.BrokenResourceError, match="handshake failed"):
        await said(Address(path=path), ssl_context=client, server_hostname="other.example")


@pytest.mark.skipif(not HAS_IPV6, reason="the machine has no IPv6")
async def test_a_zone_is_no_part_of_the_name_in_a_certificate(nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("::1").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = Server(echo, codec=Lines())
    serve = functools.partial(server.serve_tcp, 0, host="::1", ssl_context=context)
    [listener] = await nursery.start(serve)
    address = Address("::1%1", listener.socket.getsockname()[1])
    assert await said(address, ssl_context=client) == "hello"


# -- listening


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", "localhost"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_hosts_to_listen_on(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:7102",
        "[::1]:7102",
        "localhost:",
        "[localhost]",
        "unix:x",
        "/x",
        "a\x1bb",
        "a b",
        "''",
        '"::1"',
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a host is a name or an address, not ['\"].*; the port is f"
    ):
        parse_host(text)


@click.command()
@click.option("--host", type=HOST)
def listen(host: str) -> None:
    print(host)


def test_a_host_as_an_option() -> None:
    assert CliRunner().invoke(listen, ["--host", "[::1]"]).output == "::1\n"
    wrong = CliRunner().invoke(listen, ["--host", "x:1"])
    assert wrong.exit_code == 2
    assert "Invalid value for '--host': a host is a name or an address" in wrong.stderr


@pytest.mark.parametrize(
    ("listening", "reached"),
    [
        (("0.0.0.0", 1), ("127.0.0.1", 1)),
        (("::", 1, 0, 0), ("::1", 1, 0, 0)),
        (("127.0.0.2", 1), ("127.0.0.2", 1)),
        ("/run/socket", "/run/socket"),
    ],
)
def test_where_a_client_on_this_machine_connects(listening: Any, reached: Any) -> None:
    assert for_clients(listening) == reached


@pytest.mark.parametrize(
    ("incomplete", "is_path"),
    [("./s", True), ("/run/x", True), (".", True), ("unix:s", True), ("s", False), ("", False)],
)
def test_paths_are_completed(incomplete: str, is_path: bool) -> None:
    @click.command()
    @click.argument("address", type=SERVER)
    def go(address: Address) -> None: ...

    items = SERVER.shell_complete(click.Context(go), go.params[0], incomplete)
    assert [(item.value, item.type) for item in items] == [(incomplete, "file")] * is_path
