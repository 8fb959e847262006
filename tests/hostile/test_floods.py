"""Peers that are let in and then send as fast as they can: frames of every kind, read or unread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import pytest

from e2e.raw_websocket import BINARY, CONTINUATION, PING, PONG, TEXT, RawWebSocket, encode, raw_pair
from hostile.besieged import besieged_node

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]

#: Bytes of one flood, and of one write.
FLOOD = 4 * 2**20
WRITE = 2**18


def many(frame: bytes) -> bytes:
    """The same frame again and again."""
    return frame * (WRITE // len(frame))


#: What may be sent without end.
ENDLESS: Mapping[str, bytes] = {
    "empty messages": many(encode(BINARY, b"")),
    "empty pings": many(encode(PING, b"")),
    "pings of 125 bytes": many(encode(PING, b"x" * 125)),
    "pongs": many(encode(PONG, b"")),
    "lengths written long": many(b"\x82\xff" + (1).to_bytes(8, "big") + b"\0\0\0\0x"),
}
#: What a data leg is sent besides: it passes on.
RESERVED: Mapping[str, bytes] = {
    "reserved opcodes": many(encode(3, b"")),
    "reserved control frames": many(encode(11, b"")),
}
#: What a control channel is sent besides.
COMMANDS: Mapping[str, bytes] = {
    "commands that nobody knows": many(encode(TEXT, b"{}")),
    "responses to no request": many(encode(TEXT, b'{"response":{"requestId":"x","statusCode":200}}')),
}


async def flood(peer: RawWebSocket, data: bytes, *, first: bytes = b"", reads: bool = True) -> None:
    """Send `data` again and again, until the node ends it or takes no more."""
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(peer.discard()) if reads else None
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(5):
                await peer.send_bytes(first)
                for _ in range(FLOOD // WRITE):
                    await peer.send_bytes(data)
        if reading is not None:
            reading.cancel()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_control_channel_that_is_flooded_holds_up_nobody(tls: bool) -> None:
    async with besieged_node(tls=tls) as node:
        for what, data in {**ENDLESS, **COMMANDS}.items():
            async with node.unharmed(f"a control channel flooded with {what}"):
                async with node.websocket(node.listen_url()) as control:
                    await flood(control, data)
        async with node.unharmed("a control channel flooded with fragments of one message"):
            async with node.websocket(node.listen_url()) as control:
                await flood(control, many(encode(CONTINUATION, b"", end=False)), first=encode(TEXT, b"", end=False))


async def test_control_channel_that_is_flooded_and_not_read_holds_up_nobody() -> None:
    async with besieged_node() as node:
        for what, data in ENDLESS.items():
            async with node.unharmed(f"a control channel flooded with {what} that reads nothing"):
                async with node.websocket(node.listen_url()) as control:
                    await flood(control, data, reads=False)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_data_leg_that_is_flooded_holds_up_nobody(tls: bool) -> None:
    async with besieged_node(tls=tls) as node:
        for what, data in {**ENDLESS, **RESERVED}.items():
            for way in ("sender", "listener"):
                async with (
                    node.unharmed(f"the leg of a {way} flooded with {what}"),
                    raw_pair(node, ssl=node.tls) as pair,
                ):
                    peer, other = (pair.sender, pair.listener) if way == "sender" else (pair.listener, pair.sender)
                    async with asyncio.TaskGroup() as tasks:
                        reading = tasks.create_task(other.discard())
                        await flood(peer, data)
                        reading.cancel()
