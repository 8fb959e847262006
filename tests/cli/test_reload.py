"""A command that runs again when its sources change."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

#: Tells that it has begun, and ends with its parent or by SIGTERM.
PROGRAM = """
import asyncio, pathlib, os, signal, sys
from trunkline.cli.reload import end_with_parent

async def main():
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    end_with_parent(over.set)
    import content
    print(content.WORDS, os.getpid(), flush=True)
    await over.wait()
    print("ended", flush=True)

asyncio.run(main())
"""


class Supervised:
    """`run_again_on_change` in a process of its own, and what all its programs print."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "program.py").write_text(PROGRAM)
        self.write("first")

    def write(self, words: str) -> None:
        (self.folder / "content.py").write_text(words if "=" in words else f"WORDS = {words!r}")

    async def __aenter__(self) -> Supervised:
        script = (
            "import asyncio, sys; from pathlib import Path; from trunkline.cli.reload import run_again_on_change\n"
            "say = lambda text: print('say:', text, flush=True)\n"
            "asyncio.run(run_again_on_change([sys.executable, 'program.py'], [Path('.')], say))"
        )
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            await self.process.stdout.read()  # the program holds it too, until it has ended
        await self.process.wait()

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().rstrip()


@pytest.mark.loop("asyncio")
async def test_program_starts_again_with_the_changed_source(tmp_path: Path) -> None:
    async with Supervised(tmp_path) as supervised:
        first = await supervised.line()
        assert first.startswith("first ")
        supervised.write("second")
        assert await supervised.line() == "say: content.py changed: starting again"
        assert await supervised.line() == "ended"
        second = await supervised.line()
        assert second.startswith("second ") and second.split()[1] != first.split()[1]


@pytest.mark.loop("asyncio")
async def test_program_that_fails_waits_for_a_change(tmp_path: Path) -> None:
    async with Supervised(tmp_path) as supervised:
        assert (await supervised.line()).startswith("first ")
        supervised.write("WORDS = 1 / 0")
        said = [await supervised.line() for _ in range(3)]
        assert said == [
            "say: content.py changed: starting again",
            "ended",
            "say: it has ended with 1; a change starts it again",
        ]
        supervised.write("second")
        assert await supervised.line() == "say: content.py changed: starting again"
        assert (await supervised.line()).startswith("second ")


@pytest.mark.loop("asyncio")
@pytest.mark.parametrize("number", [2, 9], ids=["Ctrl-C", "SIGKILL"])
async def test_program_ends_with_the_process_that_watches(tmp_path: Path, number: int) -> None:
    async with Supervised(tmp_path) as supervised:
        assert (await supervised.line()).startswith("first ")
        supervised.process.send_signal(number)
        assert await supervised.line() == "ended"
        assert await supervised.process.wait() != 0
