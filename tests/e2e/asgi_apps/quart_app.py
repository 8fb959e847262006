"""The application of `contract` in Quart."""

from __future__ import annotations

import hashlib
from typing import Any

from quart import Quart, Response, current_app, jsonify, redirect, request, url_for, websocket
from werkzeug import Response as WerkzeugResponse

from e2e.asgi_apps.endless_events import EndlessEvents

app = Quart(__name__)
# Larger than the largest body of the tests.
app.config["MAX_CONTENT_LENGTH"] = 64 * 1024 * 1024
events = EndlessEvents()


@app.before_serving
async def start() -> None:
    app.config["GREETING"] = "hello"


@app.get("/")
async def home() -> str:
    return str(current_app.config["GREETING"])


@app.get("/items/<int:number>")
async def item(number: int) -> str:
    return f"item {number}"


@app.get("/links")
async def links() -> dict[str, Any]:
    return {"item": url_for("item", number=7, _external=True), "here": request.url, "client": request.remote_addr}


@app.get("/go")
async def go() -> WerkzeugResponse:
    return redirect(url_for("item", number=7))


@app.get("/slash/")
async def slash() -> str:
    return "with a slash"


@app.get("/cookies")
async def cookies() -> Response:
    response = jsonify({})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", expires="Wed, 21 Oct 2026 07:28:00 GMT")
    return response


@app.post("/upload")
async def upload() -> dict[str, Any]:
    file = (await request.files)["file"]
    data = file.read()
    return {"name": file.filename, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@app.post("/echo")
async def echo() -> Response:
    return Response(await request.get_data(), mimetype="application/octet-stream")


@app.get("/events")
async def get_events() -> Response:
    response = Response(events.tell(), mimetype="text/event-stream")
    response.timeout = None
    return response


@app.get("/ended")
async def get_ended() -> str:
    return await events.ended()


@app.get("/fails")
async def fails() -> str:
    raise RuntimeError("on purpose")


@app.websocket("/chat")
async def chat() -> None:
    offered = websocket.requested_subprotocols
    await websocket.accept(subprotocol=offered[-1] if offered else None)
    await websocket.send(websocket.url)
    while True:
        text = await websocket.receive()
        assert isinstance(text, str)
        await websocket.send(text.upper())
