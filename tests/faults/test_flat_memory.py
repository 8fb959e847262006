"""Big transfers: however much passes, in however long a frame, and however slow the reader, the node holds little."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.blocking_websocket import BINARY, BlockingWebSocket, frame_head
from hostile.besieged import BesiegedNode, besieged_node
from trunkline.protocol.frames import mask_bytes

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux has it"),
]

MIB = 2**20
#: By how much resident memory may grow, at most and at any moment.
GROWTH = 8 * MIB

#: What is sent, again and again; its length is a multiple of that of a mask key, so it is masked once.
BLOCK = random.Random(6).randbytes(MIB)
MASK = b"\x5a\xc3\x17\xe9"
MASKED = mask_bytes(BLOCK, MASK)

#: Payload of an ordinary frame.
FRAME = 65_536


def peak(node: BesiegedNode) -> int:
    """The most bytes of memory that the node has had since `forget_peak`."""
    return 1024 * int(Path(f"/proc/{node.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def forget_peak(node: BesiegedNode) -> None:
    """See clear_refs in proc(5)."""
    Path(f"/proc/{node.pid}/clear_refs").write_text("5")


def frames_of_64_kib(sender: BlockingWebSocket, size: int) -> None:
    """`size` bytes in frames of 64 KiB, sixteen of them at a time."""
    head = frame_head(BINARY, FRAME, mask=MASK)
    many = b"".join(head + MASKED[start : start + FRAME] for start in range(0, MIB, FRAME))
    for _ in range(size // MIB):
        sender.socket.sendall(many)


def one_frame(sender: BlockingWebSocket, size: int) -> None:
    """`size` bytes in a single frame."""
    sender.socket.sendall(frame_head(BINARY, size, mask=MASK))
    for _ in range(size // MIB):
        sender.socket.sendall(MASKED)


def read_all(listener: BlockingWebSocket, size: int, *, pause: float) -> None:
    """Read `size` bytes and compare each; `pause` seconds of rest after each MiB."""
    buffer = memoryview(bytearray(MIB))
    position = rested = 0
    while position < size:
        opcode, _, length = listener.read_head()
        assert opcode in (BINARY, 0) and length <= FRAME, "no frame over the limit leaves the node"
        listener.read_into(buffer[:length])
        start = position % MIB
        assert start + length <= MIB and buffer[:length] == BLOCK[start : start + length]
        position += length
        if pause and position - rested >= MIB:
            rested = position
            time.sleep(pause)
    assert position == size


@contextmanager
def pair(node: BesiegedNode) -> Iterator[tuple[BlockingWebSocket, BlockingWebSocket]]:
    """A sender and a listener, joined, with a control channel beside them."""
    with BlockingWebSocket(node.listen_url(), token=node.token(), ssl=node.tls) as control:
        with BlockingWebSocket(node.connect_url(), token=node.token(), ssl=node.tls, answer=False) as sender:
            with BlockingWebSocket(control.offer()["address"], ssl=node.tls) as listener:
                sender.upgraded()
                yield sender, listener


@pytest.mark.parametrize(
    ("send", "size", "pause"),
    [
        pytest.param(frames_of_64_kib, 1024 * MIB, 0.005, id="1 GiB to a slow reader"),
        pytest.param(one_frame, 256 * MIB, 0.0, id="one frame of 256 MiB"),
    ],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_node_grows_by_less_than_8_mib(
    tls: bool, send: Callable[[BlockingWebSocket, int], None], size: int, pause: float
) -> None:
    async with besieged_node(bystander=False, tls=tls) as node:
        with pair(node) as (sender, listener):
            await asyncio.sleep(1)  # memory that warming up left is given back
            forget_peak(node)
            before, began = node.memory(), time.monotonic()
            sending = asyncio.create_task(asyncio.to_thread(send, sender, size))  # noqa: TID251 - awaited below
            # The reader does not even begin until everything between the two is full.
            await asyncio.sleep(0.5)
            assert not sending.done()
            await asyncio.to_thread(read_all, listener, size, pause=pause)
            await sending
            grown, lasted = peak(node) - before, time.monotonic() - began
            print(f"{size / MIB:.0f} MiB in {lasted:.1f} s: {before / MIB:.1f} MiB, at most {grown / MIB:.1f} more")
            assert grown < GROWTH
