"""The contract of `http_echo`, kept by a handler of our SDK: every call of its interface is one of the SDK's."""

from __future__ import annotations

from collections.abc import AsyncIterator

from http_echo import Echo, Left
from trunkline.protocol.errors import ConnectionLost
from trunkline.sdk import HttpRequest, ResponseWriter


class SdkCall:
    """A request of the SDK, as `Echo` wants it."""

    def __init__(self, request: HttpRequest) -> None:
        self.method = request.method
        self.target = request.target
        self.headers = list(request.headers.items())
        self._request = request
        self._answer: ResponseWriter | None = None

    async def body(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._request:
                yield piece
        except ConnectionLost as error:
            raise Left from error

    async def left(self) -> None:
        await self._request.disconnected

    async def begin(self, status: int, reason: str | None, headers: list[tuple[str, str]], length: int | None) -> None:
        self._answer = await self._request.respond(status, headers, reason=reason, length=length)

    async def write(self, data: bytes) -> None:
        assert self._answer is not None
        try:
            await self._answer.write(data)
        except ConnectionLost as error:
            raise Left from error

    async def end(self) -> None:
        assert self._answer is not None
        try:
            await self._answer.end()
        except ConnectionLost as error:
            raise Left from error

    def abort(self) -> None:
        assert self._answer is not None
        self._answer.abort()


class SdkEcho:
    """A handler for `HybridConnectionListener(..., http_handler=...)`; one for each listener."""

    def __init__(self) -> None:
        self._echo = Echo()

    async def __call__(self, request: HttpRequest) -> None:
        await self._echo.answer(SdkCall(request))
