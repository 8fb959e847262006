"""What the listener of an HTTP case does: it tells what reached it, or answers as the request asks.

The same contract is kept here for handlers in Python (the SDK's, an ASGI application) and in
`wire/scripts/http_listener.js` for hyco-https. A request may carry the header `X-Plan`, a JSON object; all keys may
be missing:

    status, reason   of the answer; 200, and the listener's own words
    headers          of the answer: a list of [name, value], in this order, names may repeat
    read             "whole" (default): the request's body is read before anything is answered; "none": it is not
                     read; "echo": the answer begins at once, and each piece of the request comes back as it arrives
    before           steps to take before the answer begins
    body             steps that make the body; without it the body is the description below
    length           true: the answer begins with its Content-Length
    tell             true: the description is also in the header `X-Told`
    left             the name of a gate to open when the sender is seen to have gone

A step is a list:

    ["bytes", size, seed]   `content(size, seed)` as one piece
    ["text", words]         a piece of text
    ["wait", gate]          go on when the gate is open
    ["open", gate]          open a gate
    ["meet", gate, number]  go on when so many have come to this step
    ["abort"]               end without a clean end

A gate is a name that a test makes up; it is opened by one request and waited for by another, so that a test knows what
has happened without waiting for a time to pass. The description is a JSON object: method, target, headers (a list of
[name, value] in the order of arrival), size and sha256 of the body, pieces (how many it came in).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol

#: Seconds that a listener waits at a gate: a test that fails must not leave it there for ever.
PATIENCE = 30.0


def content(size: int, seed: str) -> bytes:
    """The bytes that both ends make for the same arguments: SHAKE-256 over the seed."""
    return hashlib.shake_256(seed.encode()).digest(size)


class Call(Protocol):
    """One request, as a handler hands it to `answer`."""

    method: str
    target: str
    headers: list[tuple[str, str]]

    def body(self) -> AsyncIterator[bytes]:
        """The pieces of the request's body. Raises `Left` when the sender goes before its end."""

    async def left(self) -> None:
        """Returns when the sender has gone."""

    async def begin(self, status: int, reason: str | None, headers: list[tuple[str, str]], length: int | None) -> None:
        """Begin the answer. length: of its body in bytes, None: not known."""

    async def write(self, data: bytes) -> None:
        """A piece of the answer's body."""

    async def end(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """End without a clean end."""


class Gates:
    """The gates of one listener."""

    def __init__(self) -> None:
        self._gates: dict[str, asyncio.Event] = {}
        self._come: dict[str, int] = {}

    def open(self, name: str) -> None:
        self._gates.setdefault(name, asyncio.Event()).set()

    async def wait(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._gates.setdefault(name, asyncio.Event()).wait()

    async def meet(self, name: str, number: int) -> None:
        self._come[name] = self._come.get(name, 0) + 1
        if self._come[name] == number:
            self.open(name)
        await self.wait(name)


class Aborted(Exception):
    """The plan said so."""


class Left(Exception):
    """The sender has gone."""


PIECES = ("bytes", "text")  # steps that make a piece of the body


class Echo:
    """The listener's side of the cases; one for each listener, because it holds its gates."""

    def __init__(self) -> None:
        self._gates = Gates()

    async def answer(self, call: Call) -> None:
        """Answer one request as its plan says."""
        plan = json.loads(dict((name.lower(), value) for name, value in call.headers).get("x-plan", "{}"))
        try:
            async with asyncio.TaskGroup() as group:
                await self._answer(call, plan, group)
        except* Aborted:
            call.abort()
        except* Left:
            self._gates.open(plan["left"] if "left" in plan else "somebody left")

    async def _answer(self, call: Call, plan: dict[str, Any], group: asyncio.TaskGroup) -> None:
        told: dict[str, Any] = {"method": call.method, "target": call.target, "headers": call.headers}
        read = plan.get("read", "whole")
        if read == "whole":
            told |= await self._read(call)
        # While a body is read, the reading hears of it.
        watcher = group.create_task(self._watch(call)) if "left" in plan and read != "echo" else None
        async for _ in self._pieces(plan.get("before", ())):
            pass
        headers = [(name, value) for name, value in plan.get("headers", ())]
        description = json.dumps(told)
        if plan.get("tell"):
            headers.append(("X-Told", description))
        if read != "echo" and "body" not in plan:
            headers.append(("Content-Type", "application/json"))
        steps: list[list[Any]] = plan.get("body", [["text", description]])
        length = None
        if plan.get("length"):
            length = sum(step[1] if step[0] == "bytes" else len(step[1]) for step in steps if step[0] in PIECES)
        await call.begin(plan.get("status", 200), plan.get("reason"), headers, length)
        async for piece in call.body() if read == "echo" else self._pieces(steps):
            if piece:
                await call.write(piece)
        await call.end()
        if watcher is not None:
            watcher.cancel()

    async def _read(self, call: Call) -> dict[str, Any]:
        digest, size, pieces = hashlib.sha256(), 0, 0
        async for piece in call.body():
            digest.update(piece)
            size += len(piece)
            pieces += bool(piece)
        return {"size": size, "sha256": digest.hexdigest(), "pieces": pieces}

    async def _watch(self, call: Call) -> None:
        await call.left()
        raise Left

    async def _pieces(self, steps: Iterable[list[Any]]) -> AsyncIterator[bytes]:
        for verb, *arguments in steps:
            match verb:
                case "bytes":
                    yield content(*arguments)
                case "text":
                    yield arguments[0].encode()
                case "wait":
                    await self._gates.wait(*arguments)
                case "open":
                    self._gates.open(*arguments)
                case "meet":
                    await self._gates.meet(*arguments)
                case "abort":
                    raise Aborted
                case _:
                    raise AssertionError(f"no such step: {verb}")


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class AsgiCall:
    """A call of an ASGI application."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        query = scope["query_string"].decode("latin-1")
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        self.target = path + ("?" + query if query else "")
        self.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        self._receive, self._send = receive, send

    async def body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Left
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, reason: str | None, headers: list[tuple[str, str]], length: int | None) -> None:
        # ASGI has no field for a reason phrase.
        if length is not None:
            headers = [*headers, ("Content-Length", str(length))]
        lines = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        raise Aborted


class EchoApplication:
    """The contract as an ASGI application: an aborted answer is an exception in the middle of it."""

    def __init__(self) -> None:
        self.echo = Echo()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        assert scope["type"] == "http", scope["type"]
        await self.echo.answer(AsgiCall(scope, receive, send))
