"""The command line of `make bench`."""

from __future__ import annotations

import pytest
from benchmarks.options import read


def test_bench_without_options_runs_every_case_five_times() -> None:
    options = read([])

    assert options.pairs == 5
    assert options.wants("64KiB", "plain", "1") and options.wants("rtt", "tls")


def test_case_is_chosen_when_it_has_all_words_of_one_item() -> None:
    options = read(["--only", "64KiB+plain,rtt"])

    assert options.wants("64KiB", "plain", "1") and options.wants("64KiB", "plain", "50")
    assert options.wants("rtt", "plain") and options.wants("rtt", "tls")
    assert not options.wants("64KiB", "tls", "1")
    assert not options.wants("memory", "plain")


def test_requests_are_compared_with_what_is_installed_unless_told_otherwise() -> None:
    assert {"uvicorn", "nginx", "forwarder"} <= set(read([]).against)
    assert read(["--against", "uvicorn"]).against == ("uvicorn",)


def test_word_that_no_case_has_is_named() -> None:
    assert read(["--only", "64KiB+plain,rrt"]).unknown(frozenset({"64KiB", "plain", "rtt"})) == ["rrt"]
    assert read([]).unknown(frozenset()) == []


@pytest.mark.parametrize(
    "arguments", [["--pairs", "0"], ["--seconds", "0"], ["--seconds", "nan"], ["--against", "forwarder,frp"]], ids=str
)
def test_bench_refuses_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        read(arguments)

    assert exit.value.code == 2
    assert arguments[0] in capsys.readouterr().err
