"""What `check_codec` tells of a mistake: what came, what usually causes that, the smallest case."""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ._errors import EncodeError

Cuts = tuple[int, ...]  # a place may be there twice: then nothing new comes in between
ItemsT = TypeVar("ItemsT", bound=Sequence[Any])

# Up to this many bytes all is tried: each place to cut, and to leave out each byte.
SHORT = 100

# How many bytes of cases, and for each case so many more, may be tried on the way to the smallest.
_PATIENCE = 300_000
_PATIENCE_PER_CASE = 200

_CUTTING = """the reader looks only at `data`, the front of the buffer, or remembers an offset while
the buffer moves on (peek, take and find work from the first undecoded byte); or a part that was
seen already is looked at as if it were new."""

# Each mistake, and what usually causes it.
_CAUSES = {
    # of readers, with any bytes
    "the reader does not come to an end": """a loop that waits for bytes within decode, which
        nobody feeds meanwhile: return NEED_DATA instead; or one whose step is 0.""",
    "the reader raised what is no ProtocolError": """an exception of Python's own (struct.error,
        IndexError, UnicodeDecodeError...) is not turned into a ProtocolError. A connection takes
        it for a mistake in the program, not the peer's.""",
    "an error with nothing consumed is another one the next time": """the reader changes its state
        before it raises. What is still in the buffer must be refused again.""",
    "NEED_DATA, but bytes were taken from the buffer": """a header, or the beginning of a payload,
        is taken (take, skip, or moving `start`) before the rest is there. Use peek() for the
        header, and take(size, skip=...) for both at once. To find a beginning, skip bytes together
        with the message.""",
    "a message that takes no bytes from the buffer": """a trailer or delimiter that is left behind;
        a length of 0 or less that is not refused; a decode_eof that makes a message of nothing.
        The same message would come again and again.""",
    "NEED_DATA, but the buffer's bytes are others than before": """the reader changes the buffer,
        or takes bytes and feeds them back.""",
    "bytes that are no messages mean something else when they are cut": f"""the reader decides from
        what happens to have arrived: it refuses a part that may yet become right, or notices
        something only if it comes in one piece; or {_CUTTING}""",
    "malformed bytes are not refused": "a check is missing in the reader.",
    # of readers, with what was sent
    "a message that was sent is refused by the reader": f"""reader and writer do not agree on the
        frame; or the reader takes a part of a message, or the beginning of the next one, for all
        of it: {_CUTTING}""",
    "the reader waits for more bytes than the message has": f"""peek() or take() asks for more
        bytes than the shortest message has; or `wanted` is set too high; or a delimiter that a
        piece boundary cuts in two is missed: a connection would wait for ever. Or {_CUTTING}""",
    "a message came before all of its bytes were there": """the reader takes what there is for all
        of it: wait for all that is announced, a trailer included. For a protocol without
        boundaries, which delivers whatever has come, say framed=False.""",
    "a message was not received as it was sent": f"""reader and writer do not agree on the frame;
        or the length is truncated to its field, where EncodeError is due; or what is in the
        message is taken for a part of the protocol, as a delimiter; or {_CUTTING} If it is not
        meant to be received as it was sent, say received=[...].""",
    "a message cannot be compared with what was sent": """the messages' class has no __eq__, so each
        object equals only itself; or the one that it has raises. Give it one, as attrs and
        dataclasses do.""",
    "not exactly one message was taken": """the reader takes all that is in the buffer, or reads
        ahead, or decodes several messages at once: what is behind a message belongs to whoever
        reads next. Or a trailer, a checksum or the delimiter is left behind.""",
    "a message changed after it had been received": """the reader returns an object of its own,
        such as a bytearray or a list, and uses it again for the next message.""",
    "decode_eof does not tell how the stream ended": """the one inherited from Reader is right for
        most protocols: NEED_DATA if all was decoded, and IncompleteMessageError if the peer was
        cut off, which users tell from other errors by its type. If what is left is a last message,
        say open_ended=True.""",
    "two connections of one codec disturb each other": """readers or writers keep their state in
        the codec, or in the class (a list or a bytearray as a class attribute); or the codec
        returns the same object each time.""",
    "the bytes that were sent are not those that came": _CUTTING,
    "the cost grows with the square of the bytes": """each call begins from the start: a search for
        the delimiter (find() of the buffer remembers how far it came, for one delimiter at a
        time), or joining or copying all that is there, as in peek(len(buffer)) or
        buffer.data[buffer.start:]. Use peek() for the header, and take() for the rest, which joins
        once.""",
    # of writers
    "the writer raised what is no EncodeError": """an exception of Python's own (struct.error,
        OverflowError, UnicodeEncodeError, TypeError...) for what the protocol cannot represent is
        not turned into an EncodeError.""",
    "the writer returned what cannot be sent": """text that is not encoded, a generator, or None
        because of a return that was forgotten.""",
    "a frame without a byte": """nothing marks the message, so the peer cannot notice that it was
        sent. Refuse it with EncodeError.""",
    "a message that was given is refused by the writer": """a check that is too strict; or the
        message is none that the codec sends: then give it as refused=[...].""",
    "a message that must be refused was sent": """a check is missing: of the type, of a length that
        its field cannot hold, of a delimiter within the message. The peer would read something
        else.""",
    "the writer is not usable any more after a message that it refused": """encode changes the
        writer's state (a sequence number, a compressor, a buffer) before it is sure that the
        message can be sent. Check first, change last.""",
    "a frame changed after the writer had returned it": """the frame holds the caller's own object,
        which may change before the frame is sent: copy it with bytes(message). Or the writer uses
        a bytearray of its own again for the next message.""",
    "frames of the same message are not the same": """the frame depends on what was sent before it,
        as with sequence numbers or compression: then the writer must say stateful = True. Or
        writers share a state; or codecs are equal (==) that do not frame alike, for a setting is
        left out of the comparison. A broadcast encodes once for all equal codecs.""",
    "the codec has no hash": """an attrs class that is not frozen, or a class with __eq__ and no
        __hash__. A broadcast looks its frames up by codec.""",
    # of limits
    "the max_size of the codec does not reach its readers and writers": """it is not handed on in
        reader() or writer().""",
    "max_size is not exact": """the comparison is off by one (>= for >), at one of several places
        perhaps; or leaves the header, the delimiter or an escape in; or nothing is compared at
        all. If max_size counts something else than the length of the message, say so with
        size_of=...""",
    "a message over max_size is refused with another error": """the limit is not what is checked
        first, and what is too large is worked on, or waited for, before it is refused.""",
    "a message over max_size is refused only after it has arrived": """the limit is compared with
        what has come, not with what is announced, or only when the message is whole. A peer can
        then fill the memory with a message that will be refused.""",
    "bytes without end are waited for": """max_size is compared only when the header is whole, and
        nothing limits the header: a varint that goes on and on, digits without an end, blanks that
        are skipped. Or a delimiter is waited for, however much has come.""",
    "a message over max_size is consumed in part": """the reader skips the header, or what has come,
        and raises. As bytes were consumed, the connection goes on and takes the rest for messages,
        which lets a peer smuggle in what others took for a payload. Consume the whole message, or
        nothing.""",
    "max_size cannot be changed between two messages": """the reader computes something from
        max_size once, when it is made, or looks at the next message before it is asked for it.""",
}


