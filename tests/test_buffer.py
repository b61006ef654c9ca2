"""`ReceiveBuffer`: whatever is fed and taken, in whatever pieces, and at what cost."""

from __future__ import annotations

import builtins
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trio_bytetalk import NEED_DATA, LengthPrefixed, ReceiveBuffer, _buffer

# Few different bytes, so that delimiters, and beginnings of delimiters, are everywhere.
TEXT = st.lists(st.sampled_from(b"ab-"), max_size=9).map(bytes)
# From 4096 bytes on a chunk is kept as it is; below, it is gathered with its neighbours.
LARGE = st.tuples(TEXT.filter(bool), st.integers(4090, 9000), TEXT).map(
    lambda parts: (parts[0] * parts[1])[: parts[1]] + parts[2]
)
DELIMITERS = [b"-", b"\n", b"--", b"ab", b"aab", b"a-a-", b"abab-abab"]
# Several at once, none within another but at its end.
ALTERNATIVES = [
    (b"-", b"\n"),
    (b"a", b"-"),
    (b"--", b"ab"),
    (b"b", b"aab", b"ab"),
    (b"a-a-", b"bb", b"---"),
    (b"abab-abab", b"a--"),
]
PATTERNS = {each: re.compile(b"|".join(each)) for each in ALTERNATIVES}


def fed(*chunks: bytes) -> ReceiveBuffer:
    """A buffer whose first chunk is the front, while the others wait behind it."""
    buffer = ReceiveBuffer()
    for chunk in chunks:
        buffer.feed(chunk)
    return buffer


