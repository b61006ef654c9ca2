"""Any bytes, to every reader and writer of the package: what fuzzing/ checks, without a fuzzer.

By hypothesis, for each codec; and with all the bytes that the fuzzer has kept.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trio_bytetalk
from fuzzing import __main__ as fuzzing_main
from fuzzing import buffer, codecs, connections, messages, readers
from fuzzing.choices import Choices
from trio_bytetalk import (
    NEED_DATA,
    Codec,
    InvalidMessageError,
    Reader,
    ReceiveBuffer,
    Writer,
)
from trio_bytetalk._codec import AheadReader

CHECKS: dict[str, Callable[[bytes], None]] = {
    "readers": readers.check,
    "messages": messages.check,
    "buffer": buffer.check,
    "connections": connections.check,
}

FUZZING = pathlib.Path(fuzzing_main.__file__).parent

# The settings of a codec and of the ones that it is on top of, and what to do with it.
SETTINGS = st.binary(max_size=12)


def classes_of_package(base: type[Any]) -> Iterator[type[Any]]:
    """The subclasses of ``base`` in all modules of the package that have instances."""
    for module in pkgutil.walk_packages(trio_bytetalk.__path__, f"{trio_bytetalk.__name__}."):
        for found in vars(importlib.import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, base) and not is_abstract(found):
                yield found


def is_abstract(found: type[Any]) -> bool:
    return inspect.isabstract(found) or found.__name__.startswith("_")


def test_every_codec_of_the_package_is_fuzzed() -> None:
    assert set(classes_of_package(Codec)) == set(codecs.FAMILIES)


@pytest.mark.parametrize(("base", "make"), [(Reader, "reader"), (Writer, "writer")])
def test_every_reader_and_writer_of_the_package_is_fuzzed(base: type[Any], make: str) -> None:
    made = set()
    for family in codecs.FAMILIES.values():
        for byte in range(256):
            codec = family(Choices(bytes([byte]) * 12))
            made |= {type(getattr(layer, make)()) for layer in codecs.layers(codec)}
    assert made == set(classes_of_package(base))


def test_all_targets_are_known_to_the_fuzzer_and_replayed() -> None:
    assert set(CHECKS) == set(fuzzing_main.TARGETS)
    kept = {path.name for path in FUZZING.glob("*/*") if path.is_dir()} - {"__pycache__"}
    assert kept == set(CHECKS)


@pytest.mark.parametrize("family", codecs.FAMILIES, ids=lambda family: family.__name__)
@given(setting=SETTINGS, rest=st.binary(max_size=150))
@settings(max_examples=150)
def test_any_bytes_in_any_pieces_are_the_same_messages_or_the_same_error(
    family: type[Codec[Any, Any]], setting: bytes, rest: bytes
) -> None:
    readers.check_reader(codecs.FAMILIES[family](Choices(setting)), Choices(rest))


@pytest.mark.parametrize("family", codecs.FAMILIES, ids=lambda family: family.__name__)
@given(setting=SETTINGS, rest=st.binary(max_size=100))
@settings(max_examples=100)
def test_any_message_is_received_as_it_was_sent_or_cannot_be_sent(
    family: type[Codec[Any, Any]], setting: bytes, rest: bytes
) -> None:
    messages.check_writer(codecs.FAMILIES[family](Choices(setting)), Choices(rest))


@given(st.binary(max_size=100))
def test_any_calls_of_a_buffer_are_as_if_it_were_one_piece(data: bytes) -> None:
    buffer.check(data)


@given(st.binary(max_size=150))
def test_any_bytes_through_a_connection_with_changing_readers(data: bytes) -> None:
    connections.check(data)


@pytest.mark.parametrize("target", CHECKS)
def test_what_the_fuzzer_has_kept(target: str) -> None:
    kept = sorted(FUZZING.glob(f"*/{target}/*"))
    assert kept
    for path in kept:
        try:
            CHECKS[target](path.read_bytes())
        except BaseException as error:
            error.add_note(f"with the bytes of {path}")
            raise


# -- that it would notice


class GoodReader(AheadReader[bytes]):
    """A byte that says how many follow."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        header = buffer.peek(1)
        if header is None:
            return NEED_DATA
        message = buffer.take(header[0], skip=1)
        return NEED_DATA if message is None else message

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        return []


