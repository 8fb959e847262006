"""`trunkline serve` as a process, on ports of its own and with a standard error that may fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trunkline.protocol import connection_string
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener

#: Seconds for anything that a test waits for.
PATIENCE = 20.0

FILE = """\
[node]
host = "127.0.0.1"
port = {port}
admin_port = {admin_port}
tls = "off"
data = "./data"
log_format = "text"

[[namespace]]
name = "testing"

[[namespace.rule]]
name = "all"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"
"""


def free_ports() -> tuple[int, int]:
    """Two ports that nobody has, for a node that is to come back where it was."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


class ServedNode:
    """A running `trunkline serve`.

    Args:
        folder: for its file and its data.
        ports: of data plane and admin.
    """

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.file = folder / "trunkline.toml"
        self.data = folder / "data"
        self._ports = ports
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def declare(self, *names: str, **limits: float) -> None:
        """Write its file, with these hybrid connections, and limits for each of them."""
        port, admin_port = self._ports
        set_limits = "".join(f"{name} = {value}\n" for name, value in limits.items())
        entities = "".join(f'\n[[namespace.hybrid_connection]]\nname = "{name}"\n{set_limits}' for name in names)
        self.file.write_text(FILE.format(port=port, admin_port=admin_port) + entities)

    async def start(self, stderr: int | IO[Any] = asyncio.subprocess.PIPE, *, shell: str = "") -> None:
        """Start it, and wait until it is ready. `shell` is a redirection for its standard error."""
        command = [sys.executable, "-m", "trunkline", "serve", "--config", str(self.file)]
        if shell:
            command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
        self._process = await asyncio.create_subprocess_exec(*command, stderr=stderr, env=environment)
        await self.until_ready()

    async def until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError):
                if (await self.readiness())["status"] == "ready":
                    return
            assert self.process.returncode is None and time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def readiness(self) -> dict[str, Any]:
        """What `/readyz` says."""

        def get() -> dict[str, Any]:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[1]}/readyz", timeout=5) as answer:
                return dict(json.load(answer))

        return await asyncio.to_thread(get)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    async def said(self, words: str) -> str:
        """The next line on its standard error that holds these words."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while words not in (line := (await self.process.stderr.readline()).decode()):
                assert line, "it has ended"
        return line

    async def end(self) -> int:
        """SIGTERM; its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode

    def client(self, entity: str, **options: Any) -> HybridConnectionClient:
        return HybridConnectionClient(self._connection_string(entity), ssl=False, **options)

    def listener(self, entity: str, **options: Any) -> HybridConnectionListener:
        return HybridConnectionListener(self._connection_string(entity), ssl=False, **options)

    def _connection_string(self, entity: str) -> str:
        return connection_string.build(
            "127.0.0.1", port=self._ports[0], key_name="all", key="secretkey", entity_path=entity
        )


@asynccontextmanager
async def served_node(folder: Path, *names: str, start: bool = True) -> AsyncIterator[ServedNode]:
    """A node that is running, with these hybrid connections; killed in the end unless it has ended."""
    node = ServedNode(folder, free_ports())
    node.declare(*names)
    try:
        if start:
            await node.start()
        yield node
    finally:
        if node._process is not None:
            with suppress(ProcessLookupError):
                node.process.kill()
            await node.process.wait()
