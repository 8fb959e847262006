"""Web servers behind a listener behind a real node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from expose.fake_request import Watching
from trunkline.expose import Exposure, HeaderRules, Target
from trunkline.testing import RelayNode, relay_node


@asynccontextmanager
async def application(app: Any, **config: Any) -> AsyncIterator[Target]:
    """An ASGI application on a free port."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", loop="none", timeout_graceful_shutdown=1, **config
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    started = asyncio.Event()
    startup = server.startup

    async def tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server._serve())
        try:
            await started.wait()
            yield Target("http", "127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def exposed(
    target: Target, *, node: RelayNode | None = None, **rules: Any
) -> AsyncIterator[tuple[RelayNode, Watching]]:
    """A target behind a node of its own, whose first hybrid connection it is."""
    watching = Watching()
    node = node or relay_node("myHC")
    rules = {"scheme": "https" if node.tls else "http", **rules}
    async with (
        node as relay,
        Exposure(HeaderRules(target, **rules), watching, entity=relay.entity) as exposure,
        relay.listener(**exposure.handlers) as listener,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(listener.serve(exposure.serve))
        try:
            yield relay, watching
        finally:
            await listener.close(wait=5)
