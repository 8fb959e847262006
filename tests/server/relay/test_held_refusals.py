"""Whose refusals are held, for how long, and how many: without a clock, by the times that are given."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.limits import (
    FAILURE_FORGOTTEN_AFTER,
    FAILURES_ANSWERED,
    HELD_FOR,
    HELD_PER_ADDRESS,
    HELD_PER_NODE,
)
from trunkline.server.relay.held_refusals import ADDRESSES, Fate, HeldRefusals, network_of

A, B = "192.0.2.1", "192.0.2.2"


def failed_often(address: str = A, now: float = 0.0) -> HeldRefusals[object]:
    """One address has had as many answers as it gets at once."""
    refusals = HeldRefusals[object]()
    for _ in range(FAILURES_ANSWERED):
        assert refusals.refused(address, object(), now) is Fate.ANSWER
    return refusals


def test_refusals_are_held_from_the_eleventh_on_and_answered_two_seconds_later() -> None:
    refusals = failed_often()
    assert refusals.refused(A, "eleventh", 1.0) is Fate.HOLD
    assert refusals.refused(A, "twelfth", 1.5) is Fate.HOLD
    assert len(refusals) == 2
    assert refusals.due(1.0 + HELD_FOR - 0.01) == []
    assert refusals.due(1.0 + HELD_FOR) == ["eleventh"]
    assert refusals.due(10.0) == ["twelfth"]
    assert refusals.due(20.0) == [] and not len(refusals)


def test_one_address_does_not_make_another_wait() -> None:
    refusals = failed_often(A)
    assert refusals.refused(B, "first", 0.0) is Fate.ANSWER


def test_address_that_fails_seldom_is_never_held() -> None:
    refusals = HeldRefusals[object]()
    for n in range(1_000):
        assert refusals.refused(A, n, n * FAILURE_FORGOTTEN_AFTER) is Fate.ANSWER


def test_failures_are_forgotten_one_by_one() -> None:
    refusals = failed_often(now=0.0)
    for n in range(500):
        refusals.refused(A, n, 0.0)
    # Many more do not count more.
    at = 3 * FAILURE_FORGOTTEN_AFTER
    assert [refusals.refused(A, object(), at) for _ in range(3)] == [Fate.ANSWER] * 3
    refusals.release()
    assert refusals.refused(A, object(), at) is Fate.HOLD
    at += FAILURES_ANSWERED * FAILURE_FORGOTTEN_AFTER
    assert [refusals.refused(A, object(), at) for _ in range(FAILURES_ANSWERED)] == [Fate.ANSWER] * FAILURES_ANSWERED


def test_surplus_of_one_address_is_dismissed_until_some_are_answered() -> None:
    refusals = failed_often()
    fates = [refusals.refused(A, n, 1.0) for n in range(HELD_PER_ADDRESS + 3)]
    assert fates == [Fate.HOLD] * HELD_PER_ADDRESS + [Fate.DISMISS] * 3
    assert refusals.take_dismissed() == 3 and refusals.take_dismissed() == 0
    assert len(refusals.due(1.0 + HELD_FOR)) == HELD_PER_ADDRESS
    assert refusals.refused(A, "again", 3.0) is Fate.HOLD


def test_place_of_a_peer_that_left_is_free() -> None:
    refusals = failed_often()
    for n in range(HELD_PER_ADDRESS):
        refusals.refused(A, n, 1.0)
    refusals.left(0)
    refusals.left(0)
    assert refusals.refused(A, "next", 1.0) is Fate.HOLD
    assert refusals.due(9.0) == [*range(1, HELD_PER_ADDRESS), "next"]


def test_node_holds_no_more_than_it_may_of_all_addresses() -> None:
    refusals = HeldRefusals[object]()
    held = 0
    for address in range(40):
        for n in range(FAILURES_ANSWERED + HELD_PER_ADDRESS):
            held += refusals.refused(f"10.0.0.{address}", (address, n), 0.0) is Fate.HOLD
    assert held == len(refusals) == HELD_PER_NODE
    assert len(refusals.release()) == HELD_PER_NODE and not len(refusals)


def test_memory_of_addresses_is_bounded_and_the_oldest_are_forgotten() -> None:
    refusals = failed_often(A)
    assert refusals.refused(A, "held", 0.0) is Fate.HOLD
    for n in range(ADDRESSES):
        refusals.refused(str(n), n, 0.0)
    assert f"addresses={ADDRESSES}>" in repr(refusals)
    # It begins anew, and what is held of it goes its way.
    assert refusals.refused(A, "first again", 0.0) is Fate.ANSWER
    assert refusals.due(HELD_FOR) == ["held"]


def test_addresses_whose_failures_are_forgotten_are_dropped() -> None:
    refusals = failed_often(A)
    refusals.refused(B, "much later", 1_000.0)
    assert repr(refusals) == "<HeldRefusals held=0 addresses=1>"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("2001:db8:1:2::1", "2001:0db8:0001:0002"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("", ""),
        ("@socket", "@socket"),
    ],
)
def test_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["refused", "left", "due"]),
            st.integers(0, 30),
            st.floats(0, 5, allow_nan=False),
        ),
        max_size=300,
    )
)
def test_held_refusals_are_answered_exactly_once_and_in_time_whatever_happens(
    events: list[tuple[str, int, float]],
) -> None:
    refusals = HeldRefusals[int]()
    names = itertools.count()
    waiting: dict[int, float] = {}
    now = 0.0
    for what, number, pause in events:
        now += pause / 10
        if what == "refused":
            for _ in range(number):
                name = next(names)
                if refusals.refused(f"10.0.0.{number % 3}", name, now) is Fate.HOLD:
                    waiting[name] = now
        elif what == "left":
            name = list(waiting)[number % len(waiting)] if waiting else 0
            waiting.pop(name, None)
            refusals.left(name)
        else:
            due = [name for name, since in waiting.items() if now >= since + HELD_FOR]
            assert refusals.due(now) == due
            for name in due:
                del waiting[name]
        assert len(refusals) == len(waiting) <= HELD_PER_NODE
    assert refusals.release() == list(waiting)
