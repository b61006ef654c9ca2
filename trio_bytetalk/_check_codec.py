"""`check_codec`: whether a protocol keeps what `Codec`, `Reader` and `Writer` promise.

Each promise is a method of `_Checks` that raises `MistakeError` for a case in which it is broken:
a few messages, or a few bytes, and where they are cut. Cases are tried from the small to the large,
and the first that fails is made smaller (`fail_smallest`) for as long as it fails in the same way.

Whatever is checked, `_read` drives the readers, as a connection does. It sees to what holds for any
bytes, and tells what came of them in events, which the promises compare with what they expect.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import attrs

from ._codec import NEED_DATA, Codec, Reader, ReceiveT, SendT, Writer
from ._errors import EncodeError, IncompleteMessageError, MessageTooLargeError, ProtocolError
from ._length_prefixed import LengthPrefixed
from ._mistakes import (
    SHORT,
    Cuts,
    MistakeError,
    count,
    fail_smallest,
    pieces,
    shorter_bytes,
    shown,
    shown_all,
    telling,
)
from ._watched_buffer import EndlessError, WatchedBuffer

# Up to `SHORT` bytes a stream is cut at every place; a longer one near the ends of its frames (the
# first ones, and the last), and at a few random places.

# The lengths that messages are cut or repeated to: the least, and both sides of what fits in one
# byte and in two, of a length field and of a varint; and one to count what is touched.
_SHORTER = (0, 1)
_LONGER = (127, 128, 255, 256, 4096, 16_383, 16_384, 65_535, 65_536)

# A reader may touch each byte so many times (a look for its end, a check, a copy or two), and so
# many more with each call (its header once again). A reader that begins from the start with each
# piece is far over that as soon as a message has some hundred bytes.
_TOUCHES_PER_BYTE = 8
_TOUCHES_PER_CALL = 128

# How many times a byte comes in a row, far more than one header may have, and with what limit.
_RUN = 100_000
_RUN_LIMIT = 300

# When what is touched is counted: how long a message is at the most, in how many pieces it comes
# (and how many messages come in one), and how many bytes of messages one chunk has at the most.
_LARGE = 5000
_PIECES = 400
_CHUNK = 8192


def check_codec(
    codec: Codec[SendT, ReceiveT],
    messages: Iterable[SendT],
    *,
    peer: Codec[Any, Any] | None = None,
    received: Iterable[Any] | None = None,
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
      and is enforced before what is too large has arrived; no header goes on without end.
    - What cannot be sent, as a delimiter within a message may be, is an ``EncodeError``, after
      which the writer works as before.
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
          cut and repeated, up to 65,536, or made of frames; of other types, give one of some
          kilobytes as well.
      peer: The codec at the other end, whose readers receive what this one's writers send, if that
          is not the same. Check a pair in both directions.
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

    The cost is bounded: streams over 100 bytes are cut near the ends of their frames and at some
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
        codec if peer is None else peer,
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
    except MistakeError as mistake:
        raise AssertionError(mistake.explanation(codec)) from mistake.__cause__


# -- cases


def _places(length: int, marks: Iterable[int], rng: random.Random) -> list[int]:
    """Where to cut: everywhere in what is short, at places worth a try in what is not."""
    if length <= SHORT:
        return list(range(1, length))
    edges = [*itertools.islice(marks, 8), length]
    near = {edge + offset for edge in edges for offset in range(-3, 6)}
    near |= {rng.randrange(1, length) for _ in range(10)}
    return sorted(place for place in near if 0 < place < length)


def _same(left: object, right: object) -> bool:
    """Whether messages are equal; by their looks, if ``==`` gives no answer, as with arrays."""
    equal: object = None
    with contextlib.suppress(Exception):  # it is theirs
        equal = left == right
        if equal:
            return True
    # Not a number equals nothing, itself included.
    return (not isinstance(equal, bool) or "nan" in repr(left)) and (
        type(left) is type(right) and repr(left) == repr(right)
    )


def _comparable(left: object, right: object) -> bool:
    """Whether ``==`` says anything about messages of the same type, or else their looks do."""
    try:
        bool(left == right)
    except Exception:  # noqa: BLE001 - because the comparison is the user's own
        return type(left).__repr__ is not object.__repr__
    return type(left) is not type(right) or type(left).__eq__ is not object.__eq__


# -- driving readers


@attrs.frozen
class _Sent:
    """A message, and what is to be received for it."""

    message: Any
    expected: Any


@attrs.frozen
class _Event:
    """What a call of ``decode`` or ``decode_eof`` came to."""

    came: Any  # a message, NEED_DATA or a ProtocolError
    fed: int  # how many bytes had arrived
    size: int  # how many of them were in the buffer
    taken: int  # how many of these were taken
    wanted: int
    touched: int  # since the beginning
    at_end: bool  # it was decode_eof

    @property
    def kind(self) -> Any:
        """What came; of an error its type, for its words may tell how much had come."""
        return type(self.came) if isinstance(self.came, ProtocolError) else self.came


def _read(
    readers: Sequence[Reader[Any]], data: bytes, cuts: Cuts, *, patient: bool = False
) -> Iterator[_Event]:
    """Feed ``data`` and then the end, and tell of each call of the readers.

    As in a connection, but with a call for each piece. If ``patient`` there is none while there
    are fewer bytes than are wanted. The readers have a message each, and the last one the rest.

    Raises:
      MistakeError: if a reader does what it must not do with any bytes.
    """
    buffer = WatchedBuffer()
    fed = received = 0
    over = False  # an error that stays

    def call(name: str) -> Any:
        try:
            return buffer.call(getattr(readers[min(received, len(readers) - 1)], name))
        except ProtocolError as error:
            return error
        except EndlessError:
            raise MistakeError(
                "the reader does not come to an end",
                f"{name} was still looking at the buffer after very many steps",
                f"{name} returns, or raises ProtocolError",
            ) from None
        except Exception as error:
            raise MistakeError(
                "the reader raised what is no ProtocolError",
                f"{name} raised {error!r}",
                "a message, NEED_DATA, or ProtocolError (or a subclass of it)",
            ) from error

    def checked(name: str) -> _Event:
        nonlocal over, received
        size = len(buffer)
        came = call(name)
        taken = size - len(buffer)
        at_end = name == "decode_eof"
        event = _Event(came, fed, size, taken, buffer.wanted, buffer.touched, at_end)
        if isinstance(came, ProtocolError):
            over = not taken
            if over and type(again := call(name)) is not type(came):
                raise MistakeError(
                    "an error with nothing consumed is another one the next time",
                    f"{came!r}, and then {again!r}",
                    "the same error twice, or the faulty bytes consumed",
                ) from came
        elif came is NEED_DATA:
            if taken:
                raise MistakeError(
                    "NEED_DATA, but bytes were taken from the buffer",
                    f"NEED_DATA, and {count(taken, 'byte')} of {size} were taken",
                    "NEED_DATA, and none taken",
                )
        elif taken <= 0:
            raise MistakeError(
                "a message that takes no bytes from the buffer",
                shown(came),
                "a message and its bytes, NEED_DATA, or ProtocolError",
            )
        else:
            received += 1
        return event

    yield checked("decode")  # before anything is there, as a connection does
    for piece in pieces(data, cuts):
        if piece:
            buffer.feed(piece)
            fed += len(piece)
        if patient and len(buffer) < buffer.wanted:
            continue
        while not over:
            event = checked("decode")
            yield event
            if event.came is NEED_DATA:
                break
        buffer.compact()
    while not over:
        event = checked("decode")
        if event.came is NEED_DATA:
            rest = buffer.rest()
            if rest != data[fed - len(buffer) :]:
                raise MistakeError(
                    "NEED_DATA, but the buffer's bytes are others than before",
                    f"{shown(rest)} in the buffer",
                    f"{shown(data[fed - len(buffer) :])} in the buffer",
                )
            event = checked("decode_eof")
        yield event
        if event.came is NEED_DATA:
            break


# -- the promises


@attrs.define(eq=False)
class _Checks:
    codec: Codec[Any, Any]  # whose writers send
    peer: Codec[Any, Any]  # whose readers receive
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
            self.attempt(self.encoding, (each,))
        # Shortest first: then the first case that fails is a small one.
        ordered = sorted((*self.sent, *self.resized(_SHORTER)), key=self.frame_size)
        self.shortest = self.frame_size(ordered[0])
        ends = ordered if len(ordered) <= 20 else ordered[:10] + ordered[-10:]
        alone = [(each,) for each in ends]
        longer = [(each,) for each in self.resized(_LONGER)]
        together = self.sent[:20]

        self.attempt(self.apart, tuple(ordered[:3]))
        for some in [*alone, together]:
            for cuts in self.cuttings(some):
                self.attempt(self.reading, some, cuts)
        for some in [self.sent, *longer]:
            for cuts in self.few_cuttings(some):
                self.attempt(self.reading, some, cuts)
        for some in [*alone, together]:
            for end in [0, *self.places(some)]:
                self.attempt(self.ending, some, (end,))
        for bad in (*self.refused, object()):
            self.attempt(self.refusing(bad), tuple(ordered[:2]))
        for each in self.of_frames(ordered):
            self.attempt(self.reading, (each,))
        self.new_limits()
        for some in [*alone, *longer[-1:]]:
            self.attempt(self.limit, some, cut=False)
        self.attempt(self.changing_limit, (ordered[0], ordered[-1]), cut=False)
        for some in alone:
            for cuts in self.few_cuttings(some):
                self.attempt(self.switching, some, cuts)
        self.anything()
        self.endless()
        large = [some for some in [*alone, *longer] if self.length(some) <= _LARGE]
        self.cost_of_pieces((large or alone)[-1])
        for some in (alone[0], alone[-1]):
            self.cost_of_many(some)

    def run_unframed(self) -> None:
        for each in self.sent:
            self.accepting(each)
        for bad in self.refused:
            self.refuse(self.codec.writer(), bad)
        for cuts in self.cuttings(self.sent):
            self.attempt(self.reading_unframed, self.sent, cuts)

    # -- cases

    def attempt(
        self,
        promise: Callable[[tuple[_Sent, ...], Cuts], None],
        some: tuple[_Sent, ...],
        cuts: Cuts = (),
        *,
        cut: bool = True,
    ) -> None:
        fail_smallest(promise, some, cuts, self.fewer_or_shorter, self.length, cut=cut)

    def fewer_or_shorter(self, some: tuple[_Sent, ...]) -> Iterator[tuple[_Sent, ...]]:
        half = len(some) // 2
        if half:
            yield some[:half]
            yield some[half:]
            for i in range(min(len(some), 40)):
                yield some[:i] + some[i + 1 :]
        for i, each in enumerate(some[:40]):
            message = each.message
            if self.as_sent and isinstance(message, bytes | str):
                middle = len(message) // 2
                for less in (message[:middle], message[middle:], message[:-1], message[1:]):
                    if len(less) < len(message):
                        yield (*some[:i], _Sent(less, less), *some[i + 1 :])

    def length(self, some: tuple[_Sent, ...]) -> int:
        try:
            return len(b"".join(self.frames(some)))
        except (EncodeError, MistakeError):
            return 0  # it has none that it could be cut in

    def places(self, some: tuple[_Sent, ...]) -> list[int]:
        sizes = [len(frame) for frame in self.frames(some)]
        return _places(sum(sizes), itertools.accumulate(sizes, initial=0), self.random)

    def cuttings(self, some: tuple[_Sent, ...]) -> Iterator[Cuts]:
        """In one piece, in two, in single bytes, at random."""
        places = self.places(some)
        yield ()
        for place in places:
            yield (place,)
        yield tuple(places)
        for _ in range(10 if places else 0):
            yield tuple(sorted(self.random.choices(places, k=self.random.randint(2, 12))))

    def few_cuttings(self, some: tuple[_Sent, ...]) -> Iterator[Cuts]:
        """A few of all kinds, for messages that are long and for what costs more."""
        length = self.length(some)
        yield ()
        for place in sorted({1, 2, 3, 4, length // 2, length - 1} & set(range(1, length))):
            yield (place,)
        yield tuple(range(1, length, max(length // 32, 1)))

    def resized(self, lengths: Sequence[int]) -> Iterator[_Sent]:
        """Messages of these lengths, made of those that were given, if they can be sent."""
        given = [each.message for each in self.sent if isinstance(each.message, bytes | str)]
        texts = [each for each in given if each] if self.as_sent else []
        for length in lengths if texts else ():
            for text in (texts[0], texts[-1]):
                message = (text * (length // len(text) + 1))[:length]
                if message in given:
                    break
                each = _Sent(message, message)
                self.attempt(self.encoding, (each,))
                with contextlib.suppress(EncodeError):
                    self.frames([each])
                    yield each
                    break

    def of_frames(self, some: Sequence[_Sent]) -> Iterator[_Sent]:
        """Messages made of frames and their ends, which must not be taken for such when sent."""
        own = [each for each in some if self.as_sent and isinstance(each.message, bytes | str)]
        for each in (own[:1] + own[-1:]) if self.length(tuple(own[-1:])) <= _LARGE else own[:1]:
            message = each.message
            (frame,) = self.frames([each])
            for part in (frame, frame * 2, frame[-1:], frame[-2:], frame[-2:-1]):
                # Where it is no text, what is like it.
                like = part if isinstance(message, bytes) else part.decode(errors="replace")
                for made in (like, message + like, message + like + message):
                    yield _Sent(made, made)

    def frame_size(self, each: _Sent) -> int:
        return len(*self.frames([each]))

    # -- writers

    def encode_in_pieces(self, writer: Writer[Any], message: object) -> list[Any]:
        """The frame of a message, as it is returned.

        Raises:
          EncodeError: as the writer does.
          MistakeError: if it raises anything else, or returns what cannot be sent.
        """
        try:
            frame: Any = writer.encode(message)
        except EncodeError:
            raise
        except Exception as error:
            raise MistakeError(
                "the writer raised what is no EncodeError",
                repr(error),
                "a frame, or EncodeError",
                sent=shown(message),
            ) from error
        parts = [frame] if isinstance(frame, bytes | bytearray | memoryview) else frame
        if not isinstance(parts, Sequence) or not all(
            isinstance(part, bytes | bytearray | memoryview) for part in parts
        ):
            raise MistakeError(
                "the writer returned what cannot be sent",
                shown(frame),
                "bytes, bytearray or memoryview, or a sequence of these",
                sent=shown(message),
            )
        return list(parts)

    def encode(self, writer: Writer[Any], message: object) -> bytes:
        return b"".join(self.encode_in_pieces(writer, message))

    def frames(self, some: Iterable[_Sent]) -> list[bytes]:
        writer = self.codec.writer()
        return [self.encode(writer, each.message) for each in some]

    def accepting(self, each: _Sent) -> None:
        with telling([each.message]):
            try:
                self.frames([each])
            except EncodeError as error:
                raise MistakeError(
                    "a message that was given is refused by the writer", repr(error), "its frame"
                ) from error

    def encoding(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """A frame has bytes, stays as it is, and is the same from every writer of equal codecs."""
        message = some[0].message
        with telling([each.message for each in some]):
            writer = self.codec.writer()
            kept = self.encode_in_pieces(writer, message)
            frame = b"".join(kept)
            if not frame:
                raise MistakeError("a frame without a byte", "b''", "one byte at least")
            again = self.encode(writer, message)
            _check_unchanged(frame, kept, "another message was encoded")
            if isinstance(message, bytes | bytearray | memoryview):
                for kind in (bytearray, memoryview):
                    changing = bytearray(message)
                    given = changing if kind is bytearray else memoryview(changing)
                    try:
                        kept = self.encode_in_pieces(self.codec.writer(), given)
                    except (MistakeError, EncodeError):
                        continue  # only `bytes` are sent, then
                    before = b"".join(kept)
                    changing[:] = changing.translate(bytes(range(255, -1, -1)))
                    _check_unchanged(before, kept, f"the {kind.__name__} that was sent was changed")
            if not writer.stateful:
                self.alike(message, frame, again)

    def alike(self, message: object, frame: bytes, again: bytes) -> None:
        """What `Server.broadcast` relies on, which encodes once for all equal codecs."""
        others = {
            "the second time": again,
            "from another writer of the codec": self.encode(self.codec.writer(), message),
            "from an equal codec": self.encode(self.equal().writer(), message),
        }
        for when, other in others.items():
            if other != frame:
                raise MistakeError(
                    "frames of the same message are not the same",
                    f"{shown(other)} {when}",
                    shown(frame),
                )
        try:
            hash(self.codec)
        except TypeError as error:
            raise MistakeError(
                "the codec has no hash",
                repr(error),
                "a codec made with attrs.frozen, or a plain class",
            ) from error

    def equal(self) -> Codec[Any, Any]:
        """An equal codec that was made anew, if there is a way to make one."""
        make: Any = attrs.evolve if attrs.has(type(self.codec)) else copy.copy
        with contextlib.suppress(Exception):  # it is theirs, and need not be possible
            other: Codec[Any, Any] = make(self.codec)
            if other == self.codec:
                return other
        return self.codec

    def refuse(self, writer: Writer[Any], bad: object) -> None:
        try:
            frame = self.encode(writer, bad)
        except EncodeError:
            return
        raise MistakeError(
            "a message that must be refused was sent",
            f"the frame {shown(frame)}",
            "EncodeError",
            refused=shown(bad),
        )

    def refusing(self, bad: object) -> Callable[[tuple[_Sent, ...], Cuts], None]:
        """What must be refused is, and does not disturb what is sent after it."""
        must = any(bad is each for each in self.refused)

        def promise(some: tuple[_Sent, ...], _cuts: Cuts) -> None:
            writer = self.codec.writer()
            first = self.encode(writer, some[0].message)
            with telling([each.message for each in some], refused=shown(bad)):
                if must:
                    self.refuse(writer, bad)
                else:
                    # Of a type that no codec knows: it may fail as it does, or even be sent.
                    with contextlib.suppress(EncodeError, MistakeError):
                        self.encode(writer, bad)
                        return
                try:
                    frames = [first, *(self.encode(writer, each.message) for each in some)]
                    for _ in self.judged((some[0], *some), frames, b"".join(frames), ()):
                        pass
                except (MistakeError, EncodeError) as error:
                    raise MistakeError(
                        "the writer is not usable any more after a message that it refused",
                        f"{error}",
                        "messages after the refused one are received as they were sent",
                    ) from error

        return promise

    # -- readers

    def judged(
        self,
        some: Sequence[_Sent],
        frames: Sequence[bytes],
        data: bytes,
        cuts: Cuts,
        readers: Sequence[Reader[Any]] | None = None,
    ) -> Iterator[None]:
        """Read ``data``, the beginning of the frames, with a yield after each call of a reader.

        Raises:
          MistakeError: if anything comes but what was sent, each message with the last of its
              bytes.
        """
        ends = [*itertools.accumulate(map(len, frames))]
        received: list[Any] = []
        for event in _read(readers or [self.peer.reader()], data, cuts):
            if event.at_end:
                self.judge_end(event, some[: len(received)])
                continue
            came, index = event.came, len(received)
            size = len(frames[index]) if index < len(frames) else 0
            whole = size > 0 and event.fed >= ends[index]
            expected = some[index].expected if whole else NEED_DATA
            if isinstance(came, ProtocolError):
                title = "a message that was sent is refused by the reader"
            elif came is NEED_DATA and (whole or event.wanted > size > 0):
                title = "the reader waits for more bytes than the message has"
            elif came is not NEED_DATA and not whole:
                title = "a message came before all of its bytes were there"
            elif not _same(came, expected):
                title = (
                    "a message was not received as it was sent"
                    if _comparable(came, expected)
                    else "a message cannot be compared with what was sent"
                )
            elif whole and event.taken != size:
                title = "not exactly one message was taken"
            else:
                if whole:
                    received.append(came)
                yield
                continue
            there = f"{shown(came)} after {count(event.fed, 'byte')}"
            if came is NEED_DATA:
                there += f", wanted={event.wanted}"
            wanted = shown(expected)
            if event.taken > 0:
                there += f", {event.taken} taken"
            if whole or came is NEED_DATA:
                wanted += f", {size} taken" if whole else f", wanted at most {size}"
            raise MistakeError(title, there, wanted) from None
        for message, each in zip(received, some, strict=False):
            if not _same(message, each.expected):
                raise MistakeError(
                    "a message changed after it had been received",
                    shown(message),
                    shown(each.expected),
                )

    def judge_end(self, event: _Event, received: Sequence[_Sent]) -> None:
        """The peer has finished, within a message or between two.

        Between two it may be too early for a protocol that greets or says good-bye, but not behind
        all of the messages that were given.
        """
        came = event.came
        if came is NEED_DATA:
            right = not event.size
        elif isinstance(came, IncompleteMessageError):
            all_given = len(received) >= len(self.sent) and received[-1] is self.sent[-1]
            right = event.size > 0 or not all_given
        else:
            right = self.open_ended and event.size > 0  # a last message, which may be faulty
        if not right:
            raise MistakeError(
                "decode_eof does not tell how the stream ended",
                f"{shown(came)} with {count(event.size, 'byte')} left",
                "IncompleteMessageError" if event.size else "NEED_DATA, for a clean end",
            )

    def reading(self, some: tuple[_Sent, ...], cuts: Cuts, end: int | None = None) -> None:
        """What is sent is received, however it is cut, and wherever it ends."""
        frames = self.frames(some)
        data = b"".join(frames)[:end]
        with telling([each.message for each in some], data, cuts):
            for _ in self.judged(some, frames, data, cuts):
                pass

    def ending(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        """The peer finishes after so many bytes as the first of ``cuts`` says."""
        self.reading(some, (), cuts[0] if cuts else None)

    def apart(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """Two connections of one codec do not disturb each other."""
        orders = (some, some[::-1])
        frames = [self.frames(order) for order in orders]

        def judged(order: tuple[_Sent, ...], mine: list[bytes]) -> Iterator[None]:
            data = b"".join(mine)
            places = _places(len(data), [0], random.Random(0))  # noqa: S311 - nothing is secret
            return self.judged(order, mine, data, tuple(places))

        try:
            for _ in judged(orders[0], frames[0]):
                pass
        except MistakeError:
            return  # it is a mistake of another kind, for another check to find
        try:
            for _ in itertools.zip_longest(*map(judged, orders, frames)):
                pass
        except MistakeError as mistake:
            raise MistakeError(
                "two connections of one codec disturb each other",
                f"{mistake.facts['came']}: {mistake.title}",
                "each receives what was sent to it: one the messages in this order, the "
                "other in the opposite one, with their bytes coming in turn",
                sent=shown_all(each.message for each in some),
            ) from mistake

    def switching(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        """The reader is exchanged for this one, and this one for another, within a chunk."""
        other = _Sent(b"\x00\xffx", b"\x00\xffx")
        (frame,) = self.frames(some[:1])
        frames = [b"\x03" + other.message, frame, b"\x03" + other.message]
        data = b"".join(frames)
        others = LengthPrefixed(1)
        readers = [others.reader(), self.peer.reader(), others.reader()]
        with telling([some[0].message], data, cuts, readers="another, this, another"):
            for _ in self.judged((other, some[0], other), frames, data, cuts, readers):
                pass

    def anything(self) -> None:
        """Bytes that are no messages get nothing but ProtocolError out of a reader."""
        for data in self.faulty():
            places = _places(len(data), [0], self.random)
            few = self.random.choices(places, k=3) if places else []
            for cuts in {tuple(places), tuple(sorted(few))}:
                fail_smallest(self.reading_anything, data, cuts, shorter_bytes, len)
        for data in self.malformed:
            kinds = self.outcome(data, ())
            if not any(
                isinstance(kind, type) for kind in kinds if kind is not IncompleteMessageError
            ):
                raise MistakeError(
                    "malformed bytes are not refused",
                    shown_all(kinds),
                    "ProtocolError",
                    arrived=shown(data),
                )

    def faulty(self) -> Iterator[bytes]:
        """Bytes that are no messages, or nearly so, the shortest first."""
        rng = self.random
        yield from self.malformed
        for length in (1, 2, 3, 4, 9, 20):
            for byte in (0x00, 0x01, 0x0A, 0x30, 0x7F, 0x80, 0xFE, 0xFF):
                yield bytes([byte]) * length
        frames = sorted(self.frames(self.sent), key=len)[:20]
        short = [frame for frame in frames if len(frame) <= 200] or [frames[0][:200]]
        for frame in short[:2]:
            for i in range(min(len(frame), 12)):
                for byte in (0x00, 0x80, 0xFF, frame[i] ^ 1):
                    yield frame[:i] + bytes([byte]) + frame[i + 1 :]
        alphabet = b"".join(short)
        for _ in range(20):
            yield rng.randbytes(rng.randrange(1, 40))
            yield bytes(rng.choices(alphabet, k=rng.randrange(1, 40)))
            valid = bytearray(b"".join(rng.choices(short, k=3))[:SHORT])
            for _ in range(rng.randrange(1, 4)):
                i = rng.randrange(len(valid))
                valid[i : i + rng.randrange(4)] = rng.randbytes(rng.randrange(3))
                valid = valid or bytearray(1)
            yield bytes(valid)

    def outcome(self, data: bytes, cuts: Cuts) -> list[Any]:
        """The messages and the types of the errors that come of any bytes.

        Up to what is too large: a reader may notice that before it is whole, and then there is
        nothing that it could have consumed to go on behind it.
        """
        outcome: list[Any] = []
        for event in _read([self.peer.reader()], data, cuts):
            if event.came is not NEED_DATA:
                outcome.append(event.kind)
            if isinstance(event.came, MessageTooLargeError):
                break
        return outcome

    def reading_anything(self, data: bytes, cuts: Cuts) -> None:
        with telling(None, data, cuts):
            whole = self.outcome(data, ())
            parts = self.outcome(data, cuts) if cuts else whole
            if len(parts) != len(whole) or not all(map(_same, parts, whole)):
                raise MistakeError(
                    "bytes that are no messages mean something else when they are cut",
                    shown_all(parts),
                    f"{shown_all(whole)}, as in one piece",
                )

    # -- limits

    def new_limits(self) -> None:
        """Readers and writers begin with their codec's limit, each with its own."""
        for codec, make in ((self.peer, self.peer.reader), (self.codec, self.codec.writer)):
            of_codec = _limit_of(codec)
            half, other = make(), make()
            limit = _limit_of(half)
            if limit is not None and of_codec is not None and limit != of_codec:
                raise MistakeError(
                    "the max_size of the codec does not reach its readers and writers",
                    f"{type(half).__name__} has max_size={limit}",
                    f"max_size={of_codec}",
                )
            if limit is not None and _set_limit(half, limit + 1) and _limit_of(other) != limit:
                raise MistakeError(
                    "two connections of one codec disturb each other",
                    f"max_size={_limit_of(other)} in another {type(half).__name__}",
                    f"max_size={limit} as before, for only one was changed",
                )

    def limited(self, make: str, limit: int) -> Any:
        """A new reader or writer with ``max_size`` set; None if that cannot be done."""
        codec: Any = self.peer if make == "reader" else self.codec
        half = getattr(codec, make)()
        if _set_limit(half, limit):
            return half
        if attrs.has(type(codec)) and _limit_of(codec) is not None:
            with contextlib.suppress(Exception):  # theirs, and it may have a least of its own
                return getattr(attrs.evolve(codec, max_size=limit), make)()
        return None

    def size(self, each: _Sent) -> int | None:
        """How many bytes of ``max_size`` a message takes; None if that cannot be known.

        If nothing says so, as many as the writer takes it for.
        """
        if self.size_of is not None:
            return self.size_of(each.message)
        if isinstance(each.message, bytes | bytearray | memoryview):
            return len(bytes(each.message))
        most = _limit_of(self.codec.writer())
        least = 0
        while most is not None and least < most:
            middle = (least + most) // 2
            writer = self.limited("writer", middle)
            if writer is None:
                return None
            least, most = (least, middle) if self.sends(writer, each) else (middle + 1, most)
        return most

    def sends(self, writer: Writer[Any], each: _Sent) -> bool:
        try:
            self.encode(writer, each.message)
        except EncodeError:
            return False
        return True

    def limit(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """``max_size`` is exact, for reader and writer alike, and enforced early."""
        each = some[0]
        size = self.size(each)
        if size is None:
            return
        (frame,) = self.frames([each])
        places = _places(len(frame), [0], self.random)
        for limit in sorted({0, size // 4, max(size - 1, 0), size}):
            if (writer := self.limited("writer", limit)) is not None:
                with telling([each.message]):
                    self.exact("writer", self.sends(writer, each), limit, size)
            allowed = self.allowed(frame, limit, size)
            in_pieces = sorted({*places, allowed} - {len(frame)})
            for cuts in {(), (len(frame) - 1,) * (len(frame) > 1), tuple(in_pieces)}:
                if (reader := self.limited("reader", limit)) is not None:
                    with telling([each.message], frame, cuts):
                        passes, fed = self.receives(reader, frame, cuts, limit)
                        self.exact("reader", passes, limit, size)
                        if not passes and len(cuts) > 1 and fed > allowed:
                            raise MistakeError(
                                "a message over max_size is refused only after it has arrived",
                                f"NEED_DATA with {allowed} of {count(len(frame), 'byte')} "
                                f"there and max_size={limit}",
                                "MessageTooLargeError by then",
                            )
            for cuts in ((), tuple(range(1, 2 * len(frame)))[: 2 * SHORT]):
                if limit < size and (reader := self.limited("reader", limit)) is not None:
                    self.resuming(reader, each, size, cuts)

    def exact(self, half: str, passes: bool, limit: int, size: int) -> None:
        if passes != (limit >= size):
            raise MistakeError(
                "max_size is not exact",
                f"the {half} {'lets it pass' if passes else 'refuses it'} with max_size={limit}",
                f"it passes from max_size={size} on, and not below",
            )

    def allowed(self, frame: bytes, limit: int, size: int) -> int:
        """After how many bytes what is too large must be refused.

        That depends on the protocol. With a length in front it can be at once; with a delimiter
        behind, when more has come than the limit and the delimiter; with bytes escaped, perhaps at
        twice of that. The frame's last byte is not needed in any of them, unless there is hardly
        more than in the shortest: with that, there may be a header only. What is made of another
        codec's frames has that one's limit to go with it.
        """
        if size < limit + 2 or len(frame) < self.shortest + 2 or _has_inner(self.peer):
            return len(frame)
        allowed = 2 * limit + max(len(frame) - size, 0) + 16
        return min(allowed, len(frame) if limit else len(frame) - 1)

    def receives(
        self, reader: Reader[Any], frame: bytes, cuts: Cuts, limit: int
    ) -> tuple[bool, int]:
        """Whether a message passes, and after how many bytes that was clear."""
        event = next(
            event
            for event in _read([reader], frame, cuts)
            if event.came is not NEED_DATA or event.at_end
        )
        if isinstance(event.came, MessageTooLargeError):
            return False, event.fed
        if not event.at_end and not isinstance(event.came, ProtocolError):
            return True, event.fed
        raise MistakeError(
            "a message over max_size is refused with another error",
            f"{shown(event.came)} with max_size={limit}",
            "MessageTooLargeError",
        )

    def resuming(self, reader: Reader[Any], each: _Sent, size: int, cuts: Cuts) -> None:
        """Behind what is refused and consumed comes the next message, not the rest of it."""
        data = b"".join(self.frames([each, each]))
        events = (event for event in _read([reader], data, cuts) if event.came is not NEED_DATA)
        with telling([each.message] * 2, data, cuts):
            if (taken := next(events).taken) and _set_limit(reader, size):
                came = next(events, None)
                if came is None or not _same(came.came, each.expected):
                    raise MistakeError(
                        "a message over max_size is consumed in part",
                        f"{shown(came and came.came)} behind {count(taken, 'byte')} consumed",
                        f"{shown(each.expected)}, for max_size was raised to {size} by then; or "
                        "nothing consumed",
                    )

    def changing_limit(self, some: tuple[_Sent, ...], _cuts: Cuts) -> None:
        """``max_size`` counts from the next message on, when it is raised and when lowered."""
        small, large = some[0], some[-1]
        least, most = self.size(small), self.size(large)
        if least is None or most is None or least >= most:
            return
        data = b"".join(self.frames([small, large]))
        for before, after, word in ((least, most, "raised"), (most, most - 1, "lowered")):
            reader = self.peer.reader()
            if not _set_limit(reader, before):
                return
            with telling([small.message, large.message], data):
                came = (
                    event.came for event in _read([reader], data, ()) if event.came is not NEED_DATA
                )
                first = next(came, None)
                _set_limit(reader, after)
                passed = not isinstance(next(came, None), ProtocolError)
                if not _same(first, small.expected) or passed != (after == most):
                    raise MistakeError(
                        "max_size cannot be changed between two messages",
                        f"the second {'passes' if passed else 'is refused'}",
                        f"the second {'is refused' if passed else 'passes'}, after "
                        f"max_size was {word} behind the first",
                    )

    def endless(self) -> None:
        """Whatever comes, there is an end to waiting for more of it.

        What is made of another codec's frames has that one's limit to go with it.
        """
        for byte in b"\x80\xff\x000 ":
            reader = None if _has_inner(self.peer) else self.limited("reader", _RUN_LIMIT)
            data = bytes([byte]) * _RUN
            if reader is not None and all(
                event.came is NEED_DATA for event in _read([reader], data, ()) if not event.at_end
            ):
                with telling(None, data):
                    raise MistakeError(
                        "bytes without end are waited for",
                        f"NEED_DATA with max_size={_RUN_LIMIT}",
                        "a message, or ProtocolError, long before that",
                    )

    # -- what it costs

    def cost_of_pieces(self, some: tuple[_Sent, ...]) -> None:
        """A message that comes in many pieces is not looked at from its beginning with each."""
        (frame,) = self.frames(some[:1])
        step = max(len(frame) // _PIECES, 1)
        # All of them small; or a large one first, which becomes the front that `data` shows.
        for first in (step, len(frame) // 2):
            self.check_cost(some[0], [frame], tuple(range(first, len(frame), step)))

    def cost_of_many(self, some: tuple[_Sent, ...]) -> None:
        """Many messages in one chunk are not copied together with each of them."""
        number = max(min(_CHUNK // self.frame_size(some[0]), _PIECES), 2)
        self.check_cost(some[0], self.frames(some[:1] * number), ())

    def check_cost(self, each: _Sent, frames: list[bytes], cuts: Cuts) -> None:
        data = b"".join(frames)
        events = [*_read([self.peer.reader()], data, cuts, patient=True)]
        allowed = _TOUCHES_PER_BYTE * len(data) + _TOUCHES_PER_CALL * len(events)
        if events[-1].touched > allowed:
            with telling([each.message]):
                raise MistakeError(
                    "the cost grows with the square of the bytes",
                    f"{events[-1].touched:,} bytes were looked at or copied",
                    f"at most {allowed:,}, in {count(len(events), 'call')} of decode",
                    arrived=(
                        f"{count(len(frames), 'message')} of {count(len(data), 'byte')} in "
                        f"{count(len(cuts) + 1, 'piece')}"
                    ),
                )

    # -- no frames

    def reading_unframed(self, some: tuple[_Sent, ...], cuts: Cuts) -> None:
        data = b"".join(self.frames(some))
        expected = b"".join(each.expected for each in some)
        with telling([each.message for each in some], data, cuts):
            outcome = self.outcome(data, cuts)
            if any(isinstance(each, type) for each in outcome) or b"".join(outcome) != expected:
                raise MistakeError(
                    "the bytes that were sent are not those that came",
                    shown_all(outcome),
                    f"{shown(expected)}, in any pieces",
                )


def _check_unchanged(frame: bytes, kept: list[Any], after: str) -> None:
    now = b"".join(kept)
    if now != frame:
        raise MistakeError(
            "a frame changed after the writer had returned it",
            f"{shown(now)} after {after}",
            shown(frame),
        )


def _limit_of(half: object) -> int | None:
    limit = getattr(half, "max_size", None)
    return limit if type(limit) is int else None


def _set_limit(half: Any, limit: int) -> bool:
    if _limit_of(half) is None:
        return False
    try:
        half.max_size = limit
    except Exception:  # noqa: BLE001 - theirs: frozen, or refused by a validator
        return False
    return True


def _has_inner(codec: Any) -> bool:
    names = [*getattr(codec, "__dict__", ()), *getattr(codec, "__slots__", ())]
    return any(isinstance(getattr(codec, name, None), Codec) for name in names)
