"""A node that is attacked, and what is measured of it.

    async with besieged_node() as node:
        async with node.unharmed("2,000 connections that say nothing"):
            ...

The node is a process of its own, so that memory and open files are its own, and so is a bystander: a listener and a
sender on another hybrid connection, which exchange numbered messages and make new connections the whole time. A block
of `unharmed` fails unless, once it is over and its connections are closed,

- every count in `/readyz` and the number of open files are what they were before,
- resident memory is within `MEMORY` of what it was,
- the bystander lost nothing, got nothing out of order or changed, and waited for no echo longer than `UNTOUCHED`
  and for no new connection longer than `SERVED`.

It prints what was measured. Linux only: files and memory are read from /proc.
"""

from __future__ import annotations

import asyncio
import json
import ssl as ssl_module
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from e2e.raw_websocket import BINARY, RawWebSocket, refusal
from trunkline.protocol import connection_string, sas, urls
from trunkline.protocol.limits import DEFAULT_TOKEN_LIFETIME

NODE = Path(__file__).with_name("besieged_program.py")
BYSTANDER = Path(__file__).with_name("bystander_program.py")

#: The hybrid connection that is attacked, and the one of the bystander.
ATTACKED, PEACEFUL = "attacked", "peaceful"

#: What is counted once for the bystander, between two of its new connections.
AT_PEACE = {"listeners", "senders", "control_channels", "connections"}

#: Bytes by which resident memory may differ afterwards.
MEMORY = 10 * 2**20
#: Seconds that a bystander never waits for an echo, or for a new connection, which stands in line with the attackers.
#: They say "untouched", not "fast".
UNTOUCHED = 2.0
SERVED = 5.0
#: Connections at a time before the attack.
CROWD = 300
#: Seconds within which the node must be as it was.
RECOVERY = 45.0
#: Seconds for a program to start or to answer.
WITHIN = 30.0


class Program:
    """A program that says on its standard output, in JSON, what it is asked on its standard input."""

    def __init__(self, file: Path, arguments: dict[str, Any]) -> None:
        self._command = (sys.executable, str(file), json.dumps(arguments))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self.process
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(WITHIN):
                await process.wait()
        except BaseException:
            process.kill()
            await process.wait()
            raise

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def said(self) -> Any:
        """The next line that it prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WITHIN):
            line = await self.process.stdout.readline()
        assert line, f"{self._command[1]} ended"
        return json.loads(line)

    async def ask(self) -> Any:
        """What it has to tell now."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self.said()


