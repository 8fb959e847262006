"""The error of every file, environment variable and flag: where it is, what is wrong, what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from trunkline.protocol.errors import InvalidSetting


class InvalidConfiguration(InvalidSetting):
    """Something that was configured cannot be used.

    Parameters
    ----------
    problem: what is wrong and what is allowed; never a key.
    place: where it was written: ``trunkline.toml:12``, ``TRUNKLINE_PORT`` or ``--port``.
    key: what was set, as in ``namespace.hybrid_connection.max_senders``; empty when it is about the whole file.
    line: line in the file, from 1; None when it is not about a file.
    """

    code = "InvalidConfiguration"
    default_message = "The configuration is invalid"

    def __init__(self, problem: str, *, place: str, key: str = "", line: int | None = None) -> None:
        problem = problem.removeprefix(f"{key.rpartition('.')[2]} = ") if key else problem  # not twice
        super().__init__(f"{place}: {key}: {problem}" if key else f"{place}: {problem}")
        self.problem = problem
        self.place = place
        self.key = key
        self.line = line


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known word that looks most like it, else what is known."""
    spelling = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word[:60].lower(), spelling, n=1)
    return f"; did you mean {spelling[close[0]]}?" if close else f"; known are {', '.join(spelling.values())}"


def shown(value: object) -> str:
    """A value for a message: short, in one line, whatever was written."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more than 4,300 digits; endless nesting
        return "the value"
    return text if len(text) <= 60 else text[:57] + "..."
