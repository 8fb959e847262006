"""The control channel of hyco-ws: restarts on either side, silence, renewal, and how connections end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from trunkline.cli.admin_client import Door
from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import NodeScript

pytestmark = pytest.mark.loop("uvloop")


async def exchange(sender: NodeScript, at: Addresses, n: int) -> None:
    """Opens connection n, sends one message, and gets it back."""
    sender.tell("open", n=n, url=at.connect_url, token=at.token())
    await sender.expect("opened", n=n)
    sender.tell("send", n=n, kind="text", size=100, seed=f"exchange {n}")
    sent = await sender.expect("sent", n=n)
    echo = await sender.expect("message", n=n)
    assert echo["sha256"] == sent["sha256"]


async def test_hyco_listener_restarts_and_the_next_sender_is_served(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            await exchange(sender, at, 1)
            listener.tell("restart")
            await listener.expect("stopped")
            await sender.expect("closed", n=1)
            await listener.expect("listening")
            await exchange(sender, at, 2)


async def test_second_hyco_listener_serves_at_once_when_the_first_one_is_killed(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        options = {"ca_file": node.ca_file, "url": at.listen_url, "token": at.token_options()}
        async with (
            node_script("listener", **options) as first,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await first.expect("listening")
            async with node_script("listener", **options) as second:
                await second.expect("listening")
                await exchange(sender, at, 1)
                await exchange(sender, at, 2)
                assert len(first.said("connection")) == 2 and not second.said("connection")
                first.kill()
                # Its data connections are cut with it: the node resets them, no Close frame pretends an end in order.
                assert (await sender.expect("closed", n=1))["code"] == 1006
                await exchange(sender, at, 3)
                assert len(second.said("connection")) == 1


async def test_hyco_listener_stays_through_silence_because_the_node_pings(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True, ping_interval=0.5, control_idle_timeout=1) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            await asyncio.sleep(3)  # three times the limit for a silent control channel
            assert not listener.said("lost") and not listener.said("error")
            await exchange(sender, at, 1)


@pytest.mark.slow  # tokens last whole seconds
async def test_hyco_listener_renews_its_token_and_keeps_its_control_channel(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True, token_grace=0) as node:
        at = Addresses(node.connection_string())
        token = at.token_options(seconds=3)
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=token, renewEvery=1_000) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            for _ in range(6):  # the token of the handshake ended three renewals ago
                await listener.expect("token")
            assert len(listener.said("listening")) == 1 and not listener.said("lost")
            await exchange(sender, at, 1)


async def test_hyco_listener_is_closed_with_1008_when_its_token_ends(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True, token_grace=0) as node:
        at = Addresses(node.connection_string())
        token = at.token(seconds=2)
        async with node_script(
            "listener", ca_file=node.ca_file, url=at.listen_url, token=token, keepTrying=False
        ) as listener:
            await listener.expect("listening")
            lost = await listener.expect("lost")
            assert lost["code"] == 1008 and "ExpiredToken" in lost["reason"] and "TrackingId:" in lost["reason"]
            # hyco-ws tries again with the same token, and is refused.
            assert "(401)" in (await listener.expect("error"))["message"]


async def test_hyco_listener_comes_back_when_an_operator_disconnects_it_and_its_connections_go_on(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        assert node.ca_file is not None
        admin = Door("the node", socket=node.ca_file.parent / "admin.sock")
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            await exchange(sender, at, 1)
            [there] = (await asyncio.to_thread(admin.ask, "GET", "listeners"))["listeners"]
            await asyncio.to_thread(admin.ask, "DELETE", "listeners", there["id"])
            lost = await listener.expect("lost")
            assert lost["code"] == 1008 and "An operator of the relay closed this" in lost["reason"]
            await listener.expect("listening")
            await exchange(sender, at, 2)
            first, second = (await asyncio.to_thread(admin.ask, "GET", "connections"))["connections"]
            assert first["listener"]["id"] == there["id"] != second["listener"]["id"]
            await asyncio.to_thread(admin.ask, "DELETE", "connections", first["id"])
            for end in (sender, listener):
                closed = await end.expect("closed", n=1)
                assert closed["code"] == 1008 and "An operator of the relay closed this" in closed["reason"]
            await exchange(sender, at, 3)


@pytest.mark.parametrize("wrong", ["nonsense", "another key"])
async def test_hyco_listener_is_closed_with_1008_when_it_renews_with_a_wrong_token(
    node_script: Callable[..., NodeScript], wrong: str
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with node_script(
            "listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()
        ) as listener:
            await listener.expect("listening")
            listener.tell("renew", token=wrong if wrong == "nonsense" else at.token(key=wrong))
            lost = await listener.expect("lost")
            assert lost["code"] == 1008 and "TrackingId:" in lost["reason"]
            await listener.expect("listening")  # it comes back with a good one


async def test_close_code_and_reason_of_hyco_reach_the_other_side(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            for n in (1, 2, 3):
                sender.tell("open", n=n, url=at.connect_url, token=at.token())
                await sender.expect("opened", n=n)
                await listener.expect("opened", n=n)
            sender.tell("close", n=1, code=4001, reason="the sender is done")
            closed = await listener.expect("closed", n=1)
            assert (closed["code"], closed["reason"]) == (4001, "the sender is done")
            listener.tell("close", n=2, code=3001, reason="the listener is done")
            closed = await sender.expect("closed", n=2)
            assert (closed["code"], closed["reason"]) == (3001, "the listener is done")
            # Cut without a Close frame: the other side must not take it for an end in order.
            listener.tell("terminate", n=3)
            assert (await sender.expect("closed", n=3))["code"] == 1006


async def test_hyco_sender_and_listener_agree_on_a_subprotocol(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url, token=at.token(), protocols=["mqtt", "amqp"])
            assert (await sender.expect("opened", n=1))["protocol"] == "mqtt"
            assert (await listener.expect("opened", n=1))["protocol"] == "mqtt"


async def test_hyco_sender_connects_as_a_browser_does_and_without_an_action(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            sender.tell("open", n=1, url=at.connect_url_with_token())
            await sender.expect("opened", n=1)
            sender.tell("open", n=2, url=f"{at.base}/a/suffix?city=K%C3%B6ln", token=at.token())
            await sender.expect("opened", n=2)
