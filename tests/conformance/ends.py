"""Two ends of a WebSocket, directly connected or with a relay between them, and what each of them hears.

    outcome = await meet(case, "sender", between=direct)
    outcome = await meet(case, "sender", between=through(node))

The end that sends is raw: it writes what the case says and records what comes back. The other is strict: the Sans-I/O
protocol of the websockets library, which judges frames and answers Ping and Close, with the UTF-8 of texts looked at.
Both are past their handshake. Directly, the sender is the client and the listener the server, as the masks show;
through a relay both are its clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from websockets.exceptions import ProtocolError
from websockets.frames import Frame as WebSocketsFrame
from websockets.protocol import Protocol, Side

from conformance.cases import BINARY, CLOSE, CONTINUATION, FIN, FRAME_LIMIT, PING, PONG, TEXT, Case, Difference
from e2e.raw_websocket import PATIENCE, raw_pair
from trunkline.testing import RelayNode


class Heard(NamedTuple):
    """A frame that an end received."""

    first: int
    payload: bytes


class Outcome(NamedTuple):
    """What became of a case."""

    #: What the strict end received.
    received: tuple[Heard, ...]
    #: How the connection ended for it: the Close that it read, or what it refused, in its own words.
    end: str
    #: What came back to the raw end.
    answers: tuple[Heard, ...]


class Stream(NamedTuple):
    """One end of a TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    #: Whether this end is a WebSocket client: one that masks, and leaves it to the other to end TCP.
    is_client: bool


class Pair(NamedTuple):
    """Both ends."""

    sender: Stream
    listener: Stream


Between = Callable[[], AbstractAsyncContextManager[Pair]]


@asynccontextmanager
async def direct() -> AsyncIterator[Pair]:
    """Nothing between them: the listener is a server."""
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(Stream(reader, writer, is_client=False))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        sender = Stream(*await asyncio.open_connection(host, port), is_client=True)
        listener = await accepted
        try:
            yield Pair(sender, listener)
        finally:
            sender.writer.close()
            listener.writer.close()


def through(node: RelayNode) -> Between:
    """A relay between them."""

    @asynccontextmanager
    async def between() -> AsyncIterator[Pair]:
        async with raw_pair(node) as pair:
            yield Pair(
                Stream(*pair.sender.streams, is_client=True),
                Stream(*pair.listener.streams, is_client=True),
            )

    return between


async def meet(case: Case, who: str, *, between: Between) -> Outcome:
    """Let the end called `who` ("sender" or "listener") send what the case says to the other, to the end of TCP."""
    async with asyncio.timeout(PATIENCE), between() as pair:
        raw, strict = (pair.sender, pair.listener) if who == "sender" else (pair.listener, pair.sender)
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(_receive_strictly(strict))
            sending = tasks.create_task(_send(raw, case))
    received, end = receiving.result()
    return Outcome(received, end, sending.result())


async def _send(stream: Stream, case: Case) -> tuple[Heard, ...]:
    """The raw end: returns what came back."""
    reader, writer, is_client = stream

    async def write() -> None:
        try:
            for piece in case.written(is_client=is_client):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # whoever reads sees this piece before the next
        except (ConnectionError, RuntimeError):
            pass  # it was over in the middle

    answers: list[Heard] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        async for heard in _frames(reader):
            answers.append(heard)
            if heard.first == FIN | CLOSE:
                if not case.has_closed:
                    # The other end has refused something. Answer, as a proper end does.
                    writer.write(_close_like(heard.payload, is_client=is_client))
                if not is_client:
                    writer.write_eof()
    writer.close()
    return tuple(answers)


