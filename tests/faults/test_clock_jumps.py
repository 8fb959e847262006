"""Clocks that jump, and processes that stand still: whoever is healthy stays, and only new tokens see the new time."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from e2e.raw_websocket import PING, PONG, RawWebSocket
from faults.served_node import served_node
from trunkline.protocol import connection_string, sas, urls
from trunkline.protocol.errors import AuthorizationFailed, RelayError
from trunkline.protocol.sas import Right
from trunkline.sdk import Connection, HybridConnectionClient, HybridConnectionListener, SasTokenProvider
from trunkline.sdk.clock import SystemClock
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)
from trunkline.server.config.settings import NodeSettings
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.node import Node

pytestmark = pytest.mark.loop("uvloop")

DAY = 86_400.0
KEY = "secretkey"


class Clocks(SystemClock):
    """Both clocks of a machine, for a node or for the SDK, moved by a test."""

    def __init__(self) -> None:
        self.wall_ahead = 0.0
        self.monotonic_ahead = 0.0

    def time(self) -> float:
        return time.time() + self.wall_ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.monotonic_ahead


@asynccontextmanager
async def node_with(clocks: Clocks, **limits: float) -> AsyncIterator[Node]:
    """A node in memory that lives by these clocks."""
    rule = DeclaredRule("Root", frozenset(Right), KEY, KEY)
    entities = tuple(DeclaredHybridConnection(name, dict(limits)) for name in ("orders", "raw"))
    declaration = Declaration("file", (DeclaredNamespace("testing", rules=(rule,), hybrid_connections=entities),))
    settings = NodeSettings.model_validate({"port": 0, "admin_port": 0, "admin_socket": "off", "tls": "off"})
    store = SqliteStore(":memory:")
    monotonic, wall_clock = clocks.monotonic, clocks.time
    async with Node(settings, declaration, store=store, tick=0.05, monotonic=monotonic, wall_clock=wall_clock) as node:
        yield node


def text(node: Node) -> str:
    return connection_string.build("127.0.0.1", port=node.port, key_name="Root", key=KEY, entity_path="orders")


async def exchanges(sender: Connection, listener: Connection, *, for_seconds: float) -> None:
    """Both carry what they are given, that long."""
    until = time.monotonic() + for_seconds
    while time.monotonic() < until:
        for one, other in ((sender, listener), (listener, sender)):
            await one.send("still here")
            async with asyncio.timeout(5):
                assert await other.recv() == "still here"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def pings_counted(node: Node) -> AsyncIterator[list[float]]:
    """When each ping came to a listener that does nothing but answer them."""
    came: list[float] = []
    audience = sas.audience("127.0.0.1", "raw")
    token = sas.sign(audience, "Root", KEY, expires_at=int(time.time()) + 3_600)
    async with RawWebSocket(urls.listen_url(f"ws://127.0.0.1:{node.port}", "raw"), token=token) as control:

        async def answer() -> None:
            while True:
                frame = await control.receive()
                assert frame.opcode == PING, frame
                came.append(time.monotonic())
                await control.send(PONG, frame.payload)

        # Ended with the block; it fails there if anything but a ping came.
        answering = asyncio.get_running_loop().create_task(answer())
        try:
            yield came
            assert not answering.done(), answering.exception()
        finally:
            answering.cancel()


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY, 3_700.0], ids=["two days on", "two days back", "an hour on"])
async def test_wall_clock_of_the_node_jumps(jump: float) -> None:
    """Also past the end of the tokens that let everybody in: only who comes now is judged by the new time."""
    clocks = Clocks()
    async with node_with(clocks, ping_interval=0.1, control_idle_timeout=0.4, token_grace=0) as node:
        async with HybridConnectionListener(text(node), ssl=False) as listener, pings_counted(node) as pings:
            sender = await HybridConnectionClient(text(node), ssl=False).create_connection()
            accepted = await listener.accept()
            clocks.wall_ahead = jump
            pings.clear()
            began = time.monotonic()
            await exchanges(sender, accepted, for_seconds=0.6)
            assert listener.last_error is None and node.counts()["listeners"] == 2
            assert 2 <= len(pings) <= (time.monotonic() - began) / 0.1 + 2, "neither silence nor a storm"
            with pytest.raises((AuthorizationFailed, RelayError)) as refused:
                await HybridConnectionClient(text(node), ssl=False).create_connection()
            assert refused.value.status == 401
            provider = SasTokenProvider("Root", KEY, _time=clocks.time)
            client = HybridConnectionClient(f"ws://127.0.0.1:{node.port}/orders", token_provider=provider, ssl=False)
            late = await client.create_connection()
            await exchanges(late, await listener.accept(), for_seconds=0)
            for connection in (sender, accepted, late):
                connection.abort()


async def test_node_that_stood_still_takes_nobody_for_silent() -> None:
    """As after the move of a virtual machine: the clock has gone on, and the peers' frames are still unread."""
    clocks = Clocks()
    limits = {"ping_interval": 0.1, "control_idle_timeout": 0.4, "idle_timeout": 0.5, "rendezvous_timeout": 5.0}
    async with node_with(clocks, **limits) as node:
        async with HybridConnectionListener(text(node), ssl=False, heartbeat=0.1) as listener:
            async with pings_counted(node) as pings:
                sender = await HybridConnectionClient(text(node), ssl=False, heartbeat=0.1).create_connection()
                accepted = await listener.accept()
                await asyncio.sleep(0.1)
                clocks.monotonic_ahead = 3_600
                # The first that the node does: it looks at the clock, before it has read anything.
                node.broker.tick(node._clock())
                node.splicing.tick(node._clock())
                pings.clear()
                # They say nothing but their heartbeat.
                await asyncio.sleep(0.8)
                assert 2 <= len(pings) <= 12
                await exchanges(sender, accepted, for_seconds=0.1)
                assert listener.last_error is None and node.counts()["listeners"] == 2
                # And whoever is silent from now on is found as ever.
                sender.abort()
                await accepted.wait_closed()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="stops a process as Unix can")
