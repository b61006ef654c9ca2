"""Records as ctypes lays them out: each is answered with another.

python ctypes_peer.py record [PORT]
"""

import ctypes
import sys

from one_connection import connect


class Record(ctypes.BigEndianStructure):
    _pack_ = 1
    _fields_ = (
        ("number", ctypes.c_uint32),
        ("value", ctypes.c_double),
        ("flags", ctypes.c_uint16),
        ("name", ctypes.c_char * 8),
    )


def main(_protocol: str, port: str | None = None) -> None:
    with connect(port) as connection, connection.makefile("rwb") as file:
        record = Record()
        while file.readinto(record):
            record.number += 1
            record.value = -record.value
            record.flags ^= 0xFFFF
            record.name = record.name[::-1]
            file.write(record)
            file.flush()


main(*sys.argv[1:])
