"""Many at once, one after the other, and while listeners come and go: every byte accounted for, nothing left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from e2e.quiet_node import quiet_node
from trunkline.protocol.errors import RelayError
from trunkline.sdk import Connection, ConnectionClosed, HybridConnectionClient
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")


async def echo_stream(connection: Connection) -> None:
    """Everything back, and the end of it too."""
    while data := await connection.read(65_536):
        connection.write(data)
        await connection.drain()


async def echo_of(connection: Connection, data: bytes) -> bytes:
    """What comes back of a stream, as long as it ends in order; raises otherwise."""

    async def write() -> None:
        for start in range(0, len(data), 100_000):
            connection.write(data[start : start + 100_000])
            await connection.drain()
        connection.write_eof()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        return await connection.read()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_200_connections_at_once_carry_what_was_sent_both_ways(tls: bool) -> None:
    chance = random.Random(200)
    payloads = {
        n: (
            chance.randbytes(chance.choice([0, 1, 1_000, 65_536, 200_000])),
            chance.randbytes(chance.randrange(200_000)),
        )
        for n in range(200)
    }
    heard: dict[int, bytes] = {}

    async def answer(connection: Connection) -> None:
        assert connection.request is not None
        n = int(connection.request.query)

        async def write() -> None:
            connection.write(payloads[n][1])
            await connection.drain()
            connection.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(write())
            heard[n] = await connection.read()

    async with quiet_node(tls=tls, max_senders=0) as node, node.listener() as listener, asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(listener.serve(answer))
        client = node.client()
        senders = await asyncio.gather(*(client.create_connection(query=str(n)) for n in payloads))
        assert node.counts()["connections"] == node.counts()["senders"] == 200
        answers = await asyncio.gather(*(echo_of(sender, payloads[n][0]) for n, sender in enumerate(senders)))
        assert answers == [back for _, back in payloads.values()]
        await asyncio.gather(*(sender.close() for sender in senders))
        await listener.close()
        await serving
    assert heard == {n: there for n, (there, _) in payloads.items()}


async def test_1000_connections_come_and_go_and_leave_nothing_behind() -> None:
    async with quiet_node(max_senders=20) as node, node.listener() as listener, asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(listener.serve(echo_stream))
        client = node.client()
        left = iter(range(1_000))
        ends: Counter[str] = Counter()

        async def churn() -> None:
            for n in left:
                connection = await connect_with_room(client)
                if n % 10 == 0:
                    connection.abort()
                    await connection.wait_closed()
                    ends["aborted"] += 1
                else:
                    async with connection:
                        assert await echo_of(connection, str(n).encode()) == str(n).encode()
                    ends["closed"] += 1

        await asyncio.gather(*(churn() for _ in range(20)))
        assert ends == {"aborted": 100, "closed": 900}
        await node.until(lambda counts: counts["connections"] == counts["senders"] == 0)
        assert node.counts()["listeners"] == 1 and len(node.node.splicing) == 0
        await listener.close()
        await serving


async def connect_with_room(client: HybridConnectionClient) -> Connection:
    """A connection; the last one of this worker may still be counted, for a moment."""
    while True:
        try:
            return await client.create_connection()
        except RelayError as error:
            if error.status != 429:
                raise


@pytest.mark.parametrize("restart", ["closed", "cut"])
async def test_listener_that_restarts_under_load_loses_no_byte_silently(restart: str) -> None:
    """A stream that ended in order is whole; all others ended with an error."""
    outcomes: Counter[str] = Counter()
    whole: asyncio.Queue[None] = asyncio.Queue()
    stop = asyncio.Event()

    async def more_are_whole() -> None:
        while not whole.empty():
            whole.get_nowait()
        for _ in range(20):
            await whole.get()

    async def send(client: HybridConnectionClient, chance: random.Random) -> None:
        while not stop.is_set():
            data = chance.randbytes(chance.randrange(1, 300_000))
            try:
                async with await client.create_connection(timeout=10) as connection:
                    echo = await echo_of(connection, data)
            except* (RelayError, OSError, ConnectionClosed) as errors:
                for error in errors.exceptions:
                    outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                assert echo == data
                outcomes["whole"] += 1
                whole.put_nowait(None)

    async def listen(node: RelayNode, rounds: int) -> None:
        for _ in range(rounds):
            async with node.listener() as listener, asyncio.TaskGroup() as handlers:
                serving = handlers.create_task(listener.serve(echo_stream))
                await more_are_whole()
                if restart == "cut":
                    for channel in list(node.node.broker.channels):
                        channel.abort()
                    await node.until(lambda counts: counts["listeners"] == 1)
                    await more_are_whole()
                await listener.close()
                await serving
        stop.set()

    async with quiet_node() as node, asyncio.TaskGroup() as tasks:
        tasks.create_task(listen(node, 10))
        for n in range(8):
            tasks.create_task(send(node.client(), random.Random(n)))
    assert outcomes["whole"] >= 200
    assert sum(outcomes.values()) > outcomes["whole"], "no restart met a connection: the test shows nothing"
