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

import attrs

# Below this a chunk costs less to copy than to keep as an object: a bytes object is some 33 bytes
# and an allocation of its own, which for two-byte chunks would be twenty times the payload.
_SMALL_CHUNK = 4096


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

    # Where `find` came to: the delimiter, then the front it began in and its start (another front
    # or start means a search anew), then the chunk to go on in (0 is the front), the offset in
    # that chunk, and the chunk's distance from the start.
    _scan: tuple[bytes, bytes, int, int, int, int] | None = attrs.field(default=None, init=False)

    def __len__(self) -> int:
        """The number of undecoded bytes."""
        return len(self.data) - self.start + self._later_size

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes. A bytearray or memoryview is copied, `bytes` are kept."""
        if self.start == len(self.data) and not self._later:
            self.data = bytes(data)  # no copy where it is bytes already
            self.start = 0
            return
        size = len(data)
        later = self._later
        if size >= _SMALL_CHUNK:
            later.append(bytes(data))
        elif later and type(later[-1]) is bytearray and len(later[-1]) < 16 * _SMALL_CHUNK:
            later[-1] += data
        else:
            later.append(bytearray(data))
        self._later_size += size

    def peek(self, size: int, offset: int = 0) -> bytes | None:
        """A copy of ``size`` bytes, ``offset`` bytes from the front, without consuming them.

        Returns:
          None if fewer than ``offset + size`` bytes are there.
        """
        end = offset + size
        if not self._reach(end):
            return None
        begin = self.start + offset
        return self.data[begin : begin + size]

    def take(self, size: int, *, skip: int = 0) -> bytes | None:
        """Consume ``skip + size`` bytes and return the last ``size`` of them.

        The skipped bytes are for a header that was peeked at: it leaves the buffer together with
        its message, or not at all.

        Returns:
          None, with nothing consumed, if fewer than ``skip + size`` bytes are there.
        """
        begin = self.start + skip
        end = begin + size
        data = self.data
        if end <= len(data):
            self.start = end
            return data[begin:end]
        if skip + size > len(self):
            self._want(skip + size)
            return None
        if skip and begin > len(data):  # even the header reaches behind the front
            self._reach(skip)
            begin = self.start + skip
            data = self.data
        pieces: list[bytes | bytearray | memoryview] = [memoryview(data)[begin:]]
        missing = size - len(pieces[0])
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
        """Consume ``size`` bytes (all there are, if that is fewer) without looking at them."""
        while size > len(self.data) - self.start and self._later:
            size -= len(self.data) - self.start
            self._make_front(1)
        self.start = min(self.start + size, len(self.data))

    def find(self, delimiter: bytes) -> int:
        """How many bytes stand in front of the first ``delimiter``; -1 if it is not there.

        What was searched in vain is remembered, so that the search goes on, when more has
        arrived, where it ended.
        """
        overlap = len(delimiter) - 1
        scan = self._scan
        if (
            scan is None
            or scan[0] != delimiter
            or scan[1] is not self.data
            or scan[2] != self.start
        ):
            index, offset, distance = 0, self.start, -self.start
        else:
            _, _, _, index, offset, distance = scan
        while True:
            chunk = self.data if index == 0 else self._later[index - 1]
            found = chunk.find(delimiter, offset)
            if found >= 0:
                self._scan = None
                return distance + found
            offset = max(offset, len(chunk) - overlap)
            if index == len(self._later):
                break
            if overlap and offset < len(chunk):
                # The delimiter may begin at this chunk's end and reach into the next ones.
                seam = chunk[offset:]
                for later in range(index, len(self._later)):
                    seam += self._later[later][: overlap + len(chunk) - offset - len(seam)]
                    if len(seam) >= overlap + len(chunk) - offset:
                        break
                found = seam.find(delimiter)
                if found >= 0:
                    self._scan = None
                    return distance + offset + found
                if len(seam) < overlap + len(chunk) - offset:
                    break  # the next chunks are still too short to decide: begin here again
            distance += len(chunk)
            index += 1
            offset = 0
        self._scan = (delimiter, self.data, self.start, index, offset, distance)
        self._want(len(self) + 1)
        return -1

    def compact(self) -> None:
        """Let go of memory held for decoded bytes only; a connection does before it waits."""
        if self.start == len(self.data) and not self._later:
            self.data = b""
            self.start = 0
        elif self.start > len(self.data) // 2:
            self.data = self.data[self.start :]
            self.start = 0

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

    def _reach(self, size: int) -> bool:
        """Make at least ``size`` bytes contiguous in the front, if so many are there."""
        if self.start + size <= len(self.data):
            return True
        if size > len(self):
            self._want(size)
            return False
        pieces: list[bytes | bytearray] = [self.data[self.start :]]
        joined = len(pieces[0])
        while joined < size:
            chunk = self._later[len(pieces) - 1]
            pieces.append(chunk)
            joined += len(chunk)
        self._make_front(len(pieces) - 1)
        self.data = b"".join(pieces)
        return True
