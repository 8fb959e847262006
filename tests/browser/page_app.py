"""A page that uses all that browsers use: links, server-sent events, and a WebSocket; in FastAPI.

The events come one by one: each is sent only after the page has told that it has the one before. So a page that has all
of them got each as it was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import HTMLResponse, StreamingResponse

EVENTS = 5

PAGE = """<!doctype html>
<title>hosted</title>
<link rel="icon" href="data:,">
<p><a id="home" href="{home}">home</a></p>
<script src="{script}"></script>
"""

# Addresses are relative to the page, as in most single-page applications.
SCRIPT = """
const events = new Promise((done, failed) => {
  const got = [];
  const source = new EventSource('events');
  source.onerror = () => failed(new Error('events'));
  source.onmessage = async (event) => {
    got.push(event.data);
    if (got.length === EVENTS) { source.close(); done(got); }
    await fetch('seen/' + event.data, {method: 'POST'});
  };
});

const chat = new Promise((done, failed) => {
  const got = [];
  const socket = new WebSocket(new URL('chat?room=7', document.baseURI.replace('http', 'ws')), ['v1', 'v2']);
  socket.binaryType = 'arraybuffer';
  socket.onerror = () => failed(new Error('chat'));
  socket.onopen = () => { socket.send('hello'); socket.send(new Uint8Array([1, 2, 255])); };
  socket.onmessage = (message) => {
    got.push(typeof message.data === 'string' ? message.data : Array.from(new Uint8Array(message.data)));
    if (got.length === 2) socket.close(4000, 'done');
  };
  socket.onclose = (close) => done({got, protocol: socket.protocol, code: close.code});
});

const form = fetch('form', {method: 'POST', body: new URLSearchParams({a: '1'})}).then((answer) => answer.text());

window.outcome = Promise.all([events, chat, form]).then(([events, chat, form]) => ({
  events, chat, form, home: document.getElementById('home').href, script: document.scripts[0].src}));
"""


def make_app() -> FastAPI:
    """A fresh one for each test."""
    app = FastAPI()
    seen: asyncio.Queue[int] = asyncio.Queue()
    #: How the WebSocket ended: its code and reason.
    app.state.chat_ended = asyncio.get_running_loop().create_future()

    @app.get("/", name="home")
    async def home(request: Request) -> HTMLResponse:
        return HTMLResponse(PAGE.format(home=request.url_for("home"), script=request.url_for("script")))

    @app.get("/static/script.js", name="script")
    async def script() -> Response:
        return Response(SCRIPT.replace("EVENTS", str(EVENTS)), media_type="text/javascript")

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def tell() -> AsyncIterator[str]:
            for number in range(EVENTS):
                yield f"data: {number}\n\n"
                if number + 1 < EVENTS:
                    assert await seen.get() == number

        return StreamingResponse(tell(), media_type="text/event-stream")

    @app.post("/seen/{number}")
    async def have_seen(number: int) -> None:
        seen.put_nowait(number)

    @app.post("/form")
    async def form(request: Request) -> Response:
        return Response((await request.body()).upper())

    @app.websocket("/chat")
    async def chat(websocket: WebSocket, room: int) -> None:
        await websocket.accept(subprotocol="v2")
        message = await websocket.receive_text()
        await websocket.send_text(f"{message} in {room}")
        await websocket.send_bytes(bytes(reversed(await websocket.receive_bytes())))
        end = await websocket.receive()
        app.state.chat_ended.set_result((end["code"], end["reason"]))

    return app
