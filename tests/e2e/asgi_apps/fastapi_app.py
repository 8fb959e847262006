"""The application of `contract` in FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse

from e2e.asgi_apps.endless_events import EndlessEvents

events = EndlessEvents()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"greeting": "hello"}


app = FastAPI(lifespan=lifespan)


@app.get("/", name="home")
async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.state.greeting)


@app.get("/items/{number}", name="item")
async def item(number: int) -> PlainTextResponse:
    return PlainTextResponse(f"item {number}")


@app.get("/links")
async def links(request: Request) -> dict[str, Any]:
    client = request.client
    return {
        "item": str(request.url_for("item", number=7)),
        "here": str(request.url),
        "client": client and client.host,
    }


@app.get("/go")
async def go(request: Request) -> RedirectResponse:
    return RedirectResponse(request.url_for("item", number=7))


@app.get("/slash/")
async def slash() -> PlainTextResponse:
    return PlainTextResponse("with a slash")


@app.get("/cookies")
async def cookies() -> JSONResponse:
    response = JSONResponse({})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", expires="Wed, 21 Oct 2026 07:28:00 GMT")
    return response


@app.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


@app.get("/events")
async def get_events() -> StreamingResponse:
    return StreamingResponse(events.tell(), media_type="text/event-stream")


@app.get("/ended")
async def get_ended() -> PlainTextResponse:
    return PlainTextResponse(await events.ended())


@app.get("/fails")
async def fails() -> None:
    raise RuntimeError("on purpose")


@app.websocket("/chat")
async def chat(websocket: WebSocket) -> None:
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol=offered[-1] if offered else None)
    await websocket.send_text(str(websocket.url))
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())
