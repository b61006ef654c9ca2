"""Trio's tutorial echo server: bytes go back as they came, no message is looked for.

It does less than the others. It is here to show what Trio's own reading and writing cost.
"""

from __future__ import annotations

import trio

from benchmarks.contenders._echoing import serve


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


if __name__ == "__main__":
    serve(echo)
