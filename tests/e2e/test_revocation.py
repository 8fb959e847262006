"""What is deleted, disabled or revoked while it is in use ends at once."""

from __future__ import annotations

import pytest

from e2e.echo_listener import echo_listener, who_answers
from e2e.quiet_node import quiet_node
from e2e.raw_websocket import BINARY, CLOSE, RawWebSocket, raw_pair, refusal
from e2e.sdk_pair import sdk_pair
from trunkline.protocol.errors import EndpointNotFound
from trunkline.sdk import ListenerState

pytestmark = pytest.mark.loop("uvloop")


# --- entities


async def test_deleted_entity_closes_everything_with_1001_and_is_404_from_then_on() -> None:
    async with quiet_node(["orders", "parts"]) as node, raw_pair(node) as pair:
        token = node.token()
        async with RawWebSocket(node.listen_url("parts"), token=node.token("parts")):
            await node.remove_hybrid_connection("orders")
            for end in (pair.control, pair.sender, pair.listener):
                frame = await end.receive()
                assert frame.close_code == 1001 and frame.close_reason.startswith("Endpoint does not exist")
                assert "TrackingId:" in frame.close_reason
            for url in (node.listen_url(), node.connect_url()):
                refused = await refusal(url, token=token)
                assert refused.status == 404 and refused.phrase.startswith("Endpoint does not exist")
            # The neighbour noticed nothing.
            await node.until(lambda counts: counts["connections"] == 0)
            assert node.listener_count("parts") == 1


async def test_listener_of_the_sdk_goes_offline_for_good_when_its_entity_is_deleted() -> None:
    async with quiet_node() as node, node.listener() as listener:
        await node.remove_hybrid_connection("test")
        with pytest.raises(EndpointNotFound):
            await listener.accept()
        assert listener.state is ListenerState.OFFLINE


async def test_sender_that_waits_gets_404_when_the_entity_is_deleted() -> None:
    async with quiet_node() as node, RawWebSocket(node.listen_url(), token=node.token()) as listener:
        sender = RawWebSocket(node.connect_url(), token=node.token())
        await sender.connect()
        address = (await listener.offer())["address"]
        await node.remove_hybrid_connection("test")
        with pytest.raises(Exception, match="404 Endpoint does not exist"):
            await sender.upgraded()
        sender.abort()
        assert (await refusal(address)).status == 403


async def test_entity_that_comes_back_is_served_again() -> None:
    async with quiet_node() as node:
        async with raw_pair(node) as pair:
            await node.remove_hybrid_connection("test")
            assert (await pair.control.receive()).close_code == 1001
        await node.add_hybrid_connection("test")
        async with echo_listener(node):
            assert await who_answers(node.client()) == "listener"


async def test_disabled_entity_is_closed_with_1001_and_refused_with_403_until_it_is_enabled() -> None:
    async with quiet_node() as node:
        async with raw_pair(node) as pair:
            await node.change_hybrid_connection("test", enabled=False)
            for end in (pair.control, pair.sender, pair.listener):
                assert (await end.receive()).close_code == 1001
            for url in (node.listen_url(), node.connect_url()):
                assert (await refusal(url, token=node.token())).status == 403
        await node.change_hybrid_connection("test", enabled=True)
        async with echo_listener(node):
            assert await who_answers(node.client()) == "listener"


async def test_changed_limit_holds_from_then_on() -> None:
    async with quiet_node(max_senders=1) as node, raw_pair(node) as pair:
        assert (await refusal(node.connect_url(), token=node.token())).status == 429
        await node.change_hybrid_connection("test", max_senders=2)
        second = RawWebSocket(node.connect_url(), token=node.token())
        await second.connect()
        async with RawWebSocket((await pair.control.offer())["address"]):
            await second.upgraded()
            await pair.sender.send(BINARY, b"not disturbed")
            assert (await pair.listener.receive()).payload == b"not disturbed"
        second.abort()


# --- rules and keys


@pytest.mark.parametrize("change", ["rule removed", "key changed", "right taken"])
async def test_listener_whose_right_is_gone_is_closed_with_1008_and_lost(change: str) -> None:
    async with quiet_node() as node:
        control = RawWebSocket(node.listen_url(), token=node.token(rule="listen"))
        async with raw_pair(node, control=control) as pair:
            if change == "rule removed":
                await node.remove_rule("listen")
            else:
                await node.add_rule("listen", ["Listen"] if change == "key changed" else ["Send"])
            frame = await pair.control.receive()
            assert frame.close_code == 1008 and "TrackingId:" in frame.close_reason
            await pair.sender.ended()
            await pair.listener.ended()


async def test_listener_whose_key_is_gone_leaves_its_connections_alone_under_azure() -> None:
    async with quiet_node(preset="azure") as node:
        control = RawWebSocket(node.listen_url(), token=node.token(rule="listen"))
        async with raw_pair(node, control=control) as pair:
            await node.remove_rule("listen")
            assert (await pair.control.receive()).close_code == 1008
            await pair.sender.send(BINARY, b"still here")
            assert (await pair.listener.receive()).payload == b"still here"


async def test_sender_whose_key_is_gone_is_closed_with_1008_and_the_listener_stays() -> None:
    async with quiet_node() as node:
        sender = RawWebSocket(node.connect_url(), token=node.token(rule="send"))
        async with raw_pair(node, sender=sender) as pair:
            await node.remove_rule("send")
            for end in (pair.sender, pair.listener):
                frame = await end.receive()
                assert frame.opcode == CLOSE and frame.close_code == 1008
            assert node.listener_count() == 1
            refused = await refusal(node.connect_url(), token=node.token().replace("skn=Root", "skn=send"))
            assert refused.status == 401


async def test_rule_of_the_entity_is_revoked_as_one_of_the_namespace() -> None:
    async with quiet_node({"orders": {"rules": {"both": ["Listen", "Send"]}}}) as node:
        control = RawWebSocket(node.listen_url(), token=node.token(rule="both"))
        async with raw_pair(node, control=control) as pair:
            await node.remove_rule("both", entity="orders")
            assert (await pair.control.receive()).close_code == 1008
            await pair.sender.ended()


async def test_rule_that_nobody_used_ends_nothing() -> None:
    async with quiet_node() as node, sdk_pair(node) as pair:
        await node.remove_rule("listen")
        await node.remove_rule("send")
        await node.add_rule("another", ["Listen"])
        await pair.sender.send("still here")
        assert await pair.listener.recv() == "still here"
