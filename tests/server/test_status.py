"""What a node says of itself."""

from __future__ import annotations

import json

import pytest

from trunkline.server.status import Phase, health, json_answer

COUNTS = {"listeners": 2, "connections": 0}


@pytest.mark.parametrize("phase", Phase)
def test_a_process_that_answers_is_alive_in_every_phase(phase: Phase) -> None:
    reply = health("/healthz", phase, COUNTS)
    assert reply is not None
    assert (reply.status, json.loads(reply.body)) == (200, {"status": "alive"})


@pytest.mark.parametrize(
    ("phase", "status"),
    [(Phase.STARTING, 503), (Phase.READY, 200), (Phase.DRAINING, 503), (Phase.STOPPED, 503)],
)
def test_only_a_ready_node_wants_work_and_says_what_it_holds(phase: Phase, status: int) -> None:
    reply = health("/readyz", phase, COUNTS)
    assert reply is not None and reply.status == status
    assert json.loads(reply.body) == {"status": str(phase), "listeners": 2, "connections": 0}
    assert reply.content_type == "application/json"


def test_every_phase_is_covered() -> None:
    assert [str(phase) for phase in Phase] == ["starting", "ready", "draining", "stopped"]


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics", "/$hc/orders", ""])
def test_nothing_else_is_health(path: str) -> None:
    assert health(path, Phase.READY, COUNTS) is None


def test_json_answer_is_one_line() -> None:
    reply = json_answer(404, {"error": "two\nlines"}, headers=(("Allow", "GET"),))
    assert reply.body.count(b"\n") == 1 and reply.body.endswith(b"\n")
    assert (reply.status, reply.headers) == (404, (("Allow", "GET"),))
