"""Messages one by one: the load sends them when they are due and sees that all come out."""

from __future__ import annotations

import pytest
from benchmarks import paced as module
from benchmarks.paced import paced

from bench.test_load import NothingMeasured, through


def test_all_messages_come_out_at_the_rate_at_which_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 3)
    monkeypatch.setattr(module, "PER_SECOND", 500)
    with through(lambda data: data) as make:
        result = paced(make, NothingMeasured(), 0.2)
    assert result.share is None
    assert 0 < result.messages_per_second <= 510
    assert 0 <= result.on_time <= 1


def test_lost_messages_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 1)
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    with through(lambda data: data[1:]) as make, pytest.raises(AssertionError, match="did not come out"):
        paced(make, NothingMeasured(), 0.01)
