"""kill -9 of a node, a listener or a sender at any moment, again and again, while streams are under way.

What must hold whoever is killed: a stream that ended in order is whole, all others ended with an error; the next node
opens the store and holds every change that was acknowledged; the node that lives on has nothing left of the dead.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from trunkline.protocol import connection_string
from trunkline.server.spare_memory import EVERY

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PROGRAM = Path(__file__).with_name("killed_program.py")

FILE = """\
[node]
host = "127.0.0.1"
port = {port}
admin_port = {admin_port}
tls = "{tls}"
data = "./data"
max_senders = 0
max_hybrid_connections = 0

[[namespace]]
name = "testing"

[[namespace.rule]]
name = "all"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"

[[namespace.hybrid_connection]]
name = "streams"
"""

LISTENERS, SENDERS = 2, 3
#: Seconds for anything that a test waits for.
PATIENCE = 15.0
#: By how much the memory of a node that lives on may grow.
GROWTH = 10 * 2**20


class Parties:
    """The processes, and what they have told."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path, tls: bool, ports: tuple[int, int]) -> None:
        self._process = process
        self._file = file
        self._tls = tls
        self._port, self._admin_port = ports
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.node = 0
        self.listeners: list[int] = []
        self.senders: list[int] = []
        self.kills: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        #: Entities that must be there, as their making was acknowledged; and those that must not. What is being
        #: removed is in neither.
        self.acknowledged: set[str] = set()
        self.removed: set[str] = set()
        self._ready = asyncio.Event()
        self._answers: asyncio.Queue[int] = asyncio.Queue()

    # --- what they tell

    async def listen(self) -> None:
        """Take in what they tell, until the program ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        match told:
            case {"started": pid} | {"killed": pid}:
                self._answers.put_nowait(pid)
            case {"fault": fault}:
                self.faults.append(fault)
            case {"end": end}:
                self.ends[end] += 1
            case {"made": name}:
                self.acknowledged.add(name)
            case {"removing": name}:
                self.acknowledged.discard(name)
            case {"removed": name}:
                self.removed.add(name)
            case {"holds": held, "counted": counted}:
                missing = self.acknowledged - set(held)
                if missing or self.removed & set(held) or not counted:
                    self.faults.append(f"the store has {held}, without {missing}; counted: {counted}")
                # What was under way when the node before was killed counts from now on.
                self.acknowledged = set(held)
                self._ready.set()

    # --- starting and killing

    async def _ask(self, **command: Any) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            return await self._answers.get()

    async def start_node(self) -> None:
        self._ready.clear()
        self.node = await self._ask(run="node", **{"with": {"file": str(self._file)}})
        async with asyncio.timeout(PATIENCE):
            await self._ready.wait()

    async def start(self, who: str) -> None:
        text = connection_string.build(
            "127.0.0.1", port=self._port, key_name="all", key="secretkey", entity_path="streams"
        )
        ca_file = str(self._file.parent / "data" / "ca.pem") if self._tls else None
        pid = await self._ask(run=who, **{"with": {"text": text, "ca_file": ca_file}})
        (self.listeners if who == "listener" else self.senders).append(pid)

    async def kill(self, who: str, chance: random.Random) -> None:
        """SIGKILL one of them, and start another in its place."""
        self.kills[who] += 1
        if who == "node":
            await self._ask(kill=self.node)
            await self.start_node()
            return
        pids = self.listeners if who == "listener" else self.senders
        await self._ask(kill=pids.pop(chance.randrange(len(pids))))
        await self.start(who)

    # --- what the node has

    async def counts(self) -> dict[str, Any]:
        """What `/readyz` counts; nothing while it does not answer."""

        def get() -> dict[str, Any]:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port}/readyz", timeout=5) as answer:
                return dict(json.load(answer))

        return await asyncio.to_thread(get)

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition(now := await self.counts()):
            assert time.monotonic() < deadline, f"{now} {self.faults}"
            await asyncio.sleep(0.02)

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.node}/fd").iterdir()))

    def memory(self) -> int:
        return 1024 * int(Path(f"/proc/{self.node}/status").read_text().partition("VmRSS:")[2].split()[0])

    async def quiet(self, files: int | None = None) -> tuple[int, int]:
        """End all senders, and wait until the node holds nothing but the listeners; its open files and memory.

        Args:
            files: how many it must have open then; None: as many as it has.
        """
        for pid in self.senders:
            await self._ask(kill=pid)
        self.senders.clear()
        held = {"listeners": LISTENERS, "control_channels": LISTENERS}
        deadline = time.monotonic() + PATIENCE
        while True:
            counts = {name: count for name, count in (await self.counts()).items() if isinstance(count, int) and count}
            # Behind the answer: the connection on which it came may take a moment to be closed.
            await asyncio.sleep(0.02)
            open_files = self.open_files()
            if counts == held and open_files == (open_files if files is None else files):
                return open_files, self.memory()
            assert time.monotonic() < deadline, f"{counts}, {open_files} files instead of {files}; {self.faults}"

    async def streams(self, more: int) -> None:
        """Wait until so many more streams have come whole."""
        wanted, deadline = self.ends["whole"] + more, time.monotonic() + PATIENCE
        while self.ends["whole"] < wanted:
            assert time.monotonic() < deadline, f"no more streams: {self.ends} {self.faults}"
            await asyncio.sleep(0.01)


def free_ports() -> tuple[int, int]:
    """Two ports that nobody has; a killed node must come back where it was."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


