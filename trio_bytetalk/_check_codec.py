"""`check_codec`: whether a protocol keeps what `Codec`, `Reader` and `Writer` promise.

Each promise is a method of `_Checks` that raises `_MistakeError` for a case in which it is broken:
a few messages, or a few bytes, and where they are cut. Cases are tried from the small to the large,
and the first that fails is made smaller (`_smallest`) for as long as it fails in the same way.

A reader is driven twice: eagerly, with a decode for each piece that arrives, and as a connection
does it, which waits until there is as much as the buffer's ``wanted`` says and lets go of decoded
bytes in between. What it touches is counted by the buffer, so that nothing here depends on a clock.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Codec, Reader, ReceiveT, SendT, Writer
from ._errors import EncodeError, IncompleteMessageError, MessageTooLargeError, ProtocolError
from ._length_prefixed import LengthPrefixed

Cuts = tuple[int, ...]
ItemsT = TypeVar("ItemsT", bound=Sequence[Any])

# Up to this many bytes a stream is cut at every place; a longer one near the ends of its frames
# (the first ones, and the last), at the sizes where buffers go over to something else, and at a few
# random places.
_SHORT = 200

# The lengths that messages are cut or repeated to: the least, and both sides of what fits in one
# byte and in two, of a length field and of a varint.
_SHORTER = (0, 1)
_LONGER = (127, 128, 255, 256, 16_383, 16_384, 65_535, 65_536)

# A reader may touch each byte so many times (a look for its end, a check, a copy or two), and so
# many more with each call (its header once again). A reader that begins from the start with each
# piece is far over that as soon as a message has some hundred bytes.
_TOUCHES_PER_BYTE = 8
_TOUCHES_PER_CALL = 128

# In how many pieces a message comes, and about how many bytes of messages one chunk has, when what
# is touched is counted.
_PIECES = 512
_CHUNK = 8192

# How many cases may be tried on the way to the smallest one.
_PATIENCE = 1000


def check_codec(
    codec: Codec[SendT, ReceiveT],
    messages: Iterable[SendT],
    *,
    received: Iterable[ReceiveT] | None = None,
    refused: Iterable[object] = (),
    malformed: Iterable[bytes] = (),
    size_of: Callable[[SendT], int] | None = None,
    open_ended: bool = False,
    framed: bool = True,
    seed: int = 0,
) -> None:
    r"""Check a protocol of your own against everything that a connection relies on.

    It takes a codec, and messages that it can send::

        check_codec(Measurements(), [(7, 21.5), (0, -1.0)], refused=[(70_000, 0.0)])

    What is checked, with nothing but plain calls:

    - Messages are received as they were sent: alone and many in one chunk, cut into two at every
      place, into single bytes, and at random; nothing is waited for that need not come.
    - One decode takes one message and no byte more, so that another reader can go on behind it.
      ``NEED_DATA`` leaves the buffer alone.
    - A stream that ends within a message, at any byte, is an ``IncompleteMessageError``.
    - ``max_size``, if readers or writers have it, is exact, may be changed between two messages,
      and is enforced before what is too large has arrived.
    - What cannot be sent is an ``EncodeError``, after which the writer works as before.
    - Frames do not change afterwards, whatever becomes of the message, and equal codecs make equal
      frames (unless ``Writer.stateful`` says otherwise). Connections do not disturb each other.
    - Bytes that are no messages get ``ProtocolError`` and nothing else out of a reader, the same
      however they are cut.
    - The work is linear in the bytes, by count: a large message in many pieces, and many messages
      in one chunk.

    Args:
      codec: What is checked.
      messages: At least one message that the codec can send; better a few of all kinds and sizes,
          the smallest included. Messages that are `bytes` or `str` are also sent in other lengths,
          cut and repeated, up to 65,536; of other types, give one of some kilobytes as well.
      received: What is received for each of the messages, if that does not equal what was sent.
      refused: Messages that must be refused with ``EncodeError``.
      malformed: Bytes that must be refused with a ``ProtocolError`` (other than
          ``IncompleteMessageError``).
      size_of: How many bytes of ``max_size`` a message takes. By default that is its length, if it
          is bytes; of others, only that reader and writer agree is checked.
      open_ended: True if the end of the stream also ends a message, as where a last line needs no
          newline.
      framed: False for a protocol without boundaries, as ``Chunks``: then all that is checked is
          that the same bytes arrive, in whatever pieces, and what is refused.
      seed: For the random cuts and bytes. The same seed gives the same cases.

    Raises:
      AssertionError: for the first mistake found, with the smallest case that shows it: what was
          sent, in which pieces it arrived, what came, what was expected, and what usually causes
          that.
      ValueError: if there are no messages, or not as many ``received``.

    The cost is bounded: streams over 200 bytes are cut near the ends of their frames and at some
    other places, not at all of them. What a reader touches is counted where it uses the buffer's
    methods, slices of ``data`` and the search methods of `bytes`; not where it reads it by way of
    a `memoryview` or a regular expression.
    """
    __tracebackhide__ = True  # pytest: the mistake is in the codec, not here
    sent = list(messages)
    expected: list[Any] = list(sent) if received is None else list(received)
    if not sent:
        raise ValueError("messages must have at least one message")
    if len(expected) != len(sent):
        raise ValueError(f"received must have {len(sent)} messages as well, not {len(expected)}")
    checks = _Checks(
        codec,
        tuple(itertools.starmap(_Sent, zip(sent, expected, strict=True))),
        as_sent=received is None,
        refused=tuple(refused),
        malformed=tuple(malformed),
        size_of=size_of,
        open_ended=open_ended,
        random=random.Random(seed),  # noqa: S311 - nothing here is secret
    )
    try:
        if framed:
            checks.run()
        else:
            checks.run_unframed()
    except _MistakeError as mistake:
        raise AssertionError(mistake.explanation(codec)) from mistake.__cause__


# -- what is told


class _MistakeError(Exception):
    """A promise that is not kept, and the case in which it is not."""

    def __init__(self, title: str, causes: str, **facts: object) -> None:
        super().__init__(title)
        self.title = title
        self.causes = causes
        self.facts = {name: _shown(value) for name, value in facts.items()}
        self.size = ""

    def explanation(self, codec: object) -> str:
        width = max(map(len, self.facts), default=0)
        lines = [f"{codec!r}: {self.title}", ""]
        lines += [f"  {name:{width}}  {fact}" for name, fact in self.facts.items()]
        lines += ["", textwrap.fill(f"What usually causes this: {self.causes}", 92)]
        if self.size:
            lines += [f"This is the smallest case found: {self.size}."]
        return "\n".join(lines)


class _Text(str):
    """Words of a fact, told as they are."""

    __slots__ = ()


def _shown(value: object) -> str:
    """A value as it is told of, if need be by its beginning."""
    if isinstance(value, _Text):
        return value
    if isinstance(value, memoryview):
        value = bytes(value)
    if isinstance(value, bytes | bytearray | str) and len(value) > 48:
        kind = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:24]!r}... ({len(value)} {kind})"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


def _shown_all(values: Iterable[object], separator: str = ", ") -> _Text:
    shown = [_shown(value) for value in values]
    if len(shown) > 12:
        shown = [*shown[:6], f"... ({len(shown)} in all)"]
    return _Text(separator.join(shown) or "nothing")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _telling(**facts: object) -> Iterator[None]:
    """A mistake that is made within is told of with these facts in front."""
    try:
        yield
    except _MistakeError as mistake:
        shown = {name: _shown(value) for name, value in facts.items()}
        mistake.facts = shown | mistake.facts
        raise


# -- cases: where they are cut, and how they are made smaller


def _pieces(data: bytes, cuts: Cuts) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise((0, *cuts, len(data)))]


def _places(length: int, marks: Iterable[int], rng: random.Random) -> list[int]:
    """Where to cut: everywhere in what is short, at places worth a try in what is not."""
    if length <= _SHORT:
        return list(range(1, length))
    edges = [*itertools.islice(marks, 8), 4096, 65_536, length]
    near = {edge + offset for edge in edges for offset in range(-5, 10)}
    near |= {rng.randrange(1, length) for _ in range(20)}
    return sorted(place for place in near if 0 < place < length)


def _few_cuts(length: int, cuts: Cuts) -> Iterator[Cuts]:
    """Simple cuts first, those that are known to fail, as far as they fit, last."""
    yield ()
    if length <= 100:
        yield from ((place,) for place in range(1, length))
    yield tuple(cut for cut in cuts if cut < length)


def _shorter_data(data: bytes) -> Iterator[bytes]:
    half = len(data) // 2
    if half:
        yield data[:half]
        yield data[half:]
    if len(data) <= 100:
        for i in range(len(data)):
            yield data[:i] + data[i + 1 :]
    if len(data) <= 16:
        # One byte less, where the length says so too.
        for i, j in itertools.combinations(range(len(data)), 2):
            if data[i]:
                yield data[:i] + bytes([data[i] - 1]) + data[i + 1 : j] + data[j + 1 :]


def _smallest(
    attempt: Callable[[ItemsT, Cuts], None],
    items: ItemsT,
    cuts: Cuts,
    mistake: _MistakeError,
    *,
    shorter: Callable[[ItemsT], Iterator[ItemsT]],
    length: Callable[[ItemsT], int],
    cut: bool,
) -> _MistakeError:
    """The mistake as it shows with as few items, bytes and cuts as were found to do."""
    left = _PATIENCE

    def found(some: ItemsT, at: Cuts) -> _MistakeError | None:
        nonlocal left
        left -= 1
        again = _attempted(attempt, some, at) if left > 0 else None
        return again if again is not None and again.title == mistake.title else None

    def find_shorter() -> tuple[ItemsT, Cuts, _MistakeError] | None:
        for some in shorter(items):
            for at in _few_cuts(length(some), cuts) if cut else [()]:
                if (again := found(some, at)) is not None:
                    return some, at, again
        return None

    while (better := find_shorter()) is not None:
        items, cuts, mistake = better
    if cut:
        fewer = [at for at in _few_cuts(length(items), ()) if len(at) < len(cuts)]
        while cuts:
            for at in (*fewer, *(cuts[:i] + cuts[i + 1 :] for i in range(len(cuts)))):
                if (again := found(items, at)) is not None:
                    cuts, mistake, fewer = at, again, []
                    break
            else:
                break
    return mistake


def _attempted(
    attempt: Callable[[ItemsT, Cuts], None], items: ItemsT, cuts: Cuts
) -> _MistakeError | None:
    try:
        attempt(items, cuts)
    except _MistakeError as mistake:
        return mistake
    except EncodeError:
        pass  # what was made of the user's messages cannot be sent
    return None


def _same(left: object, right: object) -> bool:
    try:
        if left == right:
            return True
    except Exception:  # noqa: BLE001 - whatever a user's __eq__ raises, equal they are not
        return False
    # Not a number equals nothing, itself included.
    return "nan" in repr(left) and repr(left) == repr(right)


# -- a buffer that counts


class _EndlessError(BaseException):
    """Ends a reader that does not end; not an Exception, which the reader might catch."""


def _counted(name: str) -> Callable[..., Any]:
    original = getattr(bytes, name)

    def method(self: Any, *arguments: Any) -> Any:
        touched = len(self)
        try:
            result = original(self, *arguments)
            if name == "__getitem__":
                touched = len(result) if isinstance(result, bytes) else 1
            elif len(arguments) > 1 and isinstance(arguments[1], int):
                # A search from somewhere on, which ends where it finds something.
                end = result if name in ("find", "index") and result >= 0 else touched
                touched = max(end - arguments[1], 0) + 1
            return result
        finally:
            self.buffer.touch(touched)

    return method


# `bytes` that tell their buffer what is looked at. (A memoryview of them does not.)
_SEEN = (
    *("__add__", "__contains__", "__getitem__", "__iter__", "count", "decode", "find", "hex"),
    *("index", "lstrip", "partition", "replace", "rfind", "rindex", "rpartition", "rsplit"),
    *("rstrip", "split", "splitlines", "strip", "translate"),
)
_CountedBytes: Any = type("_CountedBytes", (bytes,), {name: _counted(name) for name in _SEEN})

_DATA: Any = ReceiveBuffer.__dict__["data"]  # the attribute that the property below stands for


class _WatchedBuffer(ReceiveBuffer):
    """A buffer that counts how many bytes are looked at or copied, and how often."""

    def __init__(self) -> None:
        self.touched = 0  # bytes
        self._calls_left = 0
        # In a method of the buffer itself, which is counted as a whole; or in no reader at all.
        self._within = True
        self._shown: Any = b""
        self._shown_of = b""
        super().__init__()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """For a reader to be called within; what it may do has an end."""
        self.wanted = 0
        self._calls_left = 1000 + 50 * len(self)
        self._within = False
        try:
            yield
        finally:
            self._within = True

    def touch(self, size: int) -> None:
        self.touched += size
        self._calls_left -= 1
        if self._calls_left < 0:
            raise _EndlessError

    def rest(self) -> bytes:
        """What is not decoded yet, left in the chunks that it is in."""
        return self.data[self.start :] + b"".join(self._later)

    @property
    def data(self) -> bytes:
        data: bytes = _DATA.__get__(self)
        if self._within:
            return data
        if self._shown_of is not data:
            self._shown_of = data
            self._shown = _CountedBytes(data)
            self._shown.buffer = self
        return self._shown  # type: ignore[no-any-return]

    @data.setter
    def data(self, data: bytes) -> None:
        _DATA.__set__(self, bytes(data))

    def __len__(self) -> int:
        if not self._within:
            self.touch(0)
        return super().__len__()

    def _uncounted(self, method: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        before, self._within = self._within, True
        try:
            return method(*arguments, **more)
        finally:
            self._within = before

    def peek(self, size: int, offset: int = 0) -> bytes | None:
        result: bytes | None = self._uncounted(super().peek, size, offset)
        self.touch(len(result or b""))
        return result

    def take(self, size: int, *, skip: int = 0) -> bytes | None:
        result: bytes | None = self._uncounted(super().take, size, skip=skip)
        self.touch(len(result or b""))
        return result

    def skip(self, size: int) -> None:
        self._uncounted(super().skip, size)
        self.touch(0)

    def find(self, delimiter: bytes) -> int:
        known = self._known(delimiter)
        result: int = self._uncounted(super().find, delimiter)
        self._touch_to(result + len(delimiter) if result >= 0 else None, known)
        return result

    def _find_any(self, pattern: re.Pattern[bytes], longest: int) -> tuple[int, int] | None:
        known = self._known(pattern)
        result: tuple[int, int] | None = self._uncounted(super()._find_any, pattern, longest)
        self._touch_to(result and result[1], known)
        return result

    def _known(self, sought: object) -> int:
        """How many bytes need not be looked at again in a search for this."""
        search = self._search
        same = search is not None and (search[0], search.start) == (sought, self.start)
        return search.searched if search is not None and same else 0

    def _touch_to(self, end: int | None, known: int) -> None:
        size = super().__len__() if end is None else end
        self.touch(max(size - known, 0))


# -- driving a reader


@attrs.frozen
class _Sent:
    """A message, and what is to be received for it."""

    message: Any
    expected: Any


@attrs.frozen
class _Step:
    """A frame, the reader whose turn it is, and what it has to make of it."""

    reader: Reader[Any]
    frame: bytes
    expected: Any


_NOT_WAITED_FOR = (
    "peek() or take() asks for more bytes than the shortest message has, so that a message at the "
    "end of what arrives is not seen; or `wanted` is set too high; or a delimiter that a piece "
    "boundary cuts in two is missed. A connection would wait for ever."
)
_BELONGS_TO_NEXT = (
    "the reader takes all that is in the buffer, or reads ahead, and keeps the bytes behind its "
    "message, or decodes several messages at once. They belong to whoever reads next."
)
_NEED_DATA_CONSUMES = (
    "a header, or the beginning of a payload, is taken (take, skip, or moving `start`) before the "
    "rest is there. Use peek() for the header, and take(size, skip=...) for both at once."
)
_CUTTING = (
    "the reader looks only at `data`, the front of the buffer, or remembers an offset while the "
    "buffer moves on (peek, take and find work from the first undecoded byte); or a part that was "
    "seen already is looked at as if it were new."
)
_NOT_PROTOCOL_ERROR = (
    "an exception of Python's own (struct.error, IndexError, UnicodeDecodeError, ValueError...) is "
    "not turned into a ProtocolError. A connection takes it for a mistake in the program, not the "
    "peer's."
)


def _call(method: Callable[[ReceiveBuffer], Any], buffer: _WatchedBuffer) -> Any:
    """Call ``decode`` or ``decode_eof``.

    Raises:
      ProtocolError: as the reader does.
      _MistakeError: if it raises anything else, or does not come to an end.
    """
    name = method.__name__
    try:
        with buffer.watched():
            return method(buffer)
    except ProtocolError:
        raise
    except _EndlessError:
        raise _MistakeError(
            "the reader does not come to an end",
            "a loop that waits for bytes within decode, which nobody feeds meanwhile: return "
            "NEED_DATA instead; or one whose step is 0 for some length.",
            came=_Text(f"{name} was still looking at the buffer after very many steps"),
            expected=_Text(f"{name} returns, or raises ProtocolError"),
        ) from None
    except Exception as error:
        raise _MistakeError(
            f"the reader raised {type(error).__name__}, which is no ProtocolError",
            _NOT_PROTOCOL_ERROR,
            came=_Text(f"{name} raised {error!r}"),
            expected=_Text("a message, NEED_DATA, or ProtocolError (or a subclass of it)"),
        ) from error


def _drive(
    steps: Sequence[_Step],
    data: bytes,
    cuts: Cuts,
    *,
    like_connection: bool = False,
    open_ended: bool = False,
) -> Iterator[None]:
    """Feed ``data``, which the frames of ``steps`` begin with or go beyond, and then the end.

    Yields after each piece, so that two connections can be driven in turn.

    Raises:
      _MistakeError: if the readers do not make of it what they have to.
    """
    buffer = _WatchedBuffer()
    index = begin = fed = 0
    received: list[Any] = []

    def decode(step: _Step, whole: bool) -> Any:
        try:
            return _call(step.reader.decode, buffer)
        except ProtocolError as error:
            raise _MistakeError(
                "a message that was sent is refused by the reader",
                "reader and writer do not agree on the frame; or the reader takes a part of a "
                f"message, or the beginning of the next one, for all of it: {_CUTTING}",
                came=_Text(f"{error!r} after {_count(fed, 'byte')}"),
                expected=step.expected if whole else NEED_DATA,
            ) from error

    def decode_next() -> bool:
        """Decode once, and check what that does to the buffer; whether a message was there."""
        nonlocal index, begin
        step = steps[min(index, len(steps) - 1)]
        more = index < len(steps)
        whole = more and fed >= begin + len(step.frame)
        size = len(buffer)
        message = decode(step, whole)
        wanted = buffer.wanted
        taken = size - len(buffer)
        if message is NEED_DATA:
            if taken:
                raise _MistakeError(
                    "NEED_DATA, but bytes were taken from the buffer",
                    _NEED_DATA_CONSUMES,
                    came=_Text(f"NEED_DATA, and {_count(taken, 'byte')} of {size} were taken"),
                    expected=step.expected if whole else _Text("NEED_DATA, and none taken"),
                )
            if whole:
                raise _MistakeError(
                    "a whole message has arrived, but the reader wants more",
                    f"{_NOT_WAITED_FOR} Or {_CUTTING}",
                    came=_Text(f"NEED_DATA with {_count(fed, 'byte')} there, wanted={wanted}"),
                    expected=step.expected,
                )
            if more and wanted > len(step.frame):
                raise _MistakeError(
                    "the reader asks for more bytes than the message has",
                    _NOT_WAITED_FOR,
                    came=_Text(f"NEED_DATA with {_count(size, 'byte')} there, wanted={wanted}"),
                    expected=_Text(f"wanted is at most {len(step.frame)}, the frame's size"),
                )
            return False
        if not whole:
            raise _MistakeError(
                "a message came before all of its bytes were there",
                "the reader takes what there is for all of it: compare with the length announced, "
                "and wait for all of the frame, its trailer included.",
                came=_Text(f"{_shown(message)} after {_count(fed, 'byte')}"),
                expected=_Text("NEED_DATA"),
            )
        if not _same(message, step.expected):
            raise _MistakeError(
                "a message was not received as it was sent",
                "reader and writer do not agree on the frame; or the length is truncated to its "
                "field, where EncodeError is due; or what is in the message is taken for a part "
                f"of the protocol, as a delimiter; or {_CUTTING} If it is not meant to be received "
                "as it was sent, say received=[...].",
                came=message,
                expected=step.expected,
            )
        if taken != len(step.frame):
            raise _MistakeError(
                f"{'more' if taken > len(step.frame) else 'less'} than one message was taken",
                _BELONGS_TO_NEXT
                if taken > len(step.frame)
                else "a trailer, a checksum or the delimiter is left behind in the buffer, where "
                "the next message should begin.",
                came=_Text(f"{_shown(message)}, and {_count(taken, 'byte')} were taken"),
                expected=_Text(f"its frame is taken, {_count(len(step.frame), 'byte')}"),
            )
        received.append(message)
        begin += len(step.frame)
        index += 1
        return True

    decode_next()  # before anything is there, as a connection does
    for piece in _pieces(data, cuts):
        before = buffer.wanted
        buffer.feed(piece)
        fed += len(piece)
        if not like_connection or len(buffer) >= before:
            while decode_next():
                pass
            if like_connection:
                buffer.compact()
            else:
                decode_next()  # again, with nothing new: the same
        yield
    decode_next()  # a connection that has waited for more looks again at the end
    rest = buffer.rest() if len(data) <= 4096 else data[begin:]
    if rest != data[begin:]:
        raise _MistakeError(
            "NEED_DATA, but the buffer's bytes are others than before",
            "the reader changes the buffer, or takes bytes and feeds them back.",
            came=_Text(f"{_shown(rest)} in the buffer"),
            expected=_Text(f"{_shown(data[begin:])} in the buffer"),
        )
    _check_end(steps[min(index, len(steps) - 1)].reader, buffer, open_ended=open_ended)
    for message, step in zip(received, steps, strict=False):
        if not _same(message, step.expected):
            raise _MistakeError(
                "a message changed after it had been received",
                "the reader returns an object of its own, such as a bytearray or a list, and uses "
                "it again for the next message.",
                came=message,
                expected=step.expected,
            )


def _check_end(reader: Reader[Any], buffer: _WatchedBuffer, *, open_ended: bool) -> None:
    """The peer has finished; what is in the buffer is the beginning of a message, or nothing."""
    left = len(buffer)
    while True:
        size = len(buffer)
        try:
            message = _call(reader.decode_eof, buffer)
        except IncompleteMessageError as error:
            if left:
                return
            raise _MistakeError(
                "the end of the stream between two messages is not accepted",
                "decode_eof raises whatever the buffer holds: only what is left in it is an "
                "incomplete message.",
                came=_Text(repr(error)),
                expected=_Text("NEED_DATA from decode_eof, for a clean end"),
            ) from error
        except ProtocolError as error:
            if open_ended and left:
                return  # a last message that is faulty in itself
            raise _MistakeError(
                "the end of the stream within a message is not an IncompleteMessageError",
                "decode_eof raises a ProtocolError of another kind. Users tell by the kind whether "
                "the peer was cut off or sent what is not allowed.",
                came=_Text(f"{error!r}, with {_count(left, 'byte')} left"),
                expected=_Text("IncompleteMessageError" if left else "NEED_DATA from decode_eof"),
            ) from error
        if message is NEED_DATA:
            break
        if not open_ended or not size or len(buffer) >= size:
            raise _MistakeError(
                "the end of the stream makes a message of what is none",
                "decode_eof takes whatever is left for a last message: a peer that was cut off "
                "looks like one that has finished. If the protocol is like that, say "
                "open_ended=True.",
                came=_Text(f"{_shown(message)} of {_count(size, 'byte')} left"),
                expected=_Text("IncompleteMessageError" if left else "NEED_DATA from decode_eof"),
            )
    if len(buffer):
        raise _MistakeError(
            "the end of the stream within a message passes for a clean one",
            "decode_eof returns NEED_DATA with bytes in the buffer. The one that is inherited from "
            "Reader raises IncompleteMessageError then.",
            came=_Text(f"a clean end, with {_count(len(buffer), 'byte')} left"),
            expected=_Text("IncompleteMessageError"),
        )


# -- what bytes come to that nobody vouches for


@attrs.frozen
class _Raised:
    """An error in an outcome; the kind of it, for its words may tell how much had come."""

    kind: type[ProtocolError]


def _outcome(reader: Reader[Any], data: bytes, cuts: Cuts, *, like_connection: bool) -> list[Any]:
    """The messages and the types of the errors that a reader makes of any bytes, in order.

    A reader that consumed what it refuses goes on behind that, as with a connection.

    Raises:
      _MistakeError: if it raises anything else, takes bytes without a message, or does not end.
    """
    buffer = _WatchedBuffer()
    outcome: list[Any] = []

    def call(method: Callable[[ReceiveBuffer], Any]) -> bool | None:
        """Whether to call again; None if this is the end of the connection."""
        size = len(buffer)
        try:
            message = _call(method, buffer)
        except ProtocolError as error:
            outcome.append(_Raised(type(error)))
            if len(buffer) < size:
                return True
            try:
                again: object = _call(method, buffer)
            except ProtocolError as second:
                again = type(second)
            if again is not type(error):
                raise _MistakeError(
                    "an error with nothing consumed is another one the next time",
                    "the reader changes its state before it raises. What is still in the buffer "
                    "is refused again; or is consumed, and then the connection goes on behind it.",
                    came=_Text(f"{error!r}, and then {again!r}"),
                    expected=_Text("the same error twice, or the faulty bytes consumed"),
                ) from error
            return None
        if message is NEED_DATA:
            if len(buffer) < size:
                raise _MistakeError(
                    "NEED_DATA, but bytes were taken from the buffer",
                    f"{_NEED_DATA_CONSUMES} Or bytes are skipped to find the beginning of a "
                    "message: skip them together with the message, or raise ProtocolError.",
                    came=_Text(f"NEED_DATA, and {_count(size - len(buffer), 'byte')} were taken"),
                    expected=_Text("NEED_DATA, and none taken"),
                )
            return False
        if len(buffer) >= size:
            raise _MistakeError(
                "a message that takes no bytes from the buffer",
                "a length of 0, or a negative one, that is not refused: the same message comes "
                "again and again, for ever.",
                came=message,
                expected=_Text("a message and its bytes, NEED_DATA, or ProtocolError"),
            )
        outcome.append(message)
        return True

    for piece in _pieces(data, cuts):
        before = buffer.wanted
        buffer.feed(piece)
        if like_connection and len(buffer) < before:
            continue
        while goes_on := call(reader.decode):
            pass
        if goes_on is None:
            return outcome
        if like_connection:
            buffer.compact()
    while (goes_on := call(reader.decode)) or (
        goes_on is False and (goes_on := call(reader.decode_eof))
    ):
        pass
    return outcome


def _shown_outcome(outcome: list[Any]) -> _Text:
    return _shown_all(
        _Text(each.kind.__name__) if isinstance(each, _Raised) else each for each in outcome
    )


# -- the promises


@attrs.define(eq=False)
class _Checks:
    codec: Codec[Any, Any]
    sent: tuple[_Sent, ...]
    as_sent: bool  # what is received equals what was sent, so that other messages can be made
    refused: tuple[object, ...]
    malformed: tuple[bytes, ...]
    size_of: Callable[[Any], int] | None
    open_ended: bool
    random: random.Random
    shortest: int = attrs.field(init=False, default=0)  # of the frames

    def run(self) -> None:
        for each in self.sent:
            self.accepting(each)
            self.fail_smallest(self.encoding, (each,))
        # Shortest first: then the first case that fails is a small one.
        ordered = sorted((*self.sent, *self.resized(_SHORTER)), key=self.frame_size)
        self.shortest = self.frame_size(ordered[0])
        longer = [(each,) for each in self.resized(_LONGER)]
        ends = ordered if len(ordered) <= 20 else ordered[:10] + ordered[-10:]
        alone = [(each,) for each in ends]
        together = self.sent[:20]

        self.fail_smallest(self.apart, tuple(ordered[:3]))
        for some in [*alone, together]:
            for cuts in self.cuttings(some):
                self.fail_smallest(self.reading, some, cuts)
        for some in [self.sent, *longer]:
            for cuts in self.some_cuttings(some):
                self.fail_smallest(self.reading, some, cuts)
        for some in [*alone, together]:
            for end in [0, *self.places(some)]:
                self.fail_smallest(self.ending, some, (end,))
        for bad in (*self.refused, object()):
            self.fail_smallest(self.refusing(bad), tuple(ordered[:2]))
        self.new_limits()
        for some in [*alone, *longer]:
            self.fail_smallest(self.limit, some, cut=False)
        if len(ordered) > 1:
            self.fail_smallest(self.changing_limit, (ordered[0], ordered[-1]), cut=False)
        for some in alone:
            for cuts in self.cuttings(some):
                self.fail_smallest(self.switching, some, cuts)
        self.anything()
        for some in [*alone[-1:], *longer[-1:]]:
            self.fail_smallest(self.cost_of_pieces, some, cut=False)
        self.fail_smallest(self.cost_of_many, (ordered[0],), cut=False)
        self.fail_smallest(self.cost_of_many, (ordered[-1],), cut=False)

    # -- cases

    def fail_smallest(
        self,
        attempt: Callable[[tuple[_Sent, ...], Cuts], None],
        some: tuple[_Sent, ...],
        cuts: Cuts = (),
        *,
        cut: bool = True,
    ) -> None:
        mistake = _attempted(attempt, some, cuts)
        if mistake is not None:
            raise _smallest(
                attempt,
                some,
                cuts,
                mistake,
                shorter=self.fewer_or_shorter,
                length=self.length,
                cut=cut,
            )

    def fewer_or_shorter(self, some: tuple[_Sent, ...]) -> Iterator[tuple[_Sent, ...]]:
        half = len(some) // 2
        if half:
            yield some[:half]
            yield some[half:]
            for i in range(min(len(some), 40)):
                yield some[:i] + some[i + 1 :]
        if self.as_sent:
            for i, each in enumerate(some[:40]):
                message = each.message
                if isinstance(message, bytes | str) and message:
                    middle = len(message) // 2
                    for less in (message[:middle], message[middle:], message[:-1], message[1:]):
                        if len(less) < len(message):
                            yield (*some[:i], _Sent(less, less), *some[i + 1 :])

    def length(self, some: tuple[_Sent, ...]) -> int:
        try:
            return len(b"".join(self.frames(some)))
        except (EncodeError, _MistakeError):
            return 0  # it has none that it could be cut in

    def places(self, some: tuple[_Sent, ...]) -> list[int]:
        frames = self.frames(some)
        marks = itertools.accumulate(map(len, frames), initial=0)
        return _places(sum(map(len, frames)), marks, self.random)

    def cuttings(self, some: tuple[_Sent, ...]) -> Iterator[Cuts]:
        """In one piece, in two, in many, at random."""
        places = self.places(some)
        yield ()
        for place in places:
            yield (place,)
        yield tuple(places)
        for _ in range(20):
            yield self.random_cuts(places)

    def some_cuttings(self, some: tuple[_Sent, ...]) -> Iterator[Cuts]:
        """A few, for messages that are long."""
        length = self.length(some)
        yield ()
        for place in {1, 2, 3, 4, length // 2, length - 1} & set(range(1, length)):
            yield (place,)
        yield tuple(range(1, length, max(length // 64, 1)))

    def random_cuts(self, places: Sequence[int]) -> Cuts:
        if not places:
            return ()
        some = self.random.sample(places, self.random.randint(1, min(len(places), 12)))
        return tuple(sorted(some))

    def resized(self, lengths: Sequence[int]) -> Iterator[_Sent]:
        """Messages of these lengths, made of those that were given, if they can be sent."""
        if not self.as_sent:
            return
        given = [each.message for each in self.sent]
        texts = [each for each in given if isinstance(each, bytes | str) and each]
        for length in lengths if texts else ():
            for text in (texts[0], texts[-1]):
                message = (text * (length // len(text) + 1))[:length]
                if message in given:
                    break
                each = _Sent(message, message)
                self.fail_smallest(self.encoding, (each,))
                try:
                    self.frames([each])
                except EncodeError:
                    continue
                yield each
                break

    def frame_size(self, each: _Sent) -> int:
        return len(*self.frames([each]))

    @contextlib.contextmanager
    def told(self, some: Sequence[_Sent], data: bytes | None, cuts: Cuts) -> Iterator[None]:
        """A mistake that is made within is told of with this case."""
        facts: dict[str, object] = {"sent": _shown_all(each.message for each in some)}
        size = _count(len(some), "message")
        if data is not None:
            pieces = _pieces(data, cuts)
            facts["arrived"] = _shown_all(pieces, " | ")
            size += f", {_count(len(data), 'byte')}, {_count(len(pieces) - 1, 'cut')}"
        try:
            with _telling(**facts):
                yield
        except _MistakeError as mistake:
            mistake.size = size
            raise

    # -- writers

    def encode(self, writer: Writer[Any], message: object) -> bytes:
        """The frame of a message, in one piece.

        Raises:
          EncodeError: as the writer does.
          _MistakeError: if it raises anything else, or returns what cannot be sent.
        """
        return b"".join(self.encode_in_pieces(writer, message))

    def encode_in_pieces(self, writer: Writer[Any], message: object) -> list[Any]:
        try:
            frame: Any = writer.encode(message)
        except EncodeError:
            raise
        except Exception as error:
            raise _MistakeError(
                f"the writer raised {type(error).__name__}, which is no EncodeError",
                "an exception of Python's own (struct.error, OverflowError, UnicodeEncodeError, "
                "TypeError...) for what the protocol cannot represent is not turned into an "
                "EncodeError.",
                sent=message,
                came=_Text(repr(error)),
                expected=_Text("a frame, or EncodeError"),
            ) from error
        pieces = [frame] if isinstance(frame, bytes | bytearray | memoryview) else frame
        if not isinstance(pieces, Sequence) or not all(
            isinstance(piece, bytes | bytearray | memoryview) for piece in pieces
        ):
            raise _MistakeError(
                "the writer returned what cannot be sent",
                "text that is not encoded, a generator, or None because of a return that was "
                "forgotten.",
                sent=message,
                came=frame,
                expected=_Text("bytes, bytearray or memoryview, or a sequence of these"),
            )
        return list(pieces)

    def frames(self, some: Iterable[_Sent]) -> list[bytes]:
        writer = self.codec.writer()
        return [self.encode(writer, each.message) for each in some]

    def accepting(self, each: _Sent) -> None:
        with self.told([each], None, ()):
            try:
                self.frames([each])
            except EncodeError as error:
                raise _MistakeError(
                    "a message that was given is refused by the writer",
                    "a check that is too strict; or the message is none that the codec sends: "
                    "then give it as refused=[...].",
                    came=_Text(repr(error)),
                    expected=_Text("its frame"),
                ) from error

    def encoding(self, some: tuple[_Sent, ...], _cuts: Cuts = ()) -> None:
        """A frame has bytes, stays as it is, and is the same from every writer of equal codecs."""
        message = some[0].message
        with self.told(some, None, ()):
            writer = self.codec.writer()
            kept = self.encode_in_pieces(writer, message)
            frame = b"".join(kept)
            if not frame:
                raise _MistakeError(
                    "a frame without a byte",
                    "nothing marks the message: the peer cannot notice that it was sent. Refuse it "
                    "with EncodeError.",
                    came=frame,
                    expected=_Text("one byte at least"),
                )
            again = self.encode(writer, message)
            self.unchanged(
                frame,
                kept,
                "another message was encoded",
                "the writer returns a bytearray of its own (or a memoryview of one) and uses it "
                "again for the next message, while the first may be waiting to be sent.",
            )
            if isinstance(message, bytes | bytearray | memoryview):
                self.keeping(message)
            if not writer.stateful:
                self.alike(message, frame, again)

    def unchanged(self, frame: bytes, kept: list[Any], after: str, causes: str) -> None:
        now = b"".join(kept)
        if now != frame:
            raise _MistakeError(
                "a frame changed after the writer had returned it",
                causes,
                came=_Text(f"{_shown(now)} after {after}"),
                expected=frame,
            )

    def keeping(self, message: bytes | bytearray | memoryview) -> None:
        """A frame does not depend on what becomes of a message that can be changed."""
        for kind in (bytearray, memoryview):
            changing = bytearray(message)
            given = memoryview(changing) if kind is memoryview else changing
            try:
                kept = self.encode_in_pieces(self.codec.writer(), given)
            except (_MistakeError, EncodeError):
                continue  # only `bytes` are sent, then
            frame = b"".join(kept)
            changing[:] = bytes(byte ^ 0xFF for byte in changing)
            self.unchanged(
                frame,
                kept,
                f"the {kind.__name__} that was sent was changed",
                "the frame holds the caller's own object. A bytearray or memoryview may be changed "
                "before its frame is sent: copy it with bytes(message).",
            )

    def alike(self, message: object, frame: bytes, again: bytes) -> None:
        """What `Server.broadcast` relies on, which encodes once for all equal codecs."""
        title = "frames of the same message are not the same"
        if again != frame:
            raise _MistakeError(
                title,
                "the frame depends on what was sent before it, as with sequence numbers or "
                "compression: then the writer must say stateful = True.",
                came=_Text(f"{_shown(again)} the second time"),
                expected=frame,
            )
        codecs = {"another writer of the codec": self.codec, "an equal codec": self.equal()}
        for whose, codec in codecs.items():
            other = self.encode(codec.writer(), message)
            if other != frame:
                raise _MistakeError(
                    title,
                    "writers share a state through their codec; or codecs are equal (==) that do "
                    "not frame alike, for a setting is left out of the comparison. A broadcast "
                    "encodes once for all connections of equal codecs.",
                    came=_Text(f"{_shown(other)} from {whose}"),
                    expected=frame,
                )
        try:
            hash(self.codec)
        except TypeError as error:
            raise _MistakeError(
                "the codec has no hash",
                "an attrs class that is not frozen, or a class with __eq__ and no __hash__. A "
                "broadcast looks its frames up by codec.",
                came=_Text(repr(error)),
                expected=_Text("a codec made with attrs.frozen, or a plain class"),
            ) from error

    def equal(self) -> Codec[Any, Any]:
        """An equal codec that was made anew, if there is a way to make one."""
        makers: list[Callable[[Any], Any]] = [copy.copy]
        if attrs.has(type(self.codec)):
            makers.insert(0, attrs.evolve)
        for make in makers:
            with contextlib.suppress(Exception):  # it is theirs, and need not be possible
                other = make(self.codec)
                if other == self.codec:
                    return other  # type: ignore[no-any-return]
        return self.codec

    def refusing(self, bad: object) -> Callable[[tuple[_Sent, ...], Cuts], None]:
        """What must be refused is, and does not disturb what is sent after it."""
        must = any(bad is each for each in self.refused)

        def attempt(some: tuple[_Sent, ...], _cuts: Cuts) -> None:
            writer = self.codec.writer()
            first = self.encode(writer, some[0].message)
            with self.told(some, None, ()), _telling(refused=bad):
                if must:
                    self.refuse(writer, bad)
                else:
                    # Of a type that no codec knows: it may fail as it does, or even be sent.
                    with contextlib.suppress(EncodeError, _MistakeError):
                        self.encode(writer, bad)
                        return
                self.usable(writer, first, some)

        return attempt

    def refuse(self, writer: Writer[Any], bad: object) -> None:
        try:
            frame = self.encode(writer, bad)
        except EncodeError:
            return
        raise _MistakeError(
            "a message that must be refused was sent",
            "a check is missing: of the type, of a length that its field cannot hold, of a "
            "delimiter within the message. The peer would read something else.",
            refused=bad,
            came=_Text(f"the frame {_shown(frame)}"),
            expected=_Text("EncodeError"),
        )

    def usable(self, writer: Writer[Any], first: bytes, some: tuple[_Sent, ...]) -> None:
        """``writer`` has sent one message and refused another; now it sends all of ``some``."""
        reader = self.codec.reader()
        try:
            frames = [first, *(self.encode(writer, each.message) for each in some)]
            steps = [
                _Step(reader, frame, each.expected)
                for frame, each in zip(frames, (some[0], *some), strict=True)
            ]
            for _ in _drive(steps, b"".join(frames), (), open_ended=self.open_ended):
                pass
        except (_MistakeError, EncodeError) as error:
            raise _MistakeError(
                "the writer is not usable any more after a message that it refused",
                "encode changes the writer's state (a sequence number, a compressor, a buffer) "
                "before it is sure that the message can be sent. Check first, change last.",
                came=_Text(f"{error}"),
                expected=_Text("messages after the refused one are received as they were sent"),
            ) from error

    # -- readers

    def reading(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        """What is sent is received, however it is cut."""
        self.receive(some, cuts, None)

    def ending(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        """The peer finishes after so many bytes as the first of ``cuts`` says."""
        self.receive(some, (), cuts[0] if cuts else None)

    def receive(self, some: tuple[_Sent, ...], cuts: Cuts, end: int | None) -> None:
        frames = self.frames(some)
        data = b"".join(frames)[:end]
        for like_connection in (False, True):
            reader = self.codec.reader()
            steps = [
                _Step(reader, frame, each.expected)
                for frame, each in zip(frames, some, strict=True)
            ]
            with self.told(some, data, cuts):
                for _ in _drive(
                    steps,
                    data,
                    cuts,
                    like_connection=like_connection,
                    open_ended=self.open_ended,
                ):
                    pass

    def apart(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """Two connections of one codec do not disturb each other."""
        orders = (some, some[::-1])
        frames: list[list[bytes]] = [[], []]
        writers = [self.codec.writer() for _ in orders]
        for i in range(len(some)):
            for mine, writer, order in zip(frames, writers, orders, strict=True):
                mine.append(self.encode(writer, order[i].message))

        def drive(mine: list[bytes], order: tuple[_Sent, ...]) -> Iterator[None]:
            reader = self.codec.reader()
            steps = [
                _Step(reader, frame, each.expected) for frame, each in zip(mine, order, strict=True)
            ]
            data = b"".join(mine)
            places = tuple(_places(len(data), [0], self.random))
            return _drive(steps, data, places, open_ended=self.open_ended)

        try:
            alone = drive(*next(zip(frames, orders, strict=True)))
            for _ in alone:
                pass
        except _MistakeError:
            return  # it is a mistake of another kind, for another check to find
        with self.told(some, None, ()):
            try:
                for _ in itertools.zip_longest(*map(drive, frames, orders)):
                    pass
            except _MistakeError as mistake:
                raise _MistakeError(
                    "two connections of one codec disturb each other",
                    "readers or writers keep their state in the codec, in the class (a list or a "
                    "bytearray as a class attribute), or codec.reader() returns the same object "
                    "each time.",
                    came=_Text(f"{mistake.facts['came']}: {mistake.title}"),
                    expected=_Text(
                        "each receives what was sent to it: one the messages in this order, the "
                        "other in the opposite one, with their bytes coming in turn"
                    ),
                ) from mistake

    def switching(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        """The reader is exchanged for this one, and this one for another, within a chunk."""
        others = b"\x03\x00\xffx"
        (frame,) = self.frames(some[:1])
        steps = [
            _Step(LengthPrefixed(1).reader(), others, others[1:]),
            _Step(self.codec.reader(), frame, some[0].expected),
            _Step(LengthPrefixed(1).reader(), others, others[1:]),
        ]
        data = others + frame + others
        with self.told(some[:1], data, cuts), _telling(readers=_Text("another, this, another")):
            for _ in _drive(steps, data, cuts):
                pass
            if not self.codec.writer().stateful:
                fresh = [_Step(self.codec.reader(), frame, some[0].expected) for _ in range(2)]
                for _ in _drive(fresh, frame * 2, cuts, open_ended=self.open_ended):
                    pass

    def anything(self) -> None:
        """Bytes that are no messages get nothing but ProtocolError out of a reader."""
        for data in self.faulty():
            places = _places(len(data), [0], self.random) if data else []
            for cuts in ((), tuple(places), self.random_cuts(places)):
                mistake = _attempted(self.reading_anything, data, cuts)
                if mistake is not None:
                    raise _smallest(
                        self.reading_anything,
                        data,
                        cuts,
                        mistake,
                        shorter=_shorter_data,
                        length=len,
                        cut=True,
                    )
        for data in self.malformed:
            self.refuse_bytes(data)

    def faulty(self) -> Iterator[bytes]:
        """Bytes that are no messages, or nearly so, the shortest first."""
        rng = self.random
        yield from self.malformed
        for length in (1, 2, 3, 4, 5, 8, 9, 11, 20):
            for byte in (0x00, 0x01, 0x0A, 0x30, 0x7F, 0x80, 0xFE, 0xFF):
                yield bytes([byte]) * length
        frames = sorted(self.frames(self.sent), key=len)[:20]
        short = [frame for frame in frames if len(frame) <= 200] or [frames[0][:200]]
        for frame in short[:2]:
            for i in range(min(len(frame), 20)):
                for byte in (0x00, 0x80, 0xFF, frame[i] ^ 1):
                    yield frame[:i] + bytes([byte]) + frame[i + 1 :]
        alphabet = b"".join(short)
        for _ in range(40):
            yield rng.randbytes(rng.randrange(1, 40))
            yield bytes(rng.choices(alphabet, k=rng.randrange(1, 40)))
            valid = bytearray(b"".join(rng.choices(short, k=3))[:400])
            for _ in range(rng.randrange(1, 4)):
                i = rng.randrange(len(valid))
                j = min(i + rng.randrange(4), len(valid))
                valid[i:j] = rng.randbytes(rng.randrange(3))
                valid = valid or bytearray(1)
            yield bytes(valid)

    def reading_anything(self, data: bytes, cuts: Cuts) -> None:
        whole: list[Any] = []
        size = f"{_count(len(data), 'byte')}, {_count(len(cuts), 'cut')}"
        try:
            with _telling(arrived=_shown_all(_pieces(data, cuts), " | ")):
                whole = _outcome(self.codec.reader(), data, (), like_connection=False)
                for like_connection in (False, True):
                    parts = _outcome(
                        self.codec.reader(), data, cuts, like_connection=like_connection
                    )
                    if len(parts) == len(whole) and all(map(_same, parts, whole)):
                        continue
                    raise _MistakeError(
                        "bytes that are no messages mean something else when they are cut",
                        "the reader decides from what happens to have arrived: it refuses a part "
                        "that may yet become right, or notices something only if it comes in one "
                        f"piece, or checks in another order; or {_CUTTING}",
                        came=_shown_outcome(parts),
                        expected=_Text(f"{_shown_outcome(whole)}, as in one piece"),
                    )
        except _MistakeError as mistake:
            mistake.size = size
            raise

    def refuse_bytes(self, data: bytes) -> None:
        outcome = _outcome(self.codec.reader(), data, (), like_connection=False)
        if not any(
            isinstance(each, _Raised) and each.kind is not IncompleteMessageError
            for each in outcome
        ):
            raise _MistakeError(
                "malformed bytes are not refused",
                "a check is missing in the reader.",
                arrived=data,
                came=_shown_outcome(outcome),
                expected=_Text("ProtocolError"),
            )

    # -- limits

    def new_limits(self) -> None:
        """Readers and writers begin with their codec's limit, each with its own."""
        of_codec = _limit_of(self.codec)
        for make in (self.codec.reader, self.codec.writer):
            half, other = make(), make()
            limit = _limit_of(half)
            if limit is not None and of_codec is not None and limit != of_codec:
                raise _MistakeError(
                    "the max_size of the codec does not reach its readers and writers",
                    f"it is not handed on in {make.__name__}().",
                    came=_Text(f"{type(half).__name__} has max_size={limit}"),
                    expected=_Text(f"max_size={of_codec}"),
                )
            if limit is None or not _set_limit(half, limit + 1):
                continue
            if _limit_of(other) != limit:
                raise _MistakeError(
                    "two connections of one codec disturb each other",
                    "max_size is kept in the codec or in the class, or the same object is returned "
                    f"by each {make.__name__}().",
                    came=_Text(f"max_size={_limit_of(other)} in another {type(half).__name__}"),
                    expected=_Text(f"max_size={limit} as before, for only one was changed"),
                )

    def limited(self, make: str, limit: int) -> Any:
        """A new reader or writer with ``max_size`` set; None if it has none that can be set."""
        half = getattr(self.codec, make)()
        if _set_limit(half, limit):
            return half
        codec: Any = self.codec
        if attrs.has(type(codec)) and _limit_of(codec) is not None:
            with contextlib.suppress(Exception):  # theirs, and it may have a least of its own
                return getattr(attrs.evolve(codec, max_size=limit), make)()
        return None

    def passes(self, make: str, limit: int, each: _Sent, frame: bytes) -> bool | None:
        """Whether a message passes with this ``max_size``; None if that cannot be tried."""
        half = self.limited(make, limit)
        if half is None:
            return None
        if make == "writer":
            try:
                self.encode(half, each.message)
            except EncodeError:
                return False
            return True
        buffer = _WatchedBuffer()
        buffer.feed(frame)
        return self.decoded(half, buffer, limit) is not NEED_DATA

    def decoded(self, reader: Reader[Any], buffer: _WatchedBuffer, limit: int) -> object:
        """What a reader makes of the buffer; `NEED_DATA` if it is too large."""
        for _ in range(2):  # what is not consumed is refused again
            size = len(buffer)
            try:
                message = _call(reader.decode, buffer)
            except MessageTooLargeError:
                if len(buffer) < size:
                    break
                continue
            except ProtocolError as error:
                raise _MistakeError(
                    "a message over max_size is refused with another error",
                    "the limit is not what is checked first: then what is too large is worked "
                    "on before it is refused.",
                    came=_Text(f"{error!r} with max_size={limit}"),
                    expected=_Text("MessageTooLargeError"),
                ) from error
            if message is NEED_DATA:
                raise _MistakeError(
                    "a whole message has arrived, but the reader wants more",
                    "with another max_size, the reader looks for the message's end elsewhere.",
                    came=_Text(f"NEED_DATA with max_size={limit}"),
                    expected=_Text("the message, or MessageTooLargeError"),
                )
            return message
        return NEED_DATA

    def least_limit(self, make: str, each: _Sent, frame: bytes) -> int | None:
        """The smallest ``max_size`` with which a message passes; None if that cannot be tried."""
        most = _limit_of(getattr(self.codec, make)())
        if most is None:
            most = _limit_of(self.codec)
        if most is None:
            return None
        least = 0
        while least < most:
            middle = (least + most) // 2
            passes = self.passes(make, middle, each, frame)
            if passes is None:
                return None
            least, most = (least, middle) if passes else (middle + 1, most)
        return least

    def limit(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """``max_size`` is exact, for reader and writer alike, and enforced early."""
        each = some[0]
        (frame,) = self.frames([each])
        size: int | None = None
        if self.size_of is not None:
            size = self.size_of(each.message)
        elif isinstance(each.message, bytes | bytearray | memoryview):
            size = len(bytes(each.message))
        with self.told(some[:1], frame, ()):
            reader = self.least_limit("reader", each, frame)
            writer = self.least_limit("writer", each, frame)
            known = {"reader": reader, "writer": writer}
            found = {half: least for half, least in known.items() if least is not None}
            right = size if size is not None else writer
            if right is not None and any(least != right for least in found.values()):
                title = (
                    "max_size is not exact"
                    if size is not None
                    else "max_size is not the same to the reader and the writer"
                )
                raise _MistakeError(
                    title,
                    "the comparison is off by one (>= for >), or leaves the header, the delimiter "
                    "or an escape in; or nothing is compared at all. If max_size counts something "
                    "else than the length of the message, say so with size_of=...",
                    came=_Text(
                        " and ".join(
                            f"the {half} lets it pass from max_size={least} on"
                            for half, least in found.items()
                        )
                    ),
                    expected=_Text(f"it passes from max_size={right} on, and not below"),
                )
            if reader is not None:
                self.limit_in_pieces(frame, reader)
            # What is made of another codec's frames has that one's limit to go with it.
            if reader and not _has_inner(self.codec):
                for limit in {0, reader // 4}:
                    self.early(each, frame, limit, reader)

    def limit_in_pieces(self, frame: bytes, least: int) -> None:
        """What passes in one piece, and what does not, is the same in several."""
        for limit in (least, least - 1) if least else (least,):
            for cuts in (tuple(_places(len(frame), [0], self.random)), (len(frame) - 1,)):
                reader = self.limited("reader", limit)
                buffer = _WatchedBuffer()
                passed = refused = False
                for piece in _pieces(frame, cuts):
                    buffer.feed(piece)
                    try:
                        passed = passed or _call(reader.decode, buffer) is not NEED_DATA
                    except ProtocolError:
                        refused = True
                        break
                if passed != (limit == least) or passed == refused:
                    raise _MistakeError(
                        "max_size is not exact for what comes in pieces",
                        "the limit is compared at two places in decode, one of them for what is "
                        "not whole yet, and one of the two is off by one.",
                        came=_Text(
                            f"{'it passes' if passed else 'it does not pass'} in "
                            f"{_count(len(cuts) + 1, 'piece')} with max_size={limit}"
                        ),
                        expected=_Text(f"it passes from max_size={least} on, as in one piece"),
                    )

    def early(self, each: _Sent, frame: bytes, limit: int, size: int) -> None:
        """What is too large is refused before it has arrived.

        How soon that can be depends on the protocol. With a length in front, at once; with a
        delimiter behind, when more has come than the limit and the delimiter; with bytes escaped,
        perhaps at twice of that. The frame's last byte is not needed in any of them.
        """
        # Not for what is hardly more than the shortest: with that, there may be a header only.
        if size < limit + 2 or len(frame) < self.shortest + 2:
            return
        reader = self.limited("reader", limit)
        allowed = 2 * limit + max(len(frame) - size, 0) + 16
        if limit == 0:
            allowed = min(allowed, len(frame) - 1)
        if reader is None or allowed >= len(frame):
            return
        buffer = _WatchedBuffer()
        try:
            for i in range(allowed):
                buffer.feed(frame[i : i + 1])
                _call(reader.decode, buffer)
        except ProtocolError:
            return
        raise _MistakeError(
            "a message over max_size is refused only after it has arrived",
            "the limit is compared with what has come, not with what is announced, or only when "
            "the message is whole. A peer can then fill the memory with a message that will be "
            "refused.",
            came=_Text(
                f"NEED_DATA with {allowed} of {_count(len(frame), 'byte')} there and "
                f"max_size={limit}"
            ),
            expected=_Text("MessageTooLargeError by then"),
        )

    def changing_limit(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """``max_size`` counts from the next message on, when it is raised and when lowered."""
        small, large = some[0], some[-1]
        frames = self.frames([small, large])
        limits = [self.least_limit("reader", each, *self.frames([each])) for each in (small, large)]
        for before, after in (limits, limits[::-1]):
            if before is None or after is None or limits[0] == limits[1]:
                return
            raised = before < after
            reader = self.codec.reader()
            if not _set_limit(reader, max(before, after) if not raised else before):
                return
            data = b"".join(frames)
            buffer = _WatchedBuffer()
            buffer.feed(data)
            with self.told((small, large), data, ()):
                first = self.decoded(reader, buffer, before)
                _set_limit(reader, after if raised else limits[1] - 1)  # type: ignore[operator]
                second = self.decoded(reader, buffer, after)
                passed = second is not NEED_DATA
                if not _same(first, small.expected) or passed != raised:
                    raise _MistakeError(
                        "max_size cannot be changed between two messages",
                        "the reader computes something from max_size once, when it is made, or "
                        "looks at the next message before it is asked for it.",
                        came=_Text(f"the second {'passes' if passed else 'is refused'}"),
                        expected=_Text(
                            f"the second {'passes' if raised else 'is refused'}, after max_size "
                            f"was {'raised' if raised else 'lowered'} behind the first"
                        ),
                    )

    # -- what it costs

    def cost_of_pieces(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """A message that comes in many pieces is not looked at from its beginning with each."""
        (frame,) = self.frames(some[:1])
        step = max(len(frame) // _PIECES, 1)
        # All of them small; or a large one first, which becomes the front that `data` shows.
        for first in (step, len(frame) // 2):
            self.cost(some[:1], [frame], tuple(range(first, len(frame), step)))

    def cost_of_many(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """Many messages in one chunk are not copied together with each of them."""
        writer = self.codec.writer()
        frame = self.encode(writer, some[0].message)
        count = max(_CHUNK // len(frame), 2)
        frames = [frame, *(self.encode(writer, some[0].message) for _ in range(count - 1))]
        self.cost(some[:1], frames, ())

    def cost(self, some: tuple[_Sent, ...], frames: list[bytes], cuts: Cuts) -> None:
        reader = self.codec.reader()
        buffer = _WatchedBuffer()
        calls = received = 0
        data = b"".join(frames)
        for piece in _pieces(data, cuts):
            before = buffer.wanted
            buffer.feed(piece)
            if len(buffer) < before:
                continue
            calls += 1
            while _call(reader.decode, buffer) is not NEED_DATA:
                calls += 1
                received += 1
        allowed = _TOUCHES_PER_BYTE * len(data) + _TOUCHES_PER_CALL * calls
        if buffer.touched <= allowed:
            return
        if len(frames) > 1:
            title = "the cost of many messages in one chunk grows with the square of their number"
            causes = (
                "all that is in the buffer is copied for each message, as in "
                "buffer.data[buffer.start:] or peek(len(buffer)). Slice what the message needs."
            )
            came = f"{_count(len(frames), 'message')} in one chunk of {_count(len(data), 'byte')}"
        else:
            title = "the cost of a message in many pieces grows with the square of its size"
            causes = (
                "each piece begins the work from the start: a search for the delimiter (find() of "
                "the buffer remembers how far it came, for one delimiter at a time), or joining "
                "what is there, as in peek(len(buffer)). Use peek() for the header, and take() for "
                "the rest, which joins once."
            )
            came = f"{_count(len(data), 'byte')} in {_count(len(cuts) + 1, 'piece')}"
        with self.told(some, None, ()):
            raise _MistakeError(
                title,
                causes,
                arrived=_Text(came),
                came=_Text(f"{buffer.touched:,} bytes were looked at or copied"),
                expected=_Text(f"at most {allowed:,}, in {_count(calls, 'call')} of decode"),
            )

    # -- no frames

    def run_unframed(self) -> None:
        for each in self.sent:
            self.accepting(each)
        for bad in self.refused:
            self.refuse(self.codec.writer(), bad)
        for cuts in self.cuttings(self.sent):
            self.fail_smallest(self.reading_unframed, self.sent, cuts)

    def reading_unframed(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        data = b"".join(self.frames(some))
        expected = b"".join(each.expected for each in some)
        with self.told(some, data, cuts):
            for like_connection in (False, True):
                outcome = _outcome(self.codec.reader(), data, cuts, like_connection=like_connection)
                errors = [each for each in outcome if isinstance(each, _Raised)]
                if errors or b"".join(outcome) != expected:
                    raise _MistakeError(
                        "the bytes that were sent are not those that came",
                        _CUTTING,
                        came=_shown_outcome(outcome),
                        expected=_Text(f"{_shown(expected)}, in any pieces"),
                    )


def _limit_of(half: object) -> int | None:
    limit = getattr(half, "max_size", None)
    return limit if type(limit) is int else None


def _has_inner(codec: Any) -> bool:
    names = [*getattr(codec, "__dict__", ()), *getattr(codec, "__slots__", ())]
    return any(isinstance(getattr(codec, name, None), Codec) for name in names)


def _set_limit(half: Any, limit: int) -> bool:
    if _limit_of(half) is None:
        return False
    try:
        half.max_size = limit
    except Exception:  # noqa: BLE001 - theirs: frozen, or refused by a validator
        return False
    return True