class MistakeError(Exception):
    """A promise that is not kept, and the case in which it is not."""

    def __init__(self, title: str, came: str, expected: str, **case: str) -> None:
        super().__init__(title)
        self.title = title
        self.facts = {**case, "came": came, "expected": expected}
        self.causes = _CAUSES[title]
        self.size = ""

    def explanation(self, codec: object) -> str:
        width = max(map(len, self.facts))
        lines = [f"{codec!r}: {self.title}", ""]
        lines += [f"  {name:{width}}  {fact}" for name, fact in self.facts.items()]
        causes = " ".join(self.causes.split())
        lines += ["", textwrap.fill(f"What usually causes this: {causes}", 92)]
        if self.size:
            lines += [f"This is the smallest case found: {self.size}."]
        return "\n".join(lines)


@contextlib.contextmanager
def telling(
    sent: Sequence[object] | None, data: bytes | None = None, cuts: Cuts = (), **case: str
) -> Iterator[None]:
    """A mistake that is made within is told of with these messages, bytes and facts in front."""
    try:
        yield
    except MistakeError as mistake:
        size = []
        if data is not None:
            case = {"arrived": shown_all(pieces(data, cuts), " | "), **case}
            size = [count(len(data), "byte"), count(len(cuts), "cut")]
        if sent is not None:
            case = {"sent": shown_all(sent), **case}
            size = [count(len(sent), "message"), *size]
        mistake.facts = case | mistake.facts
        mistake.size = mistake.size or ", ".join(size)
        raise