@asynccontextmanager
async def parties(folder: Path, *, tls: bool) -> AsyncIterator[Parties]:
    """A node, listeners and senders at work."""
    ports = free_ports()
    file = folder / "trunkline.toml"
    file.write_text(FILE.format(port=ports[0], admin_port=ports[1], tls="development" if tls else "off"))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), stdin=pipe, stdout=pipe)
    there = Parties(process, file, tls, ports)
    listening = asyncio.get_running_loop().create_task(there.listen())  # ends with the program
    try:
        await there.start_node()
        for _ in range(LISTENERS):
            await there.start("listener")
        await there.until(lambda counts: counts["listeners"] == LISTENERS)
        yield there
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await listening


async def kill_again_and_again(there: Parties, cycles: int, seed: int, *, node_share: float, check_each: int) -> None:
    """Kill so many; in the last two fifths the node lives on, and its memory is looked at."""
    chance = random.Random(seed)
    files, _ = await there.quiet()
    memory = now = 0
    for cycle in range(cycles):
        while len(there.senders) < SENDERS:
            await there.start("sender")
        if cycle == cycles * 3 // 5:
            # It has served and lost everybody once, so what that takes is not counted.
            await there.streams(20)
            _, memory = await there.quiet(files)
            await there.start("sender")
        await asyncio.sleep(chance.random() * 0.04)
        node_may_go = cycle < cycles * 3 // 5
        who = "node" if node_may_go and chance.random() < node_share else chance.choice(["listener", "sender"])
        await there.kill(who, chance)
        assert there.faults == []
        if who == "node" or cycle % check_each == check_each - 1:
            await there.streams(3)
            _, now = await there.quiet(files)
    deadline = time.monotonic() + 2 * EVERY
    print(f"seed {seed}: killed {dict(there.kills)}, streams {dict(there.ends)}, {files} open files,", end=" ")
    print(f"memory {memory / 2**20:.1f} -> {now / 2**20:.1f} MiB, {len(there.acknowledged)} entities held")
    while there.memory() - memory >= GROWTH:
        # What the C library holds free is given back twice a minute.
        assert time.monotonic() < deadline, f"{there.memory()} bytes"
        await asyncio.sleep(0.1)
    assert there.ends["whole"] and there.ends["broken"], "no stream met a kill: the test shows nothing"
    assert there.faults == []


async def test_whoever_is_killed_nothing_short_passes_for_whole_and_nothing_is_left(tmp_path: Path) -> None:
    async with parties(tmp_path, tls=False) as there:
        await kill_again_and_again(there, 30, 30, node_share=0.1, check_each=30)
    assert there.kills["node"] and there.kills["listener"] and there.kills["sender"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("tls", "cycles"), [(False, 700), (True, 300)], ids=["plain", "tls"])
async def test_a_thousand_kills(tls: bool, cycles: int, tmp_path: Path) -> None:
    async with parties(tmp_path, tls=tls) as there:
        await kill_again_and_again(there, cycles, cycles, node_share=0.1, check_each=25)
