"""What a node says of itself."""

from __future__ import annotations

import json

import pytest

from trunkline.server.status import Phase, answer

COUNTS = {"listeners": 2, "connections": 0}


@pytest.mark.parametrize("phase", Phase)
def test_a_process_that_answers_is_alive_in_every_phase(phase: Phase) -> None:
    reply = answer("GET", "/healthz", phase, COUNTS)
    assert (reply.status, json.loads(reply.body)) == (200, {"status": "alive"})


@pytest.mark.parametrize(
    ("phase", "status"),
    [(Phase.STARTING, 503), (Phase.READY, 200), (Phase.DRAINING, 503), (Phase.STOPPED, 503)],
)
def test_only_a_ready_node_wants_work_and_says_what_it_holds(phase: Phase, status: int) -> None:
    reply = answer("GET", "/readyz", phase, COUNTS)
    assert reply.status == status
    assert json.loads(reply.body) == {"status": str(phase), "listeners": 2, "connections": 0}
    assert reply.content_type == "application/json"


def test_every_phase_is_covered() -> None:
    assert [str(phase) for phase in Phase] == ["starting", "ready", "draining", "stopped"]


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics", "/$hc/orders", ""])
def test_there_is_nothing_else(path: str) -> None:
    reply = answer("GET", path, Phase.READY, COUNTS)
    assert reply.status == 404
    assert "/healthz and /readyz" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("method", ["POST", "DELETE", "CONNECT"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/other"])
def test_nothing_is_changed_here(method: str, path: str) -> None:
    reply = answer(method, path, Phase.READY, COUNTS)
    assert reply.status == 405
    assert method in json.loads(reply.body)["error"]


def test_head_is_answered_like_get() -> None:
    assert answer("HEAD", "/readyz", Phase.READY, COUNTS) == answer("GET", "/readyz", Phase.READY, COUNTS)
