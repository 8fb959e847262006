"""Control channels over real sockets: what a listener may send, and what becomes of it."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from server.relay.peers import GUID, Frame, Peer, Relay, client_tls, frame, server_tls, token, until
from trunkline.protocol.control_channel import Command
from trunkline.protocol.errors import ServerBusy
from trunkline.protocol.frames import Opcode
from trunkline.protocol.limits import resolve
from trunkline.server.relay import control_channel as module
from trunkline.server.relay.control_channel import SLICE, ControlChannel
from trunkline.server.relay.sockets import RECEIVE_BUFFER


def channel_of(relay: Relay) -> ControlChannel:
    (channel,) = relay.broker.channels
    return channel


def renewal(text: str) -> bytes:
    return b'{"renewToken":{"token":"%s"}}' % text.encode()


async def is_alive(listener: Peer) -> None:
    """A Ping is answered, and nothing else was said before."""
    listener.send_frame(Opcode.PING, b"here?")
    assert await listener.frame() == Frame(Opcode.PONG, b"here?")


# -- what may be sent


@pytest.mark.parametrize("tls", [False, True])
async def test_pings_of_a_listener_are_answered_and_its_pongs_are_not(tls: bool) -> None:
    async with Relay(tls=server_tls() if tls else None) as relay:
        listener = await relay.listener(tls=client_tls() if tls else None)
        await is_alive(listener)
        listener.send_frame(Opcode.PONG, b"unasked")
        await is_alive(listener)


IGNORED = {
    "unknown command": [(Opcode.TEXT, b'{"invented":{"a":1}}')],
    "fault injection": [(Opcode.TEXT, b'{"injectFault":{"delay":1}}')],
    "late response": [(Opcode.TEXT, b'{"response":{"requestId":"x","statusCode":200,"body":false}}')],
    "response with a body": [
        (Opcode.TEXT, b'{"response":{"requestId":"x","statusCode":"200","body":true}}'),
        (Opcode.BINARY, b"body"),
    ],
    "stray binary": [(Opcode.BINARY, b"")],
}


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.loop("uvloop")
async def test_what_answers_nothing_is_ignored(name: str) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        for opcode, payload in IGNORED[name]:
            listener.send_frame(opcode, payload)
        await is_alive(listener)
        await relay.pair(listener)


async def test_what_came_behind_the_handshake_is_read() -> None:
    async with Relay() as relay:
        early = frame(Opcode.TEXT, renewal(token(lifetime=7_000))) + frame(Opcode.PING, b"early")
        listener = await relay.dial_listener(early=early)
        assert (await listener.answer()).status == 101
        assert await listener.frame() == Frame(Opcode.PONG, b"early")
        assert channel_of(relay).facts.grant.expires_at == relay.wall_clock() + 7_000


async def test_a_command_in_many_pieces_is_one_command() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        command = renewal(token(lifetime=7_000))
        whole = frame(Opcode.TEXT, command[:10], fin=False) + frame(Opcode.CONTINUATION, command[10:])
        for byte in whole:
            listener.send(bytes((byte,)))
            await asyncio.sleep(0)
        await until(lambda: channel_of(relay).facts.grant.expires_at == relay.wall_clock() + 7_000)


# -- what may not

VIOLATIONS = {
    "unmasked": (b"\x81\x02{}", 1002),
    "reserved opcode": (frame(Opcode.TEXT, b"")[:0] + b"\x83\x80\x00\x00\x00\x00", 1002),
    "continuation of nothing": (frame(Opcode.CONTINUATION, b"x"), 1002),
    "long ping": (b"\x89\xfe\x00\x7e" + b"\x00" * 130, 1002),
    "not UTF-8": (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
    "long text": (frame(Opcode.TEXT, b"x" * 262_145), 1009),
    "long binary": (frame(Opcode.BINARY, b"x" * 1_048_577), 1009),
    "bad close": (frame(Opcode.CLOSE, b"\x03"), 1002),
    "code that nobody may send": (frame(Opcode.CLOSE, b"\x03\xed"), 1002),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.loop("uvloop")
async def test_a_violation_closes_the_channel_and_is_a_loss(name: str, tls: bool) -> None:
    data, code = VIOLATIONS[name]
    async with Relay(tls=server_tls() if tls else None) as relay:
        client = client_tls() if tls else None
        listener = await relay.dial_listener(id=GUID, tls=client)
        await listener.answer()
        sender, leg = await relay.pair(listener, tls=client)
        # It goes on sending, and is told all the same.
        listener.send(data + b"\x00" * 3_000_000)
        close = (await listener.frame()).close
        assert close.code == code
        assert close.reason.endswith(f"TrackingId:{GUID}")
        assert await sender.is_cut() and await leg.is_cut()
        assert relay.directory.counts()["listeners"] == 0


async def test_nothing_overtakes_what_was_decided_before_it() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        # In one read: what came first is answered first, and nothing is said after the Close.
        bad = frame(Opcode.TEXT, renewal("bad"))
        listener.send(bad + frame(Opcode.PING, b"?") + bad)
        assert (await listener.frame()).opcode is Opcode.PONG
        assert (await listener.frame()).close.code == 1008
        listener.send_frame(Opcode.PING, b"too late")
        listener.send_close(1008)
        assert await listener.to_end() == b""


# -- silence


async def test_the_node_pings_and_a_pong_keeps_the_channel() -> None:
    async with Relay(ping_interval=30, control_idle_timeout=60) as relay:
        listener = await relay.listener()
        for _ in range(5):
            relay.pass_time(30)
            ping = await listener.frame()
            assert ping.opcode is Opcode.PING
            listener.send_frame(Opcode.PONG, ping.payload)
            await until(lambda: channel_of(relay).machine.last_received_at == relay.clock.now)
        await relay.pair(listener)


async def test_a_listener_that_answers_no_ping_is_cut() -> None:
    async with Relay(ping_interval=30, control_idle_timeout=60) as relay:
        listener = await relay.listener()
        relay.pass_time(30)
        assert (await listener.frame()).opcode is Opcode.PING
        relay.pass_time(29)
        assert len(relay.broker.channels) == 1
        relay.pass_time(1)
        async with asyncio.timeout(5):
            try:
                rest = await listener.reader.read()
            except ConnectionError:
                rest = b""
        # With a word of farewell, if it gets that far.
        assert b"\x03\xf3" in rest or rest == b""
        await until(lambda: not relay.broker.channels)


async def test_a_listener_that_does_not_answer_our_close_is_cut() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        channel = channel_of(relay)
        channel.close(ServerBusy(), loss=False)
        channel.close(ServerBusy(), loss=False)
        assert (await listener.frame()).close.code == 1001
        relay.pass_time(5)
        assert len(relay.broker.channels) == 1
        relay.pass_time(0.1)
        assert await listener.is_cut()
        await until(lambda: not relay.broker.channels)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_close_is_answered_and_the_socket_let_go(tls: bool) -> None:
    async with Relay(tls=server_tls() if tls else None) as relay:
        listener = await relay.listener(tls=client_tls() if tls else None)
        channel = channel_of(relay)
        listener.send_close(1000, "Normal Closure")
        assert (await listener.frame()).close.code == 1000
        assert await listener.to_end() == b""
        await listener.leave()
        await until(lambda: not relay.broker.channels)
        assert channel._farewell is not None
        assert channel._farewell._timer.cancelled()
        # Whatever is asked of it now.
        channel.tick(1e9)
        channel.close(ServerBusy(), loss=True)
        channel.abort()
        channel.resume_writing()
        await relay.quiet()


# -- listeners that do not read


@pytest.mark.parametrize("tls", [False, True])
async def test_pings_of_a_listener_that_does_not_read_are_bounded(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG", 20_000)
    # One ping of each slice is answered: here almost all are.
    monkeypatch.setattr(module, "SLICE", 131)
    pings = frame(Opcode.PING, b"x" * 125) * 5_000
    async with Relay(tls=server_tls() if tls else None, ping_interval=30, control_idle_timeout=60) as relay:
        listener = await relay.listener(tls=client_tls() if tls else None)
        channel = channel_of(relay)
        transport = channel._transport
        assert transport is not None
        # So that the system takes little for it.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        listener.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            listener.send(pings)
        await until(lambda: channel._congested and not channel._read)
        assert not transport.is_reading()
        assert transport.get_write_buffer_size() <= 20_000 + 2 * len(RECEIVE_BUFFER)
        # It reads again, and is served again.
        listener.reader._transport.resume_reading()  # type: ignore[attr-defined]
        while channel._congested:
            assert await listener.frame() == Frame(Opcode.PONG, b"x" * 125)
        # Or it does not, and is lost like any other that is silent.
        listener.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: channel._congested and not channel._read)
        for _ in range(95):
            relay.pass_time(1)
        await until(lambda: not relay.broker.channels)
        assert repr(channel).startswith("<ControlChannel ") and " CLOSED " in repr(channel)


@pytest.mark.parametrize("tls", [False, True])
async def test_what_is_much_is_taken_in_slices_and_others_are_served_between(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_tls() if tls else None
    async with Relay(tls=server_tls() if tls else None) as relay:
        listener = await relay.listener(tls=client)
        channel = channel_of(relay)
        transport = channel._transport
        assert transport is not None
        # What was taken and whether more of the same read waits; (0, False) for somebody else's turn.
        taken: list[tuple[int, bool]] = []
        receive = channel.machine.receive

        def note(data: bytes | memoryview, now: float) -> list[Command]:
            taken.append((len(data), bool(channel._read)))
            asyncio.get_running_loop().call_soon(lambda: taken.append((0, False)))
            assert not (channel._read and transport.is_reading())
            return receive(data, now)

        monkeypatch.setattr(channel.machine, "receive", note)
        flood = frame(Opcode.TEXT, b"{}") * 4_000 + frame(Opcode.TEXT, renewal(token(lifetime=7_000)))
        listener.send(flood)
        await until(lambda: channel.facts.grant.expires_at == relay.wall_clock() + 7_000)
        sizes = [size for size, _ in taken]
        assert max(sizes) == SLICE and sum(sizes) == len(flood)
        assert all(after == 0 for (_, more), after in zip(taken, sizes[1:], strict=False) if more)
        await is_alive(listener)
        await relay.pair(listener, tls=client)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_channel_may_end_while_slices_of_it_wait(how: str) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        channel = channel_of(relay)
        listener.send(frame(Opcode.TEXT, b"{}") * 8_000)
        await until(lambda: channel._read)
        if how == "reset":
            channel.abort()
        else:
            await relay.broker.close_channels(ServerBusy(), timeout=0)
            listener.send_close(1001)
            await listener.leave()
        await until(lambda: not relay.broker.channels)
        assert not channel._read


async def test_a_listener_with_too_many_unread_offers_is_told_of_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG", 100_000)
    async with Relay(max_senders=0) as relay:
        await relay.listener()
        wedged = channel_of(relay)
        standby = await relay.listener()
        transport = wedged._transport
        assert transport is not None
        senders = []
        while transport.get_write_buffer_size() + wedged._unwritten_size <= 100_000:
            senders.append(await relay.dial_sender(headers=[("X-Fill", "x" * 30_000)]))
            await until(lambda: relay.directory.counts()["senders"] == len(senders))
        await relay.pair(standby)


async def test_a_channel_that_is_not_open_yet_or_any_more_is_told_of_nobody() -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        channel = channel_of(relay)
        sender = await relay.dial_sender()
        await listener.offer()
        (meeting,) = relay.broker._meetings.values()
        assert channel.deliver(meeting.offer)
        channel.close(ServerBusy(), loss=False)
        assert not channel.deliver(meeting.offer)
        listener.reset()
        await until(lambda: not relay.broker.channels)
        assert not channel.deliver(meeting.offer)
        assert (await sender.answer()).status == 502


async def test_other_limits_are_taken_over_and_what_they_make_due_is_done() -> None:
    async with Relay(token_grace=120, ping_interval=0, control_idle_timeout=0) as relay:
        listener = await relay.listener(signature=token(lifetime=10))
        relay.pass_time(50)
        channel_of(relay).take_limits(resolve("default", {"token_grace": 30, "control_idle_timeout": 0}))
        close = (await listener.frame()).close
        assert close.code == 1008 and close.reason.startswith("ExpiredToken")


async def test_what_a_listener_is_told_in_one_turn_of_the_loop_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Relay() as relay:
        listener = await relay.listener()
        channel = channel_of(relay)
        sender = await relay.dial_sender()
        await listener.offer()
        (meeting,) = relay.broker._meetings.values()
        transport = channel._transport
        assert transport is not None
        written: list[bytes] = []
        channel._transport = cast(asyncio.Transport, Recording(transport, written))
        assert all(channel.deliver(meeting.offer) for _ in range(3))
        channel.close(ServerBusy(), loss=False)
        assert not written
        await until(lambda: bool(written))
        for _ in range(3):
            await listener.offer()
        assert (await listener.frame()).close.code == ServerBusy.close_code
        assert len(written) == 1
        sender.reset()


class Recording:
    """A transport whose writes are seen."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport = transport
        self._written = written

    def write(self, data: bytes) -> None:
        self._written.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)
