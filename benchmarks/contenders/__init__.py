"""The contenders: one server program each, run as a process of its own.

Every program listens on a free port of the loopback interface, prints ``LISTENING <port>``, and
serves until it is killed. Each is written as the documentation of its library would have it; where
that left a choice, it is the faster one.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

import attrs


@attrs.frozen
class Contender:
    """One server program and how to start it."""

    name: str
    """What the command line and the JSON call it."""

    title: str
    """What a reader of the table calls it."""

    module: str
    """The module to run, below ``benchmarks.contenders`` unless it has a dot."""

    options: tuple[str, ...] = ()
    """Options that make it this contender and not another from the same module."""

    requires: tuple[str, ...] = ()
    """Modules without which it cannot run."""

    ours: bool = False
    """Whether it is trio_bytetalk that is measured."""

    is_reference: bool = False
    """Whether it only shows a limit, and is not something to pick."""

    def missing(self) -> list[str]:
        """The modules that this contender needs and that are not installed."""
        return [module for module in self.requires if find_spec(module) is None]

    def command(self) -> list[str]:
        """The arguments that start it, after the interpreter."""
        module = self.module if "." in self.module else f"benchmarks.contenders.{self.module}"
        return ["-m", module, *self.options]


_OURS: Final = ("trio", "trio_bytetalk")
_UVLOOP: Final = ("--loop", "uvloop")

CONTENDERS: Final[dict[str, Contender]] = {
    contender.name: contender
    for contender in [
        Contender("ours", "trio_bytetalk, async for", "ours_iterator", (), _OURS, ours=True),
        Contender("ours-hooks", "trio_bytetalk, hooks", "ours_hooks", (), _OURS, ours=True),
        Contender(
            "ours-subscriber",
            "trio_bytetalk, async for, one subscriber",
            "ours_iterator",
            ("--subscriber",),
            _OURS,
            ours=True,
        ),
        Contender(
            "ours-lines",
            "trio_bytetalk, Lines",
            "ours_iterator",
            ("--framing", "lines"),
            _OURS,
            ours=True,
        ),
        Contender(
            "ours-delimited",
            "trio_bytetalk, Delimited",
            "ours_iterator",
            ("--framing", "delimited"),
            _OURS,
            ours=True,
        ),
        Contender(
            "ours-broadcast", "trio_bytetalk, broadcast", "ours_broadcast", (), _OURS, ours=True
        ),
        Contender("trio", "Trio, by hand", "trio_handwritten", (), ("trio",)),
        Contender("trio-unframed", "Trio, unframed bytes", "trio_unframed", (), ("trio",)),
        Contender("trio-broadcast", "Trio, loop of send_all", "trio_broadcast", (), ("trio",)),
        Contender("anyio", "anyio on Trio", "anyio_trio", (), ("anyio", "trio")),
        Contender(
            "anyio-buffered",
            "anyio on Trio, BufferedByteReceiveStream",
            "anyio_trio",
            ("--buffered-stream",),
            ("anyio", "trio"),
        ),
        Contender(
            "easynetwork", "EasyNetwork on Trio", "easynetwork_trio", (), ("easynetwork", "trio")
        ),
        Contender("asyncio-streams", "asyncio streams", "asyncio_streams"),
        Contender(
            "uvloop-streams", "asyncio streams, uvloop", "asyncio_streams", _UVLOOP, ("uvloop",)
        ),
        Contender("asyncio-protocol", "asyncio Protocol", "asyncio_protocol"),
        Contender(
            "uvloop-protocol", "asyncio Protocol, uvloop", "asyncio_protocol", _UVLOOP, ("uvloop",)
        ),
        Contender(
            "asyncio-readline", "asyncio readline", "asyncio_streams", ("--framing", "lines")
        ),
        Contender(
            "uvloop-readline",
            "asyncio readline, uvloop",
            "asyncio_streams",
            ("--framing", "lines", *_UVLOOP),
            ("uvloop",),
        ),
        Contender("twisted", "Twisted Int32StringReceiver", "twisted_int32", (), ("twisted",)),
        Contender(
            "ceiling-interface",
            "(ceiling: async for and send alone)",
            "ceiling_interface",
            (),
            ("trio",),
            is_reference=True,
        ),
        Contender(
            "ceiling-task",
            "(ceiling: a Trio task, unframed)",
            "ceiling_task",
            (),
            _OURS,
            is_reference=True,
        ),
        Contender("ceiling", "(ceiling: raw epoll echo)", "ceiling", is_reference=True),
        Contender(
            "ceiling-whole",
            "(ceiling: raw recv_into, whole messages)",
            "ceiling_whole",
            is_reference=True,
        ),
        Contender(
            "ceiling-broadcast",
            "(ceiling: raw socket.send loop)",
            "ceiling_broadcast",
            is_reference=True,
        ),
        Contender("ours-codec", "trio_bytetalk codecs", "benchmarks.probes", (), _OURS, ours=True),
        Contender(
            "bytearray-codec",
            "bytearray, by hand",
            "benchmarks.probes",
            ("--by-hand",),
        ),
        Contender("ours-import", "import trio_bytetalk", "benchmarks.probes", (), _OURS, ours=True),
    ]
}
"""Every contender, by name, in the order in which tables list them."""
