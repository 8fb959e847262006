"""A listener that is registered with the stub of a relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sdk.relay_stub import Peer, RelayStub
from trunkline.sdk import HybridConnectionListener

RULE: dict[str, Any] = {"key_name": "listen", "key": "secret"}


def listener_at(relay: RelayStub, **settings: Any) -> HybridConnectionListener:
    credentials = {} if "token_provider" in settings else RULE
    return HybridConnectionListener(relay.address, **credentials, **settings)


@asynccontextmanager
async def online(relay: RelayStub, **settings: Any) -> AsyncIterator[tuple[HybridConnectionListener, Peer]]:
    """A registered listener and the relay's end of its control channel. The relay answers its Close."""
    listener = listener_at(relay, **settings)
    async with asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(listener.open())
        control = await relay.next()
        await control.upgrade()
        await opening
    try:
        yield listener, control
    finally:
        relay.abort_all()
        await listener.close()
        for connection in listener.connections:
            connection.abort()
            await connection.wait_closed()
