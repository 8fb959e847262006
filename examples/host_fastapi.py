"""A FastAPI application behind a hybrid connection; an ordinary HTTP client asks it, also for server-sent events."""

import asyncio
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from relay import relay

from trunkline.sdk.asgi import AsgiHost
from trunkline.sdk.httpx_auth import RelayAuth

app = FastAPI()


@app.get("/items/{number}", name="item")
async def item(request: Request, number: int) -> dict[str, object]:
    return {"item": number, "next": request.url_for("item", number=number + 1).path}


@app.get("/events")
async def events() -> StreamingResponse:
    async def tell() -> AsyncIterator[str]:
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(tell(), media_type="text/event-stream")


async def main() -> None:
    async with relay() as (connection_string, ssl), AsgiHost(app, connection_string, entity_path="test", ssl=ssl):
        auth = RelayAuth(connection_string, entity_path="test")
        async with httpx.AsyncClient(auth=auth, verify=ssl or True) as client:
            print("answer:", (await client.get(f"{auth.base_url}/items/7")).json())
            print("events:", (await client.get(f"{auth.base_url}/events")).text.split())


asyncio.run(main())
