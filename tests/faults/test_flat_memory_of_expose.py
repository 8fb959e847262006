"""Big bodies through `trunkline expose`: its memory stays flat, whatever passes, and however slowly it is taken."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from cli.program import Program
from trunkline.testing import RelayNodeThread, relay_node_thread

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process where Linux has it"),
]

MIB = 2**20
#: By how much resident memory may grow at any moment.
GROWTH = 16 * MIB
BLOCK = random.Random(4).randbytes(MIB)


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """Tells the digest of what it gets, and gives as many blocks as it is asked for."""

    async def up(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for piece in request.content.iter_any():
            digest.update(piece)
        return web.Response(text=digest.hexdigest())

    async def down(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(int(request.match_info["blocks"])):
            await response.write(BLOCK)
        return response

    application = web.Application()
    application.router.add_put("/up", up)
    application.router.add_get("/down/{blocks}", down)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def exposed(relay: RelayNodeThread) -> AsyncIterator[tuple[Program, httpx.AsyncClient]]:
    async with server() as port:
        address = ("--no-tls", "--connection-string", relay.connection_string())
        with Program("expose", str(port), *address) as expose:
            await asyncio.to_thread(expose.wait_for, "Ctrl-C ends")
            async with httpx.AsyncClient(
                base_url=f"http://{relay.host}:{relay.port}/{relay.entity}/",
                headers={"ServiceBusAuthorization": relay.token()},
                timeout=60,
            ) as client:
                assert (await client.get("down/1")).content == BLOCK  # so that everything is loaded
                yield expose, client


def peak(program: Program) -> int:
    """The most bytes of memory that it has had since `forget_peak`."""
    return 1024 * int(Path(f"/proc/{program.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def forget_peak(program: Program) -> int:
    """See clear_refs in proc(5); gives the memory that it has now."""
    Path(f"/proc/{program.process.pid}/clear_refs").write_text("5")
    return peak(program)


async def test_bodies_of_100_mib_pass_both_ways() -> None:
    with relay_node_thread() as relay:
        async with exposed(relay) as (expose, client):
            before = forget_peak(expose)

            async def blocks() -> AsyncIterator[bytes]:
                for _ in range(100):
                    yield BLOCK

            answer = await client.put("up", content=blocks())
            digest, expected = hashlib.sha256(), hashlib.sha256()
            for _ in range(100):
                expected.update(BLOCK)
            assert answer.text == expected.hexdigest()
            async with client.stream("GET", "down/100") as answer:
                async for piece in answer.aiter_raw():
                    digest.update(piece)
            assert digest.digest() == expected.digest()
            assert peak(expose) - before < GROWTH


async def test_sender_that_takes_nothing_fills_no_memory() -> None:
    with relay_node_thread() as relay:
        async with exposed(relay) as (expose, client):
            before = forget_peak(expose)
            async with client.stream("GET", "down/1000") as answer:
                pieces = answer.aiter_raw(MIB)
                assert await anext(pieces) == BLOCK
                # Others are served meanwhile, and nothing moves in this one.
                for _ in range(20):
                    assert (await client.get("down/1")).content == BLOCK
                assert peak(expose) - before < GROWTH
                assert await anext(pieces) == BLOCK
