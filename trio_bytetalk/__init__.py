"""Message networking for Trio: servers and clients that exchange messages over byte streams."""

from ._buffer import ReceiveBuffer
from ._chunks import Chunks, ChunksReader, ChunksWriter
from ._client import open_connection, open_tcp_connection, open_unix_connection
from ._codec import NEED_DATA, Buffer, Codec, NeedData, Reader, Writer
from ._compression import CompressedReader, CompressedWriter
from ._connection import (
    CloseReason,
    Connection,
    ConnectionStatistics,
    HandshakeTimeoutError,
    IdleTimeoutError,
    MessageTimeoutError,
    QueueFullError,
)
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
from ._fixed_size import (
    FixedSize,
    FixedSizeReader,
    FixedSizeWriter,
    Structs,
    StructsReader,
    StructsWriter,
)
from ._length_prefixed import LengthPrefixed, LengthPrefixedReader, LengthPrefixedWriter
from ._limits import LimitOptions, Limits
from ._messages import MappedReader, MappedWriter
from ._server import BroadcastResult, Handler, Server, ServerStatistics
from ._stuffed import COBS, SLIP, COBSReader, COBSWriter, SLIPReader, SLIPWriter
from ._transport import GivenUpError, SendTimeoutError
from ._varint_prefixed import VarintPrefixed, VarintPrefixedReader, VarintPrefixedWriter

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
]

# Names are shown as users import them, not by the modules that happen to hold them.
for _name in __all__:
    _object = globals()[_name]
    if getattr(_object, "__module__", "").startswith(__name__ + "._"):
        _object.__module__ = __name__
del _name, _object
