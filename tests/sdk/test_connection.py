"""A connection against a relay that does what the test says; the same on uvloop and plain asyncio."""

from __future__ import annotations

import asyncio

import pytest

from sdk.fake_clock import FakeClock
from sdk.relay_stub import RelayStub, connected, until
from trunkline.protocol.errors import ConnectionLost, InvalidMessage, InvalidSetting, MessageTooLarge, ProtocolViolation
from trunkline.protocol.frames import Control, Data, Opcode
from trunkline.sdk import ConnectionClosed
from trunkline.sdk.connection import LINGER, RECEIVE_LIMIT

# --- byte stream ----------------------------------------------------------------------------------------------


async def test_stream_arrives_whatever_the_messages_were() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"one", fin=False)
        peer.send(Opcode.PING, b"between fragments")
        peer.send(Opcode.CONTINUATION, b"two")
        peer.send(Opcode.BINARY)
        peer.send(Opcode.TEXT, b"three")
        peer.send_close()
        assert await connection.readexactly(4) == b"onet"
        assert await connection.read(2) == b"wo"
        assert not connection.at_eof()
        assert await connection.read() == b"three"
        assert connection.at_eof()
        assert await connection.read() == await connection.read(5) == b""
        assert await peer.control(Opcode.PONG) == b"between fragments"


async def test_stream_is_written_as_binary_messages_of_64_kib() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        data = bytes(range(256)) * 600
        connection.write(memoryview(bytearray(data)))
        connection.write(b"")
        connection.write(bytearray(b"end"))
        await connection.drain()
        messages = [await peer.message() for _ in range(4)]
        assert [len(payload) for _, payload in messages] == [65_536, 65_536, 22_528, 3]
        assert b"".join(payload for _, payload in messages) == data + b"end"
        assert {opcode for opcode, _ in messages} == {Opcode.BINARY}


async def test_reading_exactly_tells_what_came_before_the_end() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"half")
        peer.send_close()
        with pytest.raises(asyncio.IncompleteReadError) as raised:
            await connection.readexactly(8)
        assert (raised.value.partial, raised.value.expected) == (b"half", 8)
        with pytest.raises(ValueError, match="negative"):
            await connection.readexactly(-1)


async def test_reading_exactly_more_than_the_receive_limit() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        data = bytes(range(256)) * 8192
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(connection.readexactly(len(data)))
            for start in range(0, len(data), 65_536):
                peer.send(Opcode.BINARY, data[start : start + 65_536])
                await peer.writer.drain()
        assert reading.result() == data


async def test_lines_are_read_one_by_one() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"first\nsecond\r")
        peer.send(Opcode.BINARY, b"\nrest")
        assert await connection.readuntil() == b"first\n"
        assert await connection.readuntil(b"\r\n") == b"second\r\n"
        peer.send_close()
        with pytest.raises(asyncio.IncompleteReadError) as raised:
            await connection.readuntil()
        assert raised.value.partial == b"rest"
        with pytest.raises(ValueError, match="empty"):
            await connection.readuntil(b"")


async def test_line_longer_than_the_limit_stays_unread() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"x" * 10 + b"\n")
        with pytest.raises(asyncio.LimitOverrunError):
            await connection.readuntil(limit=10)
        assert await connection.readuntil(limit=11) == b"x" * 10 + b"\n"


@pytest.mark.parametrize("read", ["read", "readexactly", "readuntil", "recv"])
async def test_cancelled_reader_loses_nothing(read: str) -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        arguments = {"readexactly": (100,), "read": (-1,)}.get(read, ())
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(getattr(connection, read)(*arguments))
            peer.send(Opcode.BINARY, b"the beginning", fin=False)
            await until(lambda: connection._received.in_message)
            reading.cancel()
        peer.send(Opcode.CONTINUATION, b" and the end")
        peer.send_close()
        assert await connection.read() == b"the beginning and the end"


async def test_two_tasks_cannot_read_at_once() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(connection.read(1))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="Another task"):
                await connection.recv()
            peer.send(Opcode.BINARY, b"x")
        assert first.result() == b"x"