class Raising(GoodReader):
    """Raises what is no ProtocolError."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        message = super().decode(buffer)
        return message if message is NEED_DATA else bytes([len(message) + 256 - message[0]])


class Hasty(GoodReader):
    """Takes the header before the rest is there."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        header = buffer.take(1)
        message = None if header is None else buffer.take(header[0])
        return NEED_DATA if message is None else message


class Greedy(GoodReader):
    """Waits for more than the message has."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        message = super().decode(buffer)
        if message is NEED_DATA and len(buffer):
            buffer.wanted += 1
        return message


class Cut(GoodReader):
    """Takes what has come for the message."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        message = super().decode(buffer)
        if message is NEED_DATA:
            buffer.wanted = 0
            if len(buffer) > 1:
                return buffer.take(len(buffer))
        return message


class Changing(GoodReader):
    """Refuses once, and not the next time."""

    refused = False

    def decode(self, buffer: ReceiveBuffer) -> Any:
        if buffer.peek(1) == b"\xff" and not self.refused:
            self.refused = True
            raise InvalidMessageError("no", reason="no", frame=b"")
        return super().decode(buffer)


class Forging(GoodReader):
    """Shows the peer's bytes as they are in an error."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        message = super().decode(buffer)
        if message is not NEED_DATA and b"\n" in message:
            raise InvalidMessageError(message.decode("latin-1"), reason="", frame=message)
        return message


class Ahead(GoodReader):
    """Decodes other messages when it decodes ahead."""

    def decode_ahead(self, buffer: ReceiveBuffer, most: int) -> list[bytes]:
        message = self.decode(buffer)
        return [] if message is NEED_DATA else [message + b"!"]


class Slow(GoodReader):
    """Looks at all bytes again with each piece."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        for _ in range(20):
            buffer.peek(len(buffer))
        return super().decode(buffer)


class Trusting(GoodReader):
    """Takes memory for what is announced."""

    def decode(self, buffer: ReceiveBuffer) -> Any:
        header = buffer.peek(1)
        if header:
            bytearray(header[0] * 100_000)
        return super().decode(buffer)


class GoodWriter(Writer[bytes]):
    def encode(self, message: bytes) -> bytes:
        return bytes([len(message)]) + message


class Losing(GoodWriter):
    """Sends something else."""

    def encode(self, message: bytes) -> bytes:
        return super().encode(message.replace(b"a", b"b"))


class Plain(Codec[bytes, bytes]):
    def __init__(self, reader: type[Reader[bytes]], writer: type[Writer[bytes]]) -> None:
        self._reader = reader
        self._writer = writer

    def reader(self) -> Reader[bytes]:
        return self._reader()

    def writer(self) -> Writer[bytes]:
        return self._writer()


# In single bytes, decoded one ahead, nothing in frames; and the bytes themselves.
STREAM = b"\0\0\0\0" + b"\3abc\2a\n\0" + b"\x80" + bytes(range(128)) + b"\2aa" + b"\xff" * 50


def test_the_harness_passes_what_is_right() -> None:
    readers.check_reader(Plain(GoodReader, GoodWriter), Choices(STREAM))


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        (Raising, "index out of range"),
        (Hasty, "NEED_DATA, but bytes were taken"),
        (Greedy, "a message with fewer bytes than were wanted"),
        (Cut, "of it as a whole"),
        (Changing, "is followed by"),
        (Forging, "could forge a log line"),
        (Ahead, "decoded ahead it is another message"),
        (Slow, "bytes were looked at or copied"),
        (Trusting, "bytes of memory for"),
    ],
)
def test_the_harness_tells_of_a_reader_that(reader: type[Reader[bytes]], told: str) -> None:
    with pytest.raises(Exception, match=told):
        readers.check_reader(Plain(reader, GoodWriter), Choices(STREAM))


def test_the_harness_tells_of_a_writer_that_sends_something_else() -> None:
    codec = Plain(GoodReader, Losing)
    with pytest.raises(AssertionError, match="came of the frame"):
        readers.check_reader(codec, Choices(STREAM))
    with pytest.raises(AssertionError, match=r"came of b'abc'"):
        messages.check_writer(codec, Choices(b"\0\3abc"))
