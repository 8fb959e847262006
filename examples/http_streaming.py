"""Bodies of any length: server-sent events as they happen, and an upload that is counted while it comes."""

import asyncio
from collections.abc import AsyncIterator

import httpx
from relay import relay

from trunkline import HybridConnectionListener
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.sdk.httpx_auth import RelayAuth


async def events() -> AsyncIterator[bytes]:
    for number in range(3):
        yield f"data: {number}\n\n".encode()  # goes out at once
        await asyncio.sleep(0.05)


async def handle(request: HttpRequest) -> HttpResponse:
    if request.method == "GET":  # when the sender leaves, the generator is closed
        return HttpResponse(200, events(), headers={"Content-Type": "text/event-stream"})
    return HttpResponse(200, f"{sum([len(chunk) async for chunk in request])} bytes")


async def main() -> None:
    async with relay() as (connection_string, ssl):
        async with HybridConnectionListener(connection_string, entity_path="test", ssl=ssl, http_handler=handle):
            auth = RelayAuth(connection_string, entity_path="test")
            async with httpx.AsyncClient(base_url=auth.base_url, auth=auth, verify=ssl or True) as client:
                async with client.stream("GET", "events") as answer:
                    print(*[line async for line in answer.aiter_lines() if line])
                print((await client.post("upload", content=bytes(1_000_000))).text)


asyncio.run(main())