# --- messages -------------------------------------------------------------------------------------------------


async def test_messages_keep_their_kind_and_borders() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        for message in ("text é", b"binary", "", b"", bytearray(b"array"), memoryview(b"view")):
            await connection.send(message)
        assert [await peer.message() for _ in range(6)] == [
            (Opcode.TEXT, "text é".encode()),
            (Opcode.BINARY, b"binary"),
            (Opcode.TEXT, b""),
            (Opcode.BINARY, b""),
            (Opcode.BINARY, b"array"),
            (Opcode.BINARY, b"view"),
        ]
        with pytest.raises(TypeError, match="str or bytes"):
            await connection.send(7)  # type: ignore[arg-type]


async def test_messages_are_received_in_fragments_and_whole() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.TEXT, "é".encode()[:1], fin=False)
        peer.send(Opcode.CONTINUATION, "é".encode()[1:])
        peer.send(Opcode.BINARY, b"whole")
        peer.send(Opcode.TEXT)
        peer.send_close(4001, "done")
        assert [message async for message in connection] == ["é", b"whole", ""]
        with pytest.raises(ConnectionClosed) as raised:
            await connection.recv()
        assert (raised.value.code, raised.value.reason) == (4001, "done")
        assert (connection.close_code, connection.close_reason) == (4001, "done")


async def test_long_message_is_sent_in_fragments_and_cannot_be_broken_by_a_write() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        data = bytes(range(256)) * (16 << 12)
        peer.pause()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(connection.send(data))
            behind = tasks.create_task(connection.send("behind it"))
            await until(lambda: connection._link.unsent > 0)
            with pytest.raises(RuntimeError, match="send"):
                connection.write(b"x")
            with pytest.raises(RuntimeError, match="send"):
                connection.write_eof()
            peer.resume()
            first = await peer.piece()
            assert isinstance(first, Data) and not first.end
            opcode, rest = await peer.message()
            assert (opcode, first.payload + rest == data) == (Opcode.BINARY, True)
            assert await peer.message() == (Opcode.TEXT, b"behind it")
        assert sending.done() and behind.done()


async def test_send_that_is_cancelled_in_the_middle_aborts_the_connection() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.pause()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connection.send(bytes(32 << 20))
        await connection.wait_closed()
        with pytest.raises(ConnectionLost, match="aborted"):
            await connection.send("more")


async def test_message_over_the_limit_closes_the_connection() -> None:
    async with RelayStub() as relay, connected(relay, max_message_size=10) as (connection, peer):
        peer.send(Opcode.BINARY, b"x" * 10)
        peer.send(Opcode.BINARY, b"x" * 6, fin=False)
        peer.send(Opcode.CONTINUATION, b"x" * 5)
        assert await connection.recv() == b"x" * 10
        with pytest.raises(MessageTooLarge, match="10 bytes"):
            await connection.recv()
        assert (await peer.close_frame()).code == 1009
        with pytest.raises(MessageTooLarge):
            await connection.recv()


async def test_text_that_is_no_text_closes_the_connection() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.TEXT, b"\xff")
        with pytest.raises(InvalidMessage):
            await connection.recv()
        assert (await peer.close_frame()).code == 1007


# --- the end --------------------------------------------------------------------------------------------------


async def test_half_close_leaves_the_other_direction_open() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        connection.write(b"request")
        connection.write_eof()
        connection.write_eof()
        assert connection.is_closing()
        with pytest.raises(ConnectionClosed):
            connection.write(b"more")
        assert await peer.message() == (Opcode.BINARY, b"request")
        close = await peer.close_frame()
        assert (close.code, close.reason) == (1000, "Shutdown")
        peer.send(Opcode.PING)  # not answered any more: nothing may follow a Close
        peer.send(Opcode.BINARY, b"answer")
        peer.send_close()
        assert await connection.read() == b"answer"
        peer.close()
        await connection.wait_closed()
        await peer.eof()


