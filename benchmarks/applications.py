"""What answers in the HTTP cases: `python -m benchmarks.applications KIND [options]`.

    bare      a listener with prebuilt answers: reads of a request only its id, and answers with one write per read
    handler   the SDK's listener with a handler
    asgi      the SDK's listener with the ASGI application
    origin    the bytes of the bare listener's answer over HTTP, with nothing in between
    uvicorn   the ASGI application on a port of its own

Each prints the port that it has, or 0 for a listener, as the first line of its output, when it can answer; it runs
until it is told to end (SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from benchmarks.pairs import RelayedPairs, apply_mask
from benchmarks.servers import BACKLOG, KEY, KEY_NAME, PATH
from benchmarks.streams import Stream
from trunkline.cli.event_loop import on_signal
from trunkline.protocol.frames import Opcode, encode_frame, read_header
from trunkline.sdk import HttpRequest, HttpResponse, HybridConnectionListener
from trunkline.sdk.asgi import AsgiHost

#: What is answered to small requests: 100 bytes.
ANSWER = bytes(range(0x20, 0x20 + 50)) * 2
CONTENT_TYPE = "text/plain"

#: Bytes that a long answer is written in.
BLOCK = 65_536

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def content(size: int) -> Iterator[bytes]:
    """The blocks of a body of so many bytes: a number, and what fills the block."""
    filling = bytes(range(256)) * (BLOCK // 256)
    for start in range(0, size, BLOCK):
        yield (start.to_bytes(8, "big") + filling[8:])[: size - start]


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answers by the end of the path: `.../stream/SIZE` with so many bytes, `.../hash` with the hash of the body."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    head, _, last = scope["path"].rpartition("/")
    hashed = sha256() if last == "hash" else None
    more = scope["method"] == "POST"
    while more:
        message = await receive()
        if hashed is not None:
            hashed.update(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(b"content-type", CONTENT_TYPE.encode())]
    if head.endswith("/stream"):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for block in content(int(last)):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body"})
        return
    body = ANSWER if hashed is None else hashed.hexdigest().encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BareListener:
    """Answers each `request` of a control channel with the same 100 bytes.

    Args:
        control: the control channel, upgraded.
    """

    def __init__(self, control: Stream) -> None:
        self._control = control
        self._held = b""

    def run(self) -> None:
        """Answer until the relay ends the channel."""
        while True:
            try:
                data = self._control.receive()
            except TimeoutError:
                continue
            if answers := self.answers_to(data):
                self._control.send(answers)

    def answers_to(self, data: bytes) -> bytes:
        """What is to be written after a read."""
        data = self._held + data
        out, position, end = [], 0, len(data)
        while (header := read_header(data, position, end)) is not None:
            start = position + header.size
            stop = start + header.length
            if stop > end:
                break
            position = stop
            opcode = header.first & 0x0F
            if opcode == Opcode.TEXT:
                # `"id":"` of the request, and never one in the address or in a header: those come behind, or escaped.
                begin = data.index(b'"id":"', start) + 6
                out.append(_answer(data[begin : data.index(b'"', begin)]))
            elif opcode == Opcode.PING:
                out.append(encode_frame(Opcode.PONG, data[start:stop], mask=os.urandom(4), masker=apply_mask))
            elif opcode == Opcode.CLOSE:
                raise ConnectionError(f"the relay closed the control channel: {data[start:stop]!r}")
        self._held = data[position:]
        return b"".join(out)


_BODY_MASK = os.urandom(4)
_BODY = encode_frame(Opcode.BINARY, ANSWER, mask=_BODY_MASK, masker=apply_mask)


def _answer(id: bytes) -> bytes:
    text = (
        b'{"response":{"requestId":"%b","statusCode":200,"responseHeaders":{"Content-Type":"text/plain"},"body":true}}'
    )
    # One key for each process: made by chance, and made once.
    return encode_frame(Opcode.TEXT, text % id, mask=_BODY_MASK, masker=apply_mask) + _BODY


def run_bare(port: int, tls: ssl.SSLContext | None) -> None:
    """The listener that costs least, with a blocking socket."""
    with RelayedPairs(port, tls) as pairs:
        print(0, flush=True)
        with contextlib.suppress(ConnectionError):
            BareListener(pairs.control).run()


class Origin(asyncio.Protocol):
    """Answers every request head that it reads, and looks at nothing else of it."""

    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.answer * data.count(b" HTTP/1.1\r\n"))  # type: ignore[attr-defined]


async def run_origin() -> None:
    """Nothing in between, and nothing behind."""
    server = await asyncio.get_running_loop().create_server(Origin, "127.0.0.1", 0, backlog=BACKLOG)
    await _run(server.sockets[0].getsockname()[1])


async def handle(request: HttpRequest) -> HttpResponse:
    """The same as a handler of the SDK's listener."""
    head, _, last = request.path.rpartition("/")
    hashed = sha256() if last == "hash" else None
    async for piece in request:
        if hashed is not None:
            hashed.update(piece)
    headers = {"Content-Type": CONTENT_TYPE}
    if head.endswith("/stream"):
        return HttpResponse(200, _streamed(int(last)), headers=headers)
    return HttpResponse(200, ANSWER if hashed is None else hashed.hexdigest(), headers=headers)


async def _streamed(size: int) -> AsyncIterator[bytes]:
    for block in content(size):
        yield block


async def run_listener(kind: str, port: int, tls: ssl.SSLContext | None) -> None:
    """The SDK's listener, with a handler or with the ASGI application."""
    address = f"{'wss' if tls else 'ws'}://localhost:{port}/{PATH}"
    if kind == "handler":
        async with HybridConnectionListener(address, key_name=KEY_NAME, key=KEY, ssl=tls, http_handler=handle):
            await _run(0)
    else:
        async with AsgiHost(application, address, key_name=KEY_NAME, key=KEY, ssl=tls):
            await _run(0)


async def run_uvicorn(certificate: Path | None, key: Path | None) -> None:
    """The same application without a relay."""
    sock = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    sock.setblocking(False)
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            loop="none",
            http="httptools",
            access_log=False,
            log_level="warning",
            backlog=BACKLOG,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )
    # The system holds whoever comes before it has started.
    print(sock.getsockname()[1], flush=True)
    await server.serve(sockets=[sock])


async def _run(port: int) -> None:
    ended = asyncio.Event()
    on_signal(15, ended.set)
    print(port, flush=True)
    await ended.wait()


def main() -> None:
    """Run one of them, on the processors that it was given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.applications")
    parser.add_argument("kind", choices=("bare", "handler", "asgi", "origin", "uvicorn"))
    parser.add_argument("--relay", type=int, default=0, help="the port of the node")
    parser.add_argument("--authority", type=Path, help="PEM; the node is reached over TLS")
    parser.add_argument("--certificate", type=Path, help="PEM; with --key: TLS")
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    context = None if options.authority is None else ssl.create_default_context(cafile=options.authority)
    if options.kind == "bare":
        run_bare(options.relay, context)
    elif options.kind in ("handler", "asgi"):
        uvloop.run(run_listener(options.kind, options.relay, context))
    elif options.kind == "origin":
        uvloop.run(run_origin())
    else:
        uvloop.run(run_uvicorn(options.certificate, options.key))


if __name__ == "__main__":
    main()
