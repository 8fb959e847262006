"""The life of an ASGI application (ASGI "Lifespan"): started before the listener registers, stopped after it has left.

start -> lifespan.startup  -> complete | failed | not supported
stop  -> lifespan.shutdown -> complete | failed
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from trunkline.sdk.asgi.scopes import Application, Message

log = logging.getLogger("trunkline.sdk.asgi")


class LifespanFailed(RuntimeError):
    """The application says that it cannot start, or that its shutdown failed; the message is the application's."""


class Lifespan:
    """One application from its start to its end. An application that knows no lifespan is served all the same."""

    def __init__(self, app: Application) -> None:
        self._app = app
        #: What the application keeps for its requests.
        self.state: dict[str, Any] = {}
        # Runs the application with the scope "lifespan", from `start` to the end of `stop`.
        self._task: asyncio.Task[None] | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        # "" when it is complete, else the application's words.
        self._started: asyncio.Future[str] | None = None
        self._stopped: asyncio.Future[str] | None = None
        # The application has taken lifespan.startup: an exception is then hardly "not supported".
        self._startup_taken = False

    async def start(self) -> None:
        """Start the application, and wait until it has.

        Raises:
            LifespanFailed: it said that it cannot.
        """
        loop = asyncio.get_running_loop()
        self._started, self._stopped = loop.create_future(), loop.create_future()
        self._inbox.put_nowait({"type": "lifespan.startup"})
        self._task = loop.create_task(self._run())  # awaited here or in `stop`
        try:
            failure = await asyncio.shield(self._started)
        except BaseException:  # cancelled
            if self._started.done() and not self._started.result():  # in the moment in which it had started
                await self.stop()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise
        if failure:
            await self._task
            raise LifespanFailed(f"The application failed to start: {failure}")

    async def stop(self) -> None:
        """Stop the application, and wait until it has.

        Raises:
            LifespanFailed: it said that its shutdown failed.
        """
        if self._task is None or self._stopped is None:
            return
        self._inbox.put_nowait({"type": "lifespan.shutdown"})
        failure = await asyncio.shield(self._stopped)
        await self._task
        if failure:
            raise LifespanFailed(f"The shutdown of the application failed: {failure}")

    async def _run(self) -> None:
        assert self._started is not None and self._stopped is not None
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as error:
            # The specification: an exception means that there is no lifespan, and serving goes on.
            if self._started.done():
                log.error("The application failed in its lifespan", exc_info=error)
            elif self._startup_taken:
                log.warning("The application's lifespan is not used: %r", error)
        finally:
            for future in (self._started, self._stopped):
                if not future.done():
                    future.set_result("")

    async def _receive(self) -> Message:
        message = await self._inbox.get()
        self._startup_taken = True
        return message

    async def _send(self, message: Message) -> None:
        assert self._started is not None and self._stopped is not None
        phase, _, outcome = message["type"].removeprefix("lifespan.").partition(".")
        future = {"startup": self._started, "shutdown": self._stopped}.get(phase)
        if future is None or outcome not in ("complete", "failed") or future.done():
            raise RuntimeError(f"{message['type']} is out of place in a lifespan")
        future.set_result(_words(message) if outcome == "failed" else "")


def _words(message: Message) -> str:
    """What the application says of a failure. Frameworks hand over a traceback: its last line says what was wrong."""
    text = str(message.get("message") or "").strip()
    if text.count("\n"):
        log.error("%s", text)
    return text.splitlines()[-1] if text else "it gives no reason"
