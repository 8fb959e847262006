"""Data that nobody changes, and that is cheap to make.

A frozen dataclass sets each of its attributes through a call that looks whether it may, three times as slow as setting
it. On the way of one small HTTP request some twenty such objects are made. A `record` is frozen for the type checker
alone; everything else of it is as with `dataclass(frozen=True, slots=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """A class of such data, made of its annotations."""
    return dataclass(slots=True, unsafe_hash=True)(kind)
