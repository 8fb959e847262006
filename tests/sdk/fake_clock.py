"""A clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class FakeTimer:
    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """See `trunkline.sdk.clock.Clock`. Chance is `chance`, always."""

    def __init__(self, *, chance: float = 0.0) -> None:
        self.now = 1000.0
        #: What the wall clock is ahead of the monotonic one.
        self.epoch = 1_700_000_000.0
        self.chance = chance
        self._timers: list[FakeTimer] = []
        self._sleeps: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.epoch + self.now

    def random(self) -> float:
        return self.chance

    def call_later(self, delay: float, callback: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer(self.now + delay, callback)
        self._timers.append(timer)
        return timer

    async def sleep(self, delay: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeps.put_nowait((delay, future))
        await future

    def advance(self, seconds: float) -> None:
        """Let time pass, calling what is due, in order."""
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.due <= end and not timer.cancelled]:
            timer = min(due, key=lambda timer: timer.due)
            self._timers.remove(timer)
            self.now = max(self.now, timer.due)
            timer.callback()
        self.now = end

    async def wake(self) -> float:
        """Wait for the next sleep, end it at once, and say how long it would have been."""
        async with asyncio.timeout(5):
            delay, future = await self._sleeps.get()
        if not future.done():
            future.set_result(None)
        return delay
