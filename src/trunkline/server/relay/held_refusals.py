"""Whose refusals are held for a moment before they are answered: those of an address that keeps failing.

A listener with a wrong token is not a rare thing, and some try again at once, for ever: hyco-ws with two attempts for
each refusal (seen: 850 a second). While an attempt is held it makes no new one, and a held connection costs nothing.

    refused(address, refusal)  -> ANSWER    the address has not failed often
                               -> HOLD      answer it when `due` gives it, `HELD_FOR` seconds later
                               -> DISMISS   too many are held: answer it, and let go of it at once

Failures are counted by address alone, and forgotten one by one as time passes. A success does not reset the count,
or one good token would be a pass for any number of bad ones; nor is it ever held, because many share an address. An
IPv6 address counts by its first 64 bits, of which whoever has one has all others.

What there are more of than can be held is answered at once, too: a connection that is just cut makes hyco-ws try
twice as well, and nobody would learn why. But it is not waited for, so it holds nothing in the node.

No clock and no I/O: times are arguments, a refusal is whatever the caller answers.
"""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from typing import Generic, TypeVar

from trunkline.protocol.limits import (
    FAILURE_FORGOTTEN_AFTER,
    FAILURES_ANSWERED,
    HELD_FOR,
    HELD_PER_ADDRESS,
    HELD_PER_NODE,
)

R = TypeVar("R")

#: Addresses that are remembered; of more, those that failed longest ago are forgotten.
ADDRESSES = 4_096


class Fate(enum.Enum):
    """What becomes of a refusal."""

    ANSWER = "it is answered like any other"
    HOLD = "it is answered later"
    DISMISS = "it is answered, and nobody waits for the peer to read that"


@dataclass(slots=True)
class _Failures:
    """What an address has done lately."""

    # How many are not forgotten, and when that was so.
    count: float
    at: float
    # Refusals of it that are held now.
    held: int = 0


class HeldRefusals(Generic[R]):
    """Decides about the refusals of a node."""

    def __init__(self) -> None:
        # By network, the one that failed last at the end.
        self._failures: dict[str, _Failures] = {}
        # When each is due, and whose it is; in the order in which they came, which is that of the times.
        self._held: dict[R, tuple[float, _Failures]] = {}
        # How many were dismissed since that was asked last.
        self._dismissed = 0

    def __repr__(self) -> str:
        return f"<HeldRefusals held={len(self._held)} addresses={len(self._failures)}>"

    def __len__(self) -> int:
        """Refusals that are held now."""
        return len(self._held)

    def refused(self, address: str, refusal: R, now: float) -> Fate:
        """Somebody failed to authenticate.

        Args:
            address: IP address of the peer.
            refusal: the answer that is owed.
            now: seconds, monotonic.
        """
        network = network_of(address)
        failures = self._failures.pop(network, None) or _Failures(0, now)
        # At the end, as the last that failed.
        self._failures[network] = failures
        remembered = max(0.0, failures.count - (now - failures.at) / FAILURE_FORGOTTEN_AFTER)
        often = remembered > FAILURES_ANSWERED - 1
        failures.count, failures.at = min(remembered + 1, FAILURES_ANSWERED), now
        self._forget(now)
        if not often:
            return Fate.ANSWER
        if failures.held >= HELD_PER_ADDRESS or len(self._held) >= HELD_PER_NODE:
            self._dismissed += 1
            return Fate.DISMISS
        failures.held += 1
        self._held[refusal] = (now + HELD_FOR, failures)
        return Fate.HOLD

    def due(self, now: float) -> list[R]:
        """The refusals that have been held long enough; they are to be answered now."""
        found = []
        for refusal, (moment, _) in self._held.items():
            if moment > now:
                break
            found.append(refusal)
        return self._let_go(found)

    def release(self) -> list[R]:
        """All that are held; they are to be answered now."""
        return self._let_go(list(self._held))

    def left(self, refusal: R) -> None:
        """The peer of a refusal is gone."""
        if refusal in self._held:
            self._let_go([refusal])

    def take_dismissed(self) -> int:
        """How many were dismissed since the last call."""
        dismissed, self._dismissed = self._dismissed, 0
        return dismissed

    def _let_go(self, refusals: list[R]) -> list[R]:
        for refusal in refusals:
            self._held.pop(refusal)[1].held -= 1
        return refusals

    def _forget(self, now: float) -> None:
        """Drop the addresses whose failures are all forgotten, and the oldest of too many."""
        while True:
            # The last one has just failed, so there is one.
            network = next(iter(self._failures))
            over = now - self._failures[network].at > FAILURES_ANSWERED * FAILURE_FORGOTTEN_AFTER
            if not over and len(self._failures) <= ADDRESSES:
                return
            # One that comes again while some of it are held begins anew: still, the node holds no more than it may.
            del self._failures[network]


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, the first 64 bits of an IPv6 one, or the text that it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else parsed.packed[:8].hex(":", 2)
    return str(parsed)
