"""Message networking for Trio: servers and clients that exchange messages over byte streams."""

import importlib
import typing

from ._buffer import ReceiveBuffer
from ._client import open_connection, open_tcp_connection, open_unix_connection
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer
from ._connection import (
    CloseReason,
    Connection,
    ConnectionStatistics,
    Ending,
    HandshakeTimeoutError,
    IdleTimeoutError,
    MessageTimeoutError,
    QueueFullError,
)
from ._errors import (
    BytetalkError,
    EncodeError,
    IncompleteMessageError,
    InvalidMessageError,
    MessageTooLargeError,
    ProtocolError,
)
from ._events import (
    ClientConnected,
    ClientDisconnected,
    Event,
    EventEmitter,
    ListenerHandle,
    MessageReceived,
    MessageWritten,
    Subscription,
    SubscriptionOverflowError,
)
from ._length_prefixed import LengthPrefixed, LengthPrefixedReader, LengthPrefixedWriter
from ._limits import LimitOptions, Limits
from ._server import BroadcastResult, Handler, Server, ServerStatistics
from ._signals import stop_on_signals
from ._transport import GivenUpError, SendTimeoutError

if typing.TYPE_CHECKING:
    from ._chunks import Chunks, ChunksReader, ChunksWriter
    from ._compression import CompressedReader, CompressedWriter
    from ._content_length import ContentLength, ContentLengthReader, ContentLengthWriter
    from ._decimal_prefixed import (
        Netstring,
        NetstringReader,
        NetstringWriter,
        OctetCounted,
        OctetCountedReader,
        OctetCountedWriter,
    )
    from ._delimited import (
        Delimited,
        DelimitedReader,
        DelimitedWriter,
        Lines,
        LinesReader,
        LinesWriter,
    )
    from ._fixed_size import (
        FixedSize,
        FixedSizeReader,
        FixedSizeWriter,
        Structs,
        StructsReader,
        StructsWriter,
    )
    from ._messages import MappedReader, MappedWriter
    from ._stuffed import COBS, SLIP, COBSReader, COBSWriter, SLIPReader, SLIPWriter
    from ._varint_prefixed import VarintPrefixed, VarintPrefixedReader, VarintPrefixedWriter
else:  # as a function that type checkers see, it would have them believe that any name is there

    def __getattr__(name: str) -> typing.Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_LATER[name]}")
        return _exported(name, getattr(module, name))


__version__ = "0.1.0"

__all__ = [
    "COBS",
    "NEED_DATA",
    "SLIP",
    "BroadcastResult",
    "Buffer",
    "BytetalkError",
    "COBSReader",
    "COBSWriter",
    "Chunks",
    "ChunksReader",
    "ChunksWriter",
    "ClientConnected",
    "ClientDisconnected",
    "CloseReason",
    "Codec",
    "CompressedReader",
    "CompressedWriter",
    "Connection",
    "ConnectionStatistics",
    "ContentLength",
    "ContentLengthReader",
    "ContentLengthWriter",
    "Delimited",
    "DelimitedReader",
    "DelimitedWriter",
    "EncodeError",
    "Ending",
    "Event",
    "EventEmitter",
    "FixedSize",
    "FixedSizeReader",
    "FixedSizeWriter",
    "GivenUpError",
    "Handler",
    "HandshakeTimeoutError",
    "IdleTimeoutError",
    "IncompleteMessageError",
    "InvalidMessageError",
    "LengthPrefixed",
    "LengthPrefixedReader",
    "LengthPrefixedWriter",
    "LimitOptions",
    "Limits",
    "Lines",
    "LinesReader",
    "LinesWriter",
    "ListenerHandle",
    "MappedReader",
    "MappedWriter",
    "MessageReceived",
    "MessageTimeoutError",
    "MessageTooLargeError",
    "MessageWritten",
    "NeedData",
    "Netstring",
    "NetstringReader",
    "NetstringWriter",
    "OctetCounted",
    "OctetCountedReader",
    "OctetCountedWriter",
    "ProtocolError",
    "QueueFullError",
    "Reader",
    "ReceiveBuffer",
    "SLIPReader",
    "SLIPWriter",
    "SendTimeoutError",
    "Server",
    "ServerStatistics",
    "Structs",
    "StructsReader",
    "StructsWriter",
    "Subscription",
    "SubscriptionOverflowError",
    "VarintPrefixed",
    "VarintPrefixedReader",
    "VarintPrefixedWriter",
    "Writer",
    "open_connection",
    "open_tcp_connection",
    "open_unix_connection",
    "stop_on_signals",
]

# What most programs do without is imported when it is asked for: many small classes take long.
_LATER = {
    "Chunks": "_chunks",
    "ChunksReader": "_chunks",
    "ChunksWriter": "_chunks",
    "CompressedReader": "_compression",
    "CompressedWriter": "_compression",
    "ContentLength": "_content_length",
    "ContentLengthReader": "_content_length",
    "ContentLengthWriter": "_content_length",
    "Netstring": "_decimal_prefixed",
    "NetstringReader": "_decimal_prefixed",
    "NetstringWriter": "_decimal_prefixed",
    "OctetCounted": "_decimal_prefixed",
    "OctetCountedReader": "_decimal_prefixed",
    "OctetCountedWriter": "_decimal_prefixed",
    "Delimited": "_delimited",
    "DelimitedReader": "_delimited",
    "DelimitedWriter": "_delimited",
    "Lines": "_delimited",
    "LinesReader": "_delimited",
    "LinesWriter": "_delimited",
    "FixedSize": "_fixed_size",
    "FixedSizeReader": "_fixed_size",
    "FixedSizeWriter": "_fixed_size",
    "Structs": "_fixed_size",
    "StructsReader": "_fixed_size",
    "StructsWriter": "_fixed_size",
    "MappedReader": "_messages",
    "MappedWriter": "_messages",
    "COBS": "_stuffed",
    "SLIP": "_stuffed",
    "COBSReader": "_stuffed",
    "COBSWriter": "_stuffed",
    "SLIPReader": "_stuffed",
    "SLIPWriter": "_stuffed",
    "VarintPrefixed": "_varint_prefixed",
    "VarintPrefixedReader": "_varint_prefixed",
    "VarintPrefixedWriter": "_varint_prefixed",
}


def _exported(name: str, value: typing.Any) -> typing.Any:
    """Export an object as users import it, not by the module that happens to hold it."""
    if getattr(value, "__module__", "").startswith(__name__ + "._"):
        value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _name in set(__all__) - _LATER.keys():
    _exported(_name, globals()[_name])
del _name