@dataclass
class Measured:
    """What one attack did to the node."""

    what: str
    began: float = field(default_factory=time.monotonic)
    #: Before, at most while it lasted, and when the node was as before.
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    #: Seconds: of the attack, from its end until the node was as before, and of the node's processor.
    lasted: float = 0.0
    recovered: float = 0.0
    cpu: float = 0.0
    #: Seconds of processor time that the node's loop was held at a stretch, at most.
    held: float = 0.0
    #: What the bystander says.
    echoes: int = 0
    longest_echo: float = 0.0
    connections: int = 0
    longest_connection: float = 0.0

    def since(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def __str__(self) -> str:
        memory = " -> ".join(f"{each / 2**20:.1f}" for each in self.memory)
        files = " -> ".join(map(str, self.files))
        return (
            f"{self.what}: {self.lasted:.1f} s, node CPU {self.cpu:.2f} s, loop held {self.held * 1000:.0f} ms; "
            f"as before after {self.recovered:.1f} s; memory {memory} MiB, files {files}; bystander: "
            f"{self.echoes} echoes, the slowest {self.longest_echo * 1000:.0f} ms, "
            f"{self.connections} new connections, the slowest {self.longest_connection * 1000:.0f} ms"
        )


class BesiegedNode:
    """A running node of its own process, how to reach it, and what it has; made by `besieged_node`."""

    def __init__(self, program: Program, said: dict[str, Any]) -> None:
        self.program = program
        self.bystander: Program | None = None
        self._text = connection_string.parse(said["connection_string"])
        self._admin_url: str = said["admin_url"]
        self.ca_file: str | None = said["ca_file"]
        self.host = self._text.host
        self.port = self._text.port or 443
        self.pid = program.process.pid
        self._proc = Path(f"/proc/{self.pid}")

    # --- how to reach it

    @property
    def tls(self) -> ssl_module.SSLContext | None:
        """For a client that trusts it; None without TLS."""
        return ssl_module.create_default_context(cafile=self.ca_file) if self.ca_file else None

    def connection_string(self, entity: str = ATTACKED) -> str:
        """With the key of the namespace's first rule, which may do everything."""
        return connection_string.build(
            self.host, port=self.port, key_name=self._text.key_name, key=self._text.key, entity_path=entity
        )

    def token(self, entity: str = ATTACKED, *, expires_in: float = DEFAULT_TOKEN_LIFETIME, key: str = "") -> str:
        """A token for an entity; `key` makes it a wrong one."""
        assert self._text.key_name and self._text.key
        audience = sas.audience(self.host, entity)
        return sas.sign(audience, self._text.key_name, key or self._text.key, expires_at=int(time.time() + expires_in))

    def listen_url(self, entity: str = ATTACKED, **options: Any) -> str:
        """Options as in `trunkline.protocol.urls.listen_url`."""
        return urls.listen_url(self._base, entity, **options)

    def connect_url(self, entity: str = ATTACKED, **options: Any) -> str:
        """Options as in `trunkline.protocol.urls.connect_url`."""
        return urls.connect_url(self._base, entity, **options)

    @property
    def _base(self) -> str:
        return urls.base_url(self.host, self.port, secure=self.ca_file is not None)

    def websocket(self, url: str, **options: Any) -> RawWebSocket:
        """A raw client of it, with a good token for the attacked entity unless another is given."""
        options.setdefault("token", self.token())
        return RawWebSocket(url, ssl=self.tls, **options)

    # --- what it has

    async def counts(self) -> dict[str, int]:
        """What `/readyz` counts."""

        def get() -> dict[str, Any]:
            with urllib.request.urlopen(f"{self._admin_url}/readyz", timeout=WITHIN) as answer:
                return dict(json.load(answer))

        counted = await asyncio.to_thread(get)
        return {name: value for name, value in counted.items() if isinstance(value, int)}

    async def until(self, condition: Callable[[dict[str, int]], bool], *, timeout: float = RECOVERY) -> dict[str, int]:
        """Wait until its counts are as wanted.

        Raises:
            TimeoutError: they were not; the message holds the counts.
        """
        deadline = time.monotonic() + timeout
        while not condition(now := await self.counts()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"After {timeout:g} s the node has {now}")
            await asyncio.sleep(0.05)
        return now

    def open_files(self) -> int:
        """Files and sockets that it has open."""
        return len(list((self._proc / "fd").iterdir()))

    def memory(self) -> int:
        """Bytes of resident memory."""
        return 1024 * int((self._proc / "status").read_text().partition("VmRSS:")[2].split()[0])

    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        # The name of the program may hold spaces; utime and stime are the 14th and 15th field (proc_pid_stat(5)).
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    # --- the measure

    @asynccontextmanager
    async def unharmed(self, what: str, *, memory: int = MEMORY) -> AsyncIterator[Measured]:
        """A block that attacks it; fails unless it is as before once the block is over.

        Args:
            what: the attack, for the line that is printed.
            memory: bytes by which resident memory may differ.
        """
        counts, files, resident = await self._quiet()
        if self.bystander is not None:
            await self.bystander.ask()
        await self.program.ask()
        used, measured = self.cpu(), Measured(what)
        watch = asyncio.get_running_loop().create_task(self._watch(measured))  # ended below
        try:
            yield measured
            over = time.monotonic()
            measured.lasted = over - measured.began
            await self._until_as_before(counts, files, resident, memory)
            measured.recovered = time.monotonic() - over
        finally:
            watch.cancel()
        measured.files = [files, max(measured.files, default=files), self.open_files()]
        measured.memory = [resident, max(measured.memory, default=resident), self.memory()]
        measured.cpu = self.cpu() - used
        measured.held = await self.program.ask()
        if self.bystander is not None:
            told = await self.bystander.ask()
            for name in ("echoes", "longest_echo", "connections", "longest_connection"):
                setattr(measured, name, told[name])
            print(measured)
            assert told["faults"] == []
            assert measured.echoes > 0
            assert measured.longest_echo < UNTOUCHED
            assert measured.longest_connection < SERVED
        else:
            print(measured)

    async def _quiet(self) -> tuple[dict[str, int], int, int]:
        """Counts, open files and memory at rest."""
        names = await self.counts()
        counts = {name: int(self.bystander is not None and name in AT_PEACE) for name in names}
        files = []
        for _ in range(10):
            # The bystander may make a new connection in between, and each look is one on the admin port.
            await self.until(lambda now: now == counts)
            files.append(self.open_files())
        return counts, min(files), await self._memory_at_rest()

    async def _memory_at_rest(self) -> int:
        """Resident memory once it changes no more; what the warming left is still being given back."""
        steady, last = 0, self.memory()
        while steady < 8:
            await asyncio.sleep(0.1)
            now = self.memory()
            steady, last = (steady + 1, last) if abs(now - last) < 2**19 else (0, now)
        return last

    async def _watch(self, measured: Measured) -> None:
        while True:
            measured.files.append(self.open_files())
            measured.memory.append(self.memory())
            await asyncio.sleep(0.1)

    async def _until_as_before(self, counts: dict[str, int], files: int, resident: int, memory: int) -> None:
        deadline = time.monotonic() + RECOVERY
        while True:
            now = await self.counts(), self.open_files(), self.memory()
            if now[0] == counts and now[1] == files and abs(now[2] - resident) <= memory:
                return
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"After {RECOVERY:g} s the node has {now[0]}, {now[1]} open files and {now[2] / 2**20:.1f} MiB; "
                    f"before it had {counts}, {files} and {resident / 2**20:.1f}"
                )
            await asyncio.sleep(0.05)


