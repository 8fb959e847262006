"""The network is cut behind every byte that matters: in the TLS handshake, the head, the answer, a frame, the close.

One exchange is measured first; then it is done again and again with a reset, or an end, behind the nth byte of one
direction of one link. Whatever the point, nobody hangs, nothing short passes for whole, the node holds nothing
afterwards, and the next exchange is as good as the first.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from e2e.quiet_node import quiet_node
from faults.behind import client_behind, listener_behind
from faults.faulty_network import FaultyNetwork, Link
from trunkline.protocol.errors import RelayError
from trunkline.sdk import Connection, ConnectionClosed, HybridConnectionClient, HybridConnectionListener

pytestmark = pytest.mark.loop("uvloop")

TLS = [pytest.param(False, id="plain"), pytest.param(True, id="tls", marks=pytest.mark.slow)]

QUESTION = random.Random(1).randbytes(70_000)
ANSWER = random.Random(2).randbytes(66_000)

#: What an end is told of a connection that broke.
BROKEN = (RelayError, OSError, ConnectionClosed)

WHOLE = ["listener whole", "sender whole"]

Fault = Callable[[Link], object]


async def send_and_end(connection: Connection, data: bytes) -> bytes:
    """Send a stream, and return the peer's, which has ended in order; raises one of BROKEN otherwise."""
    connection.write(data)
    await connection.drain()
    connection.write_eof()
    received = await connection.read()
    await connection.close()
    return received


async def exchange(client: HybridConnectionClient, listener: HybridConnectionListener) -> list[str]:
    """What became of it: for the sender, and for the listener if it had a connection."""
    ends = []

    async def answer() -> None:
        connection = await listener.accept()
        try:
            assert await send_and_end(connection, ANSWER) == QUESTION
        except BROKEN:
            ends.append("listener broken")
            connection.abort()
        else:
            ends.append("listener whole")

    async with asyncio.timeout(10):
        # Owned by this block.
        answering = asyncio.get_running_loop().create_task(answer())
        try:
            connection = await client.create_connection(timeout=5)
            try:
                assert await send_and_end(connection, QUESTION) == ANSWER
            except BROKEN:
                connection.abort()
                raise
        except BROKEN:
            ends.append("sender broken")
        else:
            ends.append("sender whole")
        if "listener" not in " ".join(ends) and "sender broken" in ends:
            # It has a connection only if the cut came behind the 101.
            await asyncio.wait([answering], timeout=0.03)
            answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
        if not answering.cancelled():
            answering.result()
    return ends


def ignore_failed_handshakes() -> None:
    """aiofastnet tells the loop of each TLS handshake that failed; in the loop of this test they are meant to."""
    loop = asyncio.get_running_loop()
    tell = loop.get_exception_handler()
    assert tell is not None
    loop.set_exception_handler(
        lambda loop, context: None if context["message"] == "SSL handshake failed" else tell(loop, context)
    )


def every_cut(measured: Link, chance: random.Random) -> Iterator[tuple[str, int]]:
    """Where to cut a link that carried so much: the first bytes, the last ones, and some by chance in between."""
    for way in ("to_server", "to_client"):
        total = getattr(measured, way).passed
        points = {0, 1, total - 1, total} | {chance.randrange(total) for _ in range(6)}
        # Heads, handshakes and the beginning of the first frame are in the first 2 KiB.
        points |= {chance.randrange(min(total, 2_000)) for _ in range(8)}
        yield from ((way, point) for point in points)


def cut(way: str, passed: int, how: str) -> Fault:
    return lambda link: getattr(link, way).after(passed, getattr(link, how))


def once(fault: Fault) -> Fault:
    """For the next link alone."""
    faults = [fault]
    return lambda link: faults.pop()(link) if faults else None


@pytest.mark.parametrize("how", ["reset", "finish"])
@pytest.mark.parametrize("tls", TLS)
async def test_sender_whose_network_is_cut_at_any_byte(tls: bool, how: str) -> None:
    chance = random.Random(f"{tls} {how}")
    seen: Counter[str] = Counter()
    ignore_failed_handshakes()
    async with quiet_node(tls=tls) as node, node.listener() as listener, FaultyNetwork(node.port) as network:
        client = client_behind(network, node)
        assert sorted(await exchange(client, listener)) == WHOLE
        [measured] = network.links
        for way, point in every_cut(measured, chance):
            network.prepare = cut(way, point, how)
            seen.update(await exchange(client, listener))
            await node.until(lambda counts: counts["connections"] == counts["senders"] == counts["handshakes"] == 0)
        network.prepare = None
        assert sorted(await exchange(client, listener)) == WHOLE
    assert seen["sender broken"] >= 20 and seen["listener broken"] >= 5, seen


@pytest.mark.parametrize("how", ["reset", "finish"])
@pytest.mark.parametrize("tls", TLS)
async def test_listener_whose_rendezvous_is_cut_at_any_byte(tls: bool, how: str) -> None:
    chance = random.Random(f"{tls} {how}")
    seen: Counter[str] = Counter()
    ignore_failed_handshakes()
    async with quiet_node(tls=tls, rendezvous_timeout=0.15) as node, FaultyNetwork(node.port) as network:
        async with listener_behind(network, node) as listener:
            client = node.client()
            assert sorted(await exchange(client, listener)) == WHOLE
            measured = network.links[1]
            for way, point in every_cut(measured, chance):
                network.prepare = cut(way, point, how)
                seen.update(await exchange(client, listener))
                await node.until(lambda counts: counts["connections"] == counts["senders"] == 0)
            network.prepare = None
            assert sorted(await exchange(client, listener)) == WHOLE
            assert listener.state == "online" and network.links[0] in network.open_links
    assert seen["sender broken"] >= 20 and seen["listener broken"] >= 5, seen


@pytest.mark.parametrize("how", ["reset", "finish"])
@pytest.mark.parametrize("tls", TLS)
async def test_listener_whose_registration_is_cut_at_any_byte_registers_again(tls: bool, how: str) -> None:
    chance = random.Random(f"{tls} {how}")
    ignore_failed_handshakes()
    async with quiet_node(tls=tls) as node, FaultyNetwork(node.port) as network:
        async with listener_behind(network, node):
            pass
        [measured] = network.links
        for way, point in every_cut(measured, chance):
            network.prepare = once(cut(way, point, how))
            async with asyncio.timeout(10), listener_behind(network, node) as listener:
                # It may be online for a moment before the cut; then it comes again.
                while sorted(await exchange(node.client(), listener)) != WHOLE:
                    await node.until(lambda counts: counts["listeners"] == 1)
            await node.until(lambda counts: not any(counts.values()))


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_stream_over_a_slow_network_with_lost_segments_is_the_same_stream(tls: bool) -> None:
    """200 ms each way, and now and then the half second that TCP takes to notice a loss."""

    def prepare(link: Link) -> None:
        for way in (link.to_server, link.to_client):
            way.latency, way.jitter, way.stall, way.stall_chance = 0.2, 0.02, 0.5, 0.02

    there, back = random.Random(3).randbytes(3_000_000), random.Random(4).randbytes(2_000_000)
    async with quiet_node(tls=tls) as node, FaultyNetwork(node.port, prepare=prepare) as network:
        async with listener_behind(network, node) as listener:
            client = client_behind(network, node)
            sender, accepted = await asyncio.gather(client.create_connection(), listener.accept())
            async with asyncio.timeout(40):
                assert [*await asyncio.gather(send_and_end(sender, there), send_and_end(accepted, back))] == [
                    back,
                    there,
                ]
