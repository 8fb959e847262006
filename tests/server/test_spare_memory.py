"""When memory is given back."""

from __future__ import annotations

from trunkline.server.spare_memory import ENOUGH, EVERY, SpareMemory, release


def released(*held: int, each: float = 0.0) -> list[int]:
    """At which of these looks memory is given back, once it was in the beginning; `each` seconds lie between them."""
    times: list[int] = []
    looks: list[int] = []
    memory = SpareMemory(lambda: times.append(len(looks)))
    memory.tick(1, 0)
    memory.tick(0, 0)
    times.clear()
    for count in held:
        memory.tick(count, len(looks) * each)
        looks.append(count)
    return times


def test_memory_is_given_back_once_when_a_flood_is_over() -> None:
    assert released(5, 2_000, 2_000, 900, 5, 5, 5) == [5]
    assert released(0, 2_000, 1_000, 1_000, 0, 2_000, 0, 1) == [3, 7]


def test_memory_stays_while_connections_come_and_go() -> None:
    assert released(1_000, 900, 1_000, 700, 1_000) == []
    assert released(0, ENOUGH - 1, 0, 0, ENOUGH - 1) == []


def test_memory_of_a_few_is_given_back_now_and_then_if_any_have_gone() -> None:
    assert released(3, 2, 3, 2, 3, 2, each=EVERY / 3) == [3]
    assert released(3, 3, 3, 3, 4, 4, each=EVERY) == []


def test_what_the_c_library_holds_free_can_be_given_back() -> None:
    release()


def test_repr_says_what_it_saw() -> None:
    assert repr(SpareMemory()) == "<SpareMemory most=0>"
