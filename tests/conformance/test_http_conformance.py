"""A request that is malformed is refused and reaches nobody, and nobody disagrees where one ends: RFC 9112."""

from __future__ import annotations

import pytest

from conformance.http_cases import GROUPS
from conformance.http_ends import Outcome, as_heard, listening, read_by_front, read_by_h11

CASES = [case for group in GROUPS.values() for case in group]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.loop("uvloop")
async def test_front_reads_the_requests_of_a_case_and_refuses_what_is_malformed(group: str) -> None:
    for case in GROUPS[group]:
        assert await read_by_front(case.sent, answers=case.answers) == Outcome(case.requests, case.refused), case.name


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.loop("asyncio")
async def test_front_reads_the_same_when_it_comes_a_few_bytes_at_a_time(group: str) -> None:
    for case in GROUPS[group]:
        if len(case.sent) < 1_000:
            outcome = await read_by_front(case.sent, answers=case.answers, pieces=3)
            assert outcome == Outcome(case.requests, case.refused), case.name


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.loop("uvloop")
async def test_listener_hears_of_the_requests_and_of_nothing_that_is_malformed(group: str) -> None:
    async with listening() as listener:
        for case in GROUPS[group]:
            expected = as_heard(case.requests) if case.names_host else ()
            assert await listener.hear(case.sent, answers=case.answers) == expected, case.name


def test_h11_reads_the_same_requests_or_somebody_refuses() -> None:
    """What both read, they read alike: neither takes for a request what is a body to the other."""
    for case in CASES:
        theirs = read_by_h11(case.sent)
        both = min(len(case.requests), len(theirs.requests))
        assert theirs.requests[:both] == case.requests[:both], case.name
        if len(theirs.requests) > both:
            assert case.refused is not None, f"{case.name}: h11 reads more"
        if len(case.requests) > both:
            assert theirs.refused is not None, f"{case.name}: h11 reads less"


def test_every_case_has_a_name_of_its_own_and_there_are_many() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 80
    for case in CASES:
        assert case.refused in (None, 400, 414, 431, 501, 505), case.name
