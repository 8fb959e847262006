"""Time that passes, and time that does not count."""

from __future__ import annotations

import logging

import pytest

from trunkline.server.steady_clock import LATE, SteadyClock


class Monotonic:
    """The system's clock, moved by a test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_clock_is_the_systems_while_it_is_looked_at_in_time() -> None:
    system = Monotonic()
    clock = SteadyClock(system, interval=1.0)
    assert clock() == 100.0
    for _ in range(10):
        system.now += 1.0 + LATE
        assert clock() == clock.look() == system.now
    assert repr(clock) == "<SteadyClock stood_still=0.0>"


def test_clock_that_is_not_looked_at_yet_counts_everything() -> None:
    """A node that starts may take its time."""
    system = Monotonic()
    clock = SteadyClock(system, interval=1.0)
    system.now += 1_000
    assert clock() == 1_100.0


@pytest.mark.parametrize("by_look", [False, True])
def test_standstill_is_found_by_the_first_who_asks_and_is_not_counted(
    by_look: bool, caplog: pytest.LogCaptureFixture
) -> None:
    system = Monotonic()
    clock = SteadyClock(system, interval=1.0)
    clock.look()
    system.now += 3_600
    # Until the look that did not come, time passed.
    assert (clock.look() if by_look else clock()) == pytest.approx(101.0)
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
        (logging.WARNING, "the node stood still for 3599.0 s: that is counted as nobody's silence")
    ]
    system.now += 0.5
    assert clock() == pytest.approx(101.5) and clock.look() == pytest.approx(101.5)
    system.now += 1.0
    assert clock() == pytest.approx(102.5)
    assert len(caplog.records) == 1
    assert repr(clock) == "<SteadyClock stood_still=3599.0>"
