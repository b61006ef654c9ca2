"""`Delimited` and `Lines`: any cutting of any bytes, and messages that would be read as others."""

from __future__ import annotations

from typing import Any

import pytest
from driving import Outcome, cut, cuts, joined, read_all
from hypothesis import example, given
from hypothesis import strategies as st

from trio_bytetalk import (
    NEED_DATA,
    Delimited,
    DelimitedReader,
    DelimitedWriter,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    Lines,
    MessageTooLargeError,
    ProtocolError,
    ReceiveBuffer,
)
from trio_bytetalk.testing import connection_pair

DELIMITERS = [b"\0", b"-", b"\r\n", b"--", b"---", b"aab", b"abab", b"\r\n\r\n"]
ALTERNATIVES = [
    (b"\n", b"\r\n"),
    (b"\r\n", b"\n"),
    (b"\r\n", b"\r\0", b"\n"),
    (b"\r", b"\n"),
    (b"\r\n", b"--", b"a"),
    (b"b", b"aab", b"ab"),
    (b"abab", b"-aa-", b"\0"),
    (b"\n\n", b"\r\r", b"\r\n\r\n"),
]


def text_of(alphabet: bytes, max_size: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), max_size=max_size).map(bytes)


# Of few different bytes, so that delimiters and their beginnings are everywhere.
DENSE = text_of(b"\0-\r\nab", 40)


# -- Delimited


def cuttings(stream: bytes, sizes: list[int]) -> list[list[bytes]]:
    """In one piece, which is the readers' fast path; as told; and as small as can be."""
    return [[stream], cut(stream, sizes), cut(stream, [1] * len(stream))]


def as_it_should_be(codec: Delimited, stream: bytes) -> Outcome:
    """What `codec` is to make of ``stream``, by the plainest means."""
    delimiters = codec.delimiter if isinstance(codec.delimiter, tuple) else (codec.delimiter,)
    messages: list[bytes] = []
    while places := [(stream.find(each), each) for each in delimiters if each in stream]:
        length, delimiter = min(places)
        if length > codec.max_size:
            return Outcome(messages, MessageTooLargeError)
        after = length + len(delimiter)
        messages.append(stream[: after if codec.keep else length])
        stream = stream[after:]
    # A rest that may end with the beginning of a delimiter may yet become a message.
    if len(stream) - max(map(len, delimiters)) + 1 > codec.max_size:
        return Outcome(messages, MessageTooLargeError)
    return Outcome(messages, IncompleteMessageError if stream else None)


@given(
    st.sampled_from([*DELIMITERS, *ALTERNATIVES]),
    st.booleans(),
    DENSE,
    st.integers(0, 12),
    cuts(),
)
@example(b"--", False, b"---", 5, [1, 1, 1])
@example(b"aab", False, b"aaab", 1, [2, 1])
@example(b"--", True, b"a--", 1, [2])
@example((b"\n", b"\r\n"), True, b"a\r\nb\n\r\n", 1, [2, 2, 2])
@example((b"b", b"aab", b"ab"), False, b"aaabab", 1, [3, 2])
def test_any_cutting_of_any_bytes_gives_the_same_messages_or_the_same_error(
    delimiter: bytes | tuple[bytes, ...],
    keep: bool,
    stream: bytes,
    max_size: int,
    sizes: list[int],
) -> None:
    codec = Delimited(delimiter, keep=keep, max_size=max_size)
    expected = as_it_should_be(codec, stream)
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == expected
        assert read_all(codec.reader(), pieces, patient=True) == expected


