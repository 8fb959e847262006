"""The worker in the cloud: a sender for each gateway, that pulls its readings through the relay and stores them.

    python worker.py --gateways 50

It says which reading it wants next, stores each once and in order, and acknowledges what is stored. When a connection
ends, it says so in one line and connects again, with the waiting times of the SDK: 0, 1, 2, 5, 10, 30, 30 ... seconds.

TRUNKLINE_CONNECTION_STRING holds a rule with the right Send, TRUNKLINE_CA_FILE the authority to trust. SIGTERM ends it,
with a report on standard output.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import ssl
import sys
import time
from collections import Counter
from typing import Literal

from reading import decode

from trunkline import HybridConnectionClient
from trunkline.protocol.errors import RelayError
from trunkline.sdk import Connection, ConnectionClosed, Retry

log = logging.getLogger("worker")

#: Seconds between two acknowledgements; each covers everything before it.
ACKNOWLEDGE_EVERY = 0.2

FOR_EVER = Retry(attempts=sys.maxsize)


class Store:
    """Stands for the IoT hub: counts what is stored, and how long each took to come."""

    def __init__(self) -> None:
        self.stored = 0
        self.milliseconds: Counter[int] = Counter()

    def add(self, gateway: str, value: float, at: float) -> None:
        self.stored += 1
        self.milliseconds[int((time.time() - at) * 1000)] += 1

    def delay(self, share: float) -> int:
        """Milliseconds within which this share of all readings came."""
        left = share * self.stored
        for milliseconds in sorted(self.milliseconds):
            left -= self.milliseconds[milliseconds]
            if left <= 0:
                return milliseconds
        return 0


class Puller:
    """The connection to one gateway."""

    def __init__(self, client: HybridConnectionClient, store: Store) -> None:
        [self.name] = client.entity_paths
        self._client = client
        self._store = store
        #: Number of the reading that is to come next.
        self.next = 1
        # The last one that the gateway was told about.
        self._acknowledged = 0
        # None while there is none.
        self._connection: Connection | None = None
        #: Readings that came again, and were not stored again.
        self.repeated = 0
        #: Readings that came before one that should have come first.
        self.reordered = 0
        self.losses = 0

    async def run(self) -> None:
        """Connect, pull, and do it again."""
        while True:
            # A gateway that is not there is no failure of ours: NoListener may pass, and is tried again too.
            connection = await self._client.create_connection(timeout=None, retry=FOR_EVER)
            if self.losses:
                log.warning("%s is back; it goes on with reading %d", self.name, self.next)
            try:
                async with connection:
                    await connection.send(str(self.next))
                    self._connection = connection
                    while True:
                        message = await connection.recv()
                        assert isinstance(message, bytes)
                        self._take(message)
            except ConnectionClosed:
                self._connection = None
                log.info("%s has ended", self.name)
            except (RelayError, OSError) as error:
                self._connection = None
                self.losses += 1
                log.warning("ALERT %s was lost at reading %d: %s", self.name, self.next, error)

    def _take(self, message: bytes) -> None:
        reading = decode(self.name, message)
        if reading.number < self.next:
            self.repeated += 1
            return
        if reading.number > self.next:
            self.reordered += 1
        self._store.add(self.name, reading.value, reading.at)
        self.next = reading.number + 1

    async def acknowledge(self) -> None:
        """Tell the gateway what is stored; until then it keeps it."""
        if self._connection is not None and self._acknowledged != self.next - 1:
            self._acknowledged = self.next - 1
            with contextlib.suppress(RelayError, ConnectionClosed):  # `run` hears of it too
                await self._connection.send(str(self._acknowledged))


async def acknowledge_now_and_then(pullers: list[Puller]) -> None:
    while True:
        await asyncio.sleep(ACKNOWLEDGE_EVERY)
        for puller in pullers:
            await puller.acknowledge()


async def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--gateways", type=int, default=50)
    options = arguments.parse_args()
    text = os.environ["TRUNKLINE_CONNECTION_STRING"]
    tls: ssl.SSLContext | Literal[False] = False
    if authority := os.environ.get("TRUNKLINE_CA_FILE"):
        tls = ssl.create_default_context(cafile=authority)
    store = Store()
    pullers = [
        Puller(HybridConnectionClient(text, entity_path=f"gateway-{number:02}", ssl=tls), store)
        for number in range(1, options.gateways + 1)
    ]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(puller.run()) for puller in pullers]
        running.append(tasks.create_task(acknowledge_now_and_then(pullers)))
        await ended.wait()
        for task in running:
            task.cancel()
    report = {
        "stored": store.stored,
        "missing": sum(puller.next - 1 for puller in pullers) - store.stored,
        "reordered": sum(puller.reordered for puller in pullers),
        "repeated": sum(puller.repeated for puller in pullers),
        "losses": sum(puller.losses for puller in pullers),
        "milliseconds": {"median": store.delay(0.5), "99 %": store.delay(0.99), "longest": store.delay(1)},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    asyncio.run(main())
