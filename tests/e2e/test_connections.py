"""How an established connection ends: half by half, by a cut, by silence; and what a slow reader does to it."""

from __future__ import annotations

import asyncio
import hashlib
import random

import pytest

from e2e.quiet_node import look_at_clock, quiet_node
from e2e.raw_websocket import BINARY, PING, PONG, RawWebSocket, encode, raw_pair
from e2e.sdk_pair import sdk_pair
from trunkline.protocol.errors import ConnectionLost
from trunkline.protocol.limits import Preset
from trunkline.testing import RelayNode


@pytest.fixture(params=["sender", "listener"])
def who(request: pytest.FixtureRequest) -> str:
    """The side that acts."""
    return str(request.param)


def stalled(node: RelayNode) -> bool:
    """Whether the node has stopped reading some leg, because the other takes no more."""
    return any("paused" in repr(leg) for connection in node.node.splicing for leg in connection.legs)


# --- half-close


async def test_side_that_has_closed_goes_on_receiving_until_the_other_closes_too(who: str) -> None:
    async with quiet_node() as node, sdk_pair(node) as pair:
        closing, open_ = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        closing.write(b"the question")
        closing.write_eof()
        assert await open_.read() == b"the question"
        for n in range(10):
            open_.write(b"answer %d" % n * 10_000)
            await open_.drain()
        open_.write_eof()
        assert await closing.read() == b"".join(b"answer %d" % n * 10_000 for n in range(10))


@pytest.mark.loop("uvloop")
async def test_close_is_passed_on_with_code_and_reason_and_not_answered_by_the_relay(who: str) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        closing, open_ = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        await closing.send_close(4321, "that was all")
        frame = await open_.receive()
        assert (frame.close_code, frame.close_reason) == (4321, "that was all")
        # No answer until the other side gives one; until then its data comes.
        await open_.send(BINARY, b"one more thing")
        await open_.send_close(1000, "now me too")
        assert (await closing.receive()).payload == b"one more thing"
        frame = await closing.receive()
        assert (frame.close_code, frame.close_reason) == (1000, "now me too")
        await closing.ended()
        await open_.ended()


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("preset", ["default", "azure"])
async def test_half_connection_on_which_nothing_comes_ends_after_two_minutes(who: str, preset: Preset) -> None:
    async with quiet_node(preset=preset) as node, raw_pair(node) as pair:
        closing, open_ = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        await closing.send_close(1000)
        assert (await open_.receive()).close_code == 1000
        # Longer than a whole connection may be silent.
        look_at_clock(node, ahead=119)
        assert node.counts()["connections"] == 1
        look_at_clock(node, ahead=121)
        frame = await closing.receive()
        assert frame.close_code == 1001 and frame.close_reason.startswith("HalfCloseTimeout: ")
        await open_.ended()


@pytest.mark.loop("uvloop")
async def test_data_keeps_half_a_connection_and_heartbeats_do_not(who: str) -> None:
    async with quiet_node(half_close_timeout=0.4) as node, raw_pair(node) as pair:
        closing, open_ = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        await closing.send_close(1000)
        assert (await open_.receive()).close_code == 1000
        for _ in range(8):
            await asyncio.sleep(0.1)
            await open_.send(BINARY, b"more")
            assert (await closing.receive()).payload == b"more"
        async with asyncio.TaskGroup() as tasks:
            end = tasks.create_task(closing.receive())
            while not end.done():
                await open_.send(PING)
                await asyncio.sleep(0.05)
        assert end.result().close_code == 1001 and end.result().close_reason.startswith("HalfCloseTimeout: ")


# --- cuts


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("preset", ["default", "azure"])
async def test_listener_that_is_cut_reaches_the_sender_as_a_cut(preset: Preset) -> None:
    async with quiet_node(preset=preset) as node, raw_pair(node) as pair:
        await pair.listener.send(BINARY, b"the last")
        assert (await pair.sender.receive()).payload == b"the last"
        pair.listener.abort()
        await pair.sender.ended()


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("preset", ["default", "azure"])
async def test_sender_that_is_cut_reaches_the_listener_as_1001(preset: Preset) -> None:
    async with quiet_node(preset=preset) as node, raw_pair(node) as pair:
        await pair.sender.send(BINARY, b"the last")
        pair.sender.abort()
        assert (await pair.listener.receive()).payload == b"the last"
        frame = await pair.listener.receive()
        assert frame.close_code == 1001 and "TrackingId:" in frame.close_reason
        await pair.listener.ended()


