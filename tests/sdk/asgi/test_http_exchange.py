"""One request and its answer: bodies in pieces, the end on either side, and what an application does wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sdk.asgi.asked import Asked, endpoint
from trunkline.sdk.asgi import http_exchange
from trunkline.sdk.asgi.http_exchange import HttpExchange
from trunkline.sdk.asgi.scopes import Application, Message, Mount, Receive, Scope, Send

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1"), (b"x-a", b"2")]}


def body(data: bytes | memoryview = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def event(receive: Receive) -> Message:
    return await receive()


async def run(app: Application, asked: Asked) -> list[tuple[int, int]]:
    """Run an exchange to its end; gives what it was said to have answered."""
    answered: list[tuple[int, int]] = []
    exchange = HttpExchange(asked.as_request(), lambda status, sent: answered.append((status, sent)))
    await exchange.run(app, Mount(endpoint()).http_scope(asked.as_request(), {}))
    assert exchange.is_unanswered == (asked.status == 0)
    return answered


def application(work: Callable[[Receive, Send], Awaitable[None]]) -> Application:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await work(receive, send)

    return app


async def test_body_comes_in_pieces_and_the_answer_goes_in_pieces() -> None:
    got: list[Message] = []

    async def work(receive: Receive, send: Send) -> None:
        await send(START)
        more = True
        while more:
            got.append(message := await receive())
            more = message["more_body"]
            await send(body(memoryview(message["body"].upper()), more=more))

    asked = Asked("POST", body=[b"one", b"two"])
    assert await run(application(work), asked) == [(200, 6)]
    assert [(message["body"], message["more_body"]) for message in got] == [
        (b"one", True),
        (b"two", True),
        (b"", False),
    ]
    assert (asked.status, asked.answer_headers) == (200, [("x-a", "1"), ("x-a", "2")])
    assert asked.written == [b"ONE", b"TWO"] and asked.ended and not asked.aborted


async def test_receive_that_is_cancelled_loses_nothing() -> None:
    asked = Asked("POST")

    async def work(receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(event(receive))
            await asyncio.sleep(0)
            looking.cancel()
        for piece in (b"late", None):
            asked.pieces.put_nowait(piece)
        assert (await receive())["body"] == b"late"
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        await send(START)
        await send(body())

    assert await run(application(work), asked) == [(200, 0)]


async def test_two_that_wait_for_events_share_the_body() -> None:
    """Starlette waits for the disconnect while the application reads."""
    asked = Asked("POST")

    async def work(receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(event(receive)), group.create_task(event(receive))
            await asyncio.sleep(0)
            asked.pieces.put_nowait(b"a")
            asked.pieces.put_nowait(b"b")
        assert {first.result()["body"], second.result()["body"]} == {b"a", b"b"}
        await send(START)
        await send(body())

    assert await run(application(work), asked) == [(200, 0)]


async def test_sender_that_goes_is_told_and_the_rest_of_the_answer_is_dropped() -> None:
    asked = Asked(body=[])
    events: list[str] = []

    async def work(receive: Receive, send: Send) -> None:
        await receive()
        await send(START)
        await send(body(b"a", more=True))
        asked.leave()
        events.append((await receive())["type"])
        for _ in range(3):
            await send(body(b"b", more=True))

    assert await run(application(work), asked) == [(200, 1)]
    assert events == ["http.disconnect"]
    assert asked.written == [b"a"] and asked.aborted and not asked.ended


async def test_request_that_takes_long_is_watched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "WATCH_AFTER", 0.01)
    waits, looks, answered = Asked(body=[]), Asked(body=[]), Asked(body=[])

    async def wait(receive: Receive, send: Send) -> None:
        await receive()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(event(receive))
            while not waits.watched:  # noqa: ASYNC110, it is the condition itself
                await asyncio.sleep(0)
            waits.leave()
        assert waiting.result() == {"type": "http.disconnect"}

    async def look(receive: Receive, send: Send) -> None:
        """As Starlette's `is_disconnected` does it, which never waits."""
        await receive()
        looks_until = asyncio.get_running_loop().time() + 0.05
        while asyncio.get_running_loop().time() < looks_until:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(event(receive))
                await asyncio.sleep(0)
                looking.cancel()
        looks.leave()

    async def answer(receive: Receive, send: Send) -> None:
        await receive()
        async with asyncio.TaskGroup() as group:
            group.create_task(event(receive))
            await send(START)
            await send(body())

    for work, asked, watched in ((wait, waits, 1), (look, looks, 1), (answer, answered, 0)):
        await run(application(work), asked)
        assert asked.watched == watched


