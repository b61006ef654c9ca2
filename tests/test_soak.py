"""The load of soak/, in short."""

from __future__ import annotations

import resource

import pytest

from soak.run import Soak, check_limit, soak


async def test_every_message_is_accounted_for_and_nothing_is_left_behind() -> None:
    assert await soak(200, 10_000) == []


async def test_what_is_lost_is_told() -> None:
    load = Soak(5, 50, 0, lambda line: None)
    await load.run()
    assert load.faults == []
    load.counts["echoed"] -= 1
    load.counts["opened"] += 1
    load.compare()
    assert [fault.partition(":")[0] for fault in load.faults] == [
        "messages that came back once and in order",
        "connections_total",
        "client_connected",
        "client_disconnected",
    ]


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    with pytest.raises(SystemExit, match=r"need a limit of 9100 open files, and it is 1000; raise"):
        check_limit(9000)
