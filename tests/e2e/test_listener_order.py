"""Which of several listeners gets a sender, and who takes over from one that is gone, leaves or hangs."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from e2e.echo_listener import EchoProgram, echo_listener, who_answers
from e2e.quiet_node import quiet_node
from e2e.raw_websocket import PING, PONG, TEXT, RawWebSocket, refusal
from trunkline.protocol.errors import ConnectionLost, ConnectionNotEstablished
from trunkline.sdk import HybridConnectionListener
from trunkline.testing import RelayNode

pytestmark = pytest.mark.loop("uvloop")


async def listen_in_order(node: RelayNode, stack: AsyncExitStack, *names: str) -> list[HybridConnectionListener]:
    return [await stack.enter_async_context(echo_listener(node, name)) for name in names]


async def offers_so_far(listener: RawWebSocket) -> int:
    """How many senders it was told of, to this moment and since it was last asked."""
    await listener.send(PING)
    offers = 0
    while (frame := await listener.receive()).opcode != PONG:
        offers += frame.opcode == TEXT
    return offers


# --- one is active, the others stand by


async def test_first_of_three_listeners_gets_every_sender() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        await listen_in_order(node, stack, "first", "second", "third")
        client = node.client()
        assert [await who_answers(client) for _ in range(10)] == ["first"] * 10
        together = await asyncio.gather(*(who_answers(client) for _ in range(20)))
        assert together == ["first"] * 20


async def test_listener_that_closes_hands_over_at_once_and_its_connections_live_on() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        first, _ = await listen_in_order(node, stack, "first", "second")
        async with await node.client().create_connection() as established:
            assert await established.recv() == "first"
            await first.close()
            assert [await who_answers(node.client()) for _ in range(3)] == ["second"] * 3
            await established.send("still here")
            assert await established.recv() == "still here"


async def test_listeners_take_over_in_the_order_in_which_they_came() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        listeners = await listen_in_order(node, stack, "first", "second", "third")
        await listeners[1].close()
        assert await who_answers(node.client()) == "first"
        await listeners[0].close()
        assert await who_answers(node.client()) == "third"
        # Who comes back stands by: nobody is interrupted.
        await listen_in_order(node, stack, "first again")
        assert await who_answers(node.client()) == "third"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_next_sender_is_served_by_the_second_listener_when_the_first_is_killed(tls: bool) -> None:
    async with quiet_node(tls=tls) as node, EchoProgram(node, "first") as first, echo_listener(node, "second"):
        client = node.client()
        assert [await who_answers(client) for _ in range(3)] == ["first"] * 3
        established = await client.create_connection()
        assert await established.recv() == "first"
        await first.kill()
        assert await who_answers(client) == "second"
        # Its own connections are cut: nothing pretends that they ended in order.
        with pytest.raises(ConnectionLost):
            await established.recv()


# --- an active listener that hangs


async def test_listener_that_lets_two_senders_wait_in_vain_is_deposed_and_the_second_of_them_is_served() -> None:
    async with quiet_node(rendezvous_timeout=0.3) as node, AsyncExitStack() as stack:
        hanging = await stack.enter_async_context(RawWebSocket(node.listen_url(), token=node.token()))
        await listen_in_order(node, stack, "second")
        refused = await refusal(node.connect_url(), token=node.token())
        assert refused.status == 504 and refused.phrase.startswith("ConnectionNotEstablished: ")
        assert await offers_so_far(hanging) == 1
        begun = time.monotonic()
        assert await who_answers(node.client()) == "second"
        assert time.monotonic() - begun > 0.2  # it waited for the first one, and then was served all the same
        assert await offers_so_far(hanging) == 1
        assert [await who_answers(node.client()) for _ in range(3)] == ["second"] * 3
        assert await offers_so_far(hanging) == 0


@pytest.mark.parametrize("policy", ["round-robin", "balanced"])
async def test_listener_that_hangs_is_passed_over_under_other_policies_too(policy: str) -> None:
    async with quiet_node(listener_policy=policy, rendezvous_timeout=0.2) as node, AsyncExitStack() as stack:
        hanging = await stack.enter_async_context(RawWebSocket(node.listen_url(), token=node.token()))
        await listen_in_order(node, stack, "second")
        with pytest.raises(ConnectionNotEstablished):
            for _ in range(100):
                await who_answers(node.client())
        # From now on everybody is served, the next one that comes to it after some waiting, the others at once.
        assert [await who_answers(node.client()) for _ in range(60)] == ["second"] * 60
        assert await offers_so_far(hanging) == 2


async def test_listener_whose_process_is_frozen_is_deposed() -> None:
    async with (
        quiet_node(rendezvous_timeout=0.3) as node,
        EchoProgram(node, "first") as first,
        echo_listener(node, "second"),
    ):
        assert await who_answers(node.client()) == "first"
        first.freeze()
        with pytest.raises(ConnectionNotEstablished):
            await node.client().create_connection()
        assert await who_answers(node.client()) == "second"
        assert await who_answers(node.client()) == "second"


async def test_listener_that_hangs_alone_costs_its_senders_the_time_out_and_nothing_else() -> None:
    async with quiet_node(rendezvous_timeout=0.2) as node:
        async with RawWebSocket(node.listen_url(), token=node.token()) as listener:
            for _ in range(3):
                assert (await refusal(node.connect_url(), token=node.token())).status == 504
            # It comes to its senses: the next sender is its.
            sender = RawWebSocket(node.connect_url(), token=node.token())
            await sender.connect()
            offers = [await listener.offer() for _ in range(4)]
            async with RawWebSocket(offers[-1]["address"]):
                await sender.upgraded()
            sender.abort()


async def test_sender_that_waits_is_offered_to_the_next_listener_when_the_first_is_lost() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        first = await stack.enter_async_context(RawWebSocket(node.listen_url(), token=node.token()))
        await listen_in_order(node, stack, "second")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(who_answers(node.client()))
            await first.offer()
            assert node.counts()["waiting_senders"] == 1
            first.abort()
        assert waiting.result() == "second"


async def test_sender_that_waits_gets_502_when_the_only_listener_is_lost() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        async with asyncio.TaskGroup() as tasks:
            refused = tasks.create_task(refusal(node.connect_url(), token=node.token()))
            await listener.offer()
            listener.abort()
        assert refused.result().status == 502 and refused.result().phrase.startswith("ConnectionLost: ")


# --- other policies


async def test_round_robin_gives_each_listener_its_turn() -> None:
    async with quiet_node(listener_policy="round-robin") as node, AsyncExitStack() as stack:
        listeners = await listen_in_order(node, stack, "a", "b", "c")
        assert [await who_answers(node.client()) for _ in range(9)] == ["a", "b", "c"] * 3
        await listeners[1].close()
        answers = [await who_answers(node.client()) for _ in range(6)]
        assert answers in (["a", "c"] * 3, ["c", "a"] * 3)


@pytest.mark.parametrize("options", [{"listener_policy": "balanced"}, {"preset": "azure"}], ids=["set", "azure"])
async def test_balanced_gives_each_sender_to_the_least_busy_listener(options: dict[str, str]) -> None:
    async with quiet_node(**options) as node, AsyncExitStack() as stack:
        await listen_in_order(node, stack, "a", "b")
        answers = []
        for _ in range(20):
            connection = await stack.enter_async_context(await node.client().create_connection())
            answers.append(await connection.recv())
        assert answers.count("a") == answers.count("b") == 10


async def test_balanced_reaches_both_listeners_also_with_one_sender_after_the_other() -> None:
    async with quiet_node(listener_policy="balanced") as node, AsyncExitStack() as stack:
        await listen_in_order(node, stack, "a", "b")
        # Chance decides between two that are equally idle: all 60 to the same one is no chance.
        assert {await who_answers(node.client()) for _ in range(60)} == {"a", "b"}


# --- the sender chooses


async def test_sender_names_the_listeners_that_it_allows() -> None:
    async with quiet_node() as node, AsyncExitStack() as stack:
        first, second, third = await listen_in_order(node, stack, "first", "second", "third")
        client = node.client()

        async def answer_to(name: str, *ids: str) -> str | bytes:
            return await who_answers(client, headers={f"Microsoft-Relay-{name}": ", ".join(ids)})

        assert await answer_to("AllowedListeners", third.tracking_id.upper()) == "third"
        assert await answer_to("AllowedListeners", third.tracking_id, second.tracking_id) == "second"
        assert await answer_to("DisallowedListeners", first.tracking_id) == "second"
        assert await answer_to("DisallowedListeners", first.tracking_id, second.tracking_id) == "third"
        everybody = ",".join(each.tracking_id for each in (first, second, third))
        for headers in (
            [("Microsoft-Relay-DisallowedListeners", everybody)],
            [("Microsoft-Relay-AllowedListeners", "00000000-0000-0000-0000-000000000000")],
        ):
            refused = await refusal(node.connect_url(), token=node.token(), headers=headers)
            assert refused.status == 404
            assert refused.phrase.startswith(
                "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
            )
