"""Peers that are gone in the worst moment: reset together with their last bytes, or before an end could be sent."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from faults.faulty_network import drop_segments
from server.relay.peers import Peer, Relay, client_tls, frame, handshake, server_tls, token, until
from trunkline.protocol.frames import Opcode
from trunkline.protocol.splice import Side
from trunkline.server.relay import sockets
from trunkline.server.relay.front_connection import EARLY_LIMIT
from trunkline.server.relay.sockets import (
    descriptor_limit,
    has_descriptors,
    is_lost,
    lengthen_backlog,
    raise_descriptor_limit,
    unheard,
)

resource = pytest.importorskip("resource", reason="a limit of POSIX")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the state of a TCP connection")


CONNECT = handshake("/$hc/orders?sb-hc-action=connect", [("ServiceBusAuthorization", token("orders"))])


def gone(peer: Peer, *last: bytes, end: bool = False) -> None:
    """The peer sends its last bytes and a reset, so fast that the relay finds both at once."""
    sock = peer.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for data in last:
        peer.send(data)
    assert peer.writer.transport.get_write_buffer_size() == 0
    if end:
        sock.shutdown(socket.SHUT_WR)
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    # Closed behind the loop's back: by itself it would do so a turn later, and the relay read in between.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, sock.fileno())
    os.close(nothing)


async def settled(relay: Relay) -> None:
    """The relay has taken in what there is, and has looked at the clock since."""
    for _ in range(5):
        await asyncio.sleep(0.01)
    relay.pass_time(1)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("who", Side)
async def test_a_leg_that_is_reset_behind_its_last_bytes_is_found_at_the_next_look(who: Side, tls: bool) -> None:
    async with Relay(tls=server_tls() if tls else None) as relay:
        channel = await relay.listener(tls=client_tls() if tls else None)
        pair = await relay.pair(channel, tls=client_tls() if tls else None)
        gone(pair[who], frame(Opcode.BINARY, b"last words"))
        await settled(relay)
        await until(lambda: not len(relay.splicing))
        await pair[who.other].leave()
        await until(lambda: "senders" not in relay.counts() and "closing" not in relay.counts())


async def test_a_listener_that_is_reset_behind_its_last_bytes_is_found_at_the_next_look() -> None:
    async with Relay() as relay:
        channel = await relay.listener()
        gone(channel, frame(Opcode.PONG))
        await settled(relay)
        await relay.quiet()


async def test_a_sender_that_is_reset_behind_its_handshake_waits_no_longer_than_to_the_next_look() -> None:
    async with Relay() as relay, await Peer.dial(relay.port) as sender:
        channel = await relay.listener()
        await until(lambda: relay.frontend.connections)
        gone(sender, CONNECT)
        await channel.offer()
        await settled(relay)
        await until(lambda: set(relay.counts()) == {"listeners", "channels"})


async def test_a_sender_that_said_too_much_before_its_answer_may_still_leave() -> None:
    async with Relay() as relay, await Peer.dial(relay.port) as sender:
        channel = await relay.listener()
        sender.send(CONNECT)
        await channel.offer()
        sender.send(bytes(2 * EARLY_LIMIT))
        await until(lambda: any(each._paused for each in relay.frontend.connections))
        relay.pass_time(1)
        assert relay.broker.waiting_senders == 1
        sender.end()
        await settled(relay)
        await until(lambda: set(relay.counts()) == {"listeners", "channels"})


async def test_a_close_with_an_end_and_a_reset_behind_it_leaves_nothing() -> None:
    async with Relay() as relay:
        channel = await relay.listener()
        sender, leg = await relay.pair(channel)
        gone(sender, frame(Opcode.CLOSE), end=True)
        assert (await leg.frame()).opcode is Opcode.CLOSE
        await settled(relay)
        # The listener has its end, and nobody counts the sender any more.
        assert await leg.is_cut()
        await leg.leave()
        await until(lambda: set(relay.counts()) == {"listeners", "channels"})


async def test_a_leg_whose_peer_has_reset_it_is_closed_without_an_error() -> None:
    async with Relay() as relay:
        channel = await relay.listener()
        sender, _leg = await relay.pair(channel)
        (connection,) = relay.splicing
        ending = connection.legs[Side.SENDER]
        assert ending.transport is not None and not is_lost(ending.transport)
        gone(sender)
        assert is_lost(ending.transport)
        # The loop had no turn yet: the relay says goodbye to somebody who is gone.
        ending.end(abort=False)
        await until(lambda: ending.transport is None)
        await until(lambda: not len(relay.splicing))


async def test_of_what_is_no_tcp_connection_nothing_is_known() -> None:
    near, far = socket.socketpair()
    with near, far:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        assert not is_lost(transport)
        transport.close()
        await asyncio.sleep(0)
    assert not is_lost(asyncio.Transport())
    assert unheard(asyncio.Transport()) == 0


async def test_a_peer_that_only_does_not_read_owes_nothing_and_one_whose_network_is_gone_does() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        transport, _ = await loop.create_connection(asyncio.Protocol, *listening.getsockname())
        peer, _ = listening.accept()
        with peer:
            assert unheard(transport) == 0
            transport.write(bytes(16_777_216))  # more than the sockets take: its receive window is closed
            await until(lambda: unheard(transport) == 0)
            held = transport.get_write_buffer_size()
            await asyncio.sleep(0.3)  # probes go out, and are answered
            assert transport.get_write_buffer_size() == held > 0
            await until(lambda: unheard(transport) == 0)
        transport.abort()
        transport, _ = await loop.create_connection(asyncio.Protocol, *listening.getsockname())
        peer, _ = listening.accept()
        with peer:
            drop_segments(peer)
            transport.write(b"is anybody there?")
            await until(lambda: unheard(transport) > 0.1)
            transport.abort()


async def test_a_leg_whose_network_is_gone_is_cut_while_the_other_end_is_well() -> None:
    async with Relay(idle_timeout=60) as relay:
        channel = await relay.listener()
        sender, leg = await relay.pair(channel)
        (connection,) = relay.splicing
        drop_segments(sender.writer.get_extra_info("socket"))
        leg.send_frame(Opcode.BINARY, b"is anybody there?")
        transport = connection.legs[Side.SENDER].transport
        assert transport is not None
        await until(lambda: unheard(transport) > 0.1)
        relay.pass_time(1)
        assert len(relay.splicing) == 1, "TCP has repeated it once or twice, which is nothing yet"
        connection.legs[Side.SENDER].listen_for_life(0.1)
        # As for any leg that is lost: the listener hears 1001.
        assert (await leg.frame()).opcode is Opcode.CLOSE
        await leg.leave()
        await until(lambda: set(relay.counts()) == {"listeners", "channels"})


@pytest.mark.parametrize(("idle_timeout", "limit"), [(0, 60), (1, 5), (30, 30), (3_600, 60)])
async def test_a_peer_may_owe_an_acknowledgement_for_the_idle_timeout_within_reason(
    idle_timeout: float, limit: float
) -> None:
    async with Relay(idle_timeout=idle_timeout) as relay:
        await relay.pair(await relay.listener())
        (connection,) = relay.splicing
        assert connection.silence_limit == limit
        for leg in connection.legs:
            assert leg.transport is not None
            sock = leg.transport.get_extra_info("socket")
            values = [sock.getsockopt(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
            assert values == [limit // 2, limit // 5]


def test_room_is_what_the_system_lets_a_process_open() -> None:
    assert has_descriptors(0)
    assert not has_descriptors(descriptor_limit())


@pytest.fixture
def limit() -> Iterator[tuple[int, int]]:
    """The soft and the hard limit of this process, put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_of_open_files_is_raised_to_the_hard_one(limit: tuple[int, int]) -> None:
    _, hard = limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert descriptor_limit() == 256
    assert raise_descriptor_limit() == descriptor_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(("hard", "raised"), [(-1, 10_240), (20_000, 10_240), (4_096, 4_096)])
def test_macos_allows_no_more_than_open_max_whatever_its_hard_limit_says(
    hard: int, raised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(256, hard)]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    assert raise_descriptor_limit() == raised
    assert limits[1:] == [(raised, hard)]


def test_system_that_refuses_to_raise_the_limit_is_told_and_lived_with(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4_096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == 256
    assert "the limit of 256 open files and sockets cannot be raised: not here" in caplog.text


def test_system_without_such_limits_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "resource", None)
    assert raise_descriptor_limit() == descriptor_limit() == sys.maxsize


async def test_more_connections_may_wait_than_are_taken_at_once() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, backlog=3)
    async with server:
        lengthen_backlog(server, 100)
        # tcpi_sacked of a listening socket: how many may wait (Linux, tcp_diag).
        information = server.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("I", information, 28) == (100,)
