"""A restart of the node under hyco-ws, which tries again at once, for ever, and in two places after each refusal.

Seen in the real client: after an outage of 300 ms one listener came back with 1,024 control channels. The node
registers what fits, parks the rest, and never refuses what would come back twice (see `listeners`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from trunkline.testing import relay_node
from wire.addresses import Addresses
from wire.node_script import NodeScript

pytestmark = pytest.mark.loop("uvloop")


async def count_sockets(listener: NodeScript) -> int:
    listener.tell("sockets")
    return int((await listener.expect("sockets"))["count"])


@pytest.mark.slow  # it waits for a client that backs off
async def test_one_hyco_listener_calms_down_after_the_node_was_restarted(
    node_script: Callable[..., NodeScript],
) -> None:
    async with relay_node(tls=True) as node:
        at = Addresses(node.connection_string())
        async with (
            node_script("listener", ca_file=node.ca_file, url=at.listen_url, token=at.token_options()) as listener,
            node_script("sender", ca_file=node.ca_file) as sender,
        ):
            await listener.expect("listening")
            await node.stop()
            await listener.expect("lost")
            await asyncio.sleep(0.3)  # an outage: connections are refused meanwhile
            await node.start()
            await listener.expect("listening")
            # Senders are served at once, not when the storm is over.
            for n in range(1, 6):
                sender.tell("open", n=n, url=at.connect_url, token=at.token())
                await sender.expect("opened", n=n)
                sender.tell("send", n=n, kind="binary", size=10_000, seed=f"{n}")
                sent = await sender.expect("sent", n=n)
                assert (await sender.expect("message", n=n))["sha256"] == sent["sha256"]
            await asyncio.sleep(10)
            after_ten_seconds = await count_sockets(listener)
            await asyncio.sleep(3)
            assert await count_sockets(listener) <= after_ten_seconds
            assert 1 <= node.listener_count() <= 25
            assert node.counts()["parked_listeners"] <= 64  # of one client; the rest waits without an answer