async def test_node_that_was_stopped_and_goes_on_has_lost_nobody(tmp_path: Path) -> None:
    async with served_node(tmp_path, "orders", start=False) as node:
        node.declare("orders", ping_interval=0.5, control_idle_timeout=1.5, idle_timeout=1.5)
        await node.start()
        async with node.listener("orders", heartbeat=5) as listener:
            sender = await node.client("orders", heartbeat=0.5).create_connection()
            accepted = await listener.accept()
            node.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(4)
            node.process.send_signal(signal.SIGCONT)
            assert "stood still for" in await node.said("stood still")
            await exchanges(sender, accepted, for_seconds=2)
            assert listener.last_error is None and (await node.readiness())["connections"] == 1
            sender.abort()


@pytest.mark.parametrize(
    ("wall", "monotonic"),
    [(3_500.0, 3_500.0), (3_500.0, 0.0), (-7_200.0, 0.0)],
    ids=["slept, and its clock counted that", "slept, and only the wall clock counted that", "its clock was set back"],
)
async def test_listener_whose_computer_slept_or_was_set_stays_and_renews_its_token(
    wall: float, monotonic: float
) -> None:
    clocks = Clocks()
    async with node_with(Clocks(), ping_interval=0.2, control_idle_timeout=0.6) as node:
        provider = SasTokenProvider("Root", KEY, _time=clocks.time)
        async with HybridConnectionListener(
            f"sb://127.0.0.1:{node.port}/orders", token_provider=provider, ssl=False, heartbeat=0.2, _clock=clocks
        ) as listener:
            [channel] = node.broker.channels
            expires_at = channel.machine.expires_at
            clocks.wall_ahead, clocks.monotonic_ahead = wall, monotonic
            await asyncio.sleep(0.5)
            assert listener.state == "online" and listener.last_error is None
            assert [*node.broker.channels] == [channel]
            # It knows that its token is nearly over only by the clock that nothing sets.
            assert (channel.machine.expires_at > expires_at) == (monotonic > 0)
