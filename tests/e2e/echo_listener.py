"""Listeners that tell who they are, in this process and in one of their own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trunkline.sdk import Connection, HybridConnectionClient, HybridConnectionListener
from trunkline.testing import RelayNode

PROGRAM = Path(__file__).with_name("echo_program.py")


@asynccontextmanager
async def echo_listener(
    node: RelayNode, name: str = "listener", *, entity: str | None = None, **options: Any
) -> AsyncIterator[HybridConnectionListener]:
    """A listener that is online: it sends each sender its name, and then what the sender sends."""
    async with node.listener(entity, **options) as listener:

        async def answer(connection: Connection) -> None:
            await connection.send(name)
            async for message in connection:
                await connection.send(message)

        # Owned by this block.
        serving = asyncio.get_running_loop().create_task(listener.serve(answer))
        try:
            yield listener
        finally:
            await listener.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def who_answers(client: HybridConnectionClient, **options: Any) -> str | bytes:
    """Connect, and say which listener that was."""
    async with await client.create_connection(**options) as connection:
        return await connection.recv()


class EchoProgram:
    """The same in a process of its own, which can be killed or frozen."""

    def __init__(self, node: RelayNode, name: str) -> None:
        self._options = json.dumps(
            {"connection_string": node.connection_string(), "name": name, "ca_file": node.tls and str(node.ca_file)}
        )
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Returns when it is online."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), self._options, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            assert await self._process.stdout.readline() == b"online\n"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    def freeze(self) -> None:
        """Stop it where it stands: its sockets stay open, and the system goes on taking bytes for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        """End it with SIGKILL, which no program can answer."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
