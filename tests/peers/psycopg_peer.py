"""psycopg, which is libpq (as psql is), at a server of PostgreSQL's protocol.

python psycopg_peer.py SETTINGS PORT

The server keeps rows that COPY brings, gives each row back in reverse, and answers a query that has
a parameter with the parameter reversed.
"""

import random
import sys

import psycopg
from psycopg import pq

ExecStatus = pq.ExecStatus


def rows() -> list[bytes]:
    dice = random.Random(6)
    sizes = [
        *range(1, 300),
        65_535,
        65_536,
        400_000,
        *(int(4096 ** dice.random()) for _ in range(1700)),
    ]
    return [dice.randbytes(size) for size in sizes]


def copy(connection: pq.abc.PGconn, words: list[bytes]) -> None:
    """A message of the protocol for each row, in and out. (Of an empty one libpq makes none.)"""
    assert connection.exec_(b"COPY words FROM STDIN").status == ExecStatus.COPY_IN
    for word in words:
        connection.put_copy_data(word)
    connection.put_copy_end()
    result = connection.get_result()
    assert result is not None
    assert result.status == ExecStatus.COMMAND_OK
    assert result.command_status == b"COPY %d" % len(words)
    assert connection.get_result() is None

    assert connection.exec_(b"COPY words TO STDOUT").status == ExecStatus.COPY_OUT
    for word in words:
        size, data = connection.get_copy_data(0)
        assert size == len(word)
        assert bytes(data) == word[::-1]
    assert connection.get_copy_data(0)[0] == -1
    result = connection.get_result()
    assert result is not None
    assert result.status == ExecStatus.COMMAND_OK
    assert connection.get_result() is None


def main(settings: str, port: str) -> None:
    words = rows()
    everything = f"host=localhost hostaddr=127.0.0.1 port={port} user=alice dbname=words {settings}"
    try:
        connecting = psycopg.connect(everything, autocommit=True)
    except psycopg.OperationalError as error:
        print(error)
        return
    with connecting as connection:
        print("with TLS" if connection.pgconn.ssl_in_use else "without TLS")
        print("server", connection.info.parameter_status("server_version"))
        copy(connection.pgconn, words)

        # One answer of many rows, by the simple protocol.
        answer = psycopg.ClientCursor(connection).execute("SELECT word FROM words")
        assert [row[0] for row in answer] == [word[::-1] for word in words]

        # Parse, Bind, Describe, Execute, Sync for each; the second time without waiting.
        for word in words:
            row = connection.execute("SELECT backwards(%b)", [word], binary=True).fetchone()
            assert row == (word[::-1],)
        with connection.pipeline():
            cursors = [
                connection.execute("SELECT backwards(%b)", [word], binary=True) for word in words
            ]
            for word, cursor in zip(words, cursors, strict=True):
                assert cursor.fetchone() == (word[::-1],)

        # An error leaves the connection usable.
        try:
            connection.execute("SELECT nonsense")
        except psycopg.errors.SyntaxError as error:
            print(error)
        row = connection.execute("SELECT backwards(%b)", [b"abc"], binary=True).fetchone()
        assert row == (b"cba",)


main(*sys.argv[1:])
