"""A network that goes silent without a word: who notices, by what, and how soon; and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import quiet_node
from faults.behind import client_behind, listener_behind
from faults.faulty_network import FaultyNetwork
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import Connection
from trunkline.testing import RelayNode

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops segments in front of a socket"),
]


@asynccontextmanager
async def echo_behind(network: FaultyNetwork, node: RelayNode, **options: Any) -> AsyncIterator[None]:
    """As `echo_listener`, behind the network."""
    async with listener_behind(network, node, **options) as listener:

        async def answer(connection: Connection) -> None:
            await connection.send("listener")
            async for message in connection:
                await connection.send(message)

        # Owned by this block.
        serving = asyncio.get_running_loop().create_task(listener.serve(answer))
        try:
            yield
        finally:
            await listener.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


#: Short, so that a test takes a second: the node pings each 0.1 s and gives a silent listener up after 0.4 s.
SHORT = {"ping_interval": 0.1, "control_idle_timeout": 0.4}


async def test_waiting_sender_is_offered_to_the_standby_when_the_active_listener_falls_silent() -> None:
    async with quiet_node(**SHORT) as node, FaultyNetwork(node.port) as network:
        online = asyncio.Queue[None]()
        listening = listener_behind(network, node, heartbeat=0.15, on_online=lambda _: online.put_nowait(None))
        async with listening as active, echo_listener(node, "standby"):
            await online.get()
            network.silence()
            began = time.monotonic()
            # It is offered to the active one, which never hears of it.
            assert await who_answers(node.client()) == "standby"
            assert time.monotonic() - began < 5
            assert node.counts()["listeners"] == 1
            # The listener has found out by its own heartbeat, and is back with the network.
            assert isinstance(active.last_error, ConnectionLost)
            network.heal()
            async with asyncio.timeout(10):
                await online.get()
            assert node.counts()["listeners"] == 2


async def test_listener_whose_words_are_lost_one_way_is_given_up_and_comes_back() -> None:
    async with quiet_node(**SHORT) as node, FaultyNetwork(node.port) as network:
        online = asyncio.Queue[None]()
        async with listener_behind(network, node, heartbeat=0.3, on_online=lambda _: online.put_nowait(None)):
            await online.get()
            (await network.link(0)).silence(server=False)
            # The first ping still reaches it; TCP then sends nothing more, as the answer and its acknowledgement are
            # lost. So the listener does not hear the node's farewell either, and finds out by itself.
            await node.until(lambda counts: counts["listeners"] == 0)
            async with asyncio.timeout(5):
                await online.get()
            assert node.counts()["listeners"] == 1 and len(network.links) == 2


async def test_listener_that_hears_nothing_comes_back_by_its_heartbeat() -> None:
    async with quiet_node(ping_interval=5) as node, FaultyNetwork(node.port) as network:
        online = asyncio.Queue[None]()
        async with listener_behind(
            network, node, heartbeat=0.1, on_online=lambda _: online.put_nowait(None)
        ) as listener:
            await online.get()
            (await network.link(0)).silence(client=False)
            async with asyncio.timeout(5):
                await online.get()
            assert "heard" in str(listener.last_error) or "received" in str(listener.last_error)
            network.links[0].reset()


async def test_connections_of_a_listener_that_fell_silent_end_with_it() -> None:
    """`on_listener_loss = teardown`: the sender need not wait for the silence of its own connection."""
    async with quiet_node(**SHORT) as node, FaultyNetwork(node.port) as network:
        async with listener_behind(network, node, heartbeat=0.15) as listener:
            sender = await node.client().create_connection()
            accepted = await listener.accept()
            await sender.send(b"before")
            assert await accepted.recv() == b"before"
            network.silence()
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(5):
                    await sender.recv()
            network.reset()
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(5):
                    await accepted.recv()


async def test_connection_that_nobody_hears_of_on_either_leg_ends_by_the_idle_timeout() -> None:
    async with quiet_node(idle_timeout=0.3) as node, FaultyNetwork(node.port) as network:
        async with node.listener(heartbeat=0) as listener:
            sender = await client_behind(network, node, heartbeat=0).create_connection()
            accepted = await listener.accept()
            network.silence()
            with pytest.raises(ConnectionLost, match="IdleTimeout"):
                async with asyncio.timeout(5):
                    await accepted.recv()
            await node.until(lambda counts: counts["connections"] == 0)
            sender.abort()


@pytest.mark.slow
@pytest.mark.parametrize("talks", [False, True], ids=["silent", "talking"])
@pytest.mark.parametrize("dead", ["sender", "listener"])
async def test_leg_whose_network_is_dead_ends_although_the_other_end_is_well(dead: str, talks: bool) -> None:
    """The other end's pings, or its data, do not keep a connection whose one leg leads nowhere."""
    async with quiet_node(idle_timeout=5) as node, FaultyNetwork(node.port) as network:
        listening = node.listener(heartbeat=1) if dead == "sender" else listener_behind(network, node, heartbeat=1)
        client = client_behind(network, node, heartbeat=1) if dead == "sender" else node.client(heartbeat=1)
        async with listening as listener:
            sender, accepted = await client.create_connection(), await listener.accept()
            lost, well = (sender, accepted) if dead == "sender" else (accepted, sender)
            await well.send(b"before")
            assert await lost.recv() == b"before"
            network.links[-1].silence()
            began = time.monotonic()

            async def talk() -> None:
                with contextlib.suppress(ConnectionLost):
                    while talks:
                        await well.send(bytes(100))
                        await asyncio.sleep(0.2)

            async def ends(connection: Connection) -> float:
                with pytest.raises(ConnectionLost):
                    async with asyncio.timeout(20):
                        while True:
                            await connection.recv()
                return time.monotonic() - began

            *took, _ = await asyncio.gather(ends(lost), ends(well), talk())
            assert max(took) < 12, took


