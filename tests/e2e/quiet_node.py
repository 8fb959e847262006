"""The node of every scenario: it must hold nothing once the scenario is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from trunkline.testing import RelayNode, relay_node


@asynccontextmanager
async def quiet_node(*args: Any, **options: Any) -> AsyncIterator[RelayNode]:
    """`relay_node`, which fails at the end of the block unless every count is back at zero within a few seconds.

    Listeners, senders and connections belong into the block; what it leaves behind in the node is a leak.
    """
    async with relay_node(*args, **options) as node:
        yield node
        await node.until(lambda counts: not any(counts.values()))


def look_at_clock(node: RelayNode, *, ahead: float) -> None:
    """Let the node look at its clock as if it showed `ahead` seconds more than it does.

    Limits of minutes and hours are then seen to hold to the second, without waiting for them.
    """
    now = asyncio.get_running_loop().time() + ahead
    node.node.broker.tick(now)
    node.node.splicing.tick(now)
