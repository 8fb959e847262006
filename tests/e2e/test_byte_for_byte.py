"""What goes in comes out: small and large, as a message and as a stream, both ways, on both event loops."""

from __future__ import annotations

import asyncio
import random

import pytest

from e2e.quiet_node import quiet_node
from e2e.sdk_pair import sdk_pair
from trunkline.sdk import Connection

KIB, MIB = 1024, 1024 * 1024
LARGE = pytest.param(64 * MIB, marks=pytest.mark.slow, id="64 MiB")

tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


async def relay_message(origin: Connection, target: Connection, message: str | bytes) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(origin.send(message))
        received = await target.recv()
    assert type(received) is type(message)
    assert received == message


async def relay_stream(origin: Connection, target: Connection, data: bytes) -> None:
    """In pieces of any length, that end nowhere near where frames end."""
    chance = random.Random(len(data))

    async def write() -> None:
        position = 0
        while position < len(data):
            size = chance.choice([1, 100, 65_535, 65_537, 300_000])
            origin.write(data[position : position + size])
            await origin.drain()
            position += size
        origin.write_eof()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        received = await target.read()
    assert received == data


@tls
@pytest.mark.parametrize("size", [pytest.param(0, id="0"), pytest.param(KIB, id="1 KiB"), MIB, LARGE])
async def test_message_arrives_both_ways(size: int, tls: bool) -> None:
    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        data = random.Random(size).randbytes(size)
        await relay_message(pair.sender, pair.listener, data)
        await relay_message(pair.listener, pair.sender, data[::-1])


@tls
@pytest.mark.parametrize("size", [pytest.param(KIB, id="1 KiB"), pytest.param(2 * MIB, id="2 MiB"), LARGE])
async def test_text_arrives_both_ways(size: int, tls: bool) -> None:
    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        text = "zwölf Boxkämpfer 🥊 " * (size // 24)
        await relay_message(pair.sender, pair.listener, text)
        await relay_message(pair.listener, pair.sender, text[::-1])


@tls
@pytest.mark.parametrize("size", [pytest.param(KIB, id="1 KiB"), pytest.param(4 * MIB, id="4 MiB"), LARGE])
async def test_streams_arrive_both_ways_at_the_same_time(size: int, tls: bool) -> None:
    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        there, back = (random.Random(n).randbytes(size) for n in range(2))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay_stream(pair.sender, pair.listener, there))
            tasks.create_task(relay_stream(pair.listener, pair.sender, back))


@tls
async def test_messages_keep_their_order_kind_and_boundaries(tls: bool) -> None:
    chance = random.Random(7)
    messages: list[str | bytes] = []
    for n in range(500):
        size = chance.choice([0, 1, 125, 126, 1000, 65_535, 65_536, 65_537, 100_000])
        messages.append(chance.randbytes(size) if n % 2 else f"{n}:" + "ü" * (size // 2))

    async def relay_all(origin: Connection, target: Connection) -> None:
        async def send() -> None:
            for message in messages:
                await origin.send(message)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            for message in messages:
                assert await target.recv() == message

    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay_all(pair.sender, pair.listener))
            tasks.create_task(relay_all(pair.listener, pair.sender))
