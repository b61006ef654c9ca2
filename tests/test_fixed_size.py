"""`FixedSize` and `Structs`: sizes that are known, and values that do not fit."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    Codec,
    EncodeError,
    FixedSize,
    IncompleteMessageError,
    ReceiveBuffer,
    Structs,
)
from trio_bytetalk.testing import connection_pair

# -- FixedSize


@given(st.integers(1, 20), st.binary(max_size=60), cuts())
def test_any_cutting_of_any_bytes_gives_the_same_messages(
    size: int, stream: bytes, sizes: list[int]
) -> None:
    whole = len(stream) // size
    expected = Outcome(
        [stream[i * size : (i + 1) * size] for i in range(whole)],
        IncompleteMessageError if len(stream) % size else None,
    )
    for pieces in ([stream], cut(stream, sizes), cut(stream, [1] * len(stream))):
        assert read_all(FixedSize(size).reader(), pieces) == expected
        assert read_all(FixedSize(size).reader(), pieces, patient=True) == expected


@given(st.lists(st.binary(min_size=5, max_size=5)), cuts())
def test_what_is_written_is_read(messages: list[bytes], sizes: list[int]) -> None:
    codec = FixedSize(5)
    stream = b"".join(joined(codec.writer().encode(message)) for message in messages)
    assert stream == b"".join(messages)
    assert read_all(codec.reader(), cut(stream, sizes)) == Outcome(messages)


@pytest.mark.parametrize("held", [b"", b"a", b"abc"])
def test_what_is_not_whole_stays_for_another_reader(held: bytes) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held)
    readers: list[Any] = [FixedSize(4).reader(), Structs("<i").reader()]
    for reader in readers:
        buffer.wanted = 0
        assert reader.decode(buffer) is NEED_DATA
        assert buffer.wanted == 4
    assert buffer.take(len(held)) == held


def test_large_message_is_sent_as_it_is() -> None:
    message = b"." * 10_000
    assert FixedSize(10_000).writer().encode(message) is message


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(kind: type) -> None:
    data = bytearray(b"aaa")
    frame = FixedSize(3).writer().encode(kind(data))
    data[:] = b"bbb"
    assert frame == b"aaa"


def test_message_of_another_size_is_not_sent() -> None:
    writer = FixedSize(4).writer()
    for message in (b"", b"abc", b"abcde"):
        with pytest.raises(EncodeError) as caught:
            writer.encode(message)
        assert str(caught.value) == (
            f"the message has {len(message)} bytes; size says that each has 4"
        )
    assert writer.encode(b"abcd") == b"abcd"


@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type(message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^FixedSize sends bytes, .*{type(message).__name__}$"):
        FixedSize(4).writer().encode(message)


def test_size_may_be_changed_between_two_messages() -> None:
    codec = FixedSize(1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"abc")
    assert reader.decode(buffer) == b"a"
    reader.size = writer.size = 2
    assert reader.decode(buffer) == b"bc"
    assert writer.encode(b"bc") == b"bc"


@pytest.mark.parametrize(
    ("size", "error"),
    [(0, ValueError), (-1, ValueError), (True, TypeError), (4.0, TypeError), (None, TypeError)],
)
def test_wrong_size_is_named(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^size must be .*1 or more.* not {size!r}$"):
        FixedSize(size)


# -- Structs

FORMATS = ["<IhhB", ">d?3s", "!2i4x2s", "=0sc5p", "<Bh0iB", "iP", "@bq", " < h  2B".strip()]


@given(st.sampled_from(FORMATS), st.binary(max_size=60), cuts())
def test_any_cutting_of_any_bytes_gives_the_same_records(
    format_: str, stream: bytes, sizes: list[int]
) -> None:
    size = struct.calcsize(format_)
    whole = len(stream) // size
    # repr, for not-a-number equals nothing.
    expected = repr(list(struct.iter_unpack(format_, stream[: whole * size])))
    error = IncompleteMessageError if len(stream) % size else None
    for pieces in ([stream], cut(stream, sizes), cut(stream, [1] * len(stream))):
        for patient in (False, True):
            outcome = read_all(Structs(format_).reader(), pieces, patient=patient)
            assert (repr(outcome.messages), outcome.error) == (expected, error)


RECORDS = st.tuples(
    st.integers(-(2**31), 2**31 - 1), st.floats(), st.booleans(), st.binary(min_size=3, max_size=3)
)


@given(st.lists(RECORDS), cuts())
def test_records_are_read_as_they_were_written(
    records: list[tuple[Any, ...]], sizes: list[int]
) -> None:
    codec = Structs(">id?3s")
    stream = b"".join(joined(codec.writer().encode(record)) for record in records)
    outcome = read_all(codec.reader(), cut(stream, sizes))
    assert repr(outcome.messages) == repr(records)
    assert outcome.error is None


def test_record_that_its_owner_changes_after_sending_is_sent_as_it_was() -> None:
    data = bytearray(b"aaa")
    frame = Structs("3s").writer().encode((data,))
    data[:] = b"bbb"
    assert frame == b"aaa"


@pytest.mark.parametrize(
    ("format_", "record", "why"),
    [
        ("<Bh", (1,), "the message has 1 fields; format='<Bh' has 2"),
        ("<Bh", (1, 2, 3), "the message has 3 fields; format='<Bh' has 2"),
        ("<2x3B4s0i2x", (), "the message has 0 fields; format='<2x3B4s0i2x' has 4"),
        ("4x", (0,), "the message has 1 fields; format='4x' has 0"),
        ("<Bh", (1, 40_000), "field 1 of the message, 40000, is no 'h' of format='<Bh': "),
        ("<Bh", (-1, 40_000), "field 0 of the message, -1, is no 'B' of format='<Bh': "),
        (">2xB3i4sh", (1, 2, 3, None, b"", 0), "field 3 of the message, None, is no 'i' of "),
        (">2xB3i4sh", (1, 2, 3, 4, "text", 0), "field 4 of the message, 'text', is no 's' of "),
        (">2xB3i4sh", (1, 2, 3, 4, b"", 2**15), "field 5 of the message, 32768, is no 'h' of "),
        ("ci", (b"ab", 1), "field 0 of the message, b'ab', is no 'c' of format='ci': char format"),
        ("<Bf", (1, 1e300), "field 1 of the message, 1e.300, is no 'f' of format='<Bf': "),
        ("<B4s", (1, b"abcde"), "field 1 of the message has 5 bytes; format='<B4s' has room for 4"),
        ("3hs", (1, 2, 3, b"ab"), "field 3 of the message has 2 bytes; format='3hs' has room for "),
        ("<B4p", (1, b"abcd"), "field 1 of the message has 4 bytes; format='<B4p' has room for 3"),
        ("300p", (bytes(256),), "field 0 of the message has 256 bytes; .* has room for 255 there"),
        ("b0p", (1, b"a"), "field 1 of the message has 1 bytes; format='b0p' has room for 0 there"),
        ("b", [1], "Structs sends tuples, not list"),
        ("b", 1, "Structs sends tuples, not int"),
    ],
)
def test_record_that_cannot_be_sent(format_: str, record: Any, why: str) -> None:
    with pytest.raises(EncodeError, match=rf"^{why}"):
        Structs(format_).writer().encode(record)


def test_error_for_a_large_value_is_short() -> None:
    with pytest.raises(EncodeError) as caught:
        Structs("<i").writer().encode((b"." * 10_000,))
    assert len(str(caught.value)) < 250


def test_number_that_fits_when_it_is_looked_at_again() -> None:
    class Moving:
        value = 300

        def __index__(self) -> int:
            self.value -= 100
            return self.value

    writer = Structs("<bb").writer()
    with pytest.raises(EncodeError, match=r"^the message does not fit format='<bb': .*127"):
        writer.encode((1, Moving()))


def test_bytes_that_fit_are_sent_and_shorter_ones_filled_up() -> None:
    codec = Structs("<4s4p300p0s2x")
    frame = codec.writer().encode((b"abc", b"abc", bytes(255), b""))
    assert frame[:8] == b"abc\0\3abc"
    assert read_all(codec.reader(), [frame]) == Outcome([(b"abc\0", b"abc", bytes(255), b"")])


@pytest.mark.parametrize(
    ("format_", "error", "why"),
    [
        ("", ValueError, "format must have at least one byte, not ''"),
        ("<", ValueError, "format must have at least one byte, not '<'"),
        ("0i0s", ValueError, "format must have at least one byte, not '0i0s'"),
        ("<k", ValueError, "format must be a format of the struct module, not '<k': bad char"),
        ("<é", ValueError, "format must be a format of the struct module, not '<é': "),
        ("b" + "9" * 30 + "i", ValueError, "format must be a format of the struct module, not "),
        (b"<i", TypeError, "format must be a format of the struct module, not b'<i'"),
        (None, TypeError, "format must be a format of the struct module, not None"),
    ],
)
def test_wrong_format_is_named(format_: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=rf"^{why}"):
        Structs(format_)


# -- both


@pytest.mark.parametrize(
    ("codec", "bad", "good"), [(FixedSize(2), b"a", b"ab"), (Structs("<B"), (256,), (255,))]
)
async def test_connection_is_usable_after_a_message_that_cannot_be_sent(
    codec: Codec[Any, Any], bad: Any, good: Any
) -> None:
    left, right = connection_pair(codec)
    async with left, right:
        with pytest.raises(EncodeError):
            await left.send(bad)
        await left.send(good)
        assert await right.receive() == good


def test_codecs_of_equal_settings_are_equal() -> None:
    assert FixedSize(4) == FixedSize(4) != FixedSize(5)
    assert Structs("<i") == Structs("<i") != Structs(">i")
    assert hash(Structs("<i")) == hash(Structs("<i"))
