"""`Limits`: the settings that a server's connections and a client's connection have in common."""

from __future__ import annotations

import math
from typing import TypedDict

import attrs

from ._validators import seconds, whole_number


def _or_never(value: float | None) -> float:
    return math.inf if value is None else value


class LimitOptions(TypedDict, total=False):
    """The keyword arguments that `Server` and the ``open_`` functions pass on to `Limits`."""

    message_timeout: float | None
    send_timeout: float | None
    idle_timeout: float | None
    handshake_timeout: float | None
    close_timeout: float | None
    write_buffer_size: int


@attrs.frozen(kw_only=True)
class Limits:
    """What a connection grants its peer. Times are in seconds; None is no limit.

    Args:
      message_timeout: How long a message may take to arrive once its first bytes have.
      send_timeout: How long the peer may take no byte of what is queued for it. On a plain socket
          on Linux it has taken what the socket has room for again: TCP makes that room some
          kilobytes at a time, as the peer acknowledges. Over TLS and other streams, progress is
          seen only when it has taken 64 KiB, or all there is.
      idle_timeout: How long `Connection.receive` may wait with no byte moving in either direction
          and no message begun. If something was sent meanwhile, it is up to twice as long before
          the silence is noticed. No limit by default: many protocols are silent for hours.
      handshake_timeout: How long a TLS handshake may take.
      close_timeout: How long `Connection.aclose` may go on sending what is queued.
      write_buffer_size: The high-water mark: `Connection.send` waits while more bytes than this
          are queued.
    """

    message_timeout: float = attrs.field(default=60, converter=_or_never, validator=seconds)
    send_timeout: float = attrs.field(default=60, converter=_or_never, validator=seconds)
    idle_timeout: float = attrs.field(default=None, converter=_or_never, validator=seconds)
    handshake_timeout: float = attrs.field(default=10, converter=_or_never, validator=seconds)
    close_timeout: float = attrs.field(default=5, converter=_or_never, validator=seconds)
    write_buffer_size: int = attrs.field(
        default=256 * 1024, validator=whole_number(1, unit="bytes")
    )
