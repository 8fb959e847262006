from __future__ import annotations

import pytest

from playbook import Playbook, event


class Echo:
    """A machine that wants done what it is told."""

    def say(self, *words: str) -> list[str]:
        return list(words)

    def count(self) -> int:
        return 1


def test_playbook_follows_a_conversation() -> None:
    assert Playbook(Echo()) >> event.say("a", "b") << "a" << str >> event.say() >> event.say("c") << "c"


def test_playbook_refuses_another_command() -> None:
    with pytest.raises(AssertionError, match=r"wants 'a' instead(.|\n)*>> say\('a'\)"):
        Playbook(Echo()) >> event.say("a") << "b"


def test_playbook_refuses_another_class_of_command() -> None:
    with pytest.raises(AssertionError, match="wants 'a' instead"):
        Playbook(Echo()) >> event.say("a") << int


def test_playbook_refuses_a_command_that_is_missing() -> None:
    with pytest.raises(AssertionError, match="nothing more"):
        Playbook(Echo()) >> event.say() << "a"


def test_playbook_refuses_a_command_that_was_not_told_before_the_next_event() -> None:
    with pytest.raises(AssertionError, match="wants more: \\['b'\\]"):
        Playbook(Echo()) >> event.say("a", "b") << "a" >> event.say()


def test_playbook_refuses_a_command_that_was_not_told_at_the_end() -> None:
    with pytest.raises(AssertionError, match="wants more: \\['a'\\]"):
        assert Playbook(Echo()) >> event.say("a")


def test_playbook_refuses_what_is_no_event() -> None:
    with pytest.raises(AssertionError, match="count is no event"):
        Playbook(Echo()) >> event.count()
