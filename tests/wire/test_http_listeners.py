"""The control channel of hyco-https: renewal, restarts on either side, several listeners, drains, WebSocket senders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import http_cases
from http_cases import Relay
from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import NodeScript
from wire.test_http import hyco_https

pytestmark = pytest.mark.loop("uvloop")

Start = Callable[..., NodeScript]


async def count(listener: NodeScript) -> int:
    """Requests that reached this listener."""
    listener.tell("count")
    return int((await listener.expect("count"))["count"])


@pytest.mark.slow  # tokens last whole seconds
async def test_hyco_https_renews_its_token_and_keeps_its_control_channel(node_script: Start) -> None:
    async with relay_node(tls=True, token_grace=0) as node:
        token = Addresses(node.connection_string()).token_options(seconds=3)
        async with hyco_https(node_script, node, token=token, renewEvery=1000) as (listener, relay):
            for _ in range(6):  # two lives of a token
                await listener.expect("token")
            await relay.once()
            assert not listener.said("lost")


async def test_hyco_https_that_renews_with_a_wrong_token_is_closed_with_1008_and_comes_back(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (listener, relay):
        listener.tell("renew", token="nonsense")
        lost = await listener.expect("lost")
        assert lost["code"] == 1008 and "TrackingId:" in lost["reason"]
        await listener.expect("listening")
        await relay.once()


@pytest.mark.parametrize("abrupt", [False, True], ids=["in order", "like a crash"])
async def test_hyco_https_comes_back_after_the_node_was_restarted(node_script: Start, abrupt: bool) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (listener, relay):
        await relay.once()
        await node.restart(abrupt=abrupt)
        await listener.expect("lost")
        await listener.expect("listening")
        await relay.once()
        assert node.listener_count() == 1


async def test_hyco_https_restarted_by_its_user_serves_the_next_request(node_script: Start) -> None:
    async with relay_node(tls=True) as node:
        async with hyco_https(node_script, node) as (listener, relay):
            await relay.once()
            listener.tell("stop")
            await listener.expect("stopped")
        async with relay.connect() as sender:
            relay.ask(sender)
            answer = await sender.answer()
            assert answer.status == 504 and not answer.all("via")
        async with hyco_https(node_script, node) as (_, relay):
            await relay.once()


async def test_two_hyco_https_listeners_share_the_requests_when_balanced(node_script: Start) -> None:
    async with (
        relay_node(tls=True, listener_policy="balanced") as node,
        hyco_https(node_script, node) as (first, relay),
        hyco_https(node_script, node) as (second, _),
    ):
        for _ in range(50):
            await relay.once()
        counts = await count(first), await count(second)
        assert sum(counts) == 50 and min(counts) > 0


async def test_second_hyco_https_serves_when_the_active_one_is_killed(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (first, relay):
        async with hyco_https(node_script, node) as (second, _):
            for _ in range(5):
                await relay.once()
            assert (await count(first), await count(second)) == (5, 0)
            # What the first one owes is answered with 502: it may have begun to work on it.
            async with relay.connect() as sender:
                arrived, never = http_cases.gate(), http_cases.gate()
                relay.ask(sender, {"before": [["open", arrived], ["wait", never]]})
                await relay.wait(arrived)
                first.kill()
                answer = await sender.answer()
                assert answer.status == 502 and not answer.all("via")
                relay.ask(sender)
                assert (await sender.answer()).status == 200
            assert await count(second) == 1


async def test_node_that_drains_lets_hyco_https_finish_what_is_in_flight(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (listener, relay):
        arrived, go, large = http_cases.gate(), http_cases.gate(), http_cases.gate()
        async with relay.connect() as small, relay.connect() as streamed, asyncio.TaskGroup() as tasks:
            relay.ask(small, {"before": [["open", arrived], ["wait", go]], "body": [["text", "done"]]})
            await relay.wait(arrived)
            relay.ask(streamed, {"body": [["bytes", 100_000, "a"], ["wait", large], ["text", "done"]]})
            assert (await streamed.head()).status == 200
            draining = tasks.create_task(node.drain())
            await asyncio.sleep(0)
            assert not draining.done()
            listener.tell("open", gate=go)
            assert (await small.answer()).body == b"done"
            assert not draining.done()
            listener.tell("open", gate=large)
            got = b""
            while piece := await streamed.piece():
                got += piece
            assert len(got) == 100_004 and got.endswith(b"done")
            async with asyncio.timeout(5):
                await draining


async def test_websocket_sender_does_not_kill_hyco_https_where_only_http_is_accepted(node_script: Start) -> None:
    # hyco-https dies of an `accept`: "Extensions is not defined".
    async with relay_node({"test": {"accepts": ["http"]}}, tls=True) as node:
        async with (
            hyco_https(node_script, node) as (listener, relay),
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            at = Addresses(node.connection_string())
            sender.tell("open", n=1, url=at.connect_url, token=at.token(), protocols=["a"])
            rejected = await sender.expect("rejected", n=1)
            assert rejected["status"] == 400 and "takes plain HTTP requests only" in rejected["phrase"]
            await relay.once()
            assert not listener.said("lost")


async def test_plain_request_does_not_reach_hyco_ws_where_only_websockets_are_accepted(node_script: Start) -> None:
    # hyco-ws ignores a `request`, and dies of the body behind it, which it reads as JSON.
    async with relay_node({"test": {"accepts": ["websocket"]}}, tls=True) as node:
        at = Addresses(node.connection_string())
        relay = Relay.of(node)
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            async with relay.connect() as plain:
                relay.ask(plain, None, "POST", body=b"a body")
                answer = await plain.answer()
                assert answer.status == 400 and not answer.all("via")
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)


async def test_hyco_https_and_hyco_ws_listen_beside_each_other(node_script: Start) -> None:
    kinds = {"http": {"accepts": ["http"]}, "websocket": {"accepts": ["websocket"]}}
    async with relay_node(kinds, tls=True) as node:
        at = Addresses(node.connection_string("websocket"))
        async with (
            hyco_https(node_script, node) as (_, relay),
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            await relay.once()
            sender.tell("open", n=1, url=at.connect_url, token=at.token())
            await sender.expect("opened", n=1)
            sender.tell("send", n=1, kind="text", size=100, seed="beside")
            sent = await sender.expect("sent", n=1)
            assert (await sender.expect("message", n=1))["sha256"] == sent["sha256"]
            await relay.once()
