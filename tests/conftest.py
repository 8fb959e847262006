"""How every test of this repository runs.

An `async def test_...` runs on each event loop that users run: uvloop (where there is one) and plain asyncio.
The mark `loop("asyncio")` keeps a test to one of them. Async fixtures do not exist here: what needs closing
is opened with `async with` in the test itself, so that a test reads from top to bottom. With
TRUNKLINE_EVENT_LOOP=asyncio in the environment every test runs on plain asyncio, as where there is no uvloop.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

# How long one example takes says more about the machine than about the code. In CI hypothesis has its own profile.
hypothesis.settings.register_profile("workstation", deadline=None)
if not os.environ.get("CI"):
    hypothesis.settings.load_profile("workstation")

# What the machine is set to must not decide what a test sees; programs that a test starts inherit it too.
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {"asyncio": None}
if sys.platform != "win32" and os.environ.get("TRUNKLINE_EVENT_LOOP") != "asyncio":
    import uvloop

    LOOPS = {"uvloop": uvloop.new_event_loop, **LOOPS}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each async test one case per loop, or the one that its mark names."""
    if not inspect.iscoroutinefunction(metafunc.function):
        return
    mark = metafunc.definition.get_closest_marker("loop")
    names = [name for name in mark.args if name in LOOPS] or ["asyncio"] if mark else list(LOOPS)
    metafunc.fixturenames.append("event_loop_name")
    metafunc.parametrize("event_loop_name", names)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs an async test in a loop of its own, which is closed after it; a task left behind is cancelled.

    What a callback raised, or a task that nobody awaited, reaches only the loop's exception handler: here it
    fails the test.
    """
    function = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    wanted = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in wanted}
    unhandled: list[dict[str, Any]] = []
    loop_factory = LOOPS[str(pyfuncitem.callspec.params["event_loop_name"])]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        runner.run(function(**arguments))
    for context in unhandled:
        raise AssertionError(f"not handled in the loop: {context}") from context.get("exception")
    return True
