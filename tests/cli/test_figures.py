"""Times and sizes as people read them."""

from __future__ import annotations

import pytest

from trunkline.cli.figures import duration, rate, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (61, "1m1s"), (3_600, "1h0m"), (90_061, "1d1h"), (-90, "-1m30s")],
)
def test_duration_is_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KiB"),
        (1_536, "1.5 KiB"),
        (1_048_576, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (5_000 * 2**40, "5000.0 TiB"),
    ],
)
def test_size_has_a_unit(count: int, text: str) -> None:
    assert size(count) == text


def test_rate_of_nothing_is_a_dash() -> None:
    assert (rate(0), rate(2_048)) == ("-", "2.0 KiB/s")
