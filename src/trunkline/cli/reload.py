"""Runs a command again whenever a source file changes.

The command runs as a process of its own, so that every module is imported anew, and in a session of its own: Ctrl-C
reaches this process alone, which ends the other one in order. If this process is killed, the other one sees the end of
its standard input, and ends too.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

#: Seconds that the process gets to end by itself after SIGTERM.
PATIENCE = 20.0

Say = Callable[[str], None]


async def run_again_on_change(
    command: Sequence[str], folders: Iterable[Path], say: Say, *, env: Mapping[str, str] | None = None
) -> None:
    """Run `command`, and again after each change of a Python file in `folders`, until cancelled.

    Args:
        command: program and arguments; it should call `end_with_parent`.
        folders: watched with everything below, but for caches, hidden folders, virtual environments and so on.
        say: tells the user what happens.
        env: the environment of the process.
    """
    from watchfiles import PythonFilter, awatch

    process = await _start(command, env)
    watching: asyncio.Task[None] | None = None
    try:
        watching = _tell_end(process, say)
        async for changes in awatch(*folders, watch_filter=PythonFilter()):
            names = sorted({Path(path).name for _, path in changes})
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            say(f"{', '.join(names[:3])}{more} changed: starting again")
            watching.cancel()
            await _end(process)
            process = await _start(command, env)
            watching = _tell_end(process, say)
    finally:
        if watching is not None:
            watching.cancel()
        await _end(process)


def end_with_parent(end: Callable[[], object]) -> None:
    """Call `end` in this event loop once standard input ends, which is when the process that reloads this one does."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        # Not by `sys.stdin`: Python aborts when a thread holds its lock at the end.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(end)

    threading.Thread(target=wait, daemon=True).start()


async def _start(command: Sequence[str], env: Mapping[str, str] | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*command, env=env, stdin=subprocess.PIPE, start_new_session=True)


def _tell_end(process: asyncio.subprocess.Process, say: Say) -> asyncio.Task[None]:
    """Says so when the process ends of its own accord."""

    async def tell() -> None:
        status = await process.wait()
        say(f"it has ended with {status}; a change starts it again")

    return asyncio.get_running_loop().create_task(tell())  # cancelled by the caller


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(PATIENCE):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