class AgainstPlainBytes(RuleBasedStateMachine):
    """Every operation, in any order, does what the same does with plain bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ReceiveBuffer()
        self.model = b""
        self.wanted = 0

    def short(self, size: int) -> None:
        """An operation came up short of ``size`` bytes."""
        self.wanted = min(self.wanted or size, size)

    @initialize(chunk=TEXT)
    def begin(self, chunk: bytes) -> None:
        self.feed(chunk, bytes)

    @rule(chunk=TEXT | LARGE, kind=st.sampled_from([bytes, bytearray, memoryview]))
    def feed(self, chunk: bytes, kind: Callable[[bytes], Any]) -> None:
        data = kind(chunk)
        self.buffer.feed(data)
        if type(data) is bytearray:
            data[:] = b"x" * len(data)  # the caller may use it again
        self.model += chunk

    def a_size(self, data: st.DataObject) -> int:
        """Some size that may lie within, at, or over what is there."""
        return data.draw(
            st.integers(0, 9)
            | st.integers(0, len(self.model) + 2)
            | st.integers(max(0, len(self.model) - 3), len(self.model) + 3)
        )

    @rule(data=st.data())
    def peek(self, data: st.DataObject) -> None:
        offset, size = self.a_size(data), self.a_size(data)
        found = self.buffer.peek(size, offset)
        if offset + size <= len(self.model):
            assert found == self.model[offset : offset + size]
        else:
            assert found is None
            self.short(offset + size)

    @rule(data=st.data())
    def reach(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, len(self.model)))
        self.buffer._reach(size)
        assert self.buffer.data.startswith(self.model[:size], self.buffer.start)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        skip, size = data.draw(st.just(0) | st.integers(0, 9)), self.a_size(data)
        taken = self.buffer.take(size, skip=skip)
        if skip + size <= len(self.model):
            assert taken == self.model[skip : skip + size]
            self.model = self.model[skip + size :]
        else:
            assert taken is None
            self.short(skip + size)

    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        size = self.a_size(data)
        self.buffer.skip(size)
        self.model = self.model[size:]

    @precondition(lambda self: self.model)
    @rule()
    def take_all(self) -> None:
        assert self.buffer.take(len(self.model)) == self.model
        self.model = b""

    @rule(delimiter=st.sampled_from(DELIMITERS))
    def find(self, delimiter: bytes) -> None:
        assert self.buffer.find(delimiter) == self.model.find(delimiter)
        if delimiter not in self.model:
            self.short(len(self.model) + 1)

    @rule(delimiters=st.sampled_from(ALTERNATIVES))
    def find_any(self, delimiters: tuple[bytes, ...]) -> None:
        found = self.buffer._find_any(PATTERNS[delimiters], max(map(len, delimiters)))
        places = [
            (self.model.find(each), self.model.find(each) + len(each))
            for each in delimiters
            if each in self.model
        ]
        if places:
            assert found == min(places)
        else:
            assert found is None
            self.short(len(self.model) + 1)

    @rule(data=st.data())
    def move_start(self, data: st.DataObject) -> None:
        buffer = self.buffer
        size = data.draw(st.integers(0, len(buffer.data) - buffer.start))
        buffer.start += size
        self.model = self.model[size:]

    @rule()
    def compact(self) -> None:
        self.buffer.compact()
        assert self.buffer.start <= len(self.buffer.data) // 2

    @precondition(lambda self: self.wanted)
    @rule()
    def decode_again(self) -> None:
        self.buffer.wanted = self.wanted = 0

    @invariant()
    def holds_the_same(self) -> None:
        buffer = self.buffer
        assert len(buffer) == len(self.model)
        assert type(buffer.data) is bytes
        assert self.model.startswith(buffer.data[buffer.start :])
        assert buffer.wanted == self.wanted

    def teardown(self) -> None:
        assert self.buffer.take(len(self.model)) == self.model
        assert not len(self.buffer)


TestAgainstPlainBytes = AgainstPlainBytes.TestCase
TestAgainstPlainBytes.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


def test_message_behind_a_header_that_is_cut_off() -> None:
    # The chunk that ends the header brings the message, and more.
    buffer = fed(b"\x00\x00", b"\x00\x02hi, and more")
    assert buffer.take(2, skip=4) == b"hi"
    assert buffer.take(len(buffer)) == b", and more"


def test_peek_leaves_chunks_as_they_are() -> None:
    buffer = fed(b"front", b"a" * 4096, b"b" * 4096, b"c")
    front = buffer.data
    for _ in range(2):
        assert buffer.peek(2, 4096 + 4096 + 4) == b"bc"
        assert buffer.peek(3, 4) == b"taa"
        assert buffer.peek(4100, 4) == b"t" + b"a" * 4096 + b"bbb"
        assert buffer.peek(2, 4096 + 5) == b"bb"
        assert buffer.peek(0, len(buffer)) == b""
        assert buffer.data is front
    buffer.feed(b"d")
    assert buffer.peek(2, len(buffer) - 2) == b"cd"


@pytest.mark.parametrize("change", ["take", "skip", "start", "compact", "reach", "clear"])
def test_peek_is_right_after_the_bytes_in_front_were_consumed(change: str) -> None:
    chunks = [bytes(range(index, 128)) * 50 for index in range(9)]
    for first in range(0, 50_000, 1000):
        buffer = fed(b"0123456789", *chunks)
        rest = b"0123456789" + b"".join(chunks)
        assert buffer.peek(3, first) == rest[first : first + 3]
        consumed = 9
        if change in ("take", "skip"):
            consumed = 4500
            getattr(buffer, change)(consumed)
        elif change == "reach":
            consumed = 0
            buffer._reach(9000)
        elif change == "clear":
            buffer.clear()
            for chunk in (b"012345678", b"9", *chunks):
                buffer.feed(chunk)
            consumed = 0
        else:
            buffer.start = consumed
            if change == "compact":
                buffer.compact()
        rest = rest[consumed:]
        for offset in range(len(rest) - 3, 0, -3333):
            place = buffer._place
            assert buffer.peek(3, offset) == rest[offset : offset + 3]
            buffer._place = place  # the one from before is to be right for each


def test_search_in_vain_is_forgotten_with_the_bytes_that_it_was_for() -> None:
    # The same objects may come again, as one-byte chunks always do in CPython.
    buffer = fed(b"a", b"bb")
    assert buffer.find(b"\n") == -1
    assert buffer.take(3) == b"abb"
    buffer.feed(b"a")
    buffer.feed(b"\nx")
    assert buffer.find(b"\n") == 1


def test_search_in_vain_is_forgotten_when_its_chunk_is_used_up() -> None:
    buffer = fed(b"abc")
    assert buffer.find(b"\n") == -1
    assert buffer.take(3) == b"abc"
    buffer.feed(b"\nx")
    assert buffer.find(b"\n") == 0


def test_search_in_vain_is_forgotten_when_it_began_before_bytes_whose_memory_is_given_back() -> (
    None
):
    buffer = fed(b"consumed--")
    assert buffer.find(b"---") == -1
    buffer.start = 9
    buffer.compact()
    buffer.feed(b"--")
    assert buffer.find(b"---") == 0


def test_search_in_vain_is_forgotten_when_a_message_of_as_many_bytes_is_taken_from_elsewhere() -> (
    None
):
    # The start is the same number as before, in another chunk.
    buffer = fed(b"ab", b"." * 5000, b"." * 5000)
    buffer.start = 1
    assert buffer.find(b"\n") == -1
    buffer.skip(1 + 1)
    assert buffer.start == 1
    buffer.feed(b"." * 100 + b"\n" + b"." * 5000)
    assert buffer.find(b"\n") == 4999 + 5000 + 100


def test_search_is_right_after_chunks_were_joined() -> None:
    buffer = fed(b"ab", b"." * 5000, b"." * 5000)
    assert buffer.find(b"\n") == -1
    buffer._reach(10)
    assert buffer.data == b"ab" + b"." * 5000
    buffer.feed(b"\n" + b"." * 4096)
    assert buffer.find(b"\n") == 10_002


@pytest.mark.parametrize("consume", ["take", "skip", "start"])
def test_search_after_the_bytes_in_front_were_consumed_otherwise(consume: str) -> None:
    buffer = fed(b"aa-", b"-bb--")
    assert buffer.find(b"---") == -1
    if consume == "take":
        buffer.take(3)
    elif consume == "skip":
        buffer.skip(3)
    else:
        buffer.start += 3
    assert buffer.find(b"---") == -1
    buffer.feed(b"-")
    assert buffer.find(b"---") == 3


def test_search_goes_on_after_the_memory_of_consumed_bytes_was_given_back() -> None:
    buffer = fed(b"consumed, -", b"-" * 5000)
    buffer.start = 10
    assert buffer.find(b"-\n") == -1
    buffer.compact()
    buffer.feed(b"\n")
    assert buffer.find(b"-\n") == 5000


def test_chunks_are_joined_as_far_as_needed_and_no_further() -> None:
    buffer = fed(b"ab", b"." * 5000, b"," * 5000)
    buffer._reach(5002)
    assert buffer.data == b"ab" + b"." * 5000
    buffer._reach(10_002)
    assert buffer.data == b"ab" + b"." * 5000 + b"," * 5000


def test_another_delimiter_is_another_search() -> None:
    buffer = fed(b"a;b,c")
    assert buffer.find(b"\n") == -1
    assert buffer.find(b",") == 3
    assert buffer.find(b";") == 1


def test_several_delimiters_are_another_search() -> None:
    buffer = fed(b"a;b,c")
    pattern, other = re.compile(b";|,"), re.compile(b"\r\n|\n")
    assert buffer.find(b"\n") == -1
    assert buffer._find_any(other, 2) is None
    assert buffer._find_any(pattern, 1) == (1, 2)
    assert buffer.find(b",") == 3
    buffer.feed(b"\n")
    assert buffer._find_any(other, 2) == (5, 6)
    assert buffer.wanted == 6


def test_delimiter_that_ends_with_another_is_found_whole_when_it_was_cut() -> None:
    pattern = re.compile(b"\n|\r\n")
    for chunks in [(b"a\r\n",), (b"a\r", b"\n"), (b"a", b"\r", b"\n"), (b"a", b"\r\n")]:
        buffer = ReceiveBuffer()
        for chunk in chunks:
            assert buffer._find_any(pattern, 2) is None
            buffer.feed(chunk)
        assert buffer._find_any(pattern, 2) == (1, 3)


def test_delimiter_in_as_many_chunks_as_it_has_bytes() -> None:
    buffer = fed(b"x-")
    assert buffer.find(b"-<>-") == -1
    # Large chunks stay separate; nothing else is one byte off the delimiter.
    buffer.feed(b"<" + b"." * 5000)
    assert buffer.find(b"-<>-") == -1
    buffer.feed(b"-")
    buffer.feed(b"<")
    buffer.feed(b">")
    assert buffer.find(b"-<>-") == -1
    buffer.feed(b"-")
    assert buffer.find(b"-<>-") == 2 + 5001


@pytest.mark.parametrize("size", [-1, -5, -(2**40)])
def test_negative_size_from_a_hostile_header_never_moves_backwards(size: int) -> None:
    buffer = fed(b"0123456789", b"abc")
    buffer.skip(4)
    with pytest.raises(ValueError, match=f"size must be 0 or more bytes, not {size}"):
        buffer.take(size)
    with pytest.raises(ValueError, match=f"size must be 0 or more bytes, not {size}"):
        buffer.take(size, skip=4)
    with pytest.raises(ValueError, match=f"size must be 0 or more bytes, not {size}"):
        buffer.skip(size)
    assert buffer.take(9) == b"456789abc"


def test_memoryview_of_larger_items_counts_by_bytes() -> None:
    items = memoryview(b"abcdefgh").cast("I")
    buffer = fed(b"x")
    buffer.feed(items)
    assert len(buffer) == 9
    assert buffer.take(9) == b"xabcdefgh"


def test_nothing_is_as_good_as_no_chunk() -> None:
    buffer = fed(b"", b"", b"a", b"", b"b", b"")
    assert buffer.find(b"b") == 1
    assert buffer.take(2) == b"ab"
    assert buffer.take(0) == b""


def test_wanted_is_the_least_of_what_was_asked_for() -> None:
    buffer = fed(b"abc")
    assert buffer.wanted == 0
    buffer.peek(8)
    buffer.take(3, skip=2)
    buffer.peek(5, offset=4)
    assert buffer.wanted == 5
    buffer.find(b"\n")
    assert buffer.wanted == 4


# -- cost. Counted, for a clock would count the machine's other work as well.


class Cost:
    """How many bytes were searched, or copied by slicing, in chunks of the buffer."""

    def __init__(self) -> None:
        self.searched = 0
        self.sliced = 0


class CountingPattern:
    """A pattern that counts what it searches. The real kind cannot be had by subclassing."""

    def __init__(self, pattern: bytes, counted: Cost) -> None:
        self.pattern = re.compile(pattern)
        self.counted = counted

    def search(self, data: bytes | bytearray, begin: int = 0) -> re.Match[bytes] | None:
        self.counted.searched += len(data) - begin
        return self.pattern.search(data, begin)


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Have buffers make their chunks of types that count. They cannot be counted from outside."""
    counted = Cost()

    class CountingBytes(builtins.bytes):
        def find(self, sub: Any, start: Any = 0, end: Any = sys.maxsize) -> int:
            counted.searched += max(0, len(self) - start)
            return super().find(sub, start, end)

        def __getitem__(self, key: Any) -> Any:
            part = super().__getitem__(key)
            counted.sliced += len(part)
            return type(self)(part)

    class CountingBytearray(builtins.bytearray):
        def find(self, sub: Any, start: Any = 0, end: Any = sys.maxsize) -> int:
            counted.searched += max(0, len(self) - start)
            return super().find(sub, start, end)

        def __getitem__(self, key: Any) -> Any:
            part = super().__getitem__(key)
            counted.sliced += len(part)
            return type(self)(part)

    monkeypatch.setattr(_buffer, "bytes", CountingBytes, raising=False)
    monkeypatch.setattr(_buffer, "bytearray", CountingBytearray, raising=False)
    return counted


