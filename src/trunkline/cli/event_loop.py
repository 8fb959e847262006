"""Runs a command's coroutine: on uvloop where there is one, ended in order by Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from trunkline.cli.failure import Failure, usage

#: Names the event loop of a command: ``asyncio`` or ``uvloop``; unset, or ``auto``: the better one that is there.
LOOP_VARIABLE = "TRUNKLINE_EVENT_LOOP"


def run(work: Coroutine[Any, Any, None], *, loop: str | None = None) -> None:
    """Run `work` to its end; SIGTERM cancels it and exits with 143, Ctrl-C with 130.

    Args:
        work: what is to be done.
        loop: as the setting `event_loop` names it; None: as the environment does.

    Raises:
        Failure: uvloop is wanted, and is not there.
    """
    try:
        factory = _loop_factory(loop or os.environ.get(LOOP_VARIABLE, ""))
    except Failure:
        work.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_ended_by_sigterm(work))


async def _ended_by_sigterm(work: Coroutine[Any, Any, None]) -> None:
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel()

    task = asyncio.current_task()
    on_signal(signal.SIGTERM, terminate)
    try:
        await work
    except asyncio.CancelledError:
        if terminated:
            raise typer.Exit(143) from None
        raise


def on_signal(number: int, callback: Callable[[], None]) -> None:
    """Call `callback` in the loop for each such signal; where loops know no signals (Windows), Python's own way."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        if name == "uvloop":
            raise usage("There is no uvloop here", "install it, or leave event_loop to asyncio") from None
        return None
    return uvloop.new_event_loop
