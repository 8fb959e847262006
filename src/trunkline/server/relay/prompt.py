"""Coroutines that mostly end without waiting, run without a task.

The calls of a `ListenerDirectory` are awaited because in a cluster they take a while. On one node they end at once, and
a task for each would cost a small HTTP request as much as everything else that is done for it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Suspended(Generic[T]):
    """A coroutine that has begun and waits for something: await it, once, in a task, for its result.

    Up to there it ran in no task of its own: it must not have asked for the current one (`asyncio.timeout` does).
    """

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        # What it yielded: a future of the loop, or None for one turn of it.
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        try:
            while True:
                try:
                    given = yield waits_for
                except GeneratorExit:
                    self._work.close()
                    raise
                except BaseException as error:
                    waits_for = self._work.throw(error)
                else:
                    waits_for = self._work.send(given)
        except StopIteration as done:
            result: T = done.value
            return result


def begin(work: Coroutine[Any, Any, T]) -> T | Suspended[T]:
    """Run `work` until it ends or has to wait; what it raises is raised here."""
    try:
        return Suspended(work, work.send(None))
    except StopIteration as done:
        result: T = done.value
        return result
