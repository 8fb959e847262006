"""The listener's end of an HTTP rendezvous over a real socket: order, back-pressure, the end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sdk.fake_clock import FakeClock
from sdk.relay_stub import REQUEST_ID, Peer, RelayStub, until
from trunkline.protocol.errors import ConnectionLost
from trunkline.protocol.frames import Data, Opcode
from trunkline.protocol.messages import Response
from trunkline.sdk.clock import SYSTEM_CLOCK
from trunkline.sdk.http_rendezvous import RECEIVE_HIGH_WATER, HttpLeg
from trunkline.sdk.websocket import dial

ANSWER = Response(REQUEST_ID, 200, body=True)


@asynccontextmanager
async def a_leg(*, clock: FakeClock | None = None, heartbeat: float = 0) -> AsyncIterator[tuple[HttpLeg, Peer]]:
    """A leg, and the relay's end of it."""
    async with RelayStub() as relay, asyncio.TaskGroup() as tasks:
        dialing = tasks.create_task(dial(relay.rendezvous(), timeout=5))
        peer = await relay.next()
        await peer.upgrade()
        link, _ = await dialing
        leg = HttpLeg(link, clock=clock or SYSTEM_CLOCK, tracking_id=REQUEST_ID, heartbeat=heartbeat)
        try:
            yield leg, peer
        finally:
            leg.abort()
            await leg.closed


async def test_request_and_its_body_are_read_in_order() -> None:
    async with a_leg() as (leg, peer):
        peer.request("ws://relay/?", method="PUT", body=b"body")
        assert (await leg.request()).method == "PUT"
        assert await leg.piece() == b"body"
        assert [await leg.piece(), await leg.piece()] == [b"", b""]
        assert repr(leg).startswith(f"<HttpLeg <HttpRendezvous listener {REQUEST_ID!r} OPEN body_due=False> unread=0")


async def test_body_that_nobody_reads_stays_in_the_network() -> None:
    async with a_leg() as (leg, peer):
        peer.send_command("request", id="1", method="PUT", body=True)
        await leg.request()
        block = bytes(65_536)
        for number in range(256):
            peer.send(Opcode.CONTINUATION if number else Opcode.BINARY, block, fin=number == 255)
        await until(lambda: leg._size > RECEIVE_HIGH_WATER)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert leg._size < 2 * RECEIVE_HIGH_WATER
        size = 0
        while piece := await leg.piece():
            size += len(piece)
        assert size == 256 * 65_536


async def test_answer_waits_while_the_relay_does_not_take_it() -> None:
    async with a_leg() as (leg, peer), asyncio.TaskGroup() as tasks:
        peer.pause()
        leg.command(ANSWER)
        block = bytes(range(256)) * 4096

        async def send() -> None:
            for _ in range(16):
                await leg.body(block)
            await leg.body(b"", end=True)

        sending = tasks.create_task(send())
        await until(lambda: leg._link._drained is not None)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not sending.done()
        peer.resume()
        assert (await peer.response())[1] == block * 16


async def test_relay_that_leaves_ends_what_waits() -> None:
    async with a_leg() as (leg, peer), asyncio.TaskGroup() as tasks:
        lost: list[bool] = []
        leg.on_lost = lambda: lost.append(True)

        async def wait() -> None:
            with pytest.raises(ConnectionLost, match=f"ended with 1001: The sender has left.*{REQUEST_ID}"):
                await leg.request()

        waiting = tasks.create_task(wait())
        await asyncio.sleep(0)
        peer.send_close(1001, "The sender has left")
        await waiting
        assert lost == [True]
        leg.command(ANSWER)
        with pytest.raises(ConnectionLost):
            await leg.body(b"data")
        assert (await peer.close_frame()).code == 1001


async def test_body_that_is_cut_is_not_whole() -> None:
    async with a_leg() as (leg, peer):
        peer.send_command("request", id="1", method="PUT", body=True)
        peer.send(Opcode.BINARY, b"part", fin=False)
        await leg.request()
        await until(lambda: leg._size > 0)
        peer.abort()
        assert await leg.piece() == b"part"
        with pytest.raises(ConnectionLost, match="without a Close frame"):
            await leg.piece()


async def test_whole_answer_is_written_and_closed_although_the_body_was_not_read() -> None:
    async with a_leg() as (leg, peer):
        peer.send_command("request", id="1", method="PUT", body=True)
        peer.send(Opcode.BINARY, bytes(4 * RECEIVE_HIGH_WATER), fin=False)
        await until(lambda: leg._size > RECEIVE_HIGH_WATER)
        lost: list[bool] = []
        leg.on_lost = lambda: lost.append(True)
        leg.answer(ANSWER, b"early")
        assert (await peer.response())[1] == b"early"
        assert (await peer.close_frame()).code == 1000
        peer.send_close(1000)
        await peer.eof()
        assert leg._size == 0 and lost == []


async def test_silent_leg_pings_and_an_unanswered_close_is_cut() -> None:
    clock = FakeClock()
    async with a_leg(clock=clock, heartbeat=30) as (leg, peer):
        leg.command(ANSWER)
        assert (await peer.command())["response"]["statusCode"] == 200
        clock.advance(30)
        leg.tick()
        await peer.control(Opcode.PING)
        await leg.body(b"x")
        assert await peer.piece() == Data(Opcode.BINARY, b"x", False)
        leg.close(1011, "The answer was broken off")
        assert (await peer.close_frame()).reason == "The answer was broken off"
        clock.advance(5.5)
        leg.tick()
        await leg.closed


async def test_leg_that_is_closed_leaves_nothing_to_the_garbage_collector() -> None:
    gc.disable()
    try:
        async with a_leg() as (leg, peer):
            leg.answer(ANSWER, b"whole")
            await peer.response()
            assert (await peer.close_frame()).code == 1000
            peer.send_close()
            await peer.eof()
            await leg.closed
            gone = weakref.ref(leg)
        del leg
        await until(lambda: gone() is None)
    finally:
        gc.enable()
