"""ASGI applications of four frameworks, hosted through a node: by path and by host name, plain and with TLS."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from e2e.asgi_apps.contract import CHECKS, LACKS, Check, Visitor
from trunkline.sdk.asgi import AsgiHost
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


def anonymous(**options: Any) -> RelayNode:
    """A node whose hybrid connection anybody may use, as a browser does."""
    return relay_node({"test": {"requires_client_authorization": False}}, **options)


@pytest.mark.parametrize(("framework", "check"), CASES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.loop("uvloop")
async def test_hosted_application(framework: str, check: Check) -> None:
    async with anonymous() as node, hosted(application(framework), node), visiting(node, f"{node.url}/test") as visitor:
        await check(visitor)
