"""`Netstring` and `OctetCounted`: each message behind its length in decimal digits."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from ._buffer import ReceiveBuffer
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer, to_bytes
from ._errors import EncodeError, MessageTooLargeError, ProtocolError
from ._length_prefixed import JOIN_BELOW
from ._validators import whole_number

# A length of so many digits is looked for at once, for speed; a longer one is read digit by digit.
_FEW_DIGITS = 6


@attrs.frozen
class _Form:
    """In what two protocols differ that are otherwise the same."""

    name: str
    separator: bytes  # behind the digits
    trailer: bytes  # behind the payload
    least: int  # the size of the smallest payload


_NETSTRING = _Form("Netstring", separator=b":", trailer=b",", least=0)
_OCTET_COUNTED = _Form("OctetCounted", separator=b" ", trailer=b"", least=1)


@attrs.define(eq=False)
class _DecimalReader(Reader[bytes]):
    max_size: int

    _form: ClassVar[_Form]

    def decode(self, buffer: ReceiveBuffer) -> bytes | Literal[NeedData.NEED_DATA]:
        # The fast path: the whole frame lies within the front and nothing is wrong with it. A
        # length that begins with a zero is left to the other path, be it right or wrong.
        form = self._form
        data = buffer.data
        start = buffer.start
        separator = data.find(form.separator, start, start + _FEW_DIGITS + 1)
        if separator > 0:
            digits = data[start:separator]
            if digits.isdigit() and digits[0] != 0x30:
                begin = separator + 1
                length = int(digits)
                end = begin + length
                if length <= self.max_size and data.startswith(form.trailer, end):
                    buffer.start = end + len(form.trailer)
                    return data[begin:end]

        announced = self._peek_length(buffer)
        if announced is None:
            return NEED_DATA
        length, ahead = announced
        if form.trailer:
            # Looked at first: if it is wrong, nothing is consumed.
            trailer = buffer.peek(len(form.trailer), ahead + length)
            if trailer is None:
                return NEED_DATA
            if trailer != form.trailer:
                raise ProtocolError(
                    f"the peer sent {trailer!r} behind a message of {length} bytes, where "
                    f"{form.trailer!r} was expected"
                )
        message = buffer.take(length, skip=ahead)
        if message is None:
            return NEED_DATA
        buffer.skip(len(form.trailer))
        return message

    def _peek_length(self, buffer: ReceiveBuffer) -> tuple[int, int] | None:
        """The length, and how many bytes are ahead of the payload; None if they are not whole.

        It goes byte by byte, to refuse the first that cannot be right or says too much.
        """
        form = self._form
        length = 0
        size = 0
        while True:
            byte = buffer.peek(1, size)
            if byte is None:
                return None
            if byte == form.separator and size:
                return length, size + 1
            if not byte.isdigit():
                raise ProtocolError(
                    f"the peer sent {byte!r} where a digit of a message's length"
                    f"{f' or {form.separator!r}' if size else ''} was expected"
                )
            if size and not length:
                raise ProtocolError(
                    f"the peer sent a length that begins with 0 and goes on with {byte!r}"
                )
            length = 10 * length + int(byte)
            if length < form.least:
                raise ProtocolError(
                    f"the peer sent a length that begins with 0; {form.name} has no empty message"
                )
            if length > self.max_size:
                raise MessageTooLargeError(
                    f"the peer announced a message of {length} bytes or more; "
                    f"max_size allows {self.max_size} bytes"
                )
            size += 1


@attrs.define(eq=False)
class _DecimalWriter(Writer[bytes]):
    max_size: int

    _form: ClassVar[_Form]

    def encode(self, message: Buffer) -> bytes | tuple[bytes, ...]:
        form = self._form
        if type(message) is not bytes:
            message = to_bytes(message, form.name)
        length = len(message)
        if length > self.max_size:
            raise EncodeError(
                f"the message has {length} bytes; max_size allows {self.max_size} bytes"
            )
        if length < form.least:
            raise EncodeError(f"the message is empty, and {form.name} cannot say so")
        header = b"%d%b" % (length, form.separator)
        if length < JOIN_BELOW:
            return header + message + form.trailer
        return (header, message, form.trailer) if form.trailer else (header, message)


@attrs.define(eq=False)
class NetstringReader(_DecimalReader):
    """The reader of `Netstring`; its ``max_size`` may be changed between two messages."""

    _form: ClassVar[_Form] = _NETSTRING


@attrs.define(eq=False)
class NetstringWriter(_DecimalWriter):
    """The writer of `Netstring`; its ``max_size`` may be changed between two messages."""

    _form: ClassVar[_Form] = _NETSTRING


@attrs.frozen
class Netstring(Codec[bytes, bytes]):
    """Frames of a length in decimal digits, a colon, so many bytes of payload, and a comma.

    By the `specification <https://cr.yp.to/proto/netstrings.txt>`__ of D. J. Bernstein, 1997:
    ``hello world!`` is sent as ``12:hello world!,``, and the empty message as ``0:,``. A length
    that begins with a 0 and is longer, or has anything but digits in it, and a missing comma are
    `ProtocolError`.

    Args:
      max_size: The largest payload accepted and sent, in bytes. A longer one that a peer announces
          is refused before any memory is taken for it, with the first digit that makes it too long.

    Messages are `bytes`. A `bytearray` or `memoryview` can be sent as well, and is copied; but that
    is at run time, and a type checker knows of `bytes` only.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(0, unit="bytes"))

    def reader(self) -> NetstringReader:
        return NetstringReader(self.max_size)

    def writer(self) -> NetstringWriter:
        return NetstringWriter(self.max_size)


@attrs.define(eq=False)
class OctetCountedReader(_DecimalReader):
    """The reader of `OctetCounted`; its ``max_size`` may be changed between two messages."""

    _form: ClassVar[_Form] = _OCTET_COUNTED


@attrs.define(eq=False)
class OctetCountedWriter(_DecimalWriter):
    """The writer of `OctetCounted`; its ``max_size`` may be changed between two messages."""

    _form: ClassVar[_Form] = _OCTET_COUNTED


@attrs.frozen
class OctetCounted(Codec[bytes, bytes]):
    """Frames of a length in decimal digits, a space, and so many bytes of payload.

    The octet counting of syslog over TCP and TLS: `RFC 6587, section 3.4.1
    <https://www.rfc-editor.org/rfc/rfc6587#section-3.4.1>`__ and `RFC 5425
    <https://www.rfc-editor.org/rfc/rfc5425#section-4.3>`__. The length begins with another digit
    than 0, so there is no empty message: received or sent, it is an error.

    Args:
      max_size: The largest payload accepted and sent, in bytes. A longer one that a peer announces
          is refused before any memory is taken for it, with the first digit that makes it too long.

    Messages are `bytes`. A `bytearray` or `memoryview` can be sent as well, and is copied; but that
    is at run time, and a type checker knows of `bytes` only.
    """

    max_size: int = attrs.field(default=2**20, validator=whole_number(1, unit="bytes"))

    def reader(self) -> OctetCountedReader:
        return OctetCountedReader(self.max_size)

    def writer(self) -> OctetCountedWriter:
        return OctetCountedWriter(self.max_size)
