from __future__ import annotations

import asyncio

import pytest

from trunkline.server.relay.prompt import Suspended, begin


async def at_once(result: str) -> str:
    return result


async def fails_at_once() -> str:
    raise ValueError("at once")


async def later(gate: asyncio.Future[str]) -> str:
    await asyncio.sleep(0)
    try:
        return await gate
    finally:
        await asyncio.sleep(0)


def test_what_ends_at_once_needs_no_loop() -> None:
    assert begin(at_once("done")) == "done"
    with pytest.raises(ValueError, match="at once"):
        begin(fails_at_once())


async def test_what_waits_is_finished_in_a_task() -> None:
    gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    suspended = begin(later(gate))
    assert isinstance(suspended, Suspended)
    gate.set_result("late")
    assert await suspended == "late"


async def test_what_fails_later_fails_in_the_task() -> None:
    gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    suspended = begin(later(gate))
    assert isinstance(suspended, Suspended)
    gate.set_exception(ValueError("late"))
    with pytest.raises(ValueError, match="late"):
        await suspended


async def test_a_task_that_is_cancelled_cancels_it() -> None:
    gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    suspended = begin(later(gate))
    assert isinstance(suspended, Suspended)

    async def wait() -> str:
        return await suspended

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled() and gate.cancelled()


def test_a_task_that_is_closed_closes_it() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    suspended = begin(work())
    assert isinstance(suspended, Suspended)
    rest = suspended.__await__()
    next(rest)
    rest.close()
    assert ended == [True]
