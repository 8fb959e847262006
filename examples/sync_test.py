"""A relay in a plain test without an event loop and without a plugin: `pytest examples/sync_test.py`."""

import json
import urllib.request

from trunkline.testing import relay_node_thread


def test_relay_is_ready() -> None:
    with relay_node_thread("orders") as node:
        with urllib.request.urlopen(f"{node.admin_url}/readyz", timeout=10) as answer:
            assert json.load(answer)["listeners"] == 0


def test_hybrid_connection_comes_and_goes() -> None:
    with relay_node_thread() as node:
        node.add_hybrid_connection("bills", max_senders=1)
        assert node.remove_hybrid_connection("bills")
