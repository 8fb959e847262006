"""Frames that lie, and bytes that are none: what a control channel ends with 1002, and a data connection passes on."""

from __future__ import annotations

import asyncio
import random

import pytest

from e2e.raw_websocket import BINARY, CLOSE, RawWebSocket, encode
from hostile.attackers import pairs
from hostile.besieged import besieged_node

pytestmark = [pytest.mark.loop("uvloop"), pytest.mark.slow, pytest.mark.timeout(180)]

MASK = b"\1\2\3\4"


def announce(length: int, *, first: int = 0x82) -> bytes:
    """The head of a frame, and the beginning of what it promises."""
    return bytes([first, 0xFF]) + length.to_bytes(8, "big") + MASK + bytes(100_000)


#: Frames that no end of a WebSocket may send: what they are, and what passes of them.
ODD = {
    **{f"reserved bit {bit:#x}": bytes([0x82 | bit]) for bit in (0x40, 0x20, 0x10)},
    **{f"reserved opcode {opcode}": bytes([0x80 | opcode]) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a fragment of nothing": b"\x80",
    "a message inside another": b"\x01\x01",
}


async def closed_with(peer: RawWebSocket, data: bytes) -> int | None:
    """The code with which a control channel that sends this is closed."""
    await peer.send_bytes(data)
    frame = await peer.receive_answering_pings()
    await peer.send(CLOSE, frame.payload[:2])
    return frame.close_code


async def test_length_that_never_comes_costs_a_data_connection_no_memory() -> None:
    async with besieged_node(entity={"max_senders": 0}) as node:
        for name, length in {"2^63 - 1": 2**63 - 1, "1 TiB": 2**40}.items():
            async with node.unharmed(f"50 frames that announce {name} bytes") as measured, pairs(node, 50) as many:
                for pair in many:
                    await pair.sender.send_bytes(announce(length))
                for pair in many:
                    # What has come of it passes, in fragments of 64 KiB; the rest of one is owed.
                    assert len((await pair.listener.receive()).payload) == 65_536
                assert max(measured.memory) - measured.memory[0] < 8 * 2**20
        async with node.unharmed("50 frames that announce 2^63 bytes"), pairs(node, 50) as many:
            for pair in many:
                await pair.sender.send_bytes(announce(2**63))
            for pair in many:
                assert (await pair.sender.receive()).close_code == 1002
                assert (await pair.listener.receive()).close_code == 1001


async def test_length_that_no_command_has_ends_a_control_channel_at_once() -> None:
    async with besieged_node() as node, node.unharmed("control frames that announce 2^63, 2^63 - 1 and 2^40 bytes"):
        for length, code in {2**63: 1002, 2**63 - 1: 1009, 2**40: 1009, 2**20 + 1: 1009}.items():
            async with node.websocket(node.listen_url()) as control:
                assert await closed_with(control, announce(length)) == code


async def test_odd_frames_end_a_control_channel_and_pass_a_data_connection() -> None:
    async with besieged_node() as node, node.unharmed(f"{len(ODD)} kinds of frames that nobody may send"):
        for name, firsts in ODD.items():
            data = b"".join(bytes([first, 0x80]) + MASK for first in firsts)
            async with node.websocket(node.listen_url()) as control:
                assert await closed_with(control, data) == 1002, name
            async with pairs(node, 1) as [pair]:
                await pair.sender.send_bytes(data + encode(BINARY, b"after"))
                passed = await pair.listener.receive_bytes(2 * len(firsts) + 7)
                assert passed == b"".join(bytes([first, 0]) for first in firsts) + b"\x82\x05after", name


async def test_random_bytes_behind_the_upgrade_end_a_connection_and_nothing_else() -> None:
    chance = random.Random(7)
    async with besieged_node(entity={"max_senders": 0}) as node:
        async with node.unharmed("random bytes on 200 control channels"):
            for _ in range(200):
                async with node.websocket(node.listen_url()) as control:
                    await control.send_bytes(chance.randbytes(chance.choice([10, 1_000, 300_000])))
        async with node.unharmed("random bytes on 200 data connections"), pairs(node, 200) as many:
            for pair in many:
                peer, other = (pair.sender, pair.listener) if chance.random() < 0.5 else (pair.listener, pair.sender)
                async with asyncio.TaskGroup() as tasks:
                    reading = tasks.create_task(other.discard())
                    await peer.send_bytes(chance.randbytes(chance.choice([10, 1_000, 300_000])))
                    reading.cancel()


async def test_control_channel_takes_no_command_that_is_large_deep_or_garbage() -> None:
    texts = {
        "a text of 256 KiB that is one list": b"[" + b"0," * 131_000 + b"0]",
        "brackets without end": b"[" * 260_000,
        "not UTF-8": b"\xff" * 1_000,
        "not JSON": b"{" + b"x" * 1_000,
    }
    async with besieged_node() as node, node.unharmed("garbage as commands"):
        for name, text in texts.items():
            for _ in range(20):
                async with node.websocket(node.listen_url()) as control:
                    assert await closed_with(control, encode(1, text)) == 1007, name
        async with node.websocket(node.listen_url()) as control:
            assert await closed_with(control, encode(1, b"x" * 262_145)) == 1009
