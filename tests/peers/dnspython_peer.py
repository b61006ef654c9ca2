"""dnspython asks a server of DNS over TCP for TXT records of many sizes.

python dnspython_peer.py PORT

A question for ``N.example.`` is to be answered with N bytes of text. First each answer is waited
for; then questions are sent without waiting.
"""

import random
import socket
import sys

import dns.message
import dns.query
import dns.rdatatype

HOST = "127.0.0.1"
LARGEST = 65_000  # with its question and the strings' own lengths, just short of 65,535


def check(question: dns.message.Message, answer: dns.message.Message, size: int) -> None:
    assert answer.id == question.id
    assert answer.question == question.question
    [records] = answer.answer
    [record] = records
    assert b"".join(record.strings) == (b"%d " % size * size)[:size]


def main(port: int) -> None:
    dice = random.Random(2)
    sizes = [*range(300), LARGEST, *(int(LARGEST ** dice.random()) for _ in range(1700))]
    questions = [dns.message.make_query(f"{size}.example.", dns.rdatatype.TXT) for size in sizes]
    with socket.create_connection((HOST, port)) as connection:
        for size, question in zip(sizes, questions, strict=True):
            answer = dns.query.tcp(question, HOST, timeout=60, sock=connection)
            check(question, answer, size)
        for question in questions:
            dns.query.send_tcp(connection, question)
        for size, question in zip(sizes, questions, strict=True):
            answer, _ = dns.query.receive_tcp(connection)
            check(question, answer, size)
    print(f"{2 * len(sizes)} answers")


main(int(sys.argv[1]))
