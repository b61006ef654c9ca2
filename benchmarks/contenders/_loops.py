"""The two event loops that asyncio's contenders run on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on the named loop, in the way its documentation starts it."""
    if loop == "uvloop":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)