def _close_like(payload: bytes, *, is_client: bool) -> bytes:
    head = bytes((FIN | CLOSE, (0x80 if is_client else 0) | 2))
    return head + (bytes(4) if is_client else b"") + payload[:2]


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[Heard]:
    """Frames as they come, to the end of TCP."""
    try:
        while True:
            first, second = await reader.readexactly(2)
            length = second & 0x7F
            if length > 125:
                length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
            mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
            payload = await reader.readexactly(length)
            yield Heard(first, bytes(byte ^ mask[place & 3] for place, byte in enumerate(payload)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return


async def _receive_strictly(stream: Stream) -> tuple[tuple[Heard, ...], str]:
    """The strict end: returns what it received, and how it ended."""
    reader, writer, is_client = stream
    protocol = Protocol(Side.CLIENT if is_client else Side.SERVER, max_size=None)
    received: list[Heard] = []
    refused = ""
    text: bytearray | None = None
    data = b" "
    while data:
        try:
            data = await reader.read(65_536)
        except ConnectionError:
            data = b""
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for frame in protocol.events_received():
            assert isinstance(frame, WebSocketsFrame)
            if refused:
                continue
            received.append(Heard(FIN * frame.fin | frame.opcode, bytes(frame.data)))
            if frame.opcode == TEXT:
                text = bytearray()
            if frame.opcode in (TEXT, CONTINUATION) and text is not None:
                text += frame.data
            if frame.fin and frame.opcode in (TEXT, BINARY, CONTINUATION) and text is not None:
                try:
                    text.decode()
                except UnicodeDecodeError:
                    refused = "a text is not UTF-8"
                    protocol.fail(1007, refused)
                text = None
        for answer in protocol.data_to_send():
            try:
                if answer:
                    writer.write(answer)
                elif writer.can_write_eof():
                    writer.write_eof()
            except (ConnectionError, RuntimeError):
                pass  # it is over already
    writer.close()
    if isinstance(protocol.parser_exc, ProtocolError | UnicodeDecodeError):
        refused = _words(protocol.parser_exc)
    if refused:
        return tuple(received), f"refuses it: {refused}"
    if protocol.close_rcvd is None:
        return tuple(received), "is cut, without a Close"
    code = "no code" if protocol.close_rcvd.code == 1005 else f"{protocol.close_rcvd.code:d}"
    return tuple(received), f"Close {code}"


def _words(error: Exception) -> str:
    return "the reason is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


# --- what a relay may change ---


def relayed(outcome: Outcome, difference: Difference, who: str) -> Outcome:
    """What must become of a case through a relay, from what became of it directly."""
    received, end, answers = outcome
    if difference in (Difference.PING, Difference.PINGS):
        received = tuple(heard for heard in received if heard.first & 0x0F not in (PING, PONG))
    if difference is Difference.PINGS:
        pongs = [heard for heard in answers if heard.first & 0x0F == PONG]
        answers = (pongs[-1], *(heard for heard in answers if heard not in pongs))
    if difference is Difference.CUT:
        received = tuple(piece for heard in received for piece in cut(heard))
    if difference is Difference.REFUSED:
        assert end.startswith("refuses it: ")
        end = "Close 1001" if who == "sender" else "is cut, without a Close"
        received = (*received, *([Heard(FIN | CLOSE, b"\x03\xe9")] if who == "sender" else []))
    return Outcome(received, end, answers)


def without_words_of_the_relay(outcome: Outcome) -> Outcome:
    """Closes without their reasons: what refused something says so in its own words."""

    def codes(frames: Sequence[Heard]) -> tuple[Heard, ...]:
        return tuple(Heard(heard.first, heard.payload[:2]) if heard.first == FIN | CLOSE else heard for heard in frames)

    return Outcome(codes(outcome.received), outcome.end, codes(outcome.answers))


def cut(heard: Heard) -> list[Heard]:
    """A frame in fragments of the frame limit."""
    first, payload = heard
    if len(payload) <= FRAME_LIMIT:
        return [heard]
    parts = [payload[start : start + FRAME_LIMIT] for start in range(0, len(payload), FRAME_LIMIT)]
    firsts = [first & ~FIN, *(CONTINUATION for _ in parts[1:-1]), first & FIN]
    return [Heard(*each) for each in zip(firsts, parts, strict=True)]
