"""When to try again."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.errors import ERRORS, AuthorizationFailed, ConnectionRejected, EndpointNotFound, NoListener
from trunkline.protocol.limits import RECONNECT_DELAYS
from trunkline.sdk.reconnect import Backoff, may_pass


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
def test_delay_is_never_longer_than_its_step(chances: list[float]) -> None:
    backoff = Backoff(iter(chances).__next__)
    for number in range(len(chances)):
        step = RECONNECT_DELAYS[min(number, 5)]
        assert step / 2 <= backoff.next_delay() <= step <= 30


def test_delays_begin_anew_once_online() -> None:
    backoff = Backoff(lambda: 0.0)
    assert [backoff.next_delay() for _ in range(3)] == [0, 0.5, 1]
    backoff.was_online(0.9)
    assert backoff.next_delay() == 2.5
    backoff.was_online(1)
    assert repr(backoff) == "<Backoff failures=0>"
    assert backoff.next_delay() == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AuthorizationFailed(), False),
        (EndpointNotFound(), False),
        (ConnectionRejected(418, "x"), False),
        (NoListener(), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError("no such host"), True),
        (ssl.SSLCertVerificationError(), False),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), False),
        (ssl.SSLEOFError(), True),
        (ValueError(), False),
    ],
)
def test_what_may_pass(error: Exception, expected: bool) -> None:
    assert may_pass(error) is expected


def test_every_error_of_the_tree_says_itself_whether_it_may_pass() -> None:
    for kind in ERRORS:
        error = kind(418, "x") if kind is ConnectionRejected else kind("x")
        assert may_pass(error) is kind.transient
