"""What is measured: every load, who runs it, and the figures to reach.

A load knows how to measure one contender once, as a ``Sample``. Loads that are compared with each
other form a group, whose measurements are interleaved.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from benchmarks.contenders import Contender
from benchmarks.generator.clocks import Usage
from benchmarks.generator.echo import run_echo
from benchmarks.generator.fanout import run_fanout
from benchmarks.generator.held import run_held
from benchmarks.generator.latency import run_latency
from benchmarks.generator.traffic import BLOCK, Framing, Traffic, make_traffic
from benchmarks.generator.turnover import run_turnover
from benchmarks.processes import ROOT, Server, run_program, run_server

KIB: Final = 1 << 10
MIB: Final = 1 << 20


@attrs.frozen
class Sample:
    """One measurement of one contender."""

    value: float
    """In the load's unit."""

    per_cpu_second: float | None = None
    """Work done for each second of the server's processor time, where that makes sense. Other
    programs on the same machine change it far less than they change ``value``."""

    server_busy: float | None = None
    generator_busy: float | None = None
    disturbed: float = 0.0
    """The share of the time in which other programs had the processor of one of the two."""

    details: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen
class Setting:
    """How measurements are to be made in this run."""

    server_core: int | None
    warmup: float
    seconds: float
    certificate: Path
    """A server's certificate and key, in one file."""

    client_context: ssl.SSLContext
    roots: dict[str, Path] = attrs.field(factory=dict)
    """Checkouts that contenders are imported from, where it is not this one."""

    def root(self, contender: Contender) -> Path:
        """The checkout that this contender is imported from."""
        return self.roots.get(contender.name, ROOT)

    def server_command(self, contender: Contender, load: Load) -> list[str]:
        command = [*contender.command(), *load.options]
        if load.tls:
            command += ["--tls", str(self.certificate)]
        return command


@attrs.frozen(kw_only=True)
class Load(ABC):
    """One way of loading a server."""

    unit: ClassVar[str]
    lower_is_better: ClassVar[bool] = False

    name: str
    title: str
    contenders: tuple[str, ...]
    baseline: str | None = "trio"
    """The contender that the table sets to 1."""

    options: tuple[str, ...] = ()
    """Options for every contender's program."""

    tls: bool = False

    def measure(self, contender: Contender, setting: Setting) -> Sample:
        """Start the contender's server, load it, and end it."""
        command = setting.server_command(contender, self)
        root = setting.root(contender)
        with run_server(command, setting.server_core, root) as server:
            return self._load(server, setting)

    @abstractmethod
    def _load(self, server: Server, setting: Setting) -> Sample: ...

    def settings(self) -> dict[str, Any]:
        """What a reader of the JSON needs to know to repeat this load."""
        return attrs.asdict(
            self, filter=lambda field, _: field.name not in {"name", "title", "contenders"}
        )


@lru_cache(maxsize=2)  # the largest takes 128 MiB
def _traffic(size: int, window: int, framing: Framing) -> Traffic:
    return make_traffic(size, window, framing)


def _sample(value: float, work: float, usage: Usage, **details: float) -> Sample:
    return Sample(
        value,
        work / usage.server_cpu if usage.server_cpu else None,
        usage.server_busy,
        usage.generator_busy,
        usage.disturbed,
        details,
    )


@attrs.frozen(kw_only=True)
class EchoLoad(Load):
    """Messages there and back."""

    unit = "messages/s"
    connections: int
    size: int
    window: int
    framing: Framing = "length"
    piece: int = BLOCK
    time_factor: float = 1.0
    """How much longer than usual to measure: large messages are too few otherwise."""

    def _load(self, server: Server, setting: Setting) -> Sample:
        echoed = run_echo(
            server.port,
            server.clock,
            _traffic(self.size, self.window, self.framing),
            connections=self.connections,
            window=self.window,
            piece=self.piece,
            tls=setting.client_context if self.tls else None,
            warmup=setting.warmup * self.time_factor,
            seconds=setting.seconds * self.time_factor,
        )
        return self._sample(echoed.messages, echoed.size, echoed.usage)

    def _sample(self, messages: float, size: int, usage: Usage) -> Sample:
        rate = messages / usage.elapsed
        return _sample(rate, messages, usage, megabytes_per_second=size / usage.elapsed / 1e6)