async def test_writing_goes_on_after_the_peer_has_closed() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send_close(1000, "Shutdown")
        assert await connection.read() == b""
        connection.write(b"the answer")
        await connection.send("and a message")
        assert await peer.message() == (Opcode.BINARY, b"the answer")
        assert await peer.message() == (Opcode.TEXT, b"and a message")
        closing = connection.close()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(closing)
            assert (await peer.close_frame()).code == 1000
            peer.close()
        assert repr(connection).startswith("<Connection 'orders' closed")


async def test_relay_is_left_to_end_tcp_and_not_for_ever() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, connected(relay, _clock=clock) as (connection, peer):
        peer.send_close()
        assert await connection.read() == b""
        connection.write_eof()
        await peer.close_frame()
        clock.advance(LINGER)
        await peer.eof()
        await connection.wait_closed()


async def test_close_waits_for_the_peer_and_drops_what_it_still_sends() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(connection.close(4000, "bye"))
            close = await peer.close_frame()
            assert (close.code, close.reason) == (4000, "bye")
            peer.send(Opcode.BINARY, bytes(RECEIVE_LIMIT * 4))
            await peer.writer.drain()
            peer.send_close()
            peer.close()
        assert await connection.read() == b""
        await connection.close()
        await connection.close(timeout=None)


async def test_close_ends_tcp_when_the_peer_does_not_answer() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(connection.close(timeout=0.05))
            await peer.close_frame()
            await peer.eof()
            peer.close()


async def test_close_refuses_codes_that_must_not_be_sent() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, _):
        with pytest.raises(InvalidSetting, match="1005"):
            await connection.close(1005)


async def test_close_lets_a_message_that_is_being_sent_end() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(connection.send(bytes(4 << 20)))
            await peer.piece()
            tasks.create_task(connection.close())
            _, rest = await peer.message()
            assert len(rest) > 4 << 19
            assert (await peer.close_frame()).code == 1000
            peer.send_close()
            peer.close()


async def test_leaving_the_block_by_an_error_aborts() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        with pytest.raises(ZeroDivisionError):
            async with connection:
                raise ZeroDivisionError
        with pytest.raises((ConnectionResetError, AssertionError)):
            await peer.close_frame()


async def test_leaving_the_block_by_the_peers_end_closes() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send_close()
        peer.writer.write_eof()
        with pytest.raises(ConnectionClosed):
            async with connection:
                await connection.recv()
        assert (await peer.close_frame()).code == 1000


@pytest.mark.parametrize("reset", [True, False])
async def test_loss_is_an_error_after_what_arrived_was_read(reset: bool) -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"the last bytes")
        assert await connection.read(4) == b"the "
        peer.abort() if reset else peer.close()
        await connection.wait_closed()
        assert await connection.read(100) == b"last bytes"
        for _ in range(2):
            with pytest.raises(ConnectionLost) as raised:
                await connection.read(1)
        assert raised.value.tracking_id == connection.tracking_id
        with pytest.raises(ConnectionLost):
            await connection.recv()
        with pytest.raises(ConnectionLost):
            connection.write(b"x")
        with pytest.raises(ConnectionLost):
            await connection.drain()
        with pytest.raises(ConnectionLost):
            await connection.send("x")
        connection.write_eof()
        await connection.close()
        assert connection.is_closing() and not connection.at_eof()
        assert connection.close_code is None and connection.close_reason == ""
        assert "failed (The connection was lost" in repr(connection)


async def test_loss_wakes_a_reader_and_a_drain() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.pause()
        connection.write(bytes(32 << 20))

        async def fails(what: object) -> None:
            with pytest.raises(ConnectionLost):
                await what  # type: ignore[misc]

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails(connection.read(1)))
            tasks.create_task(fails(connection.drain()))
            await asyncio.sleep(0)
            peer.abort()


async def test_loss_in_the_middle_of_a_message_is_an_error_even_after_a_close() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.TEXT, b"half", fin=False)
        peer.send_close()
        with pytest.raises(ConnectionLost, match="middle of a message"):
            await connection.recv()


async def test_end_in_order_stays_in_order_when_tcp_is_lost_after_it() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"all")
        peer.send_close()
        peer.close()
        await connection.wait_closed()
        assert await connection.read() == b"all"
        assert await connection.read() == b""
        with pytest.raises(ConnectionLost):
            connection.write(b"x")


