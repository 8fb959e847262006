"""ASGI applications of four frameworks, hosted through a node: by path and by host name, plain and with TLS."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

import http_cases
from e2e.asgi_apps.contract import CHECKS, LACKS, Check, Visitor
from http_echo import EchoApplication
from trunkline.sdk.asgi import AsgiHost
from trunkline.sdk.asgi.scopes import Receive, Scope, Send
from trunkline.testing import RelayNode, relay_node

#: Every framework with everything that it does.
CASES = [(framework, check) for framework, lacks in LACKS.items() for check in CHECKS if check not in lacks]


def application(framework: str) -> Any:
    return importlib.import_module(f"e2e.asgi_apps.{framework}_app").app


@asynccontextmanager
async def hosted(app: Any, node: RelayNode, **options: Any) -> AsyncIterator[AsgiHost]:
    """The application behind the first hybrid connection of the node."""
    context = node.client_context()
    async with AsgiHost(app, node.connection_string(rights=["Listen"]), ssl=context, **options) as host:
        yield host


@asynccontextmanager
async def visiting(node: RelayNode, url: str) -> AsyncIterator[Visitor]:
    context = node.client_context()
    async with httpx.AsyncClient(verify=context, timeout=20, trust_env=False) as http:
        yield Visitor(url, context, http)


PLACES = ("by path", "by host name")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("framework", "check"), CASES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.loop("uvloop")
async def test_hosted_application(framework: str, check: Check, place: str) -> None:
    own_host = place == "by host name"
    options = {"requires_client_authorization": False, "hosts": ["localhost"] if own_host else []}
    async with relay_node({"test": options}, tls=own_host) as node, hosted(application(framework), node):
        url = f"https://localhost:{node.port}" if own_host else f"{node.url}/test"
        async with visiting(node, url) as visitor:
            await check(visitor)


# --- one version after the other ------------------------------------------------------------------------------


class Version:
    """An application that answers with its number, after a moment."""

    def __init__(self, number: int) -> None:
        self._answer = str(number).encode()
        self.answers = 0
        # Set with each answer.
        self.answered = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(0.002)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": self._answer})
        self.answers += 1
        self.answered.set()

    async def has_answered(self, times: int) -> None:
        while self.answers < times:
            self.answered.clear()
            await self.answered.wait()


@pytest.mark.parametrize("policy", ["active-standby", "balanced"])
async def test_new_version_takes_over_without_a_failed_request(policy: str) -> None:
    options = {"requires_client_authorization": False, "listener_policy": policy}
    got: set[tuple[int, str]] = set()
    async with relay_node({"test": options}) as node, visiting(node, f"{node.url}/test") as visitor:

        async def ask_on() -> None:
            while not done.is_set():
                answer = await visitor.http.get(visitor.url)
                got.add((answer.status_code, answer.text))

        done = asyncio.Event()
        # All have their last answer before the last host goes.
        async with asyncio.timeout(30), AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            first = Version(0)
            old = await stack.enter_async_context(hosted(first, node))
            for _ in range(8):
                group.create_task(ask_on())
            await first.has_answered(20)
            for number in range(1, 5):
                version = Version(number)
                new = await stack.enter_async_context(hosted(version, node))
                await old.close()
                await version.has_answered(20)
                old = new
            done.set()
    assert got == {(200, str(number)) for number in range(5)}


# --- an application that echoes everything, and the cases that every listener runs ----------------------------

GROUPS = [
    pytest.param(group, marks=pytest.mark.slow) if group in http_cases.SLOW_GROUPS else group
    for group in http_cases.GROUPS
]


def seen(target: str) -> str:
    """The address of the hybrid connection alone is the application's "/"."""
    path, mark, query = target.partition("?")
    return f"{path}/{mark}{query}" if path == "/test" else target


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("group", GROUPS)
async def test_application_that_echoes_serves_the_cases(group: str, tls: bool) -> None:
    lacks = frozenset({"reason", "raw target"})
    async with relay_node(tls=tls, max_requests=200) as node, hosted(EchoApplication(), node):
        await http_cases.run(group, http_cases.Relay.of(node, seen=seen, lacks=lacks))
