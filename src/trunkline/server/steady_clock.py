"""The clock by which a node judges others: time in which the node itself stood still is not counted.

A process that was stopped, a virtual machine that was moved, a processor that others had: whatever peers sent meanwhile
lies unread in the sockets. By the system's clock all of them were silent for that long, and would be ended together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("trunkline.node")

#: Seconds by which a look at the clock may be late; more is a standstill.
LATE = 1.0


class SteadyClock:
    """Gives seconds when it is called.

    It has to be looked at regularly, which shows that the process runs. The first call that comes too late, whoever
    makes it, finds that it did not, so nothing is ever stamped with a time that is taken back.

    Args:
        monotonic: the system's monotonic clock, or the loop's.
        interval: seconds between two looks.
    """

    __slots__ = ("_due", "_interval", "_monotonic", "_stood_still")

    def __init__(self, monotonic: Callable[[], float], interval: float) -> None:
        self._monotonic = monotonic
        self._interval = interval
        # Seconds that are not counted.
        self._stood_still = 0.0
        # When it must have been looked at, at the latest, by the system's clock; infinite before the first look.
        self._due = float("inf")

    def __repr__(self) -> str:
        return f"<SteadyClock stood_still={self._stood_still:.1f}>"

    def __call__(self) -> float:
        now = self._monotonic()
        if now > self._due:
            self._skip(now)
        return now - self._stood_still

    def look(self) -> float:
        """The same, and the process runs."""
        seconds = self()
        self._due = self._monotonic() + self._interval + LATE
        return seconds

    def _skip(self, now: float) -> None:
        late = now - self._due + LATE
        self._stood_still += late
        self._due = now + self._interval + LATE
        log.warning("the node stood still for %.1f s: that is counted as nobody's silence", late)