@given(
    st.sampled_from([*DELIMITERS, *ALTERNATIVES]),
    st.booleans(),
    st.lists(text_of(b"\0-\r\nab", 8)),
    cuts(),
)
def test_what_can_be_written_is_read_and_what_cannot_would_have_been_misread(
    delimiter: bytes | tuple[bytes, ...], keep: bool, messages: list[bytes], sizes: list[int]
) -> None:
    codec = Delimited(delimiter, keep=keep)
    first = delimiter[0] if isinstance(delimiter, tuple) else delimiter
    stream = b""
    sent = []
    for message in messages:
        try:
            frame = joined(codec.writer().encode(message))
        except EncodeError:
            misread = read_all(codec.reader(), [message if keep else message + first])
            assert misread != Outcome([message])
        else:
            assert frame == (message if keep else message + first)
            sent.append(message)
            stream += frame
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == Outcome(sent)


def test_delimiter_of_300_bytes_in_pieces() -> None:
    delimiter = b"-" * 299 + b"+"
    stream = (b"-" * 10 + delimiter) * 3
    for size in (1, 7, 299, 300, 311):
        pieces = cut(stream, [size] * 1000)
        assert read_all(Delimited(delimiter).reader(), pieces) == Outcome([b"-" * 10] * 3)


def test_large_message_in_chunks_that_are_kept_as_they_are() -> None:
    message = b"a-" * 30_000
    for size in (4096, 5000, 59_999, 60_000, 60_001):
        pieces = cut((message + b"--") * 2, [size] * 40)
        # The message ends with the delimiter's beginning, so what is read is one byte shorter.
        assert read_all(Delimited(b"--").reader(), pieces) == Outcome(
            [message[:-1], b"-" + message[:-1]], IncompleteMessageError
        )
        pieces = cut((message + b"\n") * 2, [size] * 40)
        assert read_all(Delimited(b"\n").reader(), pieces) == Outcome([message] * 2)


@pytest.mark.parametrize("held", [b"", b"abc", b"abc\r"])
def test_what_is_not_whole_stays_for_another_reader(held: bytes) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(held)
    assert Delimited(b"\r\n").reader().decode(buffer) is NEED_DATA
    assert buffer.wanted == len(held) + 1
    assert buffer.take(len(held)) == held


@pytest.mark.parametrize(
    ("stream", "sent"), [(b"1234--", "4 bytes"), (b"12345", "4 bytes or more"), (b"1234-", "4 by")]
)
def test_message_over_max_size_is_refused_with_or_without_its_delimiter(
    stream: bytes, sent: str
) -> None:
    reader = Delimited(b"--", max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"yes--" + stream)
    assert reader.decode(buffer) == b"yes"
    for _ in range(2):  # nothing is consumed, so it does not go away
        with pytest.raises(MessageTooLargeError) as caught:
            reader.decode(buffer)
    assert f"the peer sent {sent}" in str(caught.value)
    assert "the delimiter b'--'; max_size allows 3 bytes" in str(caught.value)
    assert buffer.take(len(stream)) == stream


def test_message_of_max_size_is_waited_for_while_its_delimiter_may_be_coming() -> None:
    reader = Delimited(b"--", max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"123-")
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"-")
    assert reader.decode(buffer) == b"123"


def test_empty_message_whose_delimiter_came_in_two_pieces_is_not_too_large() -> None:
    for delimiter, pieces in ((b"--", [b"-", b"-12345"]), (b"\n", [b"", b"\n12345"])):
        reader = Delimited(delimiter, max_size=3).reader()
        buffer = ReceiveBuffer()
        buffer.feed(pieces[0])
        assert reader.decode(buffer) is NEED_DATA
        buffer.feed(pieces[1])
        assert reader.decode(buffer) == b""
        with pytest.raises(MessageTooLargeError, match=r"^the peer sent [45] bytes or more"):
            reader.decode(buffer)


def test_max_size_may_be_changed_between_two_messages() -> None:
    codec = Delimited(b"\n", max_size=1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"a\nbc\n")
    assert reader.decode(buffer) == b"a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == b"bc"
    assert writer.encode(b"bc") == b"bc\n"