async def test_sender_that_goes_while_its_body_is_read_is_told() -> None:
    asked = Asked("POST", body=[b"a", b"LOST"])

    async def work(receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"a"
        asked.leave()
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}

    assert await run(application(work), asked) == [(0, 0)]
    assert asked.status == 0


async def test_answer_waits_for_a_slow_sender() -> None:
    asked = Asked()
    asked.taking.clear()
    sent = 0

    async def work(receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(START)
        for _ in range(2):
            await send(body(b"x", more=True))
            sent += 1
        await send(body())

    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(application(work), asked))
        for _ in range(5):
            await asyncio.sleep(0)
        assert sent == 0
        asked.taking.set()
    assert running.result() == [(200, 2)]


async def test_after_the_answer_comes_the_disconnect() -> None:
    async def work(receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"early"))
        assert await receive() == {"type": "http.disconnect"}

    asked = Asked("POST")  # whose body nobody has read
    assert await run(application(work), asked) == [(200, 5)]


async def test_work_after_the_answer_is_done_to_its_end() -> None:
    done = asyncio.Event()

    async def work(receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"ok"))
        await asyncio.sleep(0)
        done.set()

    asked = Asked()
    assert await run(application(work), asked) == [(200, 2)]
    assert done.is_set()


async def test_length_is_handed_on_and_kept() -> None:
    def start(length: bytes, status: int = 200) -> Message:
        return {"type": "http.response.start", "status": status, "headers": [(b"Content-Length", length)]}

    async def answer(asked: Asked, head: Message, *pieces: bytes) -> None:
        async def work(receive: Receive, send: Send) -> None:
            await send(head)
            for piece in pieces:
                await send(body(piece, more=True))
            await send(body())

        assert len(await run(application(work), asked)) == 1

    whole, short, long = Asked(), Asked(), Asked()
    await answer(whole, start(b"4"), b"ab", b"cd")
    assert whole.answer_length == 4 and whole.ended
    await answer(short, start(b"4"), b"ab")
    assert short.aborted and not short.ended
    await answer(long, start(b"4"), b"abcde")
    assert long.aborted and long.written == []
    for asked, head in ((Asked("HEAD"), start(b"4")), (Asked(), start(b"4", 304))):  # no body follows
        await answer(asked, head)
        assert asked.answer_length is None and asked.ended


async def test_application_that_fails_gives_500_or_a_cut_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def at_once(receive: Receive, send: Send) -> None:
        raise ValueError("at once")

    async def later(receive: Receive, send: Send) -> None:
        await send(START)
        await send(body(b"half", more=True))
        raise ValueError("later")

    first, second = Asked(), Asked()
    assert await run(application(at_once), first) == [(500, 21)]
    assert (first.status, b"".join(first.written), first.ended) == (500, b"Internal Server Error", True)
    assert await run(application(later), second) == [(200, 4)]
    assert second.aborted and not second.ended
    assert "ValueError: at once" in caplog.text and "ValueError: later" in caplog.text


async def test_application_that_returns_too_soon_gives_500_or_a_cut_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(receive: Receive, send: Send) -> None:
        return

    async def half(receive: Receive, send: Send) -> None:
        await send(START)

    first, second = Asked(), Asked()
    assert await run(application(nothing), first) == [(500, 21)]
    assert await run(application(half), second) == [(200, 0)]
    assert second.aborted
    assert caplog.text.count("returned without a whole answer") == 2


@pytest.mark.parametrize("messages", [[body()], [START, START], [START, body(), body()]])
async def test_message_out_of_order_is_an_error_of_the_application(messages: list[Message]) -> None:
    errors: list[BaseException] = []

    async def work(receive: Receive, send: Send) -> None:
        try:
            for message in messages:
                await send(message)
        except RuntimeError as error:
            errors.append(error)

    await run(application(work), Asked())
    assert len(errors) == 1


async def test_host_that_stops_cuts_the_answer() -> None:
    asked = Asked()
    begun = asyncio.Event()

    async def work(receive: Receive, send: Send) -> None:
        await send(START)
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(application(work), asked))
        await begun.wait()
        running.cancel()
    assert asked.aborted


async def test_failure_after_the_sender_went_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()

    async def work(receive: Receive, send: Send) -> None:
        asked.leave()
        raise RuntimeError("interrupted")

    assert await run(application(work), asked) == [(0, 0)]
    assert "interrupted" not in caplog.text