async def test_abort_of_the_listener_fails_what_the_sender_of_the_sdk_reads_and_writes() -> None:
    async with quiet_node() as node, sdk_pair(node) as pair:
        pair.listener.write(b"half of it")
        await pair.listener.drain()
        assert await pair.sender.readexactly(10) == b"half of it"
        pair.listener.abort()
        with pytest.raises(ConnectionLost):
            await pair.sender.read()
        with pytest.raises(ConnectionLost):
            pair.sender.write(b"to nobody")


async def test_abort_of_the_sender_fails_what_the_listener_of_the_sdk_reads() -> None:
    async with quiet_node() as node, sdk_pair(node) as pair:
        pair.sender.write(b"half of it")
        await pair.sender.drain()
        assert await pair.listener.readexactly(10) == b"half of it"
        pair.sender.abort()
        with pytest.raises(ConnectionLost, match="the sender's connection was lost"):
            await pair.listener.read()
        assert pair.listener.close_code == 1001


@pytest.mark.loop("uvloop")
async def test_sender_that_is_cut_in_the_middle_of_a_frame_is_cut_for_the_listener_too() -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        await pair.sender.send_bytes(encode(BINARY, bytes(1000))[:500])
        await node.until(lambda counts: True)
        pair.sender.abort()
        # What has come of the frame is all there is, and no Close stands in its middle.
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await pair.listener.receive()


# --- pings


@pytest.mark.loop("uvloop")
async def test_ping_is_answered_by_the_relay_and_not_passed_on(who: str) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        pinging, other = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        await pinging.send(PING, b"there?")
        frame = await pinging.receive()
        assert frame.opcode == PONG and frame.payload == b"there?"
        await pinging.send(BINARY, b"data")
        assert (await other.receive()).opcode == BINARY


# --- a slow reader


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_sender_is_held_up_while_the_reader_is_slow_and_then_all_of_it_arrives(who: str, tls: bool) -> None:
    chunk = random.Random(1).randbytes(65_536)
    chunks = 512  # 32 MiB, more than the kernel's socket buffers hold
    async with quiet_node(tls=tls, idle_timeout=0) as node, sdk_pair(node) as pair:
        fast, slow = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        sent = 0

        async def write() -> None:
            nonlocal sent
            for _ in range(chunks):
                fast.write(chunk)
                await fast.drain()
                sent += 1
            fast.write_eof()

        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(write())
            await node.until(lambda _: stalled(node))
            # The kernel takes its share, then nothing moves any more.
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert not writing.done() and stalled(node)
            held = [
                leg.transport.get_write_buffer_size()
                for connection in node.node.splicing
                for leg in connection.legs
                if leg.transport is not None
            ]
            assert max(held) < 1_048_576
            digest = hashlib.sha256()
            while data := await slow.read(1_048_576):
                digest.update(data)
        assert sent == chunks
        assert digest.digest() == hashlib.sha256(chunk * chunks).digest()


@pytest.mark.loop("uvloop")
async def test_connection_whose_reader_is_slow_is_not_silent() -> None:
    async with quiet_node(idle_timeout=0.4) as node:
        sender = RawWebSocket(node.connect_url(), token=node.token())
        async with raw_pair(node, sender=sender) as pair:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(pair.sender.send(BINARY, bytes(64 * 1024 * 1024)))
                await node.until(lambda _: stalled(node))
                writing.cancel()
            # The sender has said more than anybody can take; it is the reader who is silent, so the connection ends.
            await node.until(lambda counts: counts["connections"] == 0)


@pytest.mark.loop("uvloop")
async def test_control_frame_that_is_too_long_is_a_violation_of_whoever_sends_it(who: str) -> None:
    async with quiet_node() as node, raw_pair(node) as pair:
        wrong, other = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        await wrong.send(PING, bytes(126))
        assert (await wrong.receive()).close_code == 1002
        if who == "sender":
            assert (await other.receive()).close_code == 1001
        await other.ended()
