"""Medians, ratios with their spread, and the tables they are shown in.

A ratio is made of two measurements of the same round, taken right after each other, and the median is that of the
ratios: what the machine does from one minute to the next is not in it.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# The part of a page between these lines is made; the rest is written by people.
BEGIN = "<!-- results: begin, made by make bench -->"
END = "<!-- results: end -->"


@dataclass(frozen=True)
class Spread:
    """Some numbers of which the median counts."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        """Of at least one number."""
        known = list(numbers)
        return cls(statistics.median(known), min(known), max(known))

    @classmethod
    def of_ratios(cls, ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        """Of the ratios of numbers that were measured in the same round."""
        return cls.of(mine / other for mine, other in zip(ours, theirs, strict=True))

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Target:
    """Something that must hold, and what was measured."""

    what: str
    bound: str
    measured: str
    met: bool

    @classmethod
    def at_least(cls, what: str, bound: float, measured: float, unit: str = "") -> Target:
        """The more, the better."""
        return cls(what, f"at least {bound:,g}{unit}", f"{_short(measured)}{unit}", measured >= bound)

    @classmethod
    def below(cls, what: str, bound: float, measured: float, unit: str = "") -> Target:
        """The less, the better."""
        return cls(what, f"under {bound:,g}{unit}", f"{_short(measured)}{unit}", measured < bound)

    @classmethod
    def none(cls, what: str, count: int) -> Target:
        """Something that must not happen at all."""
        return cls(what, "none", f"{count:,}" if count else "none", not count)


def _short(number: float) -> str:
    return f"{number:,.2f}" if number < 10 else f"{number:,.0f}"


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield f"### {self.title}"
        yield ""
        if self.note:
            yield self.note
            yield ""
        yield f"| {' | '.join(self.head)} |"
        yield f"|{'---|' * len(self.head)}"
        for row in self.rows:
            yield f"| {' | '.join(row)} |"
        yield ""


def targets_table(targets: Sequence[Target]) -> Table:
    """What must hold, in front of everything else."""
    rows = [(target.what, target.bound, target.measured, "yes" if target.met else "**no**") for target in targets]
    return Table("What must hold", "", ("what", "bound", "measured", "holds"), rows)


def text_of(tables: Sequence[Table], command: str, pairs: int) -> str:
    """The report as Markdown, without a heading of its own."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"`{command}`, {date}: {os.cpu_count()} processors ({_processor()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}. What is measured runs on one processor, the load on another. "
        f"Medians of {pairs} interleaved rounds, spread in brackets.",
        "",
    ]
    for table in tables:
        lines += table.lines()
    return "\n".join(lines)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def written_into(page: str, text: str) -> str:
    """The page with the text in the place of the last one.

    Raises:
        ValueError: the page has no such place.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"
