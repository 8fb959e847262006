"""The faulty network itself: without a fault it changes nothing, and each fault is what its name says."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from faults.faulty_network import FaultyNetwork, Link

pytestmark = pytest.mark.loop("uvloop")

needs_filters = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops segments in front of a socket")


class Ends(NamedTuple):
    """Both ends of one link, and the link."""

    network: FaultyNetwork
    link: Link
    client: socket.socket
    server: socket.socket


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[Ends]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setblocking(False)
        client.setblocking(False)
        async with FaultyNetwork(listening.getsockname()[1], **options) as network:
            await loop.sock_connect(client, ("127.0.0.1", network.port))
            server, _ = await loop.sock_accept(listening)
            with server:
                yield Ends(network, await network.link(0), client, server)


async def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := await asyncio.get_running_loop().sock_recv(sock, 65_536):
        data += piece
    return bytes(data)


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, size: int = 65_536) -> bytes:
    async with asyncio.timeout(5):
        return await asyncio.get_running_loop().sock_recv(sock, size)


async def is_quiet(sock: socket.socket) -> bool:
    """Whether nothing comes for a moment."""
    try:
        async with asyncio.timeout(0.05):
            await asyncio.get_running_loop().sock_recv(sock, 1)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("seed", range(3))
async def test_what_is_late_and_stalled_arrives_whole_and_in_order_both_ways(seed: int) -> None:
    def prepare(link: Link) -> None:
        for way in (link.to_server, link.to_client):
            way.latency, way.jitter, way.stall, way.stall_chance = 0.005, 0.01, 0.02, 0.1

    there, back = random.Random(seed).randbytes(700_000), random.Random(-seed).randbytes(500_000)
    async with connected(prepare=prepare, seed=seed) as (_, link, client, server), asyncio.TaskGroup() as tasks:
        heard = tasks.create_task(read_all(server))
        answered = tasks.create_task(read_all(client))
        for sock, data in ((client, there), (server, back)):
            for start in range(0, len(data), 50_000):
                await send(sock, data[start : start + 50_000])
            sock.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(await heard).digest() == hashlib.sha256(there).digest()
        assert hashlib.sha256(await answered).digest() == hashlib.sha256(back).digest()
        await link.closed.wait()
        assert (link.to_server.passed, link.to_client.passed) == (len(there), len(back))


async def test_latency_delays_each_byte_by_that_much() -> None:
    async with connected(prepare=lambda link: setattr(link.to_server, "latency", 0.1)) as (_, _, client, server):
        began = time.monotonic()
        await send(client, b"late")
        assert await receive(server) == b"late"
        assert time.monotonic() - began >= 0.09
        await send(server, b"at once")
        assert await receive(client) == b"at once"


async def test_narrow_line_takes_its_time() -> None:
    async with connected(prepare=lambda link: setattr(link.to_server, "bytes_per_second", 1e6)) as ends:
        began = time.monotonic()
        await send(ends.client, bytes(200_000))
        ends.client.shutdown(socket.SHUT_WR)
        assert await read_all(ends.server) == bytes(200_000)
        assert time.monotonic() - began >= 0.15


async def test_action_happens_exactly_behind_its_byte() -> None:
    async with connected() as (_, link, client, server):
        seen: list[tuple[str, int]] = []
        link.to_server.after(5, lambda: seen.append(("5", link.to_server.passed)))
        link.to_server.after(3, lambda: seen.append(("3", link.to_server.passed)))
        link.to_server.after(7, link.to_server.hold)
        await send(client, b"0123456789")
        await link.to_server.until(7)
        assert seen == [("3", 3), ("5", 5)]
        assert await receive(server) == b"0123456"
        assert await is_quiet(server)
        link.to_server.release()
        assert await receive(server) == b"789"
        link.to_server.after(4, lambda: seen.append(("4", link.to_server.passed)))
        assert seen[-1] == ("4", 10), "what has passed already is told at once"


async def test_reset_behind_so_many_bytes_reaches_both_ends() -> None:
    async with connected() as (network, link, client, server):
        link.to_server.after(4, link.reset)
        await send(client, b"0123456789")
        with pytest.raises(ConnectionResetError):
            assert await receive(server) == b"0123"
            await receive(server)
        with pytest.raises(ConnectionResetError):
            await receive(client)
        await link.closed.wait()
        assert network.open_links == []


async def test_link_can_be_reset_before_its_first_byte() -> None:
    async with connected(prepare=lambda link: link.to_server.after(0, link.reset)) as (_, link, client, server):
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                await receive(sock)
        await link.closed.wait()


async def test_reset_by_one_end_is_passed_on() -> None:
    async with connected() as (_, link, client, server):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            await receive(server)
        await link.closed.wait()


@pytest.mark.parametrize("gone", ["client", "server"])
async def test_half_open_link_has_one_end_that_knows_nothing(gone: str) -> None:
    async with connected() as (_, link, client, server):
        lost, kept = (client, server) if gone == "client" else (server, client)
        link.reset(client=gone == "client", server=gone == "server")
        with pytest.raises(ConnectionResetError):
            await receive(lost)
        await send(kept, b"is anybody there?")
        assert await is_quiet(kept)


async def test_end_of_one_side_leaves_the_other_direction() -> None:
    async with connected() as (_, link, client, server):
        link.finish(client=False)
        assert await receive(server) == b""
        await send(server, b"still here")
        assert await receive(client) == b"still here"


def unacknowledged(sock: socket.socket) -> int:
    """Segments that the other end's TCP has not acknowledged (tcpi_unacked)."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0])


@needs_filters
async def test_silence_acknowledges_nothing_and_healing_loses_nothing() -> None:
    async with connected() as (network, _, client, server):
        network.silence()
        await send(client, b"to the server")
        await send(server, b"to the client")
        assert await is_quiet(server) and await is_quiet(client)
        assert unacknowledged(client) and unacknowledged(server)
        network.heal()
        assert await receive(server) == b"to the server"
        assert await receive(client) == b"to the client"


@needs_filters
async def test_silence_of_one_end_leaves_the_other_heard() -> None:
    async with connected() as (_, link, client, server):
        link.silence(server=False)
        await send(client, b"unheard")
        await send(server, b"heard")
        assert await receive(client) == b"heard"
        assert await is_quiet(server) and unacknowledged(client) and not unacknowledged(server)


@needs_filters
async def test_silent_network_does_not_answer_who_connects() -> None:
    async with connected() as (network, _, _, _):
        network.silence()
        with socket.socket() as late:
            late.setblocking(False)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.get_running_loop().sock_connect(late, ("127.0.0.1", network.port))
        network.heal()


async def test_nobody_behind_the_network_is_a_reset() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with FaultyNetwork(nobody.getsockname()[1]) as network:
            with socket.socket() as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", network.port))
                with pytest.raises(ConnectionResetError):
                    await receive(client)