@pytest.mark.parametrize(
    ("delimiter", "message"),
    [
        (b"\n", b"two\nlines"),
        (b"\n", b"\n"),
        (b"--", b"--"),
        (b"--", b"a--b"),
        (b"--", b"a-"),  # a---, read as a and then -
        (b"--", b"-"),
        (b"abab", b"xab"),  # xababab, read as x and then ab
    ],
)
def test_message_that_contains_its_delimiter_or_makes_one_with_it(
    delimiter: bytes, message: bytes
) -> None:
    with pytest.raises(EncodeError, match="contains its own delimiter"):
        Delimited(delimiter).writer().encode(message)


@pytest.mark.parametrize(
    ("delimiter", "message"),
    [(b"\r\n", b"a\r"), (b"\r\n", b"\n"), (b"aab", b"a"), (b"aab", b"aa"), (b"--", b"-a")],
)
def test_message_that_only_looks_like_its_delimiter(delimiter: bytes, message: bytes) -> None:
    codec = Delimited(delimiter)
    frame = codec.writer().encode(message)
    assert read_all(codec.reader(), [frame]) == Outcome([message])


def test_message_over_max_size_is_not_sent() -> None:
    writer = Delimited(b"\n", max_size=3).writer()
    assert writer.encode(b"abc") == b"abc\n"
    with pytest.raises(EncodeError, match="4 bytes; max_size allows 3 bytes"):
        writer.encode(b"abcd")


def test_both_newlines_end_a_message_and_are_kept_if_wanted() -> None:
    stream = b"a\nb\r\n\r\n\rc\n\n"
    for delimiters in ([b"\r\n", b"\n"], (b"\n", b"\r\n")):
        for pieces in cuttings(stream, [3, 1]):
            outcome = read_all(Delimited(delimiters).reader(), pieces)
            assert outcome == Outcome([b"a", b"b", b"", b"\rc", b""])
            outcome = read_all(Delimited(delimiters, keep=True).reader(), pieces)
            assert outcome == Outcome([b"a\n", b"b\r\n", b"\r\n", b"\rc\n", b"\n"])


def test_message_is_received_with_the_last_byte_of_its_delimiter_and_no_later() -> None:
    # A terminal that waits for the answer to a line sends nothing else before it comes.
    reader = Delimited([b"\r\n", b"\r\0", b"\n"]).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"look\r")
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"\0")
    assert reader.decode(buffer) == b"look"
    buffer.feed(b"quit\n")
    assert reader.decode(buffer) == b"quit"


def test_the_first_of_several_delimiters_is_what_is_sent() -> None:
    assert Delimited([b"\r\n", b"\n"]).writer().encode(b"a") == b"a\r\n"
    assert Delimited([b"\n", b"\r\n"]).writer().encode(b"a") == b"a\n"


@pytest.mark.parametrize("message", [b"a\nb", b"\n", b"a\r\nb", b"a\r"])
def test_message_that_contains_any_of_its_delimiters_or_makes_one(message: bytes) -> None:
    with pytest.raises(EncodeError) as caught:
        Delimited([b"\n", b"\r\n"]).writer().encode(message)
    assert "contains its own delimiter b'\\n' or b'\\r\\n', or ends in" in str(caught.value)


@pytest.mark.parametrize("delimiter", [b"--", [b"--", b";"]])
@pytest.mark.parametrize("message", [b"", b"a", b"a-", b"a--b", b"--a--", b"a---", b"----"])
def test_kept_delimiter_is_to_be_at_the_end_of_what_is_sent_and_nowhere_else(
    delimiter: Any, message: bytes
) -> None:
    writer = Delimited(delimiter, keep=True).writer()
    assert writer.encode(b"--") == b"--"
    assert writer.encode(bytearray(b"-a--")) == b"-a--"
    with pytest.raises(EncodeError, match=r"must end with its delimiter b.--..*keep=True"):
        writer.encode(message)