@pytest.mark.parametrize("code", [1001, 1002, 1008, 1011])
async def test_close_that_reports_a_failure_is_an_error(code: int) -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"data")
        peer.send_close(code, "why it failed")
        assert await connection.read(100) == b"data"
        with pytest.raises(ConnectionLost, match=f"{code}: why it failed"):
            await connection.read(1)
        assert connection.close_code == code
        assert (await peer.close_frame()).code == code
        peer.close()
        await connection.wait_closed()


@pytest.mark.parametrize("code", [None, 1000, 3000, 4999])
async def test_close_in_order_is_an_end(code: int | None) -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send_close(code)
        assert await connection.read(1) == b""
        assert connection.close_code == code


@pytest.mark.parametrize(
    "garbage",
    [b"\x83\x00", b"\xf2\x00", b"\x82\x80abcd", b"\x88\x01x", b"\x89\x7e\x00\x80", b"\x80\x00"],
    ids=["reserved opcode", "reserved bits", "masked", "bad close", "long ping", "nothing to continue"],
)
async def test_violation_by_the_relay_closes_with_1002(garbage: bytes) -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.send(Opcode.BINARY, b"good")
        peer.writer.write(garbage + b"more")
        assert await connection.read(4) == b"good"
        with pytest.raises(ProtocolViolation):
            await connection.read(1)
        assert (await peer.close_frame()).code == 1002
        await peer.eof()


# --- heartbeat and back-pressure ------------------------------------------------------------------------------


async def test_silent_connection_is_kept_by_pings_until_it_closes() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, connected(relay, _clock=clock) as (connection, peer):
        clock.advance(29.9)
        await connection.send("a sign of life")
        clock.advance(29.9)
        assert await peer.message() == (Opcode.TEXT, b"a sign of life")
        clock.advance(0.1)
        assert await peer.control(Opcode.PING) == b""
        clock.advance(60)
        assert [await peer.control(Opcode.PING) for _ in range(2)] == [b"", b""]
        connection.write_eof()
        clock.advance(300)
        assert (await peer.close_frame()).code == 1000
        peer.send(Opcode.PING)
        peer.send_close()
        assert await connection.read() == b""
        clock.advance(LINGER)
        await peer.eof()


async def test_peer_that_is_gone_without_a_word_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    async with RelayStub() as relay, connected(relay, _clock=clock) as (connection, _):
        unheard = connection._link.unheard()
        assert unheard is None or unheard < 5
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(connection.wait_closed())
            monkeypatch.setattr(connection._link, "unheard", lambda: 60.0)
            clock.advance(30)
            await reading
        assert connection._link.unheard() == 60.0
        with pytest.raises(ConnectionLost, match="60 seconds"):
            await connection.recv()


async def test_heartbeat_can_be_off() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, connected(relay, _clock=clock, heartbeat=0) as (connection, peer):
        clock.advance(3600)
        connection.write_eof()
        assert isinstance(await peer.piece(), Control)


async def test_slow_reader_stops_the_peer_and_loses_nothing() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        size = 32 << 20
        data = bytes(range(256)) * (size // 256)

        async def send_all() -> None:
            for start in range(0, size, 65_536):
                peer.send(Opcode.BINARY, data[start : start + 65_536])
                await peer.writer.drain()
            peer.send_close()

        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(send_all())
            assert await connection.read(1) == data[:1]
            await asyncio.sleep(0.2)
            assert not sending.done()
            assert connection._received.size < RECEIVE_LIMIT + (1 << 20)
            assert await connection.read() == data[1:]
        assert connection.at_eof()


async def test_flood_of_empty_messages_is_bounded() -> None:
    async with RelayStub() as relay, connected(relay) as (connection, peer):
        peer.writer.write(b"\x82\x00" * 200_000)
        peer.send_close()
        assert await connection.recv() == b""
        await asyncio.sleep(0.1)
        assert connection._reading_paused
        assert await connection.read() == b""
