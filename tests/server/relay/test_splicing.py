"""Established connections over real sockets: what passes, what ends them, and what their ends see."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from server.relay.peers import Frame, Peer, Relay, client_tls, frame, hybrid_connection, namespace, server_tls, until
from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import EndpointNotFound
from trunkline.protocol.frames import Opcode
from trunkline.protocol.splice import Side
from trunkline.server.relay.legs import HIGH_WATER
from trunkline.server.relay.sockets import RECEIVE_BUFFER
from trunkline.server.relay.splicing import Connection

# What a leg may hold for a peer that does not read: its limit, one read of the other leg with the heads of its frames,
# and under TLS what is encrypted already.
MOST_HELD = HIGH_WATER + 2 * len(RECEIVE_BUFFER) + 65_536


@dataclass
class Pair:
    """A relay with one connection, and its two ends."""

    relay: Relay
    sender: Peer
    listener: Peer

    @property
    def connection(self) -> Connection:
        (connection,) = self.relay.splicing
        return connection

    def end(self, side: Side) -> Peer:
        return self.sender if side is Side.SENDER else self.listener

    async def hears(self, side: Side) -> None:
        """Something that was sent just now, by the test's clock, has come from that side."""
        received_at = self.connection.splice._received_at
        await until(lambda: received_at[side] == self.relay.clock.now)

    async def is_over(self) -> None:
        await until(lambda: not len(self.relay.splicing) and not self.relay.directory.counts()["senders"])


@asynccontextmanager
async def pair(*, tls: bool = False, **limits: Any) -> AsyncIterator[Pair]:
    limits = {"ping_interval": 0, "control_idle_timeout": 0, **limits}
    async with Relay(tls=server_tls() if tls else None, **limits) as relay:
        client = client_tls() if tls else None
        channel = await relay.listener(tls=client)
        sender, leg = await relay.pair(channel, tls=client)
        yield Pair(relay, sender, leg)


SIDES = [pytest.param(Side.SENDER, id="sender"), pytest.param(Side.LISTENER, id="listener")]


# -- what passes


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_frames_pass_as_they_are_and_long_ones_as_fragments(tls: bool, side: Side) -> None:
    async with pair(tls=tls) as both:
        near, far = both.end(side), both.end(side.other)
        near.send_frame(Opcode.TEXT, b"")
        assert await far.frame() == Frame(Opcode.TEXT, b"")
        near.send_frame(Opcode.TEXT, b"a", fin=False)
        near.send_frame(Opcode.CONTINUATION, b"b")
        assert [await far.frame(), await far.frame()] == [
            Frame(Opcode.TEXT, b"a", fin=False),
            Frame(Opcode.CONTINUATION, b"b"),
        ]
        whole = os.urandom(65_536)
        near.send_frame(Opcode.BINARY, whole)
        assert await far.frame() == Frame(Opcode.BINARY, whole)
        near.send_frame(Opcode.BINARY, whole + b"x")
        assert await far.frame() == Frame(Opcode.BINARY, whole, fin=False)
        assert await far.frame() == Frame(Opcode.CONTINUATION, b"x")


@pytest.mark.parametrize("side", SIDES)
async def test_a_ping_is_answered_by_the_relay_and_no_pong_passes(side: Side) -> None:
    async with pair() as both:
        near, far = both.end(side), both.end(side.other)
        near.send_frame(Opcode.PING, b"are you there?")
        assert await near.frame() == Frame(Opcode.PONG, b"are you there?")
        near.send_frame(Opcode.PONG, b"unasked")
        near.send_frame(Opcode.TEXT, b"next")
        assert await far.frame() == Frame(Opcode.TEXT, b"next")


# -- back-pressure


async def send_all(peer: Peer, data: bytes, piece: int = 65_536) -> None:
    for start in range(0, len(data), piece):
        peer.send_frame(Opcode.BINARY, data[start : start + piece])
        async with asyncio.timeout(30):
            await peer.writer.drain()


async def received(peer: Peer, size: int) -> bytes:
    pieces: list[bytes] = []
    got = 0
    while got < size:
        piece = await peer.message()
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_a_peer_that_does_not_read_stops_the_other_and_loses_nothing(tls: bool, side: Side) -> None:
    # Much more than the sockets hold on the way.
    data = os.urandom(1_048_576) * 20
    async with pair(tls=tls) as both:
        near, far = both.end(side), both.end(side.other)
        sending = asyncio.get_running_loop().create_task(send_all(near, data))
        near_leg, far_leg = both.connection.legs[side], both.connection.legs[side.other]
        await until(lambda: near_leg._paused_reading)
        most = 0
        for _ in range(200):
            await asyncio.sleep(0)
            assert far_leg.transport is not None
            most = max(most, far_leg.transport.get_write_buffer_size())
        assert HIGH_WATER < most <= MOST_HELD
        assert not sending.done()
        assert repr(near_leg) == f"<Leg {side.name} paused>"
        # The other direction is free.
        far.send_frame(Opcode.TEXT, b"not yet")
        assert await near.message() == b"not yet"
        got = await received(far, len(data))
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        await sending
        assert repr(near_leg) == f"<Leg {side.name} open>"