@attrs.frozen(kw_only=True)
class VolumeLoad(EchoLoad):
    """The same, in bytes: for messages of different sizes."""

    unit = "MB/s"

    def _sample(self, messages: float, size: int, usage: Usage) -> Sample:
        return _sample(size / usage.elapsed / 1e6, size / 1e6, usage, messages=messages)


@attrs.frozen(kw_only=True)
class CostLoad(EchoLoad):
    """The same, by what it costs the server: for loads that the generator cannot send fast."""

    unit = "MB/s of CPU time"

    def _sample(self, messages: float, size: int, usage: Usage) -> Sample:
        rate = size / usage.server_cpu / 1e6
        return _sample(rate, size / 1e6, usage, megabytes_per_second=size / usage.elapsed / 1e6)


@attrs.frozen(kw_only=True)
class LatencyLoad(Load):
    """One message there and back at a time."""

    unit = "µs, median"
    lower_is_better = True
    size: int

    def _load(self, server: Server, setting: Setting) -> Sample:
        trips = run_latency(
            server.port,
            server.clock,
            _traffic(self.size, 1, "length"),
            warmup=setting.warmup,
            seconds=setting.seconds,
        )
        return _sample(
            trips.median * 1e6,
            trips.count,
            trips.usage,
            percentile_99=trips.percentile_99 * 1e6,
        )


@attrs.frozen(kw_only=True)
class TurnoverLoad(Load):
    """Connections accepted, used once, and closed."""

    unit = "connections/s"
    at_once: int
    size: int

    def _load(self, server: Server, setting: Setting) -> Sample:
        turnover = run_turnover(
            server.port,
            server.clock,
            _traffic(self.size, 1, "length"),
            at_once=self.at_once,
            warmup=setting.warmup,
            seconds=setting.seconds,
        )
        rate = turnover.connections / turnover.usage.elapsed
        return _sample(rate, turnover.connections, turnover.usage)


@attrs.frozen(kw_only=True)
class HeldLoad(Load):
    """Connections held idle."""

    unit = "bytes/connection"
    lower_is_better = True
    connections: int
    size: int

    def _load(self, server: Server, setting: Setting) -> Sample:
        traffic = _traffic(self.size, 1, "length")
        return Sample(
            run_held(server.port, server.resident_bytes, traffic, connections=self.connections)
        )


@attrs.frozen(kw_only=True)
class BroadcastLoad(Load):
    """One message to everybody."""

    unit = "deliveries/s"
    connections: int
    size: int

    def _load(self, server: Server, setting: Setting) -> Sample:
        fanout = run_fanout(
            server.port,
            server.clock,
            _traffic(self.size, 1, "length"),
            connections=self.connections,
            warmup=setting.warmup,
            seconds=setting.seconds,
        )
        return _sample(
            self.connections / fanout.median,
            self.connections * fanout.count,
            fanout.usage,
            milliseconds=fanout.median * 1e3,
        )


@attrs.frozen(kw_only=True)
class ProbeLoad(Load):
    """A program that measures itself: see ``probes.py``."""

    unit = "MB/s of CPU time"
    size: int

    def _load(self, server: Server, setting: Setting) -> Sample:
        raise NotImplementedError("a probe has no server")

    def measure(self, contender: Contender, setting: Setting) -> Sample:
        command = [*contender.command(), *self.options, f"--seconds={setting.seconds}"]
        root = setting.root(contender)
        seconds = float(run_program(command, setting.server_core, root))
        return Sample(self.size / seconds / 1e6)


