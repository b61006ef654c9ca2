"""Messages that are objects: JSON in lines, checked against types, and answered if it is wrong.

    pip install '.[msgspec]'
    python examples/typed_messages.py

A shop takes orders and cancellations, and sends receipts and refusals. One client is a program like
it, which has the types the other way round; another one writes JSON by hand, and makes mistakes.
Run ``mypy --strict`` over this file to see what a type checker knows of it.
"""

from functools import partial
from typing import Annotated

import msgspec
import trio

from trio_bytetalk import Connection, InvalidMessageError, Lines, Server, open_tcp_connection

ADDRESS = "127.0.0.1"
PRICES = {"teapot": 24.5, "cup": 6.0}


class Order(msgspec.Struct, tag="order"):
    number: int
    item: str
    count: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1  # so the total is a number to be sent


class Cancellation(msgspec.Struct, tag="cancellation"):
    number: int


class Receipt(msgspec.Struct, tag="receipt"):
    number: int
    total: float


class Refusal(msgspec.Struct, tag="refusal"):
    reason: str


SHOP = Lines(max_size=1000).json(Order | Cancellation, send=Receipt | Refusal)
CUSTOMER = Lines(max_size=1000).json(Receipt | Refusal, send=Order | Cancellation)


async def serve(connection: Connection[Receipt | Refusal, Order | Cancellation]) -> None:
    totals: dict[int, float] = {}
    while True:
        try:
            async for message in connection:
                await connection.send(answer(message, totals))
            return
        except InvalidMessageError as error:
            # The line is consumed, so there is no harm in going on with the next.
            await connection.send(Refusal(error.reason))


def answer(message: Order | Cancellation, totals: dict[int, float]) -> Receipt | Refusal:
    match message:
        case Order(number, item, count) if item in PRICES:
            totals[number] = PRICES[item] * count
            return Receipt(number, totals[number])
        case Order(_, item):
            return Refusal(f"there is no {item}")
        case Cancellation(number) if number in totals:
            return Receipt(number, -totals.pop(number))
        case Cancellation(number):
            return Refusal(f"there is no order {number}")


async def order(port: int) -> None:
    async with open_tcp_connection(ADDRESS, port, codec=CUSTOMER) as shop:
        for message in (Order(1, "cup", 6), Order(2, "saucer"), Cancellation(1), Cancellation(1)):
            await shop.send(message)
            print(f"{message}\n    {await shop.receive()}")


async def order_by_hand(port: int) -> None:
    async with open_tcp_connection(ADDRESS, port, codec=Lines()) as shop:
        for line in (
            '{"type": "order", "number": 1, "item": "teapot"}',
            '{"type": "order", "number": 2, "item": "teapot", "count": "two"}',
            '{"type": "theft", "item": "teapot"}',
            "a teapot, please",
            '{"type": "order", "number": 3, "item": "teapot", "count": 2}',
        ):
            await shop.send(line)
            print(f"{line}\n    {await shop.receive()}")


async def main() -> None:
    server = Server(serve, codec=SHOP)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(server.serve_tcp, 0, host=ADDRESS))
        port = listeners[0].socket.getsockname()[1]
        await order(port)
        await order_by_hand(port)
        server.stop()


if __name__ == "__main__":
    trio.run(main)
