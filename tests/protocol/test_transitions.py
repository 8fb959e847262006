from __future__ import annotations

import enum

import pytest

from trunkline.protocol import control_channel, relayed_http, rendezvous
from trunkline.protocol.transitions import final_states, render


class Door(enum.Enum):
    OPEN = "one can pass"
    SHUT = "one cannot"
    WALLED_UP = "nobody ever will"


class Act(enum.Enum):
    PUSH = "somebody pushes"
    WALL = "a mason comes"


DOORS = {
    (Door.OPEN, Act.PUSH): Door.SHUT,
    (Door.SHUT, Act.PUSH): Door.OPEN,
    (Door.SHUT, Act.WALL): Door.WALLED_UP,
}


def test_table_is_rendered_row_by_row() -> None:
    assert render(DOORS) == (
        "| state | event | becomes |\n"
        "| --- | --- | --- |\n"
        "| OPEN | somebody pushes | SHUT |\n"
        "| SHUT | somebody pushes | OPEN |\n"
        "| SHUT | a mason comes | WALLED_UP |\n"
    )


def test_final_states_are_those_that_nothing_leads_out_of() -> None:
    assert final_states(DOORS) == {Door.WALLED_UP}


def test_control_channel_ends_closed() -> None:
    assert final_states(control_channel.TRANSITIONS) == {control_channel.State.CLOSED}


def test_rendezvous_ends_joined_refused_by_either_side_or_left() -> None:
    states = rendezvous.State
    assert final_states(rendezvous.TRANSITIONS) == {states.JOINED, states.REJECTED, states.REFUSED, states.GONE}


def test_request_ends_answered_by_either_side_cut_or_left() -> None:
    states = relayed_http.State
    assert final_states(relayed_http.TRANSITIONS) == {states.ANSWERED, states.REFUSED, states.CUT, states.GONE}


@pytest.mark.parametrize("machine", [control_channel, rendezvous, relayed_http])
def test_every_state_and_event_has_its_place_in_the_table(machine: object) -> None:
    table: dict[tuple[enum.Enum, enum.Enum], enum.Enum] = machine.TRANSITIONS  # type: ignore[attr-defined]
    assert {event for _, event in table} == set(machine.Event)  # type: ignore[attr-defined]
    assert {state for state, _ in table} | set(table.values()) == set(machine.State)  # type: ignore[attr-defined]
