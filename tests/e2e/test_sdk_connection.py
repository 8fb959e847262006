"""A connection of our SDK through a real node: bytes, messages, half-close and every way to end."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from e2e.quiet_node import quiet_node
from e2e.sdk_pair import sdk_pair
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import Connection, ConnectionClosed

TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
SIZES = [0, 1, 1024, 65_536, 65_537, 4 << 20, pytest.param(64 << 20, marks=pytest.mark.slow)]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def send_stream(connection: Connection, data: bytes) -> None:
    """Write in pieces of many sizes, then half-close."""
    position, length = 0, 1
    while position < len(data):
        connection.write(data[position : position + length])
        await connection.drain()
        position, length = position + length, min(length * 3, 300_000)
    connection.write_eof()


@TLS
@pytest.mark.parametrize("size", SIZES)
async def test_binary_and_text_messages_arrive_whole_both_ways(tls: bool, size: int) -> None:
    data = content(size)
    text = data.hex()[:size]
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        for one, other in ((sender, listener), (listener, sender)):
            for message in (data, text):
                _, received = await asyncio.gather(one.send(message), other.recv())
                assert type(received) is type(message)
                assert received == message


@TLS
@pytest.mark.parametrize("size", SIZES)
async def test_streams_arrive_both_ways_at_once_and_end_one_by_one(tls: bool, size: int) -> None:
    one, other = content(size), content(size)[::-1]
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_stream(sender, one))
            tasks.create_task(send_stream(listener, other))
            at_listener = tasks.create_task(listener.read())
            at_sender = tasks.create_task(sender.read())
        assert hashlib.sha256(at_listener.result()).digest() == hashlib.sha256(one).digest()
        assert hashlib.sha256(at_sender.result()).digest() == hashlib.sha256(other).digest()
        assert sender.at_eof() and listener.at_eof()
        assert (sender.close_code, sender.close_reason) == (1000, "Shutdown")


@TLS
async def test_answer_to_the_whole_request_comes_after_the_half_close(tls: bool) -> None:
    request = content(3 << 20)
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_stream(sender, request))
            digest = hashlib.sha256(await listener.read()).digest()
        await listener.send(digest)
        listener.write(b"and more")
        await listener.close()
        assert await sender.readexactly(32) == hashlib.sha256(request).digest()
        assert await sender.read() == b"and more"


@TLS
async def test_many_messages_each_way_at_once_stay_in_order(tls: bool) -> None:
    messages = [content(number) if number % 2 else f"message {number}" for number in range(600)]

    async def send_all(connection: Connection) -> None:
        for message in messages:
            await connection.send(message)
        connection.write_eof()

    async def receive_all(connection: Connection) -> list[str | bytes]:
        return [message async for message in connection]

    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_all(sender))
            tasks.create_task(send_all(listener))
            received = [tasks.create_task(receive_all(end)) for end in (sender, listener)]
        assert [task.result() for task in received] == [messages, messages]


@TLS
async def test_slow_reader_holds_the_writer_back_and_gets_everything(tls: bool) -> None:
    data = content(48 << 20)
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(send_stream(sender, data))
            assert await listener.read(1) == data[:1]
            await asyncio.sleep(0.3)
            assert not writing.done()
            received = data[:1] + await listener.read()
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


@TLS
async def test_close_waits_until_a_slow_reader_has_everything(tls: bool) -> None:
    data = content(8 << 20)
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):

        async def write_and_close() -> None:
            async with sender:
                sender.write(data)

        async def read_late() -> bytes:
            async with listener:
                await asyncio.sleep(0.3)
                return await listener.read()

        _, received = await asyncio.gather(write_and_close(), read_late())
        assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


@TLS
async def test_close_that_does_not_wait_for_the_reader_loses_nothing_that_has_left(tls: bool) -> None:
    data = content(100_000)
    async with quiet_node(tls=tls) as node, sdk_pair(node) as (sender, listener):
        sender.write(data)
        await sender.close(timeout=0.1)
        assert await listener.read() == data
        assert listener.close_code == 1000


@TLS
@pytest.mark.parametrize("closer", ["sender", "listener"])
async def test_close_code_and_reason_reach_the_other_end(tls: bool, closer: str) -> None:
    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        one, other = (pair.sender, pair.listener) if closer == "sender" else (pair.listener, pair.sender)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.close(4321, "why not: é"))
            with pytest.raises(ConnectionClosed) as raised:
                await other.recv()
            assert (raised.value.code, raised.value.reason) == (4321, "why not: é")
            await other.close(4000, "me too")


@TLS
@pytest.mark.parametrize("victim", ["sender", "listener"])
async def test_abort_of_one_end_is_a_loss_at_the_other(tls: bool, victim: str) -> None:
    async with quiet_node(tls=tls) as node, sdk_pair(node) as pair:
        one, other = (pair.sender, pair.listener) if victim == "sender" else (pair.listener, pair.sender)
        await one.send("last words")
        assert await other.recv() == "last words"
        one.abort()
        with pytest.raises(ConnectionLost):
            await other.recv()
        assert other.close_code is None or other.close_code != 1000


async def test_crash_of_the_node_is_a_loss_at_both_ends() -> None:
    async with quiet_node() as node, sdk_pair(node) as (sender, listener):
        await node.stop(abrupt=True)
        for end in (sender, listener):
            with pytest.raises(ConnectionLost):
                await end.recv()
            assert end.is_closing()


@TLS
async def test_silent_connection_lives_by_its_heartbeat(tls: bool) -> None:
    async with quiet_node(tls=tls, idle_timeout=0.6) as node:
        client, listener = node.client(heartbeat=0.2), node.listener(heartbeat=0)
        async with sdk_pair(node, client=client, listener=listener) as (sender, accepted):
            await asyncio.sleep(1.5)
            await accepted.send("still here")
            assert await sender.recv() == "still here"
            # Half-closed there is no heartbeat, and none is asked for.
            sender.write_eof()
            assert await accepted.read() == b""
            await asyncio.sleep(1.2)
            await accepted.send("still here after the half-close")
            assert await sender.recv() == "still here after the half-close"
