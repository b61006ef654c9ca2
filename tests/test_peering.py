"""That no test with Node.js is left out silently, and that a peer's failure is a test's."""

from __future__ import annotations

from pathlib import Path

import peering
import pytest
import trio
from peering import PATIENCE, running


def test_without_its_packages_tests_with_node_are_skipped_by_choice_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peering, "NODE_PACKAGES", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"install\.py"):
        peering.node()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"install\.py"):
        peering.node()


async def test_a_peer_that_fails_fails_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(PATIENCE), pytest.raises(AssertionError):
        async with running("twisted_peer.py", "NoSuchProtocol"):
            pass
    assert "KeyError: 'NoSuchProtocol'" in capsys.readouterr().out