@attrs.frozen(kw_only=True)
class ImportLoad(Load):
    """What importing the library adds."""

    unit = "ms"
    lower_is_better = True

    def _load(self, server: Server, setting: Setting) -> Sample:
        raise NotImplementedError("an import has no server")

    def measure(self, contender: Contender, setting: Setting) -> Sample:
        command = [*contender.command(), *self.options]
        # The first run may have to compile; the second finds what it wrote.
        for _ in range(2):
            output = run_program(command, setting.server_core, setting.root(contender))
        return Sample(float(output) * 1e3)


@attrs.frozen
class Group:
    """Loads that are measured in turn, so that one can be compared with another."""

    name: str
    title: str
    loads: tuple[Load, ...]

    def is_series(self) -> bool:
        """Whether the same contenders run loads that differ in one number."""
        return len(self.loads) > 1


_STREAMS: Final = ("asyncio-streams", "uvloop-streams")
_ECHO: Final = (
    "ours",
    "ours-hooks",
    "trio",
    "trio-unframed",
    "anyio",
    "anyio-buffered",
    "easynetwork",
    *_STREAMS,
    "asyncio-protocol",
    "uvloop-protocol",
    "twisted",
)
# What these could reach at the most: with one task for each connection, and at all.
_CEILINGS: Final = ("ceiling-task", "ceiling")

_SIZES: Final = tuple(16 * 4**step for step in range(12))  # 16 B to 64 MiB
_COUNTS: Final = (10, 100, 1000, 3000, 9000)
_PIECES: Final = (KIB, 256 * KIB)
_SEARCHES: Final = (1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)


def size_title(size: int) -> str:
    """A number of bytes, as people write it."""
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} B"


