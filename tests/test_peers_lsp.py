"""The Language Server Protocol's framing and first steps, with pygls and vscode-jsonrpc."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from peering import (
    answer_text,
    connected_to,
    node_package,
    python_package,
    served_to,
    speaks,
    texts,
)

from trio_bytetalk import Connection, ContentLength

Rpc = dict[str, Any]  # a message of JSON-RPC 2.0
CODEC = ContentLength().json(Rpc)
WRITTEN = "``ContentLength().json(…)``"
CAPABILITIES: Rpc = {"capabilities": {}, "processId": None, "rootUri": None}


def request(number: int, method: str, params: object = None) -> Rpc:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


async def ask_and_check(connection: Connection[Rpc, Rpc]) -> None:
    """Ask for the answers to thousands of texts."""
    questions = texts()

    async def ask() -> None:
        for number, text in enumerate(questions):
            await connection.send(request(number, "test/answer", {"text": text}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        answers = {}
        for _ in questions:
            answer = await connection.receive()
            answers[answer["id"]] = answer["result"]
    for number, text in enumerate(questions):
        if answers[number] != answer_text(text):
            raise AssertionError(f"{text!r:.80} should not give {answers[number]!r:.80}")


@speaks(WRITTEN, python_package("pygls"), part="server")
async def test_our_client_with_a_language_server_of_pygls() -> None:
    async with connected_to("pygls_peer.py", "lsp", codec=CODEC) as connection:
        await connection.send(request(0, "initialize", CAPABILITIES))
        answer = await connection.receive()
        assert answer["result"]["serverInfo"] == {"name": "theirs", "version": "1"}
        await connection.send({"jsonrpc": "2.0", "method": "initialized", "params": {}})
        await ask_and_check(connection)
        await connection.send(request(1, "shutdown"))
        assert await connection.receive() == {"jsonrpc": "2.0", "id": 1, "result": None}
        await connection.send_eof()
        with pytest.raises(trio.EndOfChannel):
            await connection.receive()


@speaks(WRITTEN, python_package("pygls"), part="client")
async def test_our_server_with_a_client_of_pygls() -> None:
    methods = []

    async def serve(connection: Connection[Rpc, Rpc]) -> None:
        async for message in connection:
            method = message["method"]
            methods.append(method)
            result: Any = None
            if method == "initialize":
                result = {"capabilities": {}, "serverInfo": {"name": "ours"}}
            elif method == "test/answer":
                result = answer_text(message["params"]["text"])
            if "id" in message:
                await connection.send({"jsonrpc": "2.0", "id": message["id"], "result": result})
            if method == "exit":
                return

    lines = await served_to("pygls_peer.py", "lsp", codec=CODEC, handler=serve)
    assert lines == ["server ours", "2001 answers"]
    assert methods[:3] == ["initialize", "initialized", "test/answer"]
    assert methods[-2:] == ["shutdown", "exit"]


@speaks(WRITTEN, node_package("vscode-jsonrpc"), part="server")
async def test_our_client_with_vscode_jsonrpc() -> None:
    async with connected_to("node_peer.cjs", "vscode-jsonrpc", codec=CODEC) as connection:
        await ask_and_check(connection)


@speaks(WRITTEN, node_package("vscode-jsonrpc"), part="client")
async def test_our_server_with_vscode_jsonrpc() -> None:
    lines = await served_to("node_peer.cjs", "vscode-jsonrpc", codec=CODEC, handler=ask_and_check)
    assert lines == []
