"""A real relay node inside your tests: nothing is faked, everything is gone afterwards.

    async def test_orders_arrive() -> None:
        async with relay_node() as node:
            async with node.listener() as listener, await node.client().create_connection() as sender: ...

    def test_orders_arrive_from_another_program() -> None:
        with relay_node_thread(tls=True) as node:
            subprocess.run(["node", "sender.js", node.connection_string(rights=["Send"])], check=True)

`relay_node` runs in the event loop of the test, `relay_node_thread` in a thread with a loop of its own, for tests
that have none, or that block theirs. Both take entities, rules and every limit as plain arguments, keep everything in
memory, and take a free port of 127.0.0.1. `trunkline.pytest_plugin` gives the second one as fixtures.

In the order of a call: `declared` turns arguments into what a file would declare, `address` holds what tests ask a
node for (connection strings, tokens, URLs), `relay_node` runs it, `thread` runs that in a thread.
"""

from trunkline.testing.relay_node import RelayNode, relay_node
from trunkline.testing.thread import RelayNodeThread, relay_node_thread

__all__ = ["RelayNode", "RelayNodeThread", "relay_node", "relay_node_thread"]
