"""A language server made with pygls, or its client, which asks a server.

python pygls_peer.py lsp [PORT]

The server answers ``test/answer`` as answers.py says. The client asks for the same.
"""

import asyncio
import logging
import random
import sys
from typing import Any

from answers import answer_text
from lsprotocol import types
from pygls.lsp.client import LanguageClient
from pygls.lsp.server import LanguageServer

HOST = "127.0.0.1"


class TellPort(logging.Handler):
    """pygls tells of its port in its log only."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Serving on "):
            print("listening on port", text.rpartition(", ")[2].rstrip(")"))


def serve() -> None:
    server = LanguageServer("theirs", "1")

    @server.feature("test/answer")
    def answer(params: Any) -> str:
        return answer_text(params.text)

    log = logging.getLogger("pygls.server")
    log.setLevel(logging.INFO)
    log.addHandler(TellPort())
    server.start_tcp(HOST, 0)


async def ask(port: int) -> None:
    client = LanguageClient("curious", "1")
    await client.start_tcp(HOST, port)
    parameters = types.InitializeParams(
        capabilities=types.ClientCapabilities(), process_id=None, root_uri=None
    )
    result = await client.initialize_async(parameters)
    assert result.server_info is not None
    print("server", result.server_info.name)
    client.initialized(types.InitializedParams())

    dice = random.Random(8)
    alphabet = "abc \r\n\0{}[]\"':,äöüß€語"
    sizes = [*range(200), 100_000, *(int(2000 ** dice.random()) for _ in range(1800))]
    texts = ["".join(dice.choices(alphabet, k=size)) for size in sizes]
    for begin in range(0, len(texts), 100):  # so many at once
        requests = [
            client.protocol.send_request_async("test/answer", {"text": text})
            for text in texts[begin : begin + 100]
        ]
        answers = await asyncio.gather(*requests)
        assert answers == [answer_text(text) for text in texts[begin : begin + 100]]
    print(len(texts), "answers")
    await client.shutdown_async(None)
    client.exit(None)
    await client.stop()


_, protocol, *port = sys.argv
if port:
    asyncio.run(ask(int(port[0])))
else:
    serve()
