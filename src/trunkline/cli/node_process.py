"""A node as a process: started, reloaded and stopped by signals.

SIGTERM, SIGINT    drain, then stop; the second one stops at once
SIGHUP             read the declarative file and the certificate files again
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from trunkline.cli.event_loop import on_signal
from trunkline.protocol.errors import RelayError
from trunkline.server.config.declarative import Declaration
from trunkline.server.config.settings import NodeSettings
from trunkline.server.node import Node

log = logging.getLogger("trunkline.node")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show what the node does on stderr, one line for each event."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    # What the SDK does for a demonstration is told by the demonstration.
    logging.getLogger("trunkline.sdk").setLevel(logging.WARNING)


class NodeProcess:
    """One node and the signals that rule it.

    Args:
        settings, declaration: of the node.
        reread: reads the declarative file again; None when there is none.
    """

    def __init__(
        self,
        settings: NodeSettings,
        declaration: Declaration | None,
        *,
        reread: Callable[[], Declaration] | None = None,
    ) -> None:
        self._settings = settings
        self._declaration = declaration
        self._reread = reread
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self, while_ready: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
        """Run the node until a signal ends it.

        Args:
            while_ready: runs beside the node from the moment it is ready; when it returns nothing happens, when it
                raises the node stops.
        """
        asyncio.get_running_loop().set_exception_handler(_tell_failed_handshakes_in_a_line)
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, self.stop)
        if hasattr(signal, "SIGHUP"):
            on_signal(signal.SIGHUP, self._reload.set)
        async with Node(self._settings, self._declaration) as node:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(while_ready(node)), group.create_task(self._keep_reloading(node))]
                await self._stop.wait()
                for task in beside:
                    task.cancel()
            await _first_of(node.drain(), self._stop_at_once.wait())
            if self._stop_at_once.is_set():
                node.hurry()

    def stop(self) -> None:
        """Drain and stop; called again, stop at once."""
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    async def _keep_reloading(self, node: Node) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                await node.reload(None if self._reread is None else self._reread())
            except RelayError as error:
                log.error("not reloaded, the node goes on as it was: %s", error)
            else:
                log.info("reloaded")


def _tell_failed_handshakes_in_a_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Port probes and clients that do not trust the certificate are everyday life, and no errors of the node."""
    if "handshake" in str(context.get("message", "")).lower():
        log.info("a TLS handshake failed: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)


async def _first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all of them until one has ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