def test_max_size_is_without_the_delimiter_also_when_that_is_kept() -> None:
    codec = Delimited([b"\r\n", b"\n"], keep=True, max_size=3)
    writer = codec.writer()
    for message in (b"123\n", b"123\r\n"):
        assert writer.encode(message) == message
        assert read_all(codec.reader(), [message]) == Outcome([message])
    for message in (b"1234\n", b"1234\r\n"):
        with pytest.raises(EncodeError, match="4 bytes; max_size allows 3 bytes"):
            writer.encode(message)
        for sizes in ([], [4]):
            outcome = read_all(codec.reader(), cut(message, sizes))
            assert outcome == Outcome([], MessageTooLargeError)


def test_error_names_all_delimiters() -> None:
    reader = Delimited([b"\r\n", b"\n"], max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"12345")
    with pytest.raises(MessageTooLargeError) as caught:
        reader.decode(buffer)
    assert str(caught.value) == (
        "the peer sent 4 bytes or more before the delimiter b'\\r\\n' or b'\\n'; "
        "max_size allows 3 bytes"
    )


def test_chunk_that_was_searched_in_vain_is_not_searched_again_for_each_that_follows() -> None:
    # With a front that counts its searches, for the reader works on that directly.
    searched = 0

    class Front(bytes):
        def find(self, *args: Any) -> int:
            nonlocal searched
            searched += 1
            return super().find(*args)

    readers: list[Any] = [Delimited(b"\n").reader(), Lines().reader()]
    for reader in readers:
        buffer = ReceiveBuffer()
        buffer.data = Front(b"." * 1000)
        searched = 0
        for _ in range(100):
            assert reader.decode(buffer) is NEED_DATA
            buffer.feed(b".")
        # By the reader itself, by the buffer, and once more from where the buffer stopped.
        assert searched <= 3
        buffer.feed(b"\n")
        assert len(reader.decode(buffer)) == 1100


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_message_that_its_owner_changes_after_sending_is_sent_as_it_was(kind: type) -> None:
    data = bytearray(b"aaa")
    frame = Delimited(b"\n").writer().encode(kind(data))
    data[:] = b"bbb"
    assert frame == b"aaa\n"


@pytest.mark.parametrize("message", ["text", None, 5])
def test_message_of_the_wrong_type(message: Any) -> None:
    with pytest.raises(EncodeError, match=f"^Delimited sends bytes, .*{type(message).__name__}$"):
        Delimited(b"\n").writer().encode(message)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"delimiter": b""}, ValueError, "delimiter must have at least one byte"),
        ({"delimiter": "\n"}, TypeError, r"delimiter must be bytes, or .*, not '\\n'"),
        ({"delimiter": bytearray(b"\n")}, TypeError, "delimiter must be bytes"),
        ({"delimiter": None}, TypeError, "delimiter must be bytes, or .*, not None"),
        ({"delimiter": []}, ValueError, "delimiter must be one or more, not an empty sequence"),
        ({"delimiter": [b"a", "b"]}, TypeError, r"delimiter must be bytes, .* not \(b'a', 'b'\)"),
        ({"delimiter": [b"a", b""]}, ValueError, "delimiter must have at least one byte"),
        ({"delimiter": [b"a", b"b", b"a"]}, ValueError, "delimiter must .*; b'a' is there twice"),
        ({"delimiter": [b"ab", b"a"]}, ValueError, "delimiter must not .* as b'a' does in b'ab'"),
        ({"delimiter": [b"b", b"abc"]}, ValueError, "delimiter must not .* as b'b' does in b'abc'"),
        ({"delimiter": b"\n", "keep": 1}, TypeError, "keep must be True or False, not 1"),
        ({"delimiter": b"\n", "max_size": -1}, ValueError, "max_size must be 0 or more bytes"),
        ({"delimiter": b"\n", "max_size": 1e6}, TypeError, "max_size must be a whole number"),
    ],
)
def test_wrong_setting_is_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named}"):
        Delimited(**settings)


