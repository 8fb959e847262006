"""A node as a process: started, reloaded and stopped by signals.

SIGTERM, SIGINT    drain, then stop; the second one stops at once
SIGHUP             take over the settings, the declarative file and the certificate files as they are now; where there
                   is nothing to read, stop
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TextIO

from trunkline.cli.event_loop import on_signal
from trunkline.cli.failure import harmless, usage
from trunkline.cli.log_stream import LogStream, patient
from trunkline.cli.systemd import ServiceManager
from trunkline.protocol.errors import InvalidSetting, RelayError
from trunkline.server import logs
from trunkline.server.config.declarative import Declaration
from trunkline.server.config.settings import NodeSettings
from trunkline.server.node import HandedSockets, Node
from trunkline.server.relay.sockets import raise_descriptor_limit
from trunkline.server.spare_memory import keep_large_blocks_apart

log = logging.getLogger("trunkline.node")

# Lines of the same error of the event loop in a second.
LOOP_ERRORS_TOLD = 10

# Files and sockets below which a node is told to be short of them: a relayed connection takes two.
FEW_DESCRIPTORS = 8_192

# Seconds that a node takes at most to stop once it has drained.
TIME_TO_STOP = 15.0


class _Stderr(logging.StreamHandler[TextIO]):
    """The handler of `log_to_stderr`, told from those that others have set up."""

    def close(self) -> None:
        if isinstance(self.stream, LogStream):
            self.stream.finish()
        super().close()


def log_to_stderr(settings: NodeSettings) -> None:
    """Show what the node does on stderr, one line for each event; called again when the settings have changed."""
    # Nothing happens where somebody else has set logging up.
    if not logging.root.handlers:
        logging.basicConfig(level=logging.WARNING, handlers=[_Stderr(patient(sys.stderr, _tell_lost))])
    handler = _own_handler()
    if handler is not None:
        handler.setFormatter(logs.formatter(settings.log_format, handler.stream))
    logs.set_level(settings.log_level)
    # What the SDK does for a demonstration is told by the demonstration.
    logging.getLogger("trunkline.sdk").setLevel(logging.WARNING)


def tell_ready(text: str, settings: NodeSettings) -> None:
    """Tell whoever started the node that it is ready: a line of its own, or one of the log where that is JSON."""
    handler = _own_handler()
    stream = sys.stderr if handler is None else handler.stream
    if isinstance(logs.formatter(settings.log_format, stream), logs.JsonFormatter):
        log.info("%s", text)
    else:
        stream.write(f"{text}\n")
        stream.flush()


def _own_handler() -> _Stderr | None:
    return next((each for each in logging.root.handlers if isinstance(each, _Stderr)), None)


def _tell_lost(count: int) -> None:
    log.warning("%d lines of the log were lost: standard error took no more", count)


def open_all_descriptors() -> None:
    """Take all the files and sockets that the system gives this process, and say when they are few."""
    limit = raise_descriptor_limit()
    if limit < FEW_DESCRIPTORS:
        log.warning(
            "the system lets this process open only %d files and sockets, and a relayed connection takes two:"
            " raise its hard limit (ulimit -Hn, or LimitNOFILE= in a unit of systemd)",
            limit,
        )


class NodeProcess:
    """One node and the signals that rule it.

    Args:
        settings, declaration: of the node.
        sockets: that the process was handed, see `Node`.
        manager: who started the process, to be told how it is; None: nobody.
        reread: reads again what the node is made of: its declarative file, None when there is none, and its settings.
            None: the node is not reloaded, and a terminal that is closed (SIGHUP) ends it.
    """

    def __init__(
        self,
        settings: NodeSettings,
        declaration: Declaration | None,
        *,
        sockets: HandedSockets | None = None,
        manager: ServiceManager | None = None,
        reread: Callable[[], tuple[Declaration | None, NodeSettings]] | None = None,
    ) -> None:
        self._settings = settings
        self._declaration = declaration
        self._sockets = sockets
        self._manager = manager or ServiceManager({}, 0)
        self._reread = reread
        self._stop = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._reload = asyncio.Event()
        #: The first signal that asked for the end; None: none did.
        self.ended_by: int | None = None

    async def run(self, while_ready: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
        """Run the node until a signal ends it.

        Args:
            while_ready: runs beside the node from the moment it is ready; when it returns nothing happens, when it
                raises the node stops.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, partial(self.stop, number))
        if self._reread is not None and hasattr(signal, "SIGHUP"):
            on_signal(signal.SIGHUP, self._reload.set)
        # nohup has it ignored, and so it stays.
        elif hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            on_signal(signal.SIGHUP, partial(self.stop, signal.SIGHUP))
        asyncio.get_running_loop().set_exception_handler(LoopErrors())
        open_all_descriptors()
        keep_large_blocks_apart()
        # The service manager hears that the loop turns also while the node drains and stops.
        alive = asyncio.get_running_loop().create_task(self._manager.keep_alive())
        try:
            await self._run(while_ready)
        finally:
            alive.cancel()

    async def _run(self, while_ready: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
        async with _started(Node(self._settings, self._declaration, sockets=self._sockets)) as node:
            self._manager.ready(f"ready on {node.url}")
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(while_ready(node)), group.create_task(self._keep_reloading(node))]
                await self._stop.wait()
                for task in beside:
                    task.cancel()
            self._manager.stopping(within=node.drain_timeout + TIME_TO_STOP)
            await _first_of(node.drain(), self._stop_at_once.wait())
            if self._stop_at_once.is_set():
                node.hurry()

    def stop(self, number: int | None = None) -> None:
        """Drain and stop; called again, stop at once. `number` is the signal that asked for it."""
        self.ended_by = self.ended_by or number
        if self._stop.is_set():
            self._stop_at_once.set()
        self._stop.set()

    async def _keep_reloading(self, node: Node) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            assert self._reread is not None
            self._manager.reloading()
            before = node.settings
            try:
                waiting = await node.reload(*self._reread())
            except (RelayError, OSError) as error:
                log.error("not reloaded, the node goes on as it was: %s", error)
                self._manager.ready(f"ready on {node.url}, and not reloaded: {error}")
                continue
            if (before.log_format, before.log_level) != (node.settings.log_format, node.settings.log_level):
                # Only then: an operator may have changed a level while the node ran.
                log_to_stderr(node.settings)
            self._manager.ready(f"ready on {node.url}")
            log.info("reloaded")
            if waiting:
                log.warning("this waits for a restart: %s", ", ".join(waiting))


