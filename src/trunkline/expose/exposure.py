"""A target with all that stands between it and a listener; `trunkline expose` is this and a terminal."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trunkline.expose.forwarder import Forwarder
from trunkline.expose.headers import HeaderRules
from trunkline.expose.health import Health, dial
from trunkline.expose.pool import CONNECT_TIMEOUT, RESPONSE_TIMEOUT, Pool
from trunkline.expose.report import Watcher
from trunkline.expose.upgrades import Upgrades

if TYPE_CHECKING:
    from trunkline.sdk import Connection


class Exposure:
    """Exposes a target through a listener, which the caller opens and closes:

        async with (
            Exposure(rules, watcher, entity="myHC") as exposure,
            HybridConnectionListener(connection_string, **exposure.handlers) as listener,
        ):
            await listener.serve(exposure.serve)

    Args:
        rules: of the headers; they name the target.
        watcher: told what happens.
        entity: path of the hybrid connection.
        tls: as `target.tls_settings` gives it.
        connect_timeout: seconds for one attempt to connect to the target.
        response_timeout: seconds from the end of a request to the head of its answer.
    """

    def __init__(
        self,
        rules: HeaderRules,
        watcher: Watcher,
        *,
        entity: str,
        tls: ssl.SSLContext | bool = True,
        connect_timeout: float = CONNECT_TIMEOUT,
        response_timeout: float = RESPONSE_TIMEOUT,
    ) -> None:
        self.health = Health(lambda: dial(rules.target, connect_timeout), watcher.target_changed)
        self._pool = Pool(
            rules.target, self.health, tls=tls, connect_timeout=connect_timeout, response_timeout=response_timeout
        )
        self._forwarder = Forwarder(self._pool, rules, watcher)
        self._upgrades = Upgrades(self._pool, rules, entity, watcher)
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Exposure {self._pool.target} {self.health!r} in_flight={self.in_flight}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._pool)
            stack.push_async_callback(self._upgrades.close)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            watching = group.create_task(self.health.watch())
            stack.callback(watching.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    @property
    def handlers(self) -> dict[str, Any]:
        """Arguments of the listener."""
        return {"http_handler": self._forwarder.handle, "accept_handler": self._upgrades.accept}

    @property
    def in_flight(self) -> int:
        """Requests whose answer is not complete."""
        return self._forwarder.in_flight

    async def serve(self, connection: Connection) -> None:
        """The handler of the listener's connections."""
        await self._upgrades.serve(connection)