async def test_both_directions_at_once_are_whole() -> None:
    data = (os.urandom(3_000_000), os.urandom(3_000_001))
    async with pair() as both, asyncio.TaskGroup() as tasks:
        for side in Side:
            _ = tasks.create_task(send_all(both.end(side), data[side], piece=70_001))
        arriving = [tasks.create_task(received(both.end(side.other), len(data[side]))) for side in Side]
        for side in Side:
            assert await arriving[side] == data[side]


async def test_pings_of_a_peer_that_does_not_read_cost_no_memory() -> None:
    async with pair() as both:
        pings = frame(Opcode.PING, b"x" * 125) * 1_000
        leg = both.connection.legs[Side.SENDER]
        for _ in range(100):
            both.sender.send(pings)
            async with asyncio.timeout(5):
                await both.sender.writer.drain()
        # Still relayed to the other side, and the pongs that wait are one.
        both.sender.send_frame(Opcode.TEXT, b"after")
        assert await both.listener.message() == b"after"
        assert leg.transport is not None
        assert leg.transport.get_write_buffer_size() <= MOST_HELD


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_a_flood_of_pings_is_taken_a_part_at_a_time_and_what_follows_passes(tls: bool, side: Side) -> None:
    async with pair(tls=tls) as both:
        peer, other = both.end(side), both.end(side.other)
        lane, leg = both.connection.splice.lanes[side], both.connection.legs[side]
        peer.send(frame(Opcode.PING, b"") * 20_000 + frame(Opcode.TEXT, b"after"))
        await until(lambda: lane.behind)
        assert leg.transport is not None and not leg.transport.is_reading()
        assert await other.message() == b"after"
        assert not lane.behind
        await until(lambda: leg.transport is not None and leg.transport.is_reading())


async def test_a_leg_that_is_behind_and_whose_other_leg_is_full_is_read_again_when_both_are_over() -> None:
    async with pair() as both:
        lane, leg = both.connection.splice.lanes[Side.SENDER], both.connection.legs[Side.SENDER]
        both.sender.send(frame(Opcode.PING, b"") * 20_000)
        await until(lambda: lane.behind)
        both.connection.congested(Side.LISTENER)
        await until(lambda: not lane.behind)
        assert leg.transport is not None and not leg.transport.is_reading()
        both.connection.relieved(Side.LISTENER)
        assert leg.transport.is_reading()
        both.sender.send(frame(Opcode.PING, b"") * 20_000)
        await until(lambda: lane.behind)
        both.connection.congested(Side.LISTENER)
        both.connection.relieved(Side.LISTENER)
        assert not leg.transport.is_reading()
        await until(lambda: leg.transport is not None and leg.transport.is_reading())


async def test_a_connection_may_end_while_a_leg_is_behind() -> None:
    async with pair() as both:
        lane = both.connection.splice.lanes[Side.SENDER]
        both.sender.send(frame(Opcode.PING, b"") * 20_000)
        await until(lambda: lane.behind)
        both.connection.close(EndpointNotFound())
        assert (await both.listener.frame()).close.code == 1001
        await both.is_over()


# -- closing


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999, None])
async def test_a_close_passes_with_its_code_and_reason(side: Side, code: int | None) -> None:
    async with pair() as both:
        near, far = both.end(side), both.end(side.other)
        near.send_close(code, "why" if code else "")
        close = (await far.frame()).close
        assert (close.code, close.reason) == (code, "why" if code else "")
        far.send_close(code, "")
        assert (await near.frame()).close.code == code
        assert await near.to_end() == b"" and await far.to_end() == b""
        await both.is_over()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_after_a_close_data_still_flows_the_other_way(tls: bool, side: Side) -> None:
    async with pair(tls=tls, idle_timeout=60) as both:
        near, far = both.end(side), both.end(side.other)
        near.send_frame(Opcode.BINARY, b"last words")
        near.send_close(1000, "Shutdown")
        assert await far.message() == b"last words"
        assert (await far.frame()).close.reason == "Shutdown"
        data = os.urandom(1_000_000)
        for start in range(0, len(data), 100_000):
            # The idle timeout does not count now.
            both.relay.pass_time(61)
            far.send_frame(Opcode.BINARY, data[start : start + 100_000])
            assert await near.message() == data[start : start + 100_000]
        far.send_close(1000, "and me")
        assert (await near.frame()).close.reason == "and me"
        assert await near.to_end() == b"" and await far.to_end() == b""
        await both.is_over()


