"""What two ends say to each other is the same with a relay between them as without: RFC 6455, case by case."""

from __future__ import annotations

import pytest

from conformance.cases import GROUPS, Case, Difference
from conformance.ends import direct, meet, relayed, through, without_words_of_the_relay
from conformance.page import PAGE, page
from e2e.quiet_node import quiet_node


@pytest.mark.parametrize("who", ["sender", "listener"])
@pytest.mark.parametrize("group", GROUPS)
async def test_relay_does_not_change_what_the_two_ends_say(group: str, who: str) -> None:
    """Sent by `who`. A case that is listed as different must differ as listed."""
    async with quiet_node() as node:
        for case in GROUPS[group]:
            directly = await meet(case, who, between=direct)
            between = await meet(case, who, between=through(node))
            expected = relayed(directly, case.difference, who)
            if case.difference is Difference.REFUSED:
                expected, between = map(without_words_of_the_relay, (expected, between))
            assert between == expected, case.name
            assert (between == directly) == (case.difference is Difference.NONE), f"{case.name} is no exception"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.loop("asyncio")
async def test_ends_do_the_same_whoever_of_them_is_the_client(group: str) -> None:
    """So that the page needs to tell it once."""
    for case in GROUPS[group]:
        assert await meet(case, "sender", between=direct) == await meet(case, "listener", between=direct), case.name


def test_every_case_has_a_name_of_its_own_and_every_opcode_is_there() -> None:
    for group, cases in GROUPS.items():
        assert len({case.name for case in cases}) == len(cases), group
    assert {case.frames[0].first & 0x0F for case in GROUPS["Opcodes"]} == set(range(16))


def test_case_is_written_the_same_however_it_is_cut() -> None:
    [whole, apart, single] = [Case("", (GROUPS["Lengths"][0].frames * 3), pieces=each) for each in _PIECES]
    for is_client in (True, False):
        written = b"".join(whole.written(is_client=is_client))
        assert b"".join(apart.written(is_client=is_client)) == written
        assert list(single.written(is_client=is_client)) == [bytes((byte,)) for byte in written]


_PIECES = ("together", "apart", "bytes")


@pytest.mark.loop("asyncio")
async def test_page_is_what_was_seen() -> None:
    """When this fails: `make docs`."""
    assert PAGE.read_text(encoding="utf-8") == await page()
