"""Conversations with a state machine, written as they read: `>>` what happens to it, `<<` what it wants done.

    assert (
        Playbook(Rendezvous(...))
        >> event.start()
        << PlaceOffer(frozenset())
        >> event.placed("a", now=1.0)
        >> event.sender_left(now=2.0)
    )

`event.NAME(...)` is the call of the machine's method NAME, to be made when the conversation gets there. After each
event every command must be told, in order; a command too many, too few or another one fails at that line, with the
conversation so far. A command may also be told by its class, or by any object that compares equal to it. The idea
and the two arrows are mitmproxy's (`test/mitmproxy/proxy/tutils.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Happening:
    """One event: the name of a method of the machine, and its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        arguments = [repr(each) for each in self.args]
        arguments += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.name}({', '.join(arguments)})"


class _Events:
    """Makes a `Happening` of every method name."""

    def __getattr__(self, name: str) -> Callable[..., Happening]:
        return lambda *args, **kwargs: Happening(name, args, kwargs)


event = _Events()


class Playbook:
    """One conversation with one machine.

    Args:
        machine: each of its methods that is an event returns the commands that follow.
    """

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._script: list[str] = []
        # Commands of the last event that were not told yet.
        self._untold: list[object] = []

    def __repr__(self) -> str:
        return "\n".join(["Playbook", *self._script, f"   {self.machine!r}"])

    def __rshift__(self, happening: Happening) -> Playbook:
        self._nothing_untold()
        self._script.append(f">> {happening}")
        commands = getattr(self.machine, happening.name)(*happening.args, **happening.kwargs)
        assert isinstance(commands, Sequence), f"{happening.name} is no event: it returned {commands!r}"
        self._untold = list(commands)
        return self

    def __lshift__(self, command: object) -> Playbook:
        self._script.append(f"<< {getattr(command, '__name__', repr(command))}")
        assert self._untold, f"The machine wants nothing more.\n{self!r}"
        wanted = self._untold.pop(0)
        told = isinstance(wanted, command) if isinstance(command, type) else command == wanted
        assert told, f"The machine wants {wanted!r} instead.\n{self!r}"
        return self

    def __bool__(self) -> bool:
        self._nothing_untold()
        return True

    def _nothing_untold(self) -> None:
        assert not self._untold, f"The machine wants more: {self._untold!r}\n{self!r}"
