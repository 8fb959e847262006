"""A web server behind a listener behind a real node runs the shared cases of HTTP."""

from __future__ import annotations

import pytest

import http_cases
from expose.exposed_server import application, exposed
from http_echo import EchoApplication

#: ASGI knows no reason phrase.
LACKS = frozenset({"reason"})


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(each, marks=pytest.mark.slow if each in http_cases.SLOW_GROUPS else ())
        for each in http_cases.GROUPS
    ],
)
async def test_exposed_server_serves_the_cases(group: str) -> None:
    async with application(EchoApplication()) as target, exposed(target, keep_path=True) as (node, _):
        await http_cases.run(group, http_cases.Relay.of(node, lacks=LACKS | {"raw target"}))


async def test_exposed_server_gets_targets_without_the_hybrid_connection() -> None:
    def seen(target: str) -> str:
        path, mark, query = target.removeprefix("/myHC").partition("?")
        return f"{path or '/'}{mark}{query}"

    async with application(EchoApplication()) as target, exposed(target) as (node, _):
        await http_cases.run("targets", http_cases.Relay.of(node, lacks=LACKS | {"raw target"}, seen=seen))
