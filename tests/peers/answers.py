"""What a peer answers: the message backwards, and a checksum of it as it was.

The one goes wrong if a message has other boundaries than were meant, the other if its bytes are not
what they were: an encoding that is wrong in the same way in both directions is not noticed by an
echo.
"""

import zlib


def answer(message: bytes) -> bytes:
    return message[::-1] + checksum(message)


def answer_text(message: str) -> str:
    return message[::-1] + checksum(message.encode()).decode()


def checksum(message: bytes) -> bytes:
    return b"%08x" % zlib.crc32(message)