# -- Lines


@given(text_of("aé\r\n".encode() + b"\xff", 40), st.integers(0, 12), cuts())
@example(b"123\r\n", 3, [4])
@example(b"1234\n", 3, [4])
@example(b"1234\n", 3, [])
@example(b"123\r", 3, [])
@example(b"12\r\r\n", 3, [])
def test_any_cutting_of_any_bytes_gives_the_same_lines_or_the_same_error(
    stream: bytes, max_size: int, sizes: list[int]
) -> None:
    *lines, rest = stream.split(b"\n")
    messages: list[str] = []
    error: type[ProtocolError] | None = None
    for line in (ended.removesuffix(b"\r") for ended in lines):
        if len(line) > max_size:
            error = MessageTooLargeError
            break
        try:
            messages.append(line.decode())
        except UnicodeDecodeError:
            error = InvalidMessageError
            break
    else:
        if len(rest) > max_size + 1:  # one byte of it may be the carriage return
            error = MessageTooLargeError
        elif rest:
            error = IncompleteMessageError

    codec = Lines(max_size=max_size)
    for pieces in cuttings(stream, sizes):
        assert read_all(codec.reader(), pieces) == Outcome(messages, error)
        assert read_all(codec.reader(), pieces, patient=True) == Outcome(messages, error)


# Codecs of Python's that encode text, and are not all alike.
@pytest.mark.parametrize(
    "encoding",
    ["ascii", "big5hkscs", "cp1252", "euc_kr", "gb18030", "latin-1", "shift_jis", "utf-8"],
)
@given(stream=st.binary(max_size=30), sizes=cuts())
def test_no_bytes_get_anything_but_a_protocol_error_out_of_any_encoding(
    encoding: str, stream: bytes, sizes: list[int]
) -> None:
    codec = Lines(encoding=encoding)
    assert read_all(codec.reader(), cut(stream, sizes)) == read_all(codec.reader(), [stream])


@given(
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.text(st.characters() | st.sampled_from("\r\n"), max_size=20)),
    cuts(),
)
@example(b"\r\n", ["\r", "a\r", "\ra", "a\nb"], [])
def test_line_that_can_be_written_is_read_and_one_that_cannot_would_have_been_misread(
    newline: bytes, lines: list[str], sizes: list[int]
) -> None:
    codec = Lines(newline=newline)
    stream = b""
    sent = []
    for line in lines:
        try:
            frame = codec.writer().encode(line)
        except EncodeError:
            # With either newline the same is refused: what a peer strips is not known to a writer.
            misread = read_all(codec.reader(), [line.encode("utf-8", "replace") + b"\n"])
            assert misread.messages != [line]
        else:
            assert frame == line.encode() + newline
            sent.append(line)
            stream += frame
    assert read_all(codec.reader(), cut(stream, sizes)) == Outcome(sent)


def test_both_newlines_are_read_and_what_is_within_a_line_stays() -> None:
    outcome = read_all(Lines().reader(), [b"a\nb\r\n\n\r\n\r\r\nc\rd\n \n"])
    assert outcome == Outcome(["a", "b", "", "", "\r", "c\rd", " "])


@pytest.mark.parametrize("line", [b"1234\n", b"12345\n", b"123456", b"1234\r\n", b"123\r\r\n"])
def test_line_over_max_size_is_refused_and_not_consumed(line: bytes) -> None:
    reader = Lines(max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"123\r\n" + line)
    assert reader.decode(buffer) == "123"
    for _ in range(2):
        with pytest.raises(MessageTooLargeError, match="max_size allows 3 bytes"):
            reader.decode(buffer)
    assert buffer.take(len(line)) == line


def test_line_of_max_size_is_waited_for_while_its_end_may_be_coming() -> None:
    reader = Lines(max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"123\r")
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"\n")
    assert reader.decode(buffer) == "123"


