"""One leg of a connection: how it ends, and what becomes of what it still holds."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.relay.peers import Peer, Relay, client_tls, server_tls, until
from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import EndpointNotFound
from trunkline.protocol.frames import Opcode
from trunkline.protocol.splice import Side
from trunkline.server.relay import legs
from trunkline.server.relay.legs import HIGH_WATER, LOW_WATER, Leg
from trunkline.server.relay.sockets import RECEIVE_BUFFER

# More than the sockets on the way hold.
BULK = os.urandom(1_048_576) * 12


@asynccontextmanager
async def joined(*, tls: bool = False) -> AsyncIterator[tuple[Relay, Peer, Peer]]:
    """A relay, a sender and a listener's leg."""
    async with Relay(tls=server_tls() if tls else None) as relay:
        client = client_tls() if tls else None
        channel = await relay.listener(tls=client)
        sender, leg = await relay.pair(channel, tls=client)
        yield relay, sender, leg


def legs_of(relay: Relay) -> tuple[Leg, Leg]:
    (connection,) = relay.splicing
    return connection.legs


async def fill(sender: Peer, leg: Leg) -> None:
    """Send until the relay reads no more, because the listener does not read."""
    for start in range(0, len(BULK), 65_536):
        sender.send_frame(Opcode.BINARY, BULK[start : start + 65_536])
    await until(lambda: leg._paused_reading)


def holding(relay: Relay) -> Leg:
    """The listener's leg, closed by the relay while it holds most of `BULK` for a peer that does not read."""
    leg = legs_of(relay)[Side.LISTENER]
    leg.write(BULK)
    relay.splicing.close(lambda facts: True, EndpointNotFound())
    assert leg._farewell is not None and leg.transport is not None
    assert leg.transport.get_write_buffer_size() > HIGH_WATER
    assert repr(leg) == "<Leg LISTENER closing>"
    if not leg.transport.can_write_eof():
        # TLS would give it a few seconds from the call of `close` on: that comes when everything is written.
        assert not leg.transport.is_closing()
        assert leg.transport.get_write_buffer_limits() == (0, 0)
    return leg


async def take_a_little(peer: Peer, leg: Leg) -> bytes:
    """Read until the relay holds less."""
    assert leg.transport is not None
    before = leg.transport.get_write_buffer_size()
    got = b""
    while leg.transport.get_write_buffer_size() >= before:
        got += await peer.read(65_536)
    return got


@pytest.mark.parametrize("tls", [False, True])
async def test_a_closing_leg_sends_what_it_holds_to_a_slow_peer(tls: bool) -> None:
    async with joined(tls=tls) as (relay, sender, slow):
        leg = holding(relay)
        assert leg._farewell is not None
        assert (len(relay.splicing), relay.splicing.unsent) == (0, 1)
        got = await take_a_little(slow, leg)
        # The time is up, and something was taken: it goes on.
        leg._farewell._look()
        got += await slow.to_end()
        assert got[: len(BULK)] == BULK
        assert b"\x03\xe9Endpoint does not exist. TrackingId:" in got[len(BULK) :]
        await slow.leave()
        await until(lambda: leg.transport is None)
        assert repr(leg) == "<Leg LISTENER closed>"
        assert relay.splicing.unsent == 0
        await sender.leave()
        await until(lambda: not relay.splicing._closing)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_closing_leg_whose_peer_takes_nothing_is_cut(tls: bool) -> None:
    async with joined(tls=tls) as (relay, _, _slow):
        leg = holding(relay)
        assert leg._farewell is not None
        leg._farewell._look()
        await until(lambda: leg.transport is None)


async def test_a_closing_leg_is_looked_at_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legs, "CLOSE_TIMEOUT", 0.05)
    async with joined() as (relay, _, silent):
        leg = legs_of(relay)[Side.LISTENER]
        relay.splicing.close(lambda facts: True, EndpointNotFound())
        # It has got everything, and does not close.
        assert (await silent.frame()).close.code == 1001
        assert await silent.to_end() == b""
        await until(lambda: leg.transport is None)


async def test_a_peer_that_takes_a_little_now_and_then_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legs, "CLOSE_LIMIT", 0.0)
    async with joined() as (relay, _, slow):
        leg = holding(relay)
        assert leg._farewell is not None
        await take_a_little(slow, leg)
        leg._farewell._look()
        await until(lambda: leg.transport is None)


@pytest.mark.parametrize("tls", [False, True])
async def test_nothing_waits_for_a_leg_that_has_closed(tls: bool) -> None:
    async with joined(tls=tls) as (relay, sender, listener):
        both = legs_of(relay)
        sender.send_close()
        await listener.frame()
        listener.send_close()
        await sender.frame()
        started = time.monotonic()
        assert await sender.to_end() == b"" and await listener.to_end() == b""
        await sender.leave()
        await listener.leave()
        await until(lambda: all(leg.transport is None for leg in both))
        assert time.monotonic() - started < legs.CLOSE_TIMEOUT / 2
        for leg in both:
            assert leg._farewell is not None
            assert leg._farewell._timer.cancelled()


async def test_a_paused_leg_is_read_again_when_it_closes() -> None:
    async with joined() as (relay, sender, slow):
        near, far = legs_of(relay)
        await fill(sender, near)
        relay.splicing.close(lambda facts: True, EndpointNotFound())
        assert not near._paused_reading
        # What it still sends is dropped, so that it gets to read its Close.
        async with asyncio.timeout(5):
            await sender.writer.drain()
        assert (await sender.frame()).close.code == 1001
        # Whether the other one takes its rest or not is nothing to it any more.
        far.pause_writing()
        assert not near._paused_reading
        slow.reset()


async def test_a_leg_that_is_cut_holds_nothing_back() -> None:
    async with joined() as (relay, sender, slow):
        near, far = legs_of(relay)
        await fill(sender, near)
        relay.splicing.abort("the test says so")
        await until(lambda: near.transport is None and far.transport is None)
        near.write(b"nobody is there")
        near.end(abort=False)
        near.pause_reading()
        near.resume_reading()
        slow.reset()


async def test_a_leg_whose_connection_has_ended_is_cut_at_once() -> None:
    async with joined() as (relay, _, _peer), await Peer.dial(relay.port) as late_peer:
        await until(lambda: relay.frontend.connections)
        (connection,) = relay.splicing
        connection.tear_down("gone", Cause.NODE_STOPPING)
        late = Leg(connection, Side.SENDER)
        assert repr(late) == "<Leg SENDER waiting>"
        transport = relay.serving.protocols[-1]._transport
        assert transport is not None and not transport.is_closing()
        late.take_over(transport, b"early")
        assert late.transport is None
        assert await late_peer.is_cut()


async def test_tcp_looks_after_a_leg_and_its_buffers_are_bounded() -> None:
    async with joined() as (relay, _, _peer):
        for leg in legs_of(relay):
            assert leg.transport is not None
            sock = leg.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert leg.transport.get_write_buffer_limits() == (LOW_WATER, HIGH_WATER)


async def test_an_idle_leg_owns_no_buffer() -> None:
    async with joined() as (relay, _, _peer):
        assert all(leg.get_buffer(-1).obj is RECEIVE_BUFFER.obj for leg in legs_of(relay))
        with pytest.raises(AttributeError):
            legs_of(relay)[0].something = 1  # type: ignore[attr-defined]
