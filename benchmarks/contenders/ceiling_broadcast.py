"""Not a contender: a broadcast that is one ``socket.send`` for each member and nothing else."""

from __future__ import annotations

import select
import socket

from benchmarks.contenders._serving import LOOPBACK, announce, parse_options


def main() -> None:
    parse_options()
    listener = socket.create_server((LOOPBACK, 0), backlog=4096)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    announce(listener.getsockname()[1])
    members: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            member = members.get(fd)
            if member is None:
                member, _ = listener.accept()
                member.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                epoll.register(member, select.EPOLLIN)
                members[member.fileno()] = member
                member.sendall((7).to_bytes(4, "big") + b"welcome")
                continue
            data = member.recv(4096)
            if data:
                for other in members.values():
                    other.sendall(data)
            else:
                del members[fd]
                member.close()


if __name__ == "__main__":
    main()