@pytest.mark.parametrize("chunk_size", [1, 2, 100, 4095, 4096, 20_000])
@pytest.mark.parametrize("delimiter", [b"\n", b"--", b"aab", b"\r\n\r\n"])
def test_no_byte_is_searched_twice_for_a_delimiter(
    cost: Cost, chunk_size: int, delimiter: bytes
) -> None:
    # All but the last byte of the delimiter is everywhere.
    line = (delimiter[:-1] + b".") * (max(10_000, 10 * chunk_size) // len(delimiter))
    buffer = ReceiveBuffer()
    chunks = 0
    for begin in range(0, len(line), chunk_size):
        buffer.feed(line[begin : begin + chunk_size])
        chunks += 1
        assert buffer.find(delimiter) == -1
    assert cost.searched == len(line)
    # For the seams, which are searched apart.
    assert cost.sliced <= chunks * 2 * (len(delimiter) - 1)


@pytest.mark.parametrize("chunk_size", [1, 2, 100, 4095, 4096, 20_000])
@pytest.mark.parametrize("delimiters", [(b"\n", b"\r"), (b"\r\n", b"\n"), (b"aab", b"--")])
def test_no_byte_is_searched_twice_for_several_delimiters(
    chunk_size: int, delimiters: tuple[bytes, ...]
) -> None:
    counted = Cost()
    pattern: Any = CountingPattern(b"|".join(delimiters), counted)
    longest = max(map(len, delimiters))
    line = (delimiters[0][:-1] + b".") * (max(10_000, 10 * chunk_size) // longest)
    buffer = ReceiveBuffer()
    chunks = 0
    for begin in range(0, len(line), chunk_size):
        buffer.feed(line[begin : begin + chunk_size])
        chunks += 1
        assert buffer._find_any(pattern, longest) is None
    # Once, and the seams apart.
    assert counted.searched <= len(line) + chunks * 3 * (longest - 1)


def test_no_byte_is_searched_twice_when_memory_is_given_back(cost: Cost) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"." * 60_000)
    buffer.start = 40_000
    for _ in range(50):
        assert buffer.find(b"\r\n") == -1
        buffer.compact()
        buffer.feed(b"." * 1000)
    assert cost.searched == 20_000 + 49 * 1000


@pytest.fixture
def peak() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Measures how much more memory a call holds at its worst moment than before it."""

    def measure(call: Callable[[], object]) -> int:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        yield measure
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("chunk_size", [1000, 4096, 30_000])
def test_large_message_is_joined_once_and_not_for_each_chunk(
    chunk_size: int, peak: Callable[[Callable[[], object]], int]
) -> None:
    size = 1_000_000
    reader = LengthPrefixed(max_size=size).reader()
    buffer = ReceiveBuffer()
    buffer.feed(size.to_bytes(4, "big"))
    chunk = b"." * chunk_size

    def one_more() -> None:
        buffer.feed(chunk)
        assert reader.decode(buffer) is NEED_DATA

    while len(buffer) + chunk_size < size:
        # What 64 KiB of gathered small chunks take when they grow, and nothing like the message.
        assert peak(one_more) < 100_000
    buffer.feed(chunk)
    buffer.feed(chunk)
    message = []
    # The message, what the last chunk has behind it, and what measuring coverage takes.
    assert peak(lambda: message.append(reader.decode(buffer))) < size + 200_000
    assert message == [b"." * size]


def test_peek_far_behind_copies_what_is_asked_for(
    cost: Cost, peak: Callable[[Callable[[], object]], int]
) -> None:
    buffer = ReceiveBuffer()
    for _ in range(100):
        buffer.feed(b"." * 10_000)
    assert peak(lambda: buffer.peek(1, 999_999)) < 10_000
    assert peak(lambda: buffer.peek(10, 500_005)) < 10_000
    assert cost.sliced == 1 + 10
    # To put together what lies in several costs one copy.
    assert peak(lambda: buffer.peek(400_000, 5)) < 400_000 + 20_000


def test_peeks_from_the_front_to_the_end_do_not_walk_through_all_chunks_each_time() -> None:
    looked_at = 0

    class Chunks(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal looked_at
            looked_at += 1
            return super().__getitem__(index)

    buffer = fed(*[b"." * 4096] * 200)
    buffer._later = Chunks(buffer._later)
    for offset in range(0, len(buffer), 1000):
        assert buffer.peek(1, offset) == b"."
    # Each is found once, and once more by each peek that it serves.
    assert looked_at <= 200 + 820


def test_two_byte_chunks_take_little_more_memory_than_their_bytes(
    peak: Callable[[Callable[[], object]], int],
) -> None:
    buffer = ReceiveBuffer()

    def feed_much() -> None:
        for _ in range(50_000):
            buffer.feed(b"ab")

    assert peak(feed_much) < 1.3 * 100_000
    assert buffer.take(100_000) == b"ab" * 50_000


def test_large_chunk_is_kept_as_it_came_wherever_it_stands() -> None:
    chunk = b"." * 4096
    buffer = fed(b"a", b"b", chunk, b"c")
    buffer.skip(3)
    assert buffer.data is chunk
    assert buffer.start == 1
    assert buffer.peek(2, 4094) == b".c"


def test_consumed_bytes_are_let_go_of() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"." * 60_000 + b"rest")
    buffer.skip(60_000)
    buffer.compact()
    assert buffer.data == b"rest"
    buffer.skip(4)
    buffer.compact()
    assert buffer.data == b""
    assert buffer.start == 0


def test_a_mostly_undecoded_chunk_is_not_copied_for_what_little_it_would_free() -> None:
    buffer = ReceiveBuffer()
    chunk = b"." * 1000
    buffer.feed(chunk)
    buffer.skip(500)
    buffer.compact()
    assert buffer.data is chunk


def test_a_burst_of_small_messages_is_read_out_of_the_chunk_as_it_came() -> None:
    buffer = ReceiveBuffer()
    chunk = b"\x00\x00\x00\x02hi" * 1000
    buffer.feed(chunk)
    reader = LengthPrefixed().reader()
    for _ in range(1000):
        assert reader.decode(buffer) == b"hi"
        assert buffer.data is chunk
    assert reader.decode(buffer) is NEED_DATA


def test_cleared_buffer_is_as_good_as_new() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(b"ab")
    buffer.skip(1)
    buffer.feed(bytes(5000))
    assert buffer.find(b"\n") == -1
    buffer.clear()
    assert len(buffer) == 0
    assert buffer.peek(1) is None
    buffer.feed(b"cd\n")
    assert buffer.find(b"\n") == 2
    assert buffer.take(3) == b"cd\n"


def test_search_in_vain_is_forgotten_when_all_is_let_go_of() -> None:
    buffer = fed(b"ab", bytes(5000))
    assert buffer.find(b"\n") == -1
    buffer.clear()
    buffer.wanted = 0
    assert buffer.find(b"\n") == -1
    assert buffer.wanted == 1