async def test_half_open_registration_is_replaced_and_its_senders_are_offered_to_the_new_one() -> None:
    """A NAT that forgot the listener resets it, and the node hears nothing of that."""
    async with quiet_node(**SHORT) as node, FaultyNetwork(node.port) as network:
        online = asyncio.Queue[None]()
        async with echo_behind(network, node, on_online=lambda _: online.put_nowait(None)):
            await online.get()
            network.links[0].reset(server=False)
            await online.get()
            assert node.counts()["listeners"] == 2, "the node has the dead one too, and it is the active one"
            async with asyncio.timeout(5):
                assert await who_answers(node.client()) == "listener"
            assert node.counts()["listeners"] == 1


async def test_sdk_that_gets_no_answer_gives_up_and_leaves_no_task() -> None:
    async with quiet_node() as node, FaultyNetwork(node.port) as network:
        network.silence()
        before = asyncio.all_tasks()
        listener = listener_behind(network, node, connect_timeout=0.2)
        with pytest.raises(TimeoutError):
            await listener.open(timeout=0.5)
        with pytest.raises(TimeoutError):
            await client_behind(network, node).create_connection(timeout=0.2)
        assert listener.state == "offline" and asyncio.all_tasks() == before
        network.heal()


@pytest.mark.slow
async def test_sdk_that_closes_into_a_silent_network_ends_in_time_and_leaves_no_task() -> None:
    """5 s for the answer to each Close, as to a peer that is only slow."""
    async with quiet_node(**SHORT) as node, FaultyNetwork(node.port) as network:
        before = asyncio.all_tasks()
        async with listener_behind(network, node) as listener:
            sender = await client_behind(network, node).create_connection()
            accepted = await listener.accept()
            network.silence()
            began = time.monotonic()
            await asyncio.gather(sender.close(timeout=1), accepted.close(timeout=1), listener.close())
            assert time.monotonic() - began < 8
            network.reset()
            for link in network.links:
                await link.closed.wait()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