def test_line_whose_newline_came_later_is_measured_without_what_follows() -> None:
    for first, second, line in (
        (b"", b"\n12345", ""),
        (b"12", b"3\n12345", "123"),
        (b"12", b"3\r\n12345", "123"),
    ):
        reader = Lines(max_size=3).reader()
        buffer = ReceiveBuffer()
        buffer.feed(b".\n" + first)
        assert reader.decode(buffer) == "."
        assert reader.decode(buffer) is NEED_DATA
        buffer.feed(second)
        assert reader.decode(buffer) == line


@pytest.mark.parametrize("front", [b"", b"c"])
def test_line_that_is_not_in_the_encoding_is_told_of_and_passed_over(front: bytes) -> None:
    reader = Lines().reader()
    buffer = ReceiveBuffer()
    buffer.feed(front)
    assert reader.decode(buffer) is NEED_DATA
    buffer.feed(b"caf\xe9!\r\ngood\n"[len(front) :])
    with pytest.raises(InvalidMessageError) as caught:
        reader.decode(buffer)
    assert "the peer sent a line that is not utf-8" in str(caught.value)
    assert caught.value.reason.startswith("not utf-8: ")
    assert caught.value.frame == b"caf\xe9!"
    assert "0xe9 in position 3" in str(caught.value)
    assert "the setting is encoding" in str(caught.value)
    assert reader.decode(buffer) == "good"


def test_last_line_without_its_newline_is_incomplete() -> None:
    assert read_all(Lines().reader(), [b"a\nb"]) == Outcome(["a"], IncompleteMessageError)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"bytes", "Lines sends str, not bytes"),
        (None, "Lines sends str, not NoneType"),
        ("two\nlines", "contains a newline"),
        ("line\n", "contains a newline"),
        ("line\r", "ends with a carriage return"),
        ("\r", "ends with a carriage return"),
        ("\udcff", "cannot be written in utf-8: .*surrogates not allowed; the setting is encoding"),
        ("éé", "has 4 bytes; max_size allows 3 bytes"),
    ],
)
def test_line_that_cannot_be_sent(message: Any, why: str) -> None:
    with pytest.raises(EncodeError, match=why):
        Lines(max_size=3).writer().encode(message)


def test_line_of_a_class_that_is_text_is_sent() -> None:
    class Name(str):
        __slots__ = ()

    assert Lines().writer().encode(Name("Ada")) == b"Ada\n"


def test_line_in_another_encoding_with_another_newline() -> None:
    codec = Lines(encoding="latin-1", newline=b"\r\n")
    assert codec.writer().encode("café") == b"caf\xe9\r\n"
    assert read_all(codec.reader(), [b"caf\xe9\r\n"]) == Outcome(["café"])
    with pytest.raises(EncodeError, match="cannot be written in latin-1"):
        codec.writer().encode("€")


def test_max_size_of_lines_may_be_changed_between_two_messages() -> None:
    codec = Lines(max_size=1)
    reader, writer = codec.reader(), codec.writer()
    buffer = ReceiveBuffer()
    buffer.feed(b"a\nbc\n")
    assert reader.decode(buffer) == "a"
    reader.max_size = writer.max_size = 2
    assert reader.decode(buffer) == "bc"
    assert writer.encode("bc") == b"bc\n"


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"encoding": "klingon"}, ValueError, "encoding must name a text encoding: unknown"),
        ({"encoding": "hex"}, ValueError, "encoding must name a text encoding: 'hex' is not"),
        ({"encoding": "undefined"}, ValueError, "encoding must name a text encoding: "),
        ({"encoding": "\0"}, ValueError, "encoding must name a text encoding: "),
        ({"encoding": None}, TypeError, "encoding must be the name of a text encoding, not None"),
        ({"encoding": "utf-16"}, ValueError, "encoding must write ASCII char.*'utf-16' does not"),
        ({"encoding": "cp037"}, ValueError, "encoding must write ASCII characters, newlines"),
        ({"encoding": "idna"}, ValueError, "encoding must be one in which all ASCII text arriv"),
        ({"newline": b"\r"}, ValueError, "newline must be .*, not "),
        ({"newline": "\n"}, ValueError, "newline must be .*, not '"),
        ({"newline": bytearray(b"\n")}, ValueError, "newline must be .*, not bytearray"),
        ({"max_size": -1}, ValueError, "max_size must be 0 or more bytes"),
        ({"max_size": None}, TypeError, "max_size must be a whole number of bytes"),
    ],
)
def test_wrong_setting_of_lines_is_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named}"):
        Lines(**settings)


