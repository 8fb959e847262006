"""How an application starts and stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from trunkline.sdk.asgi.lifespan import Lifespan, LifespanFailed
from trunkline.sdk.asgi.scopes import Receive, Scope, Send


async def test_framework_starts_keeps_its_state_and_stops() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        steps.append("started")
        yield {"db": "open"}
        steps.append("stopped")

    running = Lifespan(Starlette(lifespan=lifespan))
    await running.start()
    assert steps == ["started"] and running.state == {"db": "open"}
    await running.stop()
    assert steps == ["started", "stopped"]


async def test_startup_that_fails_is_an_error_with_the_last_line_of_the_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise ValueError("the database is away")
        yield

    with pytest.raises(LifespanFailed, match="failed to start: ValueError: the database is away$"):
        await Lifespan(Starlette(lifespan=lifespan)).start()
    assert "Traceback" in caplog.text


async def test_shutdown_that_fails_is_an_error() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        raise ValueError("cannot flush")

    running = Lifespan(Starlette(lifespan=lifespan))
    await running.start()
    with pytest.raises(LifespanFailed, match="The shutdown of the application failed: ValueError: cannot flush$"):
        await running.stop()


async def test_application_without_a_lifespan_is_served(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("only http")

    async def returns(scope: Scope, receive: Receive, send: Send) -> None:
        return

    for app in (refuses, returns):
        running = Lifespan(app)
        await running.start()
        await running.stop()
    assert caplog.text == ""


async def test_exception_after_the_startup_was_taken_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise ValueError("a mistake")

    running = Lifespan(app)
    await running.start()
    assert "The application's lifespan is not used: ValueError('a mistake')" in caplog.text
    await running.stop()


async def test_application_that_breaks_off_later_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise ValueError("later")

    running = Lifespan(app)
    await running.start()
    await running.stop()
    assert "The application failed in its lifespan" in caplog.text


@pytest.mark.parametrize("kind", ["lifespan.startup.complete", "lifespan.shutdown.begun", "http.response.start"])
async def test_message_out_of_place_is_an_error_of_the_application(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await send({"type": kind})

    running = Lifespan(app)
    await running.start()
    await running.stop()
    assert f"{kind} is out of place in a lifespan" in caplog.text


async def test_failure_without_words_says_so() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    with pytest.raises(LifespanFailed, match="it gives no reason"):
        await Lifespan(app).start()


async def test_start_that_is_cancelled_as_it_succeeds_is_followed_by_a_shutdown() -> None:
    steps: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for phase in ("startup", "shutdown"):
            await receive()
            steps.append(phase)
            await send({"type": f"lifespan.{phase}.complete"})
            starting.cancel()

    async with asyncio.TaskGroup() as group:
        starting = group.create_task(Lifespan(app).start())
    assert steps == ["startup", "shutdown"]


async def test_start_that_is_cancelled_ends_the_application() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.TaskGroup() as group:
        starting = group.create_task(Lifespan(app).start())
        await begun.wait()
        starting.cancel()
    assert ended.is_set()
