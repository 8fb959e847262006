"""The application of `contract` in Starlette."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from e2e.asgi_apps.endless_events import EndlessEvents

events = EndlessEvents()


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"greeting": "hello"}


async def home(request: Request) -> Response:
    return PlainTextResponse(request.state.greeting)


async def item(request: Request) -> Response:
    return PlainTextResponse(f"item {request.path_params['number']}")


async def links(request: Request) -> Response:
    client = request.client
    return JSONResponse(
        {
            "item": str(request.url_for("item", number=7)),
            "here": str(request.url),
            "client": client and client.host,
        }
    )


async def go(request: Request) -> Response:
    return RedirectResponse(request.url_for("item", number=7))


async def slash(_: Request) -> Response:
    return PlainTextResponse("with a slash")


async def cookies(_: Request) -> Response:
    response = JSONResponse({})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", expires="Wed, 21 Oct 2026 07:28:00 GMT")
    return response


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


async def get_events(_: Request) -> Response:
    return StreamingResponse(events.tell(), media_type="text/event-stream")


async def get_ended(_: Request) -> Response:
    return PlainTextResponse(await events.ended())


async def fails(_: Request) -> Response:
    raise RuntimeError("on purpose")


async def chat(websocket: WebSocket) -> None:
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol=offered[-1] if offered else None)
    await websocket.send_text(str(websocket.url))
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", home),
        Route("/links", links),
        Route("/go", go),
        Route("/slash/", slash),
        Route("/cookies", cookies),
        Route("/echo", echo, methods=["POST"]),
        Route("/events", get_events),
        Route("/ended", get_ended),
        Route("/fails", fails),
        WebSocketRoute("/chat", chat),
        # A mount, because it makes a root_path of its own.
        Mount("/items", routes=[Route("/{number:int}", item, name="item")]),
    ],
)