@pytest.mark.parametrize(
    "encoding",
    [
        "hz",
        "iso2022_jp",
        "iso2022_kr",
        "raw_unicode_escape",
        "unicode_escape",
        "utf-7",
        "utf-8-sig",
    ],
)
def test_encoding_in_which_a_line_may_arrive_as_another_is_refused(encoding: str) -> None:
    # Or with a newline that it did not have: r"\u000a" is one in raw_unicode_escape.
    assert "a\r\n".encode(encoding).endswith(b"\n") or encoding == "unicode_escape"
    with pytest.raises(ValueError, match=f"^encoding must .*{encoding!r}"):
        Lines(encoding=encoding)


def test_carriage_return_before_the_line_is_not_its_end() -> None:
    # The last byte of the front is not what stands before its first, as an index of -1 has it.
    assert read_all(Lines().reader(), [b"\na\r"]) == Outcome([""], IncompleteMessageError)
    buffer = ReceiveBuffer()
    buffer.feed(b"x\r\n")
    buffer.skip(2)
    assert Lines().reader().decode(buffer) == ""


# -- both


def test_lines_give_way_to_binary_frames_in_the_middle_of_a_chunk() -> None:
    stream = b"upgrade\r\n" + b"\0\1\2--\xff--" + b"bye\n"
    for at in range(len(stream)):
        buffer = ReceiveBuffer()
        lines, frames = Lines().reader(), Delimited(b"--").reader()
        messages: list[Any] = []
        for piece in (stream[:at], stream[at:]):
            buffer.feed(piece)
            while True:
                reader = lines if len(messages) in (0, 3) else frames
                message = reader.decode(buffer)
                if message is NEED_DATA:
                    break
                messages.append(message)
        assert messages == ["upgrade", b"\0\1\2", b"\xff", "bye"]


@pytest.mark.parametrize("codec", [Delimited(b"\n"), Lines()])
async def test_connection_is_usable_after_a_message_that_cannot_be_sent(codec: Any) -> None:
    good = "good" if isinstance(codec, Lines) else b"good"
    left, right = connection_pair(codec)
    async with left, right:
        for message in ("two\nlines", b"two\nlines", 5):
            with pytest.raises(EncodeError):
                await left.send(message)
        await left.send(good)
        assert await right.receive() == good


def test_settings_that_are_not_given() -> None:
    assert Delimited(b"\n").max_size == Lines().max_size == 1_048_576
    assert (Lines().encoding, Lines().newline) == ("utf-8", b"\n")


def test_settings_whose_order_nobody_would_remember_have_to_be_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        Delimited(b"\n", 100)  # type: ignore[arg-type, call-arg]  # which is the mistake
    with pytest.raises(TypeError, match="positional"):
        Lines("ascii")  # type: ignore[call-arg]  # which is the mistake


@pytest.mark.parametrize("codec", [Delimited(b"\n"), Lines()])
def test_readers_and_writers_equal_only_themselves(codec: Any) -> None:
    assert len({codec.reader(), codec.reader(), codec.writer(), codec.writer()}) == 4


