"""A listener and a sender that use the relay in peace, as a program of its own, and say what they notice.

Numbered messages of all sizes go to the listener and come back, a few under way at a time; beside them, a new
connection is made every now and then. Answers each line on its standard input with one line of JSON: what was
exchanged since the last one, how long it took at most, and every fault. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import time
from typing import Any

from trunkline.sdk import Connection, HybridConnectionClient, HybridConnectionListener
from trunkline.sdk.endpoint import TLS

#: Messages under way, and the longest of them in bytes; the pauses, in seconds, leave the machine to the attack.
WINDOW = 4
LONGEST = 20_000
PAUSE = 0.005
BETWEEN_CONNECTIONS = 0.25


class Notes:
    """What was noticed since it was last asked."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        # When each message under way was sent, in order.
        self.sent: dict[int, float] = {}
        # When the connection that is being made was begun.
        self.began: float | None = None
        self._clear()

    def _clear(self) -> None:
        self.echoes = self.connections = 0
        self.longest_echo = self.longest_connection = 0.0

    def echoed(self, number: int) -> None:
        """A message is back."""
        self.longest_echo = max(self.longest_echo, time.monotonic() - self.sent.pop(number))
        self.echoes += 1

    def connected(self) -> None:
        """A connection was made, used and closed."""
        assert self.began is not None
        self.longest_connection = max(self.longest_connection, time.monotonic() - self.began)
        self.connections += 1
        self.began = None

    def take(self) -> dict[str, Any]:
        """All of it; what is still under way counts for as long as it has been."""
        now = time.monotonic()
        oldest = next(iter(self.sent.values()), now)
        told = {
            "echoes": self.echoes,
            "longest_echo": max(self.longest_echo, now - oldest),
            "connections": self.connections,
            "longest_connection": max(self.longest_connection, now - (self.began or now)),
            "faults": self.faults,
        }
        self._clear()
        return told


def message(number: int) -> bytes:
    """The message of that number: nobody can change or swap one unseen."""
    chance = random.Random(number)
    return number.to_bytes(8, "big") + chance.randbytes(chance.choice([0, 1, 100, 3_000, LONGEST]))


async def exchange(connection: Connection, notes: Notes) -> None:
    """Messages there and back, without end."""
    window = asyncio.Semaphore(WINDOW)

    async def read() -> None:
        number = 0
        while True:
            echo = await connection.recv()
            if echo != message(number):
                notes.faults.append(f"message {number} came back as {echo[:20]!r}, {len(echo)} bytes")
            notes.echoed(number)
            number += 1
            window.release()

    async def write() -> None:
        number = 0
        while True:
            await window.acquire()
            notes.sent[number] = time.monotonic()
            await connection.send(message(number))
            number += 1
            await asyncio.sleep(PAUSE)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        tasks.create_task(write())


async def connect(client: HybridConnectionClient, notes: Notes) -> None:
    """A new connection every now and then."""
    while True:
        await asyncio.sleep(BETWEEN_CONNECTIONS)
        notes.began = time.monotonic()
        async with await client.create_connection() as connection:
            await connection.send(b"new here")
            if (echo := await connection.recv()) != b"new here":
                notes.faults.append(f"a new connection heard {echo!r}")
        notes.connected()


async def echo(connection: Connection) -> None:
    async for received in connection:
        await connection.send(received)


async def watched(what: str, work: Any, notes: Notes) -> None:
    """Nothing of this may end or fail."""
    try:
        await work
        notes.faults.append(f"{what} ended")
    except Exception as error:
        notes.faults.append(f"{what}: {error!r}")


async def main(text: str, ca_file: str | None) -> None:
    tls: TLS = ssl.create_default_context(cafile=ca_file) if ca_file else False
    notes = Notes()
    async with HybridConnectionListener(text, ssl=tls) as listener:
        serving = asyncio.ensure_future(listener.serve(echo))  # noqa: TID251 - ended below
        client = HybridConnectionClient(text, ssl=tls)
        connection = await client.create_connection()
        work = [
            asyncio.ensure_future(watched("the exchange", exchange(connection, notes), notes)),  # noqa: TID251
            asyncio.ensure_future(watched("a new connection", connect(client, notes), notes)),  # noqa: TID251
        ]
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(notes.take()), flush=True)
        for task in (serving, *work):
            task.cancel()
        await asyncio.gather(serving, *work, return_exceptions=True)
        connection.abort()


if __name__ == "__main__":
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    if sys.platform == "win32":
        asyncio.run(main(**arguments))
    else:
        import uvloop

        uvloop.run(main(**arguments))
