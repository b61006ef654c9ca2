"""TLS by options: what contexts they make, and what is said of files that are of no use."""

from __future__ import annotations

import errno
import io
import os
import ssl
import sys
from pathlib import Path
from typing import Any

import attrs
import click
import pytest
import trio
import trustme
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization

from trio_bytetalk import Connection, Lines, Server
from trio_bytetalk._cli.addresses import Address, open_connection
from trio_bytetalk._cli.tls import (
    ClientTls,
    client_tls,
    client_tls_options,
    server_context,
    server_tls_options,
)


@attrs.frozen
class Files:
    """What an authority has issued for localhost."""

    authority: str
    certificate: str
    key: str
    both: str
    other_key: str
    text: str


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    names = [
        str(folder / name)
        for name in ("ca.pem", "cert.pem", "key.pem", "both.pem", "other.pem", "text.pem")
    ]
    made = Files(*names)
    authority.cert_pem.write_to_path(made.authority)
    issued.cert_chain_pems[0].write_to_path(made.certificate)
    issued.private_key_pem.write_to_path(made.key)
    issued.private_key_and_cert_chain_pem.write_to_path(made.both)
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(made.other_key)
    Path(made.text).write_text("no certificate\n")
    return made


@click.command()
@server_tls_options
def serve(**options: Any) -> None:
    context = server_context(**options)
    print("no TLS" if context is None else f"TLS, {context.cert_store_stats()['x509']}")


@click.command()
@client_tls_options
def connect(**options: Any) -> None:
    tls = client_tls(**options)
    if tls.ssl_context is None:
        print("no TLS", tls.server_hostname)
    else:
        context = tls.ssl_context
        print(context.verify_mode.name, context.check_hostname, tls.server_hostname)


