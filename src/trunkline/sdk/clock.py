"""Time and chance, as the SDK sees them: one place, so that a test can hand in its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What `Clock.call_later` returns."""

    def cancel(self) -> None:
        """Keep the callback from being called."""


class Clock(Protocol):
    """Where every decision that depends on time gets its time from."""

    def monotonic(self) -> float:
        """Seconds from some fixed moment; never steps. Everything is measured with it except token expiry."""

    def time(self) -> float:
        """Seconds since the epoch, the time that tokens are written in."""

    def random(self) -> float:
        """A number in [0, 1) for jitter; not for secrets."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` in `delay` seconds."""

    async def sleep(self, delay: float) -> None:
        """Return in `delay` seconds."""


class SystemClock:
    """The running event loop's timers and the computer's clocks."""

    def __repr__(self) -> str:
        return "<SystemClock>"

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def random(self) -> float:
        return random.random()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)


SYSTEM_CLOCK = SystemClock()