GROUPS: Final[dict[str, Group]] = {
    group.name: group
    for group in [
        Group(
            "burst",
            "Bursts",
            (
                EchoLoad(
                    name="burst",
                    title="10 connections, 64-byte messages, 1000 in flight each",
                    contenders=(*_ECHO, "ours-subscriber", "ceiling-interface", "ceiling"),
                    connections=10,
                    size=64,
                    window=1000,
                ),
            ),
        ),
        Group(
            "ping50",
            "Request and reply",
            (
                EchoLoad(
                    name="ping50",
                    title="50 connections, 64-byte messages, one in flight each",
                    contenders=(*_ECHO, *_CEILINGS),
                    connections=50,
                    size=64,
                    window=1,
                ),
            ),
        ),
        Group(
            "ping1000",
            "Request and reply, many connections",
            (
                EchoLoad(
                    name="ping1000",
                    title="1000 connections, 64-byte messages, one in flight each",
                    contenders=(*_ECHO, *_CEILINGS),
                    connections=1000,
                    size=64,
                    window=1,
                ),
            ),
        ),
        Group(
            "latency",
            "Round trip",
            (
                LatencyLoad(
                    name="latency",
                    title="1 connection, 64-byte messages, one in flight: median round trip",
                    contenders=(*_ECHO, *_CEILINGS),
                    size=64,
                ),
            ),
        ),
        Group(
            "bulk",
            "Bulk",
            (
                EchoLoad(
                    name="bulk",
                    title="4 connections, 64 KiB messages, 8 in flight each",
                    contenders=(*_ECHO, *_CEILINGS),
                    connections=4,
                    size=64 * KIB,
                    window=8,
                ),
            ),
        ),
        Group(
            "memory",
            "Idle connections",
            (
                HeldLoad(
                    name="memory",
                    title="resident memory for an idle connection, 9,000 held",
                    contenders=_ECHO,
                    connections=9000,
                    size=64,
                ),
            ),
        ),
        Group(
            "accept",
            "Accepting",
            (
                TurnoverLoad(
                    name="accept",
                    title="connections opened, used for one message and closed, 20 at a time",
                    contenders=(*_ECHO, *_CEILINGS),
                    at_once=20,
                    size=64,
                ),
            ),
        ),
        Group(
            "tls",
            "TLS",
            (
                EchoLoad(
                    name="tls",
                    title="TLS, 10 connections, 64-byte messages, 1000 in flight each",
                    contenders=("ours", "ours-hooks", "trio", "ceiling"),
                    tls=True,
                    connections=10,
                    size=64,
                    window=1000,
                ),
            ),
        ),
        Group(
            "broadcast",
            "Broadcast",
            (
                BroadcastLoad(
                    name="broadcast",
                    title="a 64-byte message to 5,000 connections",
                    contenders=("ours-broadcast", "trio-broadcast", "ceiling-broadcast"),
                    baseline="trio-broadcast",
                    connections=5000,
                    size=64,
                ),
            ),
        ),
        Group(
            "lines",
            "Lines",
            (
                EchoLoad(
                    name="lines",
                    title="lines of 64 bytes, 10 connections, 1000 in flight each",
                    contenders=(
                        "ours-lines",
                        "ours-delimited",
                        "asyncio-readline",
                        "uvloop-readline",
                        "ceiling",
                    ),
                    baseline="asyncio-readline",
                    connections=10,
                    size=64,
                    window=1000,
                    framing="lines",
                ),
            ),
        ),
        Group(
            "sizes",
            "Messages from 16 B to 64 MiB, 2 connections",
            tuple(
                VolumeLoad(
                    name=f"size-{size}",
                    title=size_title(size),
                    contenders=("ours", "trio", "uvloop-protocol", "ceiling"),
                    options=(f"--max-size={_SIZES[-1]}",),
                    connections=2,
                    size=size,
                    # Two at least, so that the server has one to work on while one is under way.
                    window=max(2, min(4096, 256 * KIB // size)),
                    # Enough of the largest to come and go several times.
                    time_factor=5.0 if size > 4 * MIB else 2.0 if size > 256 * KIB else 1.0,
                )
                for size in _SIZES
            ),
        ),
        Group(
            "pieces",
            "A 64 MiB message that arrives in pieces, 2 connections",
            tuple(
                CostLoad(
                    name=f"pieces-{piece}",
                    title=f"pieces of {size_title(piece)}",
                    contenders=("ours", "trio", "ceiling-whole"),
                    options=(f"--max-size={64 * MIB}",),
                    connections=2,
                    size=64 * MIB,
                    window=2,
                    piece=piece,
                    time_factor=4.0,
                )
                for piece in _PIECES
            ),
        ),
        Group(
            "connections",
            "Connections from 10 to 9,000, 64-byte messages, one in flight each",
            tuple(
                EchoLoad(
                    name=f"connections-{count}",
                    title=f"{count:,} connections",
                    contenders=("ours", "trio", "uvloop-protocol", *_CEILINGS),
                    connections=count,
                    size=64,
                    window=1,
                )
                for count in _COUNTS
            ),
        ),
        Group(
            "decoding",
            "A 64 MiB message decoded from pieces, without I/O",
            tuple(
                ProbeLoad(
                    name=f"decoding-{piece}",
                    title=f"pieces of {size_title(piece)}",
                    contenders=("ours-codec", "bytearray-codec"),
                    baseline="bytearray-codec",
                    options=("decode", f"--size={64 * MIB}", f"--piece={piece}"),
                    size=64 * MIB,
                )
                for piece in _PIECES
            ),
        ),
        Group(
            "searching",
            "A delimiter that does not come, in pieces of 4 KiB, without I/O",
            tuple(
                ProbeLoad(
                    name=f"searching-{size}",
                    title=f"after {size_title(size)}",
                    contenders=("ours-codec", "bytearray-codec"),
                    baseline="bytearray-codec",
                    options=("search", f"--size={size}", "--piece=4096"),
                    size=size,
                )
                for size in _SEARCHES
            ),
        ),
        Group(
            "import",
            "Import",
            (
                ImportLoad(
                    name="import",
                    title="what import trio_bytetalk adds to import trio",
                    contenders=("ours-import",),
                    baseline=None,
                    options=("import",),
                ),
            ),
        ),
    ]
}
"""Every group, by name, in the order in which they run."""


@attrs.frozen
class Point:
    """One contender under one load."""

    load: str
    contender: str


@attrs.frozen
class Fraction:
    """A product of figures over another, all of the same round."""

    over: tuple[Point, ...]
    under: tuple[Point, ...] = ()


@attrs.frozen
class Goal:
    """A figure to reach."""

    title: str
    against: str
    limit: float
    fractions: tuple[Fraction, ...]
    """More than one: the worst of them counts."""

    at_most: bool = False
    unit: str = ""


def _ratio(
    load: str, subject: str, against: str, limit: float, *, title: str = "", at_most: bool = False
) -> Goal:
    from benchmarks.contenders import CONTENDERS

    loads = {one.name: one for group in GROUPS.values() for one in group.loads}
    fraction = Fraction((Point(load, subject),), (Point(load, against),))
    return Goal(title or loads[load].title, CONTENDERS[against].title, limit, (fraction,), at_most)


def _within(load: str, subject: str, base: str) -> Fraction:
    return Fraction((Point(load, subject),), (Point(base, subject),))


GOALS: Final = (
    _ratio("burst", "ours", "trio", 18),
    _ratio("burst", "ours", "twisted", 1.8),
    _ratio("burst", "ours", "uvloop-protocol", 7),
    _ratio("ping50", "ours", "trio", 2.2),
    _ratio("ping50", "ours", "asyncio-streams", 1.1),
    _ratio("ping1000", "ours", "trio", 2.2),
    _ratio("latency", "ours", "trio", 1.05, at_most=True),
    _ratio("bulk", "ours", "trio", 2.5),
    _ratio("bulk", "ours", "uvloop-protocol", 1.0),
    _ratio("memory", "ours", "trio", 1.25, at_most=True),
    _ratio("accept", "ours", "trio", 0.9, title="rate of accepting connections"),
    _ratio("tls", "ours", "trio", 10),
    _ratio(
        "burst",
        "ours-subscriber",
        "ours",
        0.6,
        title="bursts with one subscriber on message_received",
    ),
    _ratio("burst", "ours-hooks", "ours", 0.7, title="bursts received through on_message hooks"),
    _ratio("broadcast", "ours-broadcast", "trio-broadcast", 3),
    _ratio("lines", "ours-lines", "asyncio-readline", 5, title="Lines under bursts"),
    _ratio("lines", "ours-delimited", "asyncio-readline", 5, title="Delimited under bursts"),
    Goal(
        "bytes per second never fall as messages grow from 16 B to 64 MiB (worst step)",
        "ours, a quarter of the size",
        0.95,  # what repeated measurements of one size differ by
        tuple(
            _within(f"size-{larger}", "ours", f"size-{smaller}")
            for smaller, larger in pairwise(_SIZES)
        ),
    ),
    Goal(
        "a 64 MiB message in 1 KiB pieces, by CPU time, over what the system calls explain",
        "ours, 256 KiB pieces",
        0.8,
        (
            Fraction(
                (Point("pieces-1024", "ours"), Point("pieces-262144", "ceiling-whole")),
                (Point("pieces-262144", "ours"), Point("pieces-1024", "ceiling-whole")),
            ),
        ),
    ),
    Goal(
        "messages per second with 9,000 connections",
        "ours, 10 connections",
        0.75,
        (_within("connections-9000", "ours", "connections-10"),),
    ),
    Goal(
        "a delimiter that does not come for 64 MiB: bytes per second",
        "ours, 1 MiB",
        0.67,  # caches; a rescan for each piece would make it 1/64
        (_within(f"searching-{64 * MIB}", "ours-codec", f"searching-{MIB}"),),
    ),
    Goal(
        "import trio_bytetalk, after import trio",
        "",
        30.0,
        (Fraction((Point("import", "ours-import"),)),),
        at_most=True,
        unit="ms",
    ),
)
"""The figures to reach, in the order of the table that sets them."""