def invoke(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def error_of(command: click.Command, *arguments: str) -> str:
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


# -- servers


def test_a_server_without_options_has_no_tls() -> None:
    assert invoke(serve).output == "no TLS\n"


def test_a_servers_certificate_and_key_in_one_file_or_in_two(files: Files) -> None:
    assert invoke(serve, "--tls-cert", files.both).output == "TLS, 0\n"
    arguments = ["--tls-cert", files.certificate, "--tls-key", files.key]
    assert invoke(serve, *arguments).output == "TLS, 0\n"


def test_a_key_alone_is_a_mistake(files: Files) -> None:
    assert error_of(serve, "--tls-key", files.key) == (
        "Error: --tls-key is of use with --tls-cert FILE only"
    )


def test_a_certificate_without_its_key_says_where_the_key_could_be(files: Files) -> None:
    for path in (files.certificate, files.text):
        error = error_of(serve, "--tls-cert", path)
        assert error.startswith(f"Error: no certificate and its key in {path}: ")
        assert error.endswith(" (a key in another file is given by --tls-key FILE)")
        assert "_ssl.c" not in error  # it is nothing to anybody who reads this


def test_a_key_of_another_certificate_is_refused(files: Files) -> None:
    error = error_of(serve, "--tls-cert", files.certificate, "--tls-key", files.other_key)
    assert error.startswith(
        f"Error: no certificate and its key in {files.certificate} with {files.other_key}: "
    )
    assert "mismatch" in error.lower()
    assert "--tls-key FILE" not in error


def test_an_encrypted_key_is_refused_and_nobody_asked_for_its_password(
    files: Files, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    path, both = tmp_path / "encrypted.pem", tmp_path / "both.pem"
    path.write_bytes(encrypted)
    both.write_bytes(Path(files.certificate).read_bytes() + encrypted)
    for arguments, where in (
        (["--tls-cert", files.certificate, "--tls-key", str(path)], path),
        (["--tls-cert", str(both)], both),
    ):
        assert error_of(serve, *arguments) == (
            f"Error: the key in {where} is encrypted: have one that is not, by "
            f"openssl pkey -in {where} -out KEY"
        )


@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key"])
def test_a_servers_file_that_is_not_there(option: str, tmp_path: Path) -> None:
    assert error_of(serve, option, "nowhere.pem") == (
        f"Error: Invalid value for '{option}': File 'nowhere.pem' does not exist."
    )
    assert "is a directory" in error_of(serve, option, str(tmp_path))


# -- clients


def test_a_client_without_options_has_no_tls() -> None:
    assert invoke(connect).output == "no TLS None\n"


def test_each_option_of_a_client_means_tls(files: Files) -> None:
    assert invoke(connect, "--tls").output == "CERT_REQUIRED True None\n"
    assert invoke(connect, "--tls-ca", files.authority).output == "CERT_REQUIRED True None\n"
    assert invoke(connect, "--tls-name", "a.example").output == "CERT_REQUIRED True a.example\n"


def test_checking_nothing_comes_with_a_warning() -> None:
    for arguments in (["--tls-insecure"], ["--tls", "--tls-insecure"]):
        result = invoke(connect, *arguments)
        assert result.stdout == "CERT_NONE False None\n"
        assert result.stderr == "warning: --tls-insecure: the server may be anyone\n"


def test_a_warning_that_cannot_be_printed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    assert client(tls_insecure=True).ssl_context is not None


@pytest.mark.parametrize(
    "name", ["", ".example.org", "a..b", "a" * 64 + ".org", ".".join(5 * [60 * "a"])]
)
@pytest.mark.parametrize("more", [[], ["--tls-insecure"]], ids=["checked", "not checked"])
def test_what_cannot_be_a_name_is_refused(name: str, more: list[str]) -> None:
    result = invoke(connect, "--tls-name", name, *more)
    assert result.exit_code == 2
    assert "warning" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"Error: --tls-name is the name or the address of a host, which {name!r} cannot be"
    )


def test_to_trust_one_authority_and_to_check_nothing_is_a_contradiction(files: Files) -> None:
    assert error_of(connect, "--tls-insecure", "--tls-ca", files.authority) == (
        "Error: --tls-insecure checks nothing: give it or --tls-ca, not both"
    )


def test_an_authoritys_file_without_certificate(files: Files) -> None:
    for path in (files.text, files.key):
        error = error_of(connect, "--tls-ca", path)
        assert error.startswith(f"Error: no certificate in {path}: ")
        assert "_ssl.c" not in error


# -- both


async def greet(connection: Connection[str, str]) -> None:
    await connection.send("hello")


async def told(tls: ClientTls, context: ssl.SSLContext, path: Path) -> str:
    """What a server says over TLS."""
    async with trio.open_nursery() as nursery:
        server = Server(greet, codec=Lines())
        await nursery.start(lambda **kw: server.serve_unix(path, ssl_context=context, **kw))
        address = Address(path=str(path))
        async with open_connection(
            address, Lines(), tls.ssl_context, tls.server_hostname
        ) as connection:
            message: str = await connection.receive()
        nursery.cancel_scope.cancel()
    return message


def client(**options: Any) -> ClientTls:
    none = {"tls": False, "tls_ca": None, "tls_insecure": False, "tls_name": None}
    return client_tls(**{**none, **options})


async def test_a_client_and_a_server_by_options(files: Files, tmp_path: Path) -> None:
    context = server_context(files.both, None)
    assert context is not None
    good = [
        client(tls_ca=files.authority),
        client(tls_ca=files.authority, tls_name="localhost"),
        client(tls_insecure=True),
        client(tls_insecure=True, tls_name="other.example"),
    ]
    for number, tls in enumerate(good):
        assert await told(tls, context, tmp_path / f"good{number}") == "hello"
    bad = [client(tls=True), client(tls_ca=files.authority, tls_name="other.example")]
    for number, tls in enumerate(bad):
        with pytest.RaisesGroup(
            pytest.RaisesExc(trio.BrokenResourceError, match="handshake failed"),
            flatten_subgroups=True,
        ):
            await told(tls, context, tmp_path / f"bad{number}")