def pieces(data: bytes, cuts: Cuts) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise((0, *cuts, len(data)))]


def shown(value: object) -> str:
    """A value as it is told of, if need be by its beginning."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, memoryview):
        value = bytes(value)
    if isinstance(value, bytes | bytearray | str) and len(value) > 48:
        kind = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:24]!r}... ({len(value)} {kind})"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"


def shown_all(values: Iterable[object], separator: str = ", ") -> str:
    each = [shown(value) for value in values]
    if len(each) > 12:
        each = [*each[:6], f"... ({len(each)} in all)"]
    return separator.join(each) or "nothing"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def fail_smallest(
    attempt: Callable[[ItemsT, Cuts], None],
    items: ItemsT,
    cuts: Cuts,
    shorter: Callable[[ItemsT], Iterable[ItemsT]],
    length: Callable[[ItemsT], int],
    *,
    cut: bool = True,
) -> None:
    """Attempt a case: items, such as messages, and where the bytes that they make are cut.

    Args:
      attempt: Raises `MistakeError` if the case fails.
      shorter: Gives items to try instead of those that fail.
      length: How many bytes items make.
      cut: Whether to try where to cut them.

    Raises:
      MistakeError: as it does, with as few items, bytes and cuts as were found to do.
    """
    mistake = _attempted(attempt, items, cuts)
    left = _PATIENCE
    while mistake is not None:
        for some, at in _smaller(items, cuts, shorter, length, cut):
            left -= length(some) + _PATIENCE_PER_CASE
            if left < 0:
                raise mistake
            again = _attempted(attempt, some, at)
            if again is not None and again.title == mistake.title:
                items, cuts, mistake = some, at, again
                break
        else:
            raise mistake


def _smaller(
    items: ItemsT,
    cuts: Cuts,
    shorter: Callable[[ItemsT], Iterable[ItemsT]],
    length: Callable[[ItemsT], int],
    cut: bool,
) -> Iterator[tuple[ItemsT, Cuts]]:
    for some in shorter(items):
        for at in _fewer_cuts(length(some), cuts) if cut else [()]:
            yield some, at
    for at in _fewer_cuts(length(items), cuts):
        if len(at) < len(cuts):
            yield items, at


def _attempted(
    attempt: Callable[[ItemsT, Cuts], None], items: ItemsT, cuts: Cuts
) -> MistakeError | None:
    try:
        attempt(items, cuts)
    except MistakeError as mistake:
        return mistake
    except EncodeError:
        pass  # what was made of the user's messages cannot be sent
    return None


def _fewer_cuts(length: int, cuts: Cuts) -> Iterator[Cuts]:
    """Simple cuts first; those that are known to fail, as far as they fit, last."""
    yield ()
    if length <= SHORT:
        yield from ((place,) for place in range(1, length))
    fitting = tuple(cut for cut in cuts if cut < length)
    yield from (fitting[:i] + fitting[i + 1 :] for i in range(len(fitting)))
    yield fitting


def shorter_bytes(data: bytes) -> Iterator[bytes]:
    """For `fail_smallest`: halves, one byte less, and one byte less that is said to be so."""
    half = len(data) // 2
    if half:
        yield data[:half]
        yield data[half:]
    if len(data) <= SHORT:
        for i in range(len(data)):
            yield data[:i] + data[i + 1 :]
    if len(data) <= 16:
        for i, j in itertools.combinations(range(len(data)), 2):
            if data[i]:
                yield data[:i] + bytes([data[i] - 1]) + data[i + 1 : j] + data[j + 1 :]
