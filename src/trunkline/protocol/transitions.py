"""The table of a state machine: which event leads from which state to which.

The machines of this package keep their rules in such a table at the top of their file and change their state through
nothing else (h11 does the same). What is not in a table does not happen: an event that has no line for the present
state came too late, and changes nothing. `render` draws a table for a page of documentation.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

S = TypeVar("S", bound=enum.Enum)
E = TypeVar("E", bound=enum.Enum)


def render(transitions: Mapping[tuple[S, E], S]) -> str:
    """A table of transitions as Markdown: one row per line of the table, in its order.

    The words are the values of the enumerations, so these should read well in a sentence.
    """
    rows = [(before.name, str(event.value), after.name) for (before, event), after in transitions.items()]
    lines = [("state", "event", "becomes"), ("---", "---", "---"), *rows]
    return "".join(f"| {before} | {event} | {after} |\n" for before, event, after in lines)


def final_states(transitions: Mapping[tuple[S, E], S]) -> frozenset[S]:
    """The states that no event leads out of."""
    return frozenset(transitions.values()) - {before for before, _ in transitions}
