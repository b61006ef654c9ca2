"""The load generator: plain sockets, one ``select.epoll``, data that was encoded beforehand.

It does the same to every server:

- ``TCP_NODELAY`` is on, and every socket buffer has the size that the kernel gives it;
- what comes back is compared with what was sent: every byte of messages up to 8 KiB; of larger
  ones every byte during the warm-up, and one read in eight while the clock runs;
- a load that keeps *n* messages in flight sends a new whole message for each whole message that
  came back: at once where few are in flight, and by the sixteenth part of *n* where many are.

Each module holds one kind of load. None of them knows which server it talks to.
"""
