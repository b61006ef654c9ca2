"""A chat over lines of text: names, private messages, and no mercy for the slow.

    python examples/chat_server.py
    nc 127.0.0.1 5555               # in as many terminals as there are people

The first line that you send is your name. After that, /who lists the others, /to NAME TEXT is for
one of them alone, /quit leaves, and everything else is for everyone.
"""

import argparse
import logging
import sys
from functools import partial

import attrs
import trio

from trio_bytetalk import Connection, Lines, Server, stop_on_signals

Person = Connection[str, str]


@attrs.define
class User:
    """What the chat knows of a connection: its context, as soon as there is a name."""

    name: str
    lines: int = 0


users: dict[str, Person] = {}


async def chat(person: Person) -> None:
    await person.send("What is your name?")
    async for line in person:
        line = line[:1000].strip()
        if person.context is None:
            await join(person, line)
        elif line == "/quit":
            return  # the connection is closed when its handler returns
        elif line:
            await obey(person, person.context, line)


async def join(person: Person, name: str) -> None:
    if not name.isidentifier() or len(name) > 20:
        await person.send("A name is one word of at most 20 letters. What is yours?")
    elif name in users:
        await person.send(f"{name} is here already. What is your name?")
    else:
        users[name] = person
        person.context = User(name)
        await person.send(f"Welcome, {name}. Here: {', '.join(sorted(users))}")
        tell_all(f"* {name} joined", exclude=person)
        print(f"{name} joined")


async def obey(person: Person, user: User, line: str) -> None:
    match line.split(maxsplit=2):
        case ["/who"]:
            await person.send(", ".join(sorted(users)))
        case ["/to", name, text] if name in users:
            try:
                users[name].send_nowait(f"[{user.name}] {text}")
            except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                # Waiting, or failing, for somebody else's connection would be unfair to this one.
                await person.send(f"{name} cannot be reached now")
        case ["/to", name, _]:
            await person.send(f"{name} is not here")
        case [command, *_] if command.startswith("/"):
            await person.send("There are: /who, /to NAME TEXT, /quit")
        case _:
            user.lines += 1
            tell_all(f"{user.name}: {line}", exclude=person)


def tell_all(line: str, exclude: Person) -> None:
    nameless = [other for other in server.connections if other.context is None]
    # Whoever is so slow that the queue is full has to go, rather than miss lines unawares.
    server.broadcast(line, exclude=[*nameless, exclude], when_full="close")


server = Server(chat, codec=Lines(), send_timeout=20)


@server.on_disconnect
async def leave(person: Person) -> None:
    user: User | None = person.context
    if user is not None:
        del users[user.name]
        tell_all(f"* {user.name} left", exclude=person)
        print(f"{user.name} left: {person.close_reason} (lines: {user.lines})")


async def main(host: str, port: int) -> str | None:
    with stop_on_signals(server):
        async with trio.open_nursery() as serving:
            try:
                listeners = await serving.start(partial(server.serve_tcp, port, host=host))
            except (OSError, ValueError) as error:
                return str(error)
            print("chat server on {} port {}".format(*listeners[0].socket.getsockname()))
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port))
