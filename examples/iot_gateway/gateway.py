"""The gateways of the factory floor: one listener for each, on a hybrid connection of its own.

    python gateway.py --gateways 50 --rate 200 --seconds 60

They record readings whether or not anybody is connected, and keep each until the worker has acknowledged it. When the
worker comes, it says which number it wants next; from there on everything is sent, again if need be.

TRUNKLINE_CONNECTION_STRING holds a rule with the right Listen, TRUNKLINE_CA_FILE the authority to trust.
"""

import argparse
import asyncio
import json
import logging
import math
import os
import ssl
import sys
import time
from collections import deque
from typing import Literal

from reading import Reading, encode

from trunkline import HybridConnectionListener
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import Connection, ConnectionClosed

log = logging.getLogger("gateway")

#: Readings that a gateway keeps while nobody takes them: at 200 a second, eight minutes and 20 MB.
OUTBOX_LIMIT = 100_000


class Gateway:
    """What one gateway has recorded and the worker has not acknowledged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox: deque[bytes] = deque()
        #: Number of the first message in the outbox. Numbers begin with 1 and have no gaps.
        self.first = 1
        #: Readings that had to go because the outbox was full.
        self.dropped = 0
        #: Set while everything is acknowledged.
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self._connection: Connection | None = None
        self._news = asyncio.Event()

    @property
    def next(self) -> int:
        """The number of the next reading."""
        return self.first + len(self.outbox)

    def record(self, sensor: int, value: float) -> None:
        """Keep a reading; it is sent as soon as the worker is there."""
        if len(self.outbox) == OUTBOX_LIMIT:
            self.outbox.popleft()
            self.first += 1
            self.dropped += 1
        self.outbox.append(encode(self.name, Reading(self.next, sensor, value, time.time())))
        self.is_empty.clear()
        self._news.set()

    def acknowledge(self, number: int) -> None:
        """The worker has everything up to this number."""
        while self.outbox and self.first <= number:
            self.outbox.popleft()
            self.first += 1
        if not self.outbox:
            self.is_empty.set()

    async def serve(self, connection: Connection) -> None:
        """The worker has connected: send from the number that it wants, and take its acknowledgements."""
        if self._connection is not None:
            self._connection.abort()  # after a cut the old connection may look alive for a while
        self._connection = connection
        wanted = int(await connection.recv())
        self.acknowledge(wanted - 1)
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(connection))
                async for message in connection:
                    self.acknowledge(int(message))
                sending.cancel()
        except* (ConnectionLost, ConnectionClosed):
            pass  # the worker comes again

    async def _send(self, connection: Connection) -> None:
        number = self.first
        while True:
            number = max(number, self.first)
            while number < self.next:
                await connection.send(self.outbox[number - self.first])
                number = max(number + 1, self.first)
            self._news.clear()
            await self._news.wait()


async def read_sensors(gateway: Gateway, rate: float, seconds: float) -> None:
    """Stands for the local network: `rate` readings a second, each when it is due."""
    started = time.monotonic()
    for count in range(round(rate * seconds)):
        delay = started + count / rate - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        gateway.record(sensor=count % 20, value=math.sin(count))


async def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--gateways", type=int, default=50)
    arguments.add_argument("--rate", type=float, default=200, help="readings a second, of each gateway")
    arguments.add_argument("--seconds", type=float, default=60, help="how long to read the sensors")
    options = arguments.parse_args()
    text = os.environ["TRUNKLINE_CONNECTION_STRING"]
    tls: ssl.SSLContext | Literal[False] = False
    if authority := os.environ.get("TRUNKLINE_CA_FILE"):
        tls = ssl.create_default_context(cafile=authority)
    gateways = [Gateway(f"gateway-{number:02}") for number in range(1, options.gateways + 1)]

    def alert(listener: HybridConnectionListener) -> None:
        if listener.last_error is not None:
            log.warning("ALERT %s is %s: %s", listener.entity_path, listener.state, listener.last_error)

    async with asyncio.TaskGroup() as tasks:
        listeners = [
            HybridConnectionListener(text, entity_path=gateway.name, ssl=tls, on_connecting=alert, on_online=alert)
            for gateway in gateways
        ]
        await asyncio.gather(*(listener.open() for listener in listeners))
        print("online", flush=True)
        for gateway, listener in zip(gateways, listeners, strict=True):
            tasks.create_task(listener.serve(gateway.serve))
        await asyncio.gather(*(read_sensors(gateway, options.rate, options.seconds) for gateway in gateways))
        for gateway in gateways:
            await gateway.is_empty.wait()
        for listener in listeners:
            await asyncio.gather(listener.close(), *(connection.close() for connection in listener.connections))
    recorded = sum(gateway.next - 1 for gateway in gateways)
    print(json.dumps({"recorded": recorded, "dropped": sum(gateway.dropped for gateway in gateways)}))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    asyncio.run(main())
