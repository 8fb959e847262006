"""The same node in a thread, for tests without an event loop."""

from __future__ import annotations

import asyncio
import http.client
import threading

import pytest

from trunkline import HybridConnectionClient, HybridConnectionListener
from trunkline.protocol.errors import InvalidSetting
from trunkline.testing import relay_node_thread


def test_plain_test_uses_it_and_nothing_is_left() -> None:
    with relay_node_thread(["a", "b"], tls=True) as node:
        assert node.url == f"https://127.0.0.1:{node.port}"
        assert "EntityPath=a" in node.connection_string()
        assert node.counts()["listeners"] == node.listener_count("b") == 0
        assert "RelayNodeThread" in repr(node)
    assert not [thread for thread in threading.enumerate() if thread.name == "trunkline-node"]
    with pytest.raises(RuntimeError, match="not running"):
        node.counts()


def test_calls_wait_until_they_are_in_effect() -> None:
    with relay_node_thread() as node:
        node.add_hybrid_connection("added", max_senders=3)
        node.change_hybrid_connection("added", max_senders=4)
        node.add_rule("extra", ["Send"])
        assert "SharedAccessKeyName=extra;" in node.connection_string("added", rule="extra")
        node.remove_rule("extra")
        with pytest.raises(InvalidSetting):
            node.token(rule="extra")
        assert node.remove_hybrid_connection("added")
        port = node.port
        node.restart(abrupt=True)
        assert node.port == port
        node.stop()
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
        node.start()
        node.drain()
        assert node.until(lambda now: now["connections"] == 0)


def test_failed_start_is_raised_where_it_was_asked_for() -> None:
    with relay_node_thread() as first, pytest.raises(InvalidSetting, match="cannot listen"):
        with relay_node_thread(port=first.port):
            pass


async def test_loop_of_the_test_stays_free() -> None:
    with relay_node_thread() as node:
        text = node.connection_string()
        async with HybridConnectionListener(text, ssl=False) as listener:
            sender = await HybridConnectionClient(text, ssl=False).create_connection()
            accepted = await listener.accept()
            await asyncio.gather(sender.close(), accepted.close())
            await asyncio.to_thread(node.until, lambda now: now["connections"] == 0)