@asynccontextmanager
async def besieged_node(
    *, bystander: bool = True, tls: bool = False, entity: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[BesiegedNode]:
    """A node that is running and warm, with a bystander that is at it.

    Args:
        bystander: whether there is one.
        tls: as for `trunkline.testing.relay_node`.
        entity: options of the hybrid connection that is attacked.
        options: more of `trunkline.testing.relay_node`: limits, `tick`.
    """
    hybrid_connections = {ATTACKED: entity or {}, PEACEFUL: {}}
    arguments = {"hybrid_connections": hybrid_connections, "tls": tls, "tick": 0.25, **options}
    async with AsyncExitStack() as stack:
        program = await stack.enter_async_context(Program(NODE, arguments))
        node = BesiegedNode(program, await program.said())
        await warm(node)
        if bystander:
            node.bystander = Program(BYSTANDER, {"text": node.connection_string(PEACEFUL), "ca_file": node.ca_file})
            await stack.enter_async_context(node.bystander)
            # It answers once it is at it.
            await node.bystander.ask()
        yield node


async def warm(node: BesiegedNode) -> None:
    """Let the node do once what it does all day, so that what it loads and makes for that is not counted."""
    for _ in range(2):
        async with node.websocket(node.listen_url()) as control:
            for _ in range(20):
                sender = node.websocket(node.connect_url())
                await sender.connect()
                async with node.websocket((await control.offer())["address"]) as leg:
                    await sender.upgraded()
                    for size in (0, 1_000, 70_000, 300_000):
                        await sender.send(BINARY, bytes(size))
                        await leg.receive_message()
                        await leg.send(BINARY, bytes(size))
                        await sender.receive_message()
                sender.abort()
            for _ in range(20):
                await refusal(node.connect_url("nowhere"), token=node.token("nowhere"), ssl=node.tls)
    # A crowd of the size that any node has seen.
    async with AsyncExitStack() as crowd:
        for _ in range(CROWD):
            stranger = node.websocket(node.connect_url("nowhere"), token=node.token("nowhere"))
            crowd.callback(stranger.abort)
            await stranger.connect()
    await node.until(lambda counts: not any(counts.values()))