def test_codecs_of_equal_settings_are_equal() -> None:
    assert Delimited(b"\n") == Delimited(b"\n")
    assert hash(Delimited(b"\n")) == hash(Delimited(b"\n"))
    assert Delimited(b"\n") != Delimited(b"\0")
    assert Lines() == Lines(newline=b"\n")
    assert hash(Lines()) == hash(Lines(newline=b"\n"))
    assert Lines() != Lines(newline=b"\r\n")


def test_codecs_that_frame_alike_are_equal() -> None:
    assert Delimited([b"\n"]) == Delimited((b"\n",)) == Delimited(b"\n")
    assert Delimited([b"\r\n", b"\n"]) == Delimited((b"\r\n", b"\n"))
    assert hash(Delimited([b"\r\n", b"\n"])) == hash(Delimited((b"\r\n", b"\n")))
    assert Delimited([b"\r\n", b"\n"]) != Delimited([b"\n", b"\r\n"])
    assert Delimited(b"\n") != Delimited(b"\n", keep=True)
    assert Delimited(b"\n").reader().delimiter == b"\n"


def test_delimiter_is_not_kept_by_readers_and_writers_made_by_hand() -> None:
    buffer = ReceiveBuffer()
    buffer.feed(DelimitedWriter(b"\n", 5).encode(b"hello"))
    assert DelimitedReader(b"\n", 5).decode(buffer) == b"hello"


# -- many at once


def test_ahead_is_decoded_what_is_whole_and_allowed_and_no_more_than_asked() -> None:
    for codec in (Delimited(b"\n", max_size=3), Delimited([b"\n", b"\0"], max_size=3)):
        reader = codec.reader()
        buffer = ReceiveBuffer()
        buffer.feed(b"a\n\nbc\ndef\n")
        assert reader.decode_ahead(buffer, 3) == [b"a", b"", b"bc"]
        assert reader.decode_ahead(buffer, 100) == [b"def"]
        assert reader.decode_ahead(buffer, 100) == []
        buffer.feed(b"ghij\nk\nl")
        assert reader.decode_ahead(buffer, 100) == []
        reader.max_size = 4
        assert reader.decode_ahead(buffer, 100) == [b"ghij", b"k"]
        assert reader.decode_ahead(buffer, 100) == []
        assert buffer.peek(1) == b"l"


def test_ahead_is_decoded_an_empty_message_alone_and_what_is_kept() -> None:
    for reader, message in (
        (Delimited(b"\n").reader(), b""),
        (Delimited(b"\n", keep=True).reader(), b"\n"),
    ):
        buffer = ReceiveBuffer()
        buffer.feed(b"\n")
        assert reader.decode_ahead(buffer, 100) == [message]
        assert len(buffer) == 0


def test_lines_are_decoded_ahead_where_their_characters_are_single_bytes() -> None:
    reader = Lines(max_size=3).reader()
    buffer = ReceiveBuffer()
    buffer.feed(b"a\r\nb\r\r\nc\nd")
    assert reader.decode_ahead(buffer, 2) == ["a", "b\r"]
    assert reader.decode_ahead(buffer, 2) == ["c"]
    assert reader.decode_ahead(buffer, 2) == []
    for others in (b"\xc3\xa9\ne\n", b"\xff\nf\n"):
        buffer = ReceiveBuffer()
        buffer.feed(others)
        assert reader.decode_ahead(buffer, 2) == []
    reader.encoding = "latin-1"
    assert reader.decode_ahead(buffer, 2) == ["ÿ", "f"]


@pytest.mark.parametrize(
    ("data", "size"), [(b"abcdef\n", "6 bytes;"), (b"abcdef", "6 bytes or more;")]
)
def test_error_tells_a_long_line_from_one_that_is_still_arriving(data: bytes, size: str) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(data)
    with pytest.raises(MessageTooLargeError, match=f"^the peer sent a line of {size}"):
        Lines(max_size=3).reader().decode(buffer)