async def test_a_sender_that_closes_and_does_not_wait_ends_in_order() -> None:
    async with pair() as both:
        both.sender.send_frame(Opcode.TEXT, b"bye")
        both.sender.send_close(1000)
        await both.sender.leave()
        assert await both.listener.message() == b"bye"
        assert (await both.listener.frame()).close.code == 1000
        assert await both.listener.to_end() == b""
        await both.is_over()


# -- legs that are lost


@pytest.mark.parametrize("how", ["reset", "end", "leave"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_lost_listener_is_an_abnormal_end_for_the_sender(how: str, tls: bool) -> None:
    async with pair(tls=tls) as both:
        both.listener.send_frame(Opcode.TEXT, b"before")
        assert await both.sender.message() == b"before"
        await lose(both.listener, how, tls)
        # No Close frame, by which it could be taken for a clean end.
        assert await both.sender.is_cut()
        await both.is_over()


@pytest.mark.parametrize("how", ["reset", "end", "leave"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_lost_sender_is_1001_for_the_listener(how: str, tls: bool) -> None:
    async with pair(tls=tls) as both:
        both.sender.send_frame(Opcode.TEXT, b"before")
        assert await both.listener.message() == b"before"
        await lose(both.sender, how, tls)
        close = (await both.listener.frame()).close
        assert close.code == 1001
        assert close.reason.startswith("the sender's connection was lost. TrackingId:")
        assert await both.listener.to_end() == b""
        await both.is_over()


async def lose(peer: Peer, how: str, tls: bool) -> None:
    if how == "reset":
        peer.reset()
    elif how == "end" and not tls:
        peer.end()
    else:
        await peer.leave()


async def test_a_sender_lost_inside_a_frame_cuts_the_listener_too() -> None:
    async with pair() as both:
        both.sender.send(frame(Opcode.BINARY, b"x" * 1_000)[:500])
        await until(lambda: both.connection.splice.lanes[Side.SENDER].is_mid_frame)
        both.sender.reset()
        # What of the frame had come, and no Close in the middle of it.
        async with asyncio.timeout(5):
            try:
                got = await both.listener.reader.read()
            except ConnectionError:
                got = b""
        assert got.strip(b"x")[:1] in (b"\x82", b"")
        await both.is_over()


# -- violations


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("side", SIDES)
async def test_whoever_breaks_the_protocol_is_told_even_while_it_goes_on_sending(tls: bool, side: Side) -> None:
    async with pair(tls=tls) as both:
        near, far = both.end(side), both.end(side.other)
        near.send(b"\x82\x05naked" + b"x" * 5_000_000)
        close = (await near.frame()).close
        assert close.code == 1002
        assert "not masked" in close.reason
        if side is Side.SENDER:
            assert (await far.frame()).close.code == 1001
        else:
            assert await far.is_cut()
        async with asyncio.timeout(5):
            await near.writer.drain()
        assert await near.to_end() == b""
        await both.is_over()


async def test_a_frame_over_the_limit_is_1009_where_it_is_not_split() -> None:
    async with pair(oversize_frames="reject", frame_limit=1_000) as both:
        both.sender.send_frame(Opcode.BINARY, b"x" * 1_000)
        assert len(await both.listener.message()) == 1_000
        both.sender.send_frame(Opcode.BINARY, b"x" * 2_000_000)
        assert (await both.sender.frame()).close.code == 1009
        assert (await both.listener.frame()).close.code == 1001


# -- time


@pytest.mark.parametrize("heartbeat", [None, Opcode.PING, Opcode.PONG, Opcode.TEXT])
@pytest.mark.parametrize("side", SIDES)
async def test_a_silent_connection_ends_and_a_heartbeat_keeps_it(heartbeat: Opcode | None, side: Side) -> None:
    async with pair(idle_timeout=60) as both:
        for _ in range(4):
            both.relay.pass_time(30)
            if heartbeat is None:
                continue
            both.end(side).send_frame(heartbeat, b"")
            await both.hears(side)
        if heartbeat is not None:
            assert len(both.relay.splicing) == 1
            return
        for peer in (both.sender, both.listener):
            close = (await peer.frame()).close
            assert (close.code, close.reason[:36]) == (1001, "IdleTimeout: no frame came for 60 s.")
            assert await peer.to_end() == b""
        await both.is_over()


async def test_the_idle_timeout_is_exact_and_0_switches_it_off() -> None:
    async with pair(idle_timeout=60) as both:
        both.relay.pass_time(59.9)
        assert len(both.relay.splicing) == 1
        both.relay.pass_time(0.1)
        assert len(both.relay.splicing) == 0
    async with pair(idle_timeout=0) as both:
        both.relay.pass_time(3_000)
        assert len(both.relay.splicing) == 1


@pytest.mark.parametrize("side", SIDES)
async def test_half_a_connection_ends_when_no_data_comes(side: Side) -> None:
    async with pair(half_close_timeout=120) as both:
        near, far = both.end(side), both.end(side.other)
        near.send_close()
        await far.frame()
        both.relay.pass_time(119)
        far.send_frame(Opcode.TEXT, b"data")
        await near.message()
        both.relay.pass_time(60)
        # A heartbeat does not keep it.
        far.send_frame(Opcode.PING, b"")
        far.send_frame(Opcode.PONG, b"")
        await both.hears(side.other)
        both.relay.pass_time(59)
        assert len(both.relay.splicing) == 1
        both.relay.pass_time(1)
        assert (await near.frame()).close.reason.startswith("HalfCloseTimeout: no data came for 120 s")
        await both.is_over()


async def test_half_a_connection_may_live_for_ever_without_the_limit() -> None:
    async with pair(half_close_timeout=0) as both:
        both.sender.send_close()
        await both.listener.frame()
        both.relay.pass_time(3_000)
        assert len(both.relay.splicing) == 1


# -- the collection


async def test_connections_are_found_by_what_they_hang_on() -> None:
    async with Relay((namespace(), hybrid_connection(), hybrid_connection("b"))) as relay:
        a, b = await relay.listener(), await relay.listener("b")
        a1, a1_leg = await relay.pair(a)
        b1, b1_leg = await relay.pair(b, "b")
        assert len(relay.splicing) == 2
        assert [each.facts.entity for each in relay.splicing] == [
            hybrid_connection().key,
            hybrid_connection("b").key,
        ]
        relay.splicing.close(lambda facts: facts.entity == hybrid_connection().key, EndpointNotFound())
        assert (await a1.frame()).close.code == (await a1_leg.frame()).close.code == 1001
        assert len(relay.splicing) == 1
        b1.send_frame(Opcode.TEXT, b"here")
        assert await b1_leg.message() == b"here"
        (connection,) = relay.splicing
        relay.splicing.listener_lost("another", "x")
        assert len(relay.splicing) == 1
        relay.splicing.listener_lost(connection.facts.listener, "lost")
        assert await b1.is_cut() and await b1_leg.is_cut()
        assert repr(relay.splicing) == "<Splicing connections=0>"
        # What has ended stays ended, and says so once.
        connection.tear_down("again", Cause.NODE_STOPPING)
        connection.close(EndpointNotFound())
        connection.tick(1e9)
        connection.lost(Side.SENDER)
        connection.receive(Side.SENDER, b"more")
        assert "lost" in repr(connection)


async def test_two_senders_with_the_same_id_are_two_connections() -> None:
    guid = "11111111-2222-3333-4444-555555555555"
    async with Relay() as relay:
        channel = await relay.listener()
        pairs = [await relay.pair(channel, query=f"sb-hc-id={guid}&") for _ in range(2)]
        assert [each.facts.tracking_id for each in relay.splicing] == [guid, guid]
        pairs[0][0].reset()
        await until(lambda: len(relay.splicing) == 1)
        pairs[1][0].send_frame(Opcode.TEXT, b"still here")
        assert await pairs[1][1].message() == b"still here"


async def test_rates_are_those_between_two_looks_at_the_clock() -> None:
    async with pair(idle_timeout=0) as both:
        assert both.connection.rates == (0.0, 0.0)
        both.sender.send_frame(Opcode.BINARY, b"x" * 1_000)
        assert await both.listener.message() == b"x" * 1_000
        passed = both.connection.splice.lanes[Side.SENDER].bytes
        both.relay.pass_time(4)
        assert both.connection.rates == (passed / 4, 0.0)
        # The same moment again tells nothing new.
        both.relay.pass_time(0)
        assert both.connection.rates == (passed / 4, 0.0)
        both.relay.pass_time(1)
        assert both.connection.rates == (0.0, 0.0)
