"""A weather station with a server in it: one part of a larger program, which starts and stops it.

    python examples/embedded.py
    nc 127.0.0.1 5555               # shows each reading; any line that you send asks for the mean

The thermometer knows nothing of the server, and works before, during and after its time.
"""

import argparse
import logging
import math
import random
import sys
from functools import partial

import attrs
import trio

from trio_bytetalk import Connection, Lines, Server, stop_on_signals


@attrs.define
class Thermometer:
    interval: float
    readings: list[float] = attrs.field(factory=list)
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def work(self) -> None:
        temperature = 20.0
        while True:
            temperature += random.uniform(-0.5, 0.5)
            self.readings.append(temperature)
            self.changed.set()
            self.changed = trio.Event()
            await trio.sleep(self.interval)

    def mean(self) -> float:
        return math.fsum(self.readings) / len(self.readings)


async def publish(thermometer: Thermometer, server: Server[str, str]) -> None:
    while True:
        await thermometer.changed.wait()
        # Whoever is slow misses a reading; with when_full="close" it would be the connection.
        server.broadcast(f"{thermometer.readings[-1]:.1f} degrees")


async def answer(thermometer: Thermometer, connection: Connection[str, str]) -> None:
    async for _question in connection:
        count = len(thermometer.readings)
        await connection.send(f"{thermometer.mean():.1f} degrees, the mean of {count} readings")


async def main(host: str, port: int, interval: float) -> str | None:
    thermometer = Thermometer(interval)
    server = Server(partial(answer, thermometer), codec=Lines())

    async with trio.open_nursery() as station:
        station.start_soon(thermometer.work)

        with stop_on_signals(server):
            async with trio.open_nursery() as network:
                try:
                    listeners = await network.start(partial(server.serve_tcp, port, host=host))
                except (OSError, ValueError) as error:
                    station.cancel_scope.cancel()
                    return str(error)
                station.start_soon(publish, thermometer, server)
                print("weather station on {} port {}".format(*listeners[0].socket.getsockname()))

        # That nursery has been left, so the server has stopped. The other parts are still at work.
        print(f"clients served: {server.statistics().connections_total}")
        station.cancel_scope.cancel()

    print(f"{len(thermometer.readings)} readings, {thermometer.mean():.1f} degrees on average")
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5555, help="0 has the system choose one")
    parser.add_argument("--interval", type=float, default=1, help="seconds between two readings")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(trio.run(main, options.host, options.port, options.interval))
