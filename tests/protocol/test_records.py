"""Records: like frozen dataclasses, but for what only the type checker sees."""

from __future__ import annotations

import dataclasses

import pytest

from trunkline.protocol.records import record


@record
class Point:
    x: int
    y: int = dataclasses.field(default=2, repr=False)


def test_records_are_equal_by_their_values_and_can_be_keys() -> None:
    assert Point(1) == Point(1, 2) and Point(1) != Point(2)
    assert {Point(1): "here"}[Point(1, 2)] == "here"
    assert repr(Point(1)).endswith("Point(x=1)")


def test_records_can_be_matched_and_copied_with_a_change() -> None:
    match dataclasses.replace(Point(1), y=5):
        case Point(x, y):
            assert (x, y) == (1, 5)


def test_record_has_no_attributes_beside_its_own() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 1  # type: ignore[attr-defined]
    assert not hasattr(Point(1), "__dict__")
