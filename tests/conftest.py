"""What several test modules share."""

from __future__ import annotations

import functools
import json
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import attrs
import coverage
import hypothesis
import pytest
import trio
import trustme
from cancelling import Moment
from pairs import KINDS, TIGHT_KINDS, Pair

from trio_bytetalk import Connection, _epoll, open_connection

# How long an example takes, or takes to be made, says more of the machine than of the code.
hypothesis.settings.register_profile(
    "trio_bytetalk", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("trio_bytetalk")

# Longer than any test takes, on a busy machine too.
_PATIENCE = 60

Connect = Callable[..., Connection[Any, Any]]
StreamT = TypeVar("StreamT", bound=trio.abc.Stream)


def pytest_configure() -> None:
    # Where a shell started us in the background it is ignored, and programs that we start inherit
    # that. To hear of it is the business of several.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """End a test that hangs, so that the others run."""
    too_long = False

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        nonlocal too_long
        too_long = True
        signal.raise_signal(signal.SIGINT)  # for Trio knows how to end with that

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    try:
        yield
    except BaseException as error:
        if too_long:
            raise TimeoutError(f"the test took more than {_PATIENCE} seconds") from error
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def _context(request: pytest.FixtureRequest) -> None:
    """What ``--cov`` notes from here on belongs to this module: ``own_coverage.py`` asks for it.

    ``--cov-context=test`` would have it belong to the test, which takes longer by a third.
    """
    if request.config.pluginmanager.hasplugin("_cov"):  # and not the mutation run's own coverage
        measuring = coverage.Coverage.current()
        if measuring is not None:
            measuring.switch_context(request.node.nodeid)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record's own fields, without their prefix, as a formatter that writes JSON has them."""
    fields = {
        name.removeprefix("bytetalk_"): value
        for name, value in vars(record).items()
        if name.startswith("bytetalk_")
    }
    assert json.loads(json.dumps(fields)) == fields
    return fields


@pytest.fixture(params=KINDS)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Two connected streams, of each kind in turn."""
    left, right = KINDS[request.param]()
    yield left, right
    await trio.aclose_forcefully(left)
    await trio.aclose_forcefully(right)


@pytest.fixture(params=TIGHT_KINDS)
async def tight_pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    """Two connected streams that are soon full, of each kind in turn."""
    left, right = TIGHT_KINDS[request.param]()
    yield left, right
    await trio.aclose_forcefully(left)
    await trio.aclose_forcefully(right)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`open_connection`, whose connections are closed at the end of the test."""
    opened = []

    @functools.wraps(open_connection)
    def connect(stream: trio.abc.Stream, **options: Any) -> Connection[Any, Any]:
        connection = open_connection(stream, **options)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        await trio.aclose_forcefully(connection)


@attrs.frozen
class Tls:
    """Contexts for both sides of a TLS connection with example.org."""

    server: ssl.SSLContext
    client: ssl.SSLContext

    def at_server(self, stream: StreamT) -> trio.SSLStream[StreamT]:
        """The server's end of TLS over ``stream``."""
        return trio.SSLStream(stream, self.server, server_side=True)

    def at_client(self, stream: StreamT) -> trio.SSLStream[StreamT]:
        """The client's."""
        return trio.SSLStream(stream, self.client, server_hostname="example.org")


@pytest.fixture(scope="session")
def tls() -> Tls:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Tls(server, client)


@pytest.fixture(params=["alone", "in a crowd"])
def company(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's few sockets are waited for one by one, and then as if they were many."""
    if request.param == "in a crowd":
        monkeypatch.setattr(_epoll, "_FEW", 0)


@pytest.fixture(params=["as it stops", "before it goes on"])
def moment(request: pytest.FixtureRequest) -> Moment:
    """Where in a task's wait it is cancelled."""
    result: Moment = request.param
    return result
