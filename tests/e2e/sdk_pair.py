"""Both ends of a connection in one task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from trunkline.sdk import Connection, HybridConnectionClient, HybridConnectionListener
from trunkline.testing import RelayNode


class SdkPair(NamedTuple):
    sender: Connection
    listener: Connection


@asynccontextmanager
async def sdk_pair(
    node: RelayNode,
    *,
    client: HybridConnectionClient | None = None,
    listener: HybridConnectionListener | None = None,
) -> AsyncIterator[SdkPair]:
    """One connection of our SDK, from `client` to `listener`; those not given are made and ended with it.

    At the end both ends close, at the same moment: one that closed alone would wait for the other.
    """
    async with listener or node.listener() as listening:
        sender = await (client or node.client()).create_connection()
        async with asyncio.timeout(10):
            accepted = await listening.accept()
        try:
            yield SdkPair(sender, accepted)
        finally:
            await asyncio.gather(sender.close(), accepted.close())
