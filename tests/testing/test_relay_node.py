"""The node that tests run: in the event loop of the test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trunkline import HybridConnectionListener
from trunkline.protocol.errors import AccessDenied, EndpointAlreadyExists, EndpointNotFound, InvalidSetting, NoListener
from trunkline.testing import RelayNode, relay_node


async def exchange(node: RelayNode, entity: str | None = None) -> None:
    async with node.listener(entity) as listener:
        sender = await node.client(entity).create_connection()
        accepted = await listener.accept()
        await sender.send("hello")
        assert await accepted.recv() == "hello"
        await asyncio.gather(sender.close(), accepted.close())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_three_lines_are_enough(tls: bool) -> None:
    async with relay_node(tls=tls) as node:
        await exchange(node)
        folder = node.ca_file.parent if node.ca_file else None
    assert folder is None or not folder.exists()


async def test_restart_keeps_port_entities_and_keys() -> None:
    async with relay_node(tls=True) as node:
        await node.add_hybrid_connection("added")
        before = (node.port, node.admin_url, node.connection_string("added"))
        for abrupt in (False, True):
            await node.restart(abrupt=abrupt)
            assert (node.port, node.admin_url, node.connection_string("added")) == before
            await exchange(node, "added")


async def test_entities_change_at_once() -> None:
    async with relay_node() as node:
        await node.add_hybrid_connection("a", max_senders=1, rules={"sender": ["Send"]})
        assert "SharedAccessKeyName=sender" in node.connection_string("a", rights=["Send"])
        await exchange(node, "a")
        with pytest.raises(EndpointAlreadyExists):
            await node.add_hybrid_connection("A")
        await node.change_hybrid_connection("a", enabled=False)
        with pytest.raises(InvalidSetting, match="add_rule"):
            await node.change_hybrid_connection("a", rules={})
        assert await node.remove_hybrid_connection("a")
        assert not await node.remove_hybrid_connection("a")
        with pytest.raises(EndpointNotFound):
            await node.client("a").create_connection()


async def test_rules_change_at_once() -> None:
    async with relay_node() as node:
        await node.add_rule("extra", ["Listen"], entity=None)
        assert "SharedAccessKeyName=extra" in node.connection_string(rule="extra")
        await node.add_rule("send", ["Listen"])
        with pytest.raises(InvalidSetting, match="No rule for test is like that; there are: extra"):
            node.connection_string(rights=["Send"])
        await node.remove_rule("extra", entity=None)
        with pytest.raises(InvalidSetting):
            node.token(rule="extra")


async def test_wait_until_counts_are_as_wanted() -> None:
    async with relay_node() as node:
        async with node.listener():
            assert node.listener_count() == 1
            assert (await node.until(lambda now: now["listeners"] == 1))["control_channels"] == 1
            with pytest.raises(TimeoutError, match="'listeners': 1"):
                await node.until(lambda now: now["listeners"] == 2, timeout=0.01)
        await node.until(lambda now: now["listeners"] == 0)
        with pytest.raises(NoListener):
            await node.client().create_connection()


async def test_node_that_was_not_started_says_so() -> None:
    node = relay_node()
    assert "not started" in repr(node)
    for look in (lambda: node.node, lambda: node.port, lambda: node.connection_string()):
        with pytest.raises(RuntimeError, match="not started"):
            look()


@pytest.mark.parametrize("limits", [{"idle_timeout": "soon"}, {"max_sender": 1}])
def test_wrong_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(limits))):
        relay_node(**limits)


async def test_rights_are_those_of_the_rule() -> None:
    async with relay_node() as node:
        with pytest.raises(AccessDenied):
            await HybridConnectionListener(node.connection_string(rights=["Send"]), ssl=False).open(5)
