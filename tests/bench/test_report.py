"""Ratios, targets and the page: what could be wrong in a report without anybody noticing."""

from __future__ import annotations

import pytest
from benchmarks.report import BEGIN, END, Spread, Table, Target, targets_table, text_of, written_into


def test_ratio_is_made_within_a_round_and_its_median_counts() -> None:
    # The machine is half as fast in the second round: the ratio of medians would be 0.6.
    ours, theirs = [90.0, 30.0, 60.0], [100.0, 50.0, 100.0]

    spread = Spread.of_ratios(ours, theirs)

    assert (spread.low, spread.median, spread.high) == pytest.approx((0.6, 0.6, 0.9))


def test_ratio_of_unequal_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError):
        Spread.of_ratios([1.0, 2.0], [1.0])


def test_spread_shows_all_three() -> None:
    assert str(Spread(0.8, 0.75, 0.851)) == "0.80 (0.75 to 0.85)"
    assert str(Spread(12.34, 8.0, 20.0)) == "12.3 (8.0 to 20.0)"


def test_target_holds_at_its_lower_bound_and_not_at_its_upper() -> None:
    assert Target.at_least("ratio", 0.8, 0.8).met
    assert not Target.at_least("ratio", 0.8, 0.7999).met
    assert Target.below("memory", 16, 15.99, " KiB").met
    assert not Target.below("memory", 16, 16, " KiB").met
    assert Target.none("errors", 0).met and not Target.none("errors", 1).met


def test_target_that_does_not_hold_stands_out() -> None:
    row = targets_table([Target.at_least("ratio", 0.8, 0.5)]).rows[0]

    assert row == ("ratio", "at least 0.8", "0.50", "**no**")


def test_report_says_what_was_run_and_holds_every_row() -> None:
    table = Table("Things", "A note.", ("what", "much"), [("a", "1"), ("b", "2")])

    lines = text_of([table], "make bench", 5).splitlines()

    assert lines[0].startswith("`make bench`, ") and "5 interleaved rounds" in lines[0]
    assert lines[lines.index("| what | much |") :][:4] == ["| what | much |", "|---|---|", "| a | 1 |", "| b | 2 |"]


def test_page_keeps_what_people_wrote() -> None:
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nNotes\n"

    assert written_into(page, "new\n") == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nNotes\n"


def test_page_without_a_place_for_results_is_refused() -> None:
    with pytest.raises(ValueError, match="results: begin"):
        written_into("# Title\n", "new")
