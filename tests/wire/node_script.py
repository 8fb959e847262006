"""One Node process that runs a script of `scripts/` and talks in JSON lines.

A test opens it with `async with`, gives commands, and waits for the events that it expects, in any order; an event
that was waited for is taken, so that the next wait finds the next one. Whatever happens, the process ends with
the block, and a wait that fails shows what the process has said so far.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPTS = Path(__file__).parent / "scripts"

# The longest line is a rejected sender's reason phrase.
LINE_LIMIT = 1 << 20

Event = dict[str, Any]


def content(kind: str, size: int, seed: str) -> bytes:
    """What `make` of content.js sends for the same arguments, as bytes on the wire."""
    made = hashlib.shake_256(seed.encode()).digest(size)
    return made.decode("latin-1").encode() if kind == "text" else made


class NodeScript:
    """A running script.

    node: the Node program. modules: the folder that holds hyco-ws and hyco-https. name: the script without ".js".
    options: the script's argument. ca_file: a certificate authority that Node shall trust besides its own list.
    """

    def __init__(
        self, node: str, modules: Path, name: str, options: Mapping[str, object], ca_file: Path | str | None
    ) -> None:
        self._command = [node, str(SCRIPTS / f"{name}.js"), json.dumps(options)]
        self._environment = dict(os.environ, NODE_PATH=str(modules), NODE_NO_WARNINGS="1")
        # A proxy of the surroundings has no part in a conversation over loopback.
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NODE_OPTIONS"):
            self._environment.pop(variable, None)
        if ca_file is not None:
            self._environment["NODE_EXTRA_CA_CERTS"] = str(ca_file)
        self._waiting: list[Event] = []  # said and not yet taken by a wait
        self._said: list[Event] = []  # everything, for the message of a failure
        self._errors = b""
        self._news = asyncio.Condition()
        self._ended = False
        self._killed = False

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LINE_LIMIT,
        )
        self._readers = asyncio.TaskGroup()
        await self._readers.__aenter__()
        self._readers.create_task(self._read_events())
        self._readers.create_task(self._read_errors())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the script ends by itself at the end of its input
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        await self._readers.__aexit__(None, None, None)
        if error is None and not self._killed and self._process.returncode != 0:
            raise AssertionError(self._story(f"ended with exit code {self._process.returncode}"))

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Ends the process as a crash of its machine would: no Close frame, no goodbye."""
        self._killed = True
        if self._process.returncode is None:
            self._process.kill()

    def tell(self, do: str, **arguments: object) -> None:
        """Gives a command. Does not wait; a command that fails comes back as the event "refused"."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    async def expect(self, event: str, *, within: float = 20.0, **fields: object) -> Event:
        """The first event of that name with these fields, now or within so many seconds."""

        def found() -> Event | None:
            for said in self._waiting:
                if said["event"] == event and all(said.get(name) == value for name, value in fields.items()):
                    return said
            return None

        try:
            async with asyncio.timeout(within), self._news:
                while (match := found()) is None:
                    if self._ended:
                        raise AssertionError(self._story(f"ended without {event!r} {fields}"))
                    await self._news.wait()
                self._waiting.remove(match)
                return match
        except TimeoutError:
            raise AssertionError(self._story(f"did not say {event!r} {fields} within {within} s")) from None

    def said(self, event: str) -> list[Event]:
        """Every event of that name so far, also those that were waited for."""
        return [said for said in self._said if said["event"] == event]

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            event = json.loads(line)
            async with self._news:
                self._said.append(event)
                self._waiting.append(event)
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(65_536):
            self._errors = (self._errors + piece)[-10_000:]

    def _story(self, problem: str) -> str:
        events = "\n".join(f"  {event}" for event in self._said[-40:])
        return f"{self._command[1]} {problem}; it said:\n{events}\n{self._errors.decode(errors='replace')}"