@asynccontextmanager
async def _started(node: Node) -> AsyncIterator[Node]:
    """The node, started and stopped; where it cannot listen, the remedy names the options."""
    try:
        await node.start()
    except InvalidSetting as error:
        await node.stop()
        what, _, remedy = error.message.partition(". ")
        remedy = re.sub(r"([Ss]et (?:another )?)(admin_)?(host|port|socket)\b", _as_option, remedy)
        raise usage(what, remedy) from error
    except BaseException:
        await node.stop()
        raise
    try:
        yield node
    finally:
        await node.stop()


def _as_option(setting: re.Match[str]) -> str:
    return f"{setting[1]}{'--admin-' if setting[2] else '--'}{setting[3]}"


class LoopErrors:
    """The exception handler of the loop: one line for a peer that misbehaves, such as one that speaks no TLS; a
    traceback for what is our fault. A flood of the same is told in part, and counted in whole.
    """

    def __init__(self) -> None:
        self._throttle = logs.Throttle(LOOP_ERRORS_TOLD, time.monotonic)
        # Whether somebody will look at what was left out.
        self._is_awaited = False

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """As the loop calls its exception handler."""
        error = context.get("exception")
        what = str(context.get("message", "")).partition("\n")[0]
        if not self._throttle.lets(what):
            if not self._is_awaited:
                self._is_awaited = True
                loop.call_later(1.1, self._tell_left_out)
            return
        if isinstance(error, OSError):
            log.info("%s: %s", what, harmless(str(error)))
        elif isinstance(error, BaseException):
            log.error("%s", what, exc_info=error)
        else:  # aiofastnet 1.2 gives no exception, but something else, for a handshake of TLS that failed
            log.info("%s", what)

    def _tell_left_out(self) -> None:
        self._is_awaited = False
        seconds, left_out = self._throttle.left_out()
        for what, count in left_out.items():
            log.info("and %s more in %.1f s: %s", f"{count:,}", seconds, what)


async def _first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all of them until one has ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
