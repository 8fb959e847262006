"""One run of `make bench`: what all cases share, and rounds in which everything that is compared takes its turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from benchmarks.options import Options
from benchmarks.report import Table, Target


class Named(Protocol):
    """Something that is measured."""

    @property
    def name(self) -> str: ...


Measured = TypeVar("Measured", bound=Named)
Result = TypeVar("Result")


class Run:
    """Collects what the cases found.

    Args:
        options: which cases, how often, how long.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.tables: list[Table] = []
        self.targets: list[Target] = []
        self._started = time.perf_counter()

    def rounds(
        self, what: str, subjects: Sequence[Measured], measure: Callable[[Measured], Result]
    ) -> dict[str, list[Result]]:
        """Measure all of them as often as was asked for, in turn; the results of each in the order of the rounds."""
        results: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
        for number in range(self.options.pairs):
            self.say(f"{what}, round {number + 1} of {self.options.pairs}")
            # Every other round the other way round: nobody is always the first.
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                results[subject.name].append(measure(subject))
        return results

    def say(self, what: str) -> None:
        """Tell whoever waits."""
        print(f"{time.perf_counter() - self._started:6.1f} s  {what}", file=sys.stderr, flush=True)


def median_or_dash(numbers: Sequence[float | None]) -> str:
    """The median of those that are known."""
    known = [number for number in numbers if number is not None]
    return f"{statistics.median(known):.2f}" if known else "-"
