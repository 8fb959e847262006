"""The disk fails under a running node: the store cannot grow, is locked or gone, and the log goes nowhere.

What is relayed goes on untouched. A change is refused with its reason and the remedy, and takes effect when it is made
again with the fault gone; nothing that was acknowledged is lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import select
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faults.served_node import PATIENCE, ServedNode, served_node
from trunkline.protocol.errors import EndpointNotFound, NoListener
from trunkline.sdk import Connection

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform != "linux", reason="sets the limits of another process, as Linux can"),
]


@asynccontextmanager
async def untouched(node: ServedNode, entity: str = "orders") -> AsyncIterator[None]:
    """A block during which an old connection, and new ones, carry what they are given."""
    async with node.listener(entity) as listener, asyncio.TaskGroup() as tasks:

        async def echo(connection: Connection) -> None:
            async for message in connection:
                await connection.send(message)

        serving = tasks.create_task(listener.serve(echo))
        client = node.client(entity)
        begun, over = asyncio.Event(), asyncio.Event()

        async def exchange() -> None:
            old, number = await client.create_connection(), 0
            while not over.is_set():
                async with await client.create_connection() as new:
                    for connection in (old, new):
                        await connection.send(f"message {number}")
                        assert await connection.recv() == f"message {number}"
                number += 1
                begun.set()
                await asyncio.sleep(0.01)
            await old.close()

        exchanging = tasks.create_task(exchange())
        await begun.wait()
        yield
        begun.clear()
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
        over.set()
        await exchanging
        await listener.close()
        await serving


async def exists(node: ServedNode, entity: str) -> bool:
    """Whether the data plane knows it."""
    try:
        await node.client(entity).create_connection()
    except EndpointNotFound:
        return False
    except NoListener:
        return True
    raise AssertionError("somebody listens")


@pytest.mark.slow
async def test_full_disk_refuses_changes_until_there_is_room(tmp_path: Path) -> None:
    async with served_node(tmp_path, "orders") as node:
        async with untouched(node):
            size = (node.data / "entities.db-wal").stat().st_size
            resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            node.declare("orders", *(f"part-{number}" for number in range(50)))
            node.reload()
            refused = await node.said("not reloaded")
            assert "entities.db" in refused and "disk" in refused, refused
            assert not await exists(node, "part-49")
            resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            node.reload()
            await node.said(" reloaded")
            assert await exists(node, "part-49")
        assert await node.end() == 0
        await node.start()
        assert await exists(node, "part-0") and await exists(node, "part-49")


@pytest.mark.slow
async def test_locked_store_refuses_changes_until_it_is_let_go(tmp_path: Path) -> None:
    async with served_node(tmp_path, "orders") as node, untouched(node):
        other = sqlite3.connect(node.data / "entities.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        node.declare("orders", "parts")
        node.reload()
        refused = await node.said("not reloaded")
        assert "locked by another program; stop what writes to it" in refused, refused
        assert not await exists(node, "parts")
        other.execute("ROLLBACK")
        other.close()
        node.reload()
        await node.said(" reloaded")
        assert await exists(node, "parts")


async def test_store_whose_folder_was_removed_acknowledges_nothing_any_more(tmp_path: Path) -> None:
    async with served_node(tmp_path, "orders") as node:
        async with untouched(node):
            kept = tmp_path / "kept"
            shutil.copytree(node.data, kept, ignore=shutil.ignore_patterns("*.sock"))
            shutil.rmtree(node.data)
            node.declare("orders", "parts")
            node.reload()
            refused = await node.said("not reloaded")
            assert "entities.db" in refused and "restart the node" in refused, refused
            assert not await exists(node, "parts")
        kept.rename(node.data)
        await node.end()
        await node.start()
        assert await exists(node, "parts")


@pytest.mark.slow
async def test_log_that_nobody_reads_does_not_hold_the_node_up(tmp_path: Path) -> None:
    """A pipe takes 64 KiB, and this one 4: the line after that would have stopped the loop."""
    async with served_node(tmp_path, "orders", start=False) as node:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4_096)
        await node.start(writing)
        async with untouched(node):
            for _ in range(60):
                assert not await exists(node, "nothing-of-the-kind" * 10)
            assert select.select([], [writing], [], 0) == ([], [], []), "it is not full: the test shows nothing"
            assert (await node.readiness())["status"] == "ready"
        os.close(writing)
        os.close(reading)  # and then nobody is left at all
        assert not await exists(node, "nothing")
        assert await node.end() == 0


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-"])
async def test_standard_error_that_is_full_or_closed_does_not_end_the_node(shell: str, tmp_path: Path) -> None:
    async with served_node(tmp_path, "orders", start=False) as node:
        await node.start(asyncio.subprocess.DEVNULL, shell=shell)
        async with untouched(node):
            assert not await exists(node, "nothing")
            node.process.send_signal(signal.SIGHUP)
            assert (await node.readiness())["status"] == "ready"
        await node.end()
