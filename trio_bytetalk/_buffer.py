"""`ReceiveBuffer`: the bytes that have arrived and are not decoded yet.

Operations to support, and what each may cost:

- feed a chunk: O(1) for a large chunk, O(bytes) for a small one; never a copy of what was there;
- take a message that lies within one chunk: one copy, of the message alone;
- take a message that arrived in many chunks: one copy, of the message alone, when it is whole;
- look for a delimiter: each byte is looked at once, however many chunks bring it;
- hold little more memory than the bytes held, even for a peer that sends two bytes at a time.

The plan: a contiguous front chunk (``data``, an immutable `bytes`, with the offset ``start`` of
the first undecoded byte), which is all that a burst of small messages ever touches, and behind it
a queue of later chunks that are joined only when a message needs them. Small late chunks are
gathered in a bytearray, so that none costs an object of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import attrs

# Below this a chunk costs less to copy than to keep as an object: a bytes object is some 33 bytes
# and an allocation of its own, which for two-byte chunks would be twenty times the payload.
_SMALL_CHUNK = 4096

# So large a gathered chunk may grow. It is copied once more when it becomes the front, and then
# let go of as a whole, which suits it as it suits a chunk that was received in one piece.
_GATHER_SIZE = 64 * 1024


class _Search(NamedTuple):
    """How far a search of a `ReceiveBuffer` came that found nothing."""

    delimiter: bytes | re.Pattern[bytes]
    start: int  # that of the buffer; a search that began elsewhere is of no use
    chunk: int  # the one to go on in: 0 is the front
    offset: int  # in that chunk
    searched: int  # how many bytes were looked at
    tail: bytes  # the last of these, in which a delimiter may have begun


@attrs.define(eq=False)
class ReceiveBuffer:
    """The received bytes that no reader has decoded yet.

    A connection feeds it; a `Reader` takes messages off its front. It can be fed by hand to
    drive a reader without any connection, which is how codecs are tested::

        buffer = ReceiveBuffer()
        buffer.feed(b"\\x00\\x00\\x00\\x02hi")
        assert LengthPrefixed().reader().decode(buffer) == b"hi"

    A reader uses `peek`, `take`, `skip` and `find`. A reader for which those calls are too slow
    may work on ``data`` and ``start`` directly: the undecoded bytes begin with
    ``data[start:]``, and moving ``start`` forward, at most to ``len(data)``, consumes. More
    bytes may follow behind ``data``; `peek` and `take` reach them.
    """

    data: bytes = attrs.field(default=b"", init=False)
    """The contiguous front of the buffer (`bytes`); undecoded from ``start`` on."""

    start: int = attrs.field(default=0, init=False)
    """The offset in ``data`` of the first undecoded byte."""

    wanted: int = attrs.field(default=0, init=False)
    """The total number of bytes without which decoding again is pointless; 0 if unknown.

    Set by a `peek`, `take` or `find` that came up short (the smallest of them, if several
    did), reset by whoever calls `Reader.decode` again. A connection reads from the network until
    it has so many, which is what makes a large message cheap in however many pieces it comes.
    """

    # A list: an empty deque takes ten times its memory, and `take` removes many at once.
    _later: list[bytes | bytearray] = attrs.field(factory=list, init=False)
    _later_size: int = attrs.field(default=0, init=False)

    # Whatever puts another front in the old one's place forgets the search, for its start then
    # means nothing.
    _search: _Search | None = attrs.field(default=None, init=False)

    # The chunk in which a `peek` beyond the front found its first byte (0 is the front), and how
    # many bytes stand before it, the front's decoded ones included. Forgotten as the search is.
    _place: tuple[int, int] = attrs.field(default=(0, 0), init=False)

    def __len__(self) -> int:
        """The number of undecoded bytes."""
        return len(self.data) - self.start + self._later_size

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes. A bytearray or memoryview is copied: it may be used again."""
        data = bytes(data)  # no copy where it is bytes already
        if self.start == len(self.data) and not self._later:
            self.data = data
            self.start = 0
            self._search = None
            return
        size = len(data)
        later = self._later
        if size >= _SMALL_CHUNK:
            later.append(data)
        elif later and type(later[-1]) is bytearray and len(later[-1]) < _GATHER_SIZE:
            later[-1] += data
        else:
            later.append(bytearray(data))
        self._later_size += size

    def peek(self, size: int, offset: int = 0) -> bytes | None:
        """A copy of ``size`` bytes, ``offset`` bytes from the front, without consuming them.

        Returns:
          None if fewer than ``offset + size`` bytes are there.
        """
        begin = self.start + offset
        end = begin + size
        data = self.data
        if end <= len(data):
            return data[begin:end]
        if offset + size > len(self):
            self._want(offset + size)
            return None
        # Chunks that are not asked for stay as they are: to join all up to here would copy a large
        # message for the byte behind it. Where the last such peek began is remembered, so that a
        # reader may go through many chunks in small steps.
        later = self._later
        index, before = self._place
        if begin < before:
            index = before = 0
        chunk: bytes | bytearray = later[index - 1] if index else data
        while begin >= before + len(chunk) and index < len(later):
            before += len(chunk)
            chunk = later[index]
            index += 1
        self._place = (index, before)
        missing = end - before - len(chunk)
        if missing <= 0:
            return bytes(chunk[begin - before : end - before])
        pieces = [memoryview(chunk)[begin - before :]]
        while missing > 0:
            chunk = later[index]
            pieces.append(memoryview(chunk)[:missing])
            missing -= len(chunk)
            index += 1
        return b"".join(pieces)

    def take(self, size: int, *, skip: int = 0) -> bytes | None:
        """Consume ``skip + size`` bytes and return the last ``size`` of them.

        The skipped bytes are for a header that was peeked at: it leaves the buffer together with
        its message, or not at all.

        Returns:
          None, with nothing consumed, if fewer than ``skip + size`` bytes are there.

        Raises:
          ValueError: if ``size`` is negative, as what a peer sent for one may be.
        """
        begin = self.start + skip
        end = begin + size
        data = self.data
        if begin <= end <= len(data):
            self.start = end
            return data[begin:end]
        if size < 0:
            raise ValueError(f"size must be 0 or more bytes, not {size}")
        if skip + size > len(self):
            self._want(skip + size)
            return None
        if skip:
            self.skip(skip)
            return self.take(size)
        pieces: list[bytes | bytearray | memoryview] = [memoryview(data)[begin:]]
        missing = end - len(data)
        used = 0
        while missing > 0:
            chunk = self._later[used]
            pieces.append(memoryview(chunk)[:missing])
            missing -= len(chunk)
            used += 1
        message = b"".join(pieces)
        # What the last chunk has beyond the message becomes the front, as an offset: no copy.
        self._make_front(used)
        self.start = len(self.data) + missing
        return message

    def skip(self, size: int) -> None:
        """Consume ``size`` bytes (all there are, if that is fewer) without looking at them.

        Raises:
          ValueError: if ``size`` is negative, as what a peer sent for one may be.
        """
        if size < 0:
            raise ValueError(f"size must be 0 or more bytes, not {size}")
        front: bytes | bytearray = self.data
        end = self.start + size
        used = 0
        while end > len(front) and used < len(self._later):
            end -= len(front)
            front = self._later[used]
            used += 1
        self._make_front(used)
        self.start = min(end, len(front))

    def find(self, delimiter: bytes) -> int:
        """How many bytes stand in front of the first ``delimiter``; -1 if it is not there.

        What was searched in vain is remembered, so that the search goes on, when more has
        arrived, where it ended.
        """
        start = self.start
        search = self._search
        if search is not None and search.start == start and search.delimiter == delimiter:
            _, _, index, offset, searched, tail = search
        else:
            index, offset, searched, tail = 0, start, 0, b""
        overlap = len(delimiter) - 1
        while True:
            chunk = self._later[index - 1] if index else self.data
            if tail:
                seam = tail + chunk[offset : offset + overlap]
                found = seam.find(delimiter)
                if found >= 0:
                    return searched - len(tail) + found
            found = chunk.find(delimiter, offset)
            if found >= 0:
                return searched - offset + found
            searched += len(chunk) - offset
            tail = (tail + chunk[max(offset, len(chunk) - overlap) :])[-overlap:]
            offset = len(chunk)
            if index == len(self._later):
                break
            index += 1
            offset = 0
        self._search = _Search(delimiter, start, index, offset, searched, tail)
        self._want(searched + 1)
        return -1

    def _find_any(self, pattern: re.Pattern[bytes], longest: int) -> tuple[int, int] | None:
        """How many bytes stand in front of the first match of ``pattern``, and in front of its end.

        For several delimiters in one go, of which the longest has ``longest`` bytes; remembered
        as `find` does. `find` is not made of this, for a bytes object is found faster.

        None may occur within another but at its end. So a match is known with its last byte, and
        where it is cut by a chunk's end makes no difference.
        """
        start = self.start
        search = self._search
        if search is not None and search.start == start and search.delimiter is pattern:
            _, _, index, offset, searched, tail = search
        else:
            index, offset, searched, tail = 0, start, 0, b""
        overlap = longest - 1
        while True:
            chunk = self._later[index - 1] if index else self.data
            if tail and (match := pattern.search(tail + chunk[offset : offset + overlap])):
                before = searched - len(tail)
                return before + match.start(), before + match.end()
            if match := pattern.search(chunk, offset):
                before = searched - offset
                return before + match.start(), before + match.end()
            searched += len(chunk) - offset
            tail = (tail + chunk[max(offset, len(chunk) - overlap) :])[-overlap:]
            offset = len(chunk)
            if index == len(self._later):
                break
            index += 1
            offset = 0
        self._search = _Search(pattern, start, index, offset, searched, tail)
        self._want(searched + 1)
        return None

    def clear(self) -> None:
        """Let go of all bytes, decoded or not."""
        self.data = b""
        self.start = 0
        self._later.clear()
        self._later_size = 0
        self._search = None
        self._place = (0, 0)

    def compact(self) -> None:
        """Let go of memory held for decoded bytes only; a connection does before it waits."""
        start = self.start
        if start > len(self.data) // 2:
            self.data = self.data[start:]
            self.start = 0
            self._place = (0, 0)
            search = self._search
            if search is not None and search.start == start:
                offset = search.offset if search.chunk else len(self.data)
                self._search = search._replace(start=0, offset=offset)
            else:
                self._search = None

    def _want(self, size: int) -> None:
        if not self.wanted or size < self.wanted:
            self.wanted = size

    def _make_front(self, used: int) -> None:
        """Drop the front and all of the next ``used`` chunks but the last, the new front."""
        if used:
            chunks = self._later[:used]
            del self._later[:used]
            self._later_size -= sum(map(len, chunks))
            self.data = bytes(chunks[-1])
            self.start = 0
            self._search = None
            self._place = (0, 0)

    def _reach(self, size: int) -> None:
        """Make at least ``size`` bytes contiguous in the front; so many must be there."""
        if self.start + size <= len(self.data):
            return
        pieces: list[bytes | bytearray] = [self.data[self.start :]]
        joined = len(pieces[0])
        while joined < size:
            chunk = self._later[len(pieces) - 1]
            pieces.append(chunk)
            joined += len(chunk)
        self._make_front(len(pieces) - 1)
        self.data = b"".join(pieces)
