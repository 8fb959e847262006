"""A node whose port belongs to somebody else, as under systemd: it restarts, and refuses nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from trunkline.protocol import connection_string
from trunkline.sdk import Connection, HybridConnectionClient, HybridConnectionListener

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform == "win32", reason="descriptors that are handed over"),
]

FILE = """\
[[namespace]]
name = "myRelayNS"

[[namespace.rule]]
name = "Root"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"

[[namespace.hybrid_connection]]
name = "orders"
"""

#: Puts the socket where systemd puts it, says so as it does, and becomes the node.
LAUNCHER = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="data")
os.execv(sys.executable, [sys.executable, "-m", "trunkline", *sys.argv[2:]])
"""


class Service:
    """What systemd does: holds the port, starts and stops nodes on it, and hears from them."""

    def __init__(self, folder: Path, *, tls: bool) -> None:
        self.folder = folder
        self.tls = tls
        (folder / "trunkline.toml").write_text(FILE)
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=4_096)
        self.port: int = self.listening.getsockname()[1]
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.told.bind(str(folder / "notify"))
        self.told.setblocking(False)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start a node; returns when it is ready."""
        options = ["--config", str(self.folder / "trunkline.toml"), "--admin-port", "0", "--port", "1"]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", LAUNCHER, str(self.listening.fileno()), "serve", *options),
            *(("--data", str(self.folder / "data")) + (() if self.tls else ("--tls", "off"))),
            pass_fds=[self.listening.fileno()],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")},
                "NOTIFY_SOCKET": str(self.folder / "notify"),
                "WATCHDOG_USEC": "200000",
            },
        )
        await self.hears("READY=1")

    async def hears(self, line: str) -> list[str]:
        """Wait until the node says `line`; gives all that it said up to then."""
        said: list[str] = []
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while line not in said:
                said += (await loop.sock_recv(self.told, 4_096)).decode().split("\n")
        return said

    async def end(self, number: int) -> int:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        async with asyncio.timeout(20):
            return await self.process.wait()

    def connection_string(self) -> str:
        return connection_string.build(
            "127.0.0.1", port=self.port, key_name="Root", key="secretkey", entity_path="orders"
        )

    @property
    def ssl(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.folder / "data" / "ca.pem") if self.tls else None


@asynccontextmanager
async def service(folder: Path, *, tls: bool = False) -> AsyncIterator[Service]:
    running = Service(folder, tls=tls)
    with running.listening, running.told:
        try:
            yield running
        finally:
            if running.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    running.process.kill()
                await running.process.wait()


class Callers:
    """Clients that connect one after the other, each for one answer."""

    def __init__(self, service: Service) -> None:
        self._port = service.port
        self._ssl = service.ssl
        self.answered = 0
        # What happened to the others.
        self.cut: list[str] = []
        self.refused: list[str] = []

    async def call(self) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, ssl=self._ssl, server_hostname="localhost" if self._ssl else None
                )
            except ConnectionRefusedError as error:
                self.refused.append(str(error))
                continue
            except (OSError, EOFError) as error:
                self.cut.append(repr(error))
                continue
            try:
                writer.write(b"GET /$hc/orders HTTP/1.1\r\nHost: localhost\r\n\r\n")
                line = await reader.readline()
                if line.startswith(b"HTTP/1.1 4"):
                    self.answered += 1
                else:
                    self.cut.append(repr(line))
            except OSError as error:
                self.cut.append(repr(error))
            finally:
                writer.transport.abort()

    async def answered_more(self, count: int) -> None:
        """Wait until so many more have their answer."""
        target = self.answered + count
        async with asyncio.timeout(20):
            while self.answered < target:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def calling(service: Service, count: int = 4) -> AsyncIterator[Callers]:
    callers = Callers(service)
    tasks = [asyncio.get_running_loop().create_task(callers.call()) for _ in range(count)]
    try:
        yield callers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_node_that_is_restarted_refuses_and_cuts_nobody_who_comes(tmp_path: Path, tls: bool) -> None:
    async with service(tmp_path, tls=tls) as running:
        await running.start()
        async with calling(running) as callers:
            await callers.answered_more(20)
            assert await running.end(signal.SIGTERM) == 0
            before = callers.answered
            await running.start()
            await callers.answered_more(20)
            assert callers.answered > before
        assert (callers.refused, callers.cut) == ([], [])


async def test_node_that_is_killed_refuses_nobody_and_its_listeners_come_back(tmp_path: Path) -> None:
    async with service(tmp_path) as running:
        await running.start()
        text = running.connection_string()
        async with HybridConnectionListener(text, ssl=False) as listener, calling(running) as callers:
            for number in (signal.SIGKILL, signal.SIGTERM):
                sender = await HybridConnectionClient(text, ssl=False).create_connection()
                accepted = await listener.accept()
                await sender.send("through")
                assert await accepted.recv() == "through"
                await asyncio.gather(sender.close(), accepted.close())
                await running.end(number)
                await running.start()
                async with asyncio.timeout(20):
                    while not await is_listening(text):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                # The one that looked is still there to be accepted.
                await (await listener.accept()).close()
        assert callers.refused == []


async def is_listening(text: str) -> bool:
    """Whether a sender finds the listener again."""
    with contextlib.suppress(Exception):
        sender = await HybridConnectionClient(text, ssl=False).create_connection(timeout=2)
        sender.abort()
        return True
    return False


async def test_senders_that_come_while_the_node_restarts_are_all_served(tmp_path: Path) -> None:
    async with service(tmp_path) as running:
        await running.start()
        text = running.connection_string()
        served = 0

        async def answer(connection: Connection) -> None:
            async for message in connection:
                await connection.send(message)

        async def send() -> None:
            nonlocal served
            client = HybridConnectionClient(text, ssl=False)
            while True:
                connection = await client.create_connection(timeout=15)
                await connection.send("there and back")
                assert await connection.recv() == "there and back"
                await connection.close()
                served += 1

        async def more(count: int) -> None:
            target = served + count
            while served < target:
                # One that was refused has ended.
                assert not any(task.done() for task in tasks), tasks
                await asyncio.sleep(0.005)

        async with HybridConnectionListener(text, ssl=False) as listener:
            tasks = [asyncio.get_running_loop().create_task(work) for work in (listener.serve(answer), send(), send())]
            async with asyncio.timeout(40):
                await more(10)
                assert await running.end(signal.SIGTERM) == 0
                await running.start()
                await more(10)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def test_service_manager_hears_how_the_node_is(tmp_path: Path) -> None:
    async with service(tmp_path) as running:
        await running.start()
        await running.hears("WATCHDOG=1")
        assert running.process is not None
        running.process.send_signal(signal.SIGHUP)
        said = await running.hears("READY=1")
        assert "RELOADING=1" in said
        assert f"STATUS=ready on http://localhost:{running.port}" in said
        (tmp_path / "trunkline.toml").write_text("[node]\nprt = 1\n")
        running.process.send_signal(signal.SIGHUP)
        [status] = [line for line in await running.hears("READY=1") if line.startswith("STATUS=")]
        assert "not reloaded: trunkline.toml:2: node.prt" in status
        assert await running.end(signal.SIGTERM) == 0
        assert "EXTEND_TIMEOUT_USEC=45000000" in await running.hears("STOPPING=1")
