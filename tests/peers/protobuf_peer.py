"""Messages of Google's protobuf, delimited: the bytes in each are answered as answers.py says.

python protobuf_peer.py BytesValue [PORT]
"""

import sys

from answers import answer
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed
from google.protobuf.wrappers_pb2 import BytesValue
from one_connection import connect


def main(_protocol: str, port: str | None = None) -> None:
    with connect(port) as connection, connection.makefile("rwb") as stream:
        while (message := parse_length_prefixed(BytesValue, stream)) is not None:
            serialize_length_prefixed(BytesValue(value=answer(message.value)), stream)
            stream.flush()


main(*sys.argv[1:])
