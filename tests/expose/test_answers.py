"""The answers that are ours."""

from __future__ import annotations

import json

import pytest

from trunkline.expose import answers
from trunkline.expose.answers import Refusal

ALL = [
    answers.target_down("connection refused"),
    answers.target_slow("no connection in time"),
    answers.target_silent(),
    answers.target_lost(),
    answers.target_confused("bad line"),
    answers.target_takes_no_websocket(200),
    answers.no_room("no space left on device"),
    answers.LOOP,
    answers.OUTSIDE,
]


@pytest.mark.parametrize("refusal", ALL, ids=lambda refusal: refusal.error)
def test_answer_names_the_hybrid_connection_and_the_request_and_nothing_inside(refusal: Refusal) -> None:
    error = json.loads(refusal.body("orders/eu", "an-id"))["error"]
    assert error["code"] == refusal.code
    assert "orders/eu" in error["message"] and error["message"].endswith(". TrackingId:an-id")
    assert refusal.error and refusal.error not in error["message"]
    assert refusal.status >= 400


@pytest.mark.parametrize(("status", "phrase"), [(403, "Forbidden"), (302, "Found"), (499, "Refused by the web server")])
def test_refusal_of_the_target_is_its_own(status: int, phrase: str) -> None:
    refusal = answers.target_refused(status)
    assert (refusal.status, refusal.message, refusal.error) == (status, phrase, "")
