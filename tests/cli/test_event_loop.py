"""How a command's coroutine is run and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
import typer

from trunkline.cli.event_loop import run
from trunkline.cli.failure import Failure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.parametrize(("name", "module"), [("asyncio", "asyncio"), ("uvloop", "uvloop"), ("", "uvloop")])
def test_variable_chooses_the_loop(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    monkeypatch.setenv("TRUNKLINE_EVENT_LOOP", name)
    run(look())
    assert seen == [module]


@pytest.mark.parametrize(("setting", "module"), [("asyncio", "asyncio"), ("uvloop", "uvloop"), ("auto", "uvloop")])
def test_setting_comes_before_the_variable(setting: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def look() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    monkeypatch.setenv("TRUNKLINE_EVENT_LOOP", "asyncio" if setting != "asyncio" else "uvloop")
    run(look(), loop=setting)
    assert seen == [module]


def test_where_there_is_no_uvloop_the_loop_of_python_does_unless_uvloop_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing() -> None:
        pass

    monkeypatch.setitem(sys.modules, "uvloop", None)
    run(nothing(), loop="auto")
    with pytest.raises(Failure, match="no uvloop"):
        run(nothing(), loop="uvloop")


def test_sigterm_cancels_and_gives_143() -> None:
    cleaned: list[bool] = []

    async def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(typer.Exit) as caught:
        run(wait())
    assert caught.value.exit_code == 143 and cleaned


def test_ctrl_c_cancels() -> None:
    async def wait() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run(wait())


def test_cancellation_from_inside_is_no_signal() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(give_up())
