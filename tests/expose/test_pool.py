"""Connections to the target: Unix sockets, TLS, and what goes wrong. What travels on them: see test_forwarder."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from expose.raw_target import raw_target, read_head
from trunkline.expose.answers import Refused
from trunkline.expose.health import Health
from trunkline.expose.pool import Pool
from trunkline.expose.target import Target, tls_settings


async def hello(request: web.Request) -> web.StreamResponse:
    return web.Response(text=f"hello from {request.url.scheme} {request.host}{request.raw_path}")


@asynccontextmanager
async def running(**site: object) -> AsyncIterator[int]:
    """An HTTP server on a free port, or a Unix socket (`path`); gives its port."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", hello)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        if "path" in site:
            await web.UnixSite(runner, str(site["path"])).start()
            yield 0
        else:
            context = site.get("ssl")
            assert context is None or isinstance(context, ssl.SSLContext)
            await web.TCPSite(runner, "localhost", 0, ssl_context=context).start()
            yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def never() -> None:
    raise AssertionError


def pool_of(target: Target, told: list[str] | None = None, **options: object) -> Pool:
    return Pool(target, Health(never, lambda up, reason: (told or []).append(reason)), **options)  # type: ignore[arg-type]


async def get(pool: Pool) -> str:
    async with pool:
        response = await pool.request("GET", "/x", [("Host", pool.target.authority)], None)
        return await response.text()


async def test_target_at_a_unix_socket_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    async with running(path=path):
        assert (
            await get(pool_of(Target("http", "localhost", 80, unix_socket=str(path)))) == "hello from http localhost/x"
        )


async def test_certificate_of_the_target_is_checked(tmp_path: Path) -> None:
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    async with running(ssl=context) as port:
        target = Target("https", "localhost", port)
        expected = f"hello from https localhost:{port}/x"
        assert await get(pool_of(target, tls=tls_settings(insecure=False, ca=str(ca_file)))) == expected
        assert await get(pool_of(target, tls=tls_settings(insecure=True, ca=None))) == expected
        with pytest.raises(Refused) as failure:
            await get(pool_of(target))
        assert failure.value.refusal.status == 502
        assert "certificate is not trusted" in failure.value.refusal.error
        # What speaks TLS is asked without it, and the other way round.
        with pytest.raises(Refused) as failure:
            await get(pool_of(Target("http", "localhost", port)))
        assert failure.value.refusal.status in (400, 502)
    async with running() as port:
        with pytest.raises(Refused, match="speaks no TLS"):
            await get(pool_of(Target("https", "localhost", port)))


async def test_target_that_takes_no_connection_in_time_is_told_apart() -> None:
    """A queue that is full: the system drops what comes."""
    import socket

    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = []
        for _ in range(3):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
            others.append(other)
        try:
            with pytest.raises(Refused) as failure:
                await get(pool_of(Target("http", "127.0.0.1", port), connect_timeout=0.2))
            assert failure.value.refusal.status == 504
        finally:
            for other in others:
                other.close()


async def test_target_that_never_answers_is_given_up_and_one_that_began_is_not() -> None:
    goes_on = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if head.startswith("GET /begins"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        await goes_on.wait()
        writer.write(b"k")

    async with raw_target(play) as server, pool_of(server.target, response_timeout=1.0) as pool:
        response = await pool.request("GET", "/begins", [], None)
        with pytest.raises(Refused) as failure:
            await pool.request("GET", "/never", [], None)
        assert failure.value.refusal.status == 504
        # Longer than the limit by now, which is for the head.
        goes_on.set()
        assert await response.read() == b"ok"


async def test_pool_is_used_in_its_block() -> None:
    pool = pool_of(Target("http", "localhost", 1))
    with pytest.raises(RuntimeError, match="async with"):
        await pool.request("GET", "/", [], None)


async def test_connection_that_is_reset_while_idle_harms_nobody() -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        await asked.wait()
        writer.write(b"ok")
        await answered.wait()
        writer.transport.abort()

    async with raw_target(play) as server, pool_of(server.target) as pool:
        for number in range(1, 4):
            asked.clear()
            answered.clear()
            response = await pool.request("GET", "/", [], None)
            asked.set()
            assert await response.read() == b"ok"
            [protocol] = pool._bodies
            assert protocol.closed is not None
            answered.set()
            await asyncio.wait([protocol.closed])
            await asyncio.sleep(0)
            assert pool._bodies == {}
            assert server.connections == number
