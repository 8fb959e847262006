"""When to try again. No I/O and no clock."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.protocol.errors import InvalidSetting, RelayError
from trunkline.protocol.limits import RECONNECT_DELAYS
from trunkline.sdk.proxy import ProxyError

#: Seconds that a control channel must have been online before its loss counts as the first failure again. A relay
#: that takes every registration and drops it at once would otherwise be called without a pause.
STABLE_AFTER = 1.0


@dataclass(frozen=True)
class Retry:
    """How often a sender tries, and how long it waits in between. Only what may pass is tried again.

    Args:
        attempts: how often to try in all.
        delays: seconds before the second attempt, the third and so on; the last repeats. Each is shortened by chance,
            never lengthened.
    """

    attempts: int = len(RECONNECT_DELAYS)
    delays: tuple[float, ...] = RECONNECT_DELAYS

    def __post_init__(self) -> None:
        if self.attempts < 1 or not self.delays or min(self.delays) < 0:
            raise InvalidSetting("Retry needs at least one attempt, and delays that are not negative")


class Backoff:
    """The waiting times between attempts: 0, 1, 2, 5, 10, 30, 30, ... seconds.

    Each is shortened by chance to between half of itself and itself, so that the clients of a relay that comes back
    do not all come at once; no waiting time is ever longer than its step.

    Args:
        random: gives numbers in [0, 1).
        delays: the steps; the last repeats.
    """

    def __init__(self, random: Callable[[], float], delays: Sequence[float] = RECONNECT_DELAYS) -> None:
        self._random = random
        self._delays = delays
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Backoff failures={self._failures}>"

    def next_delay(self) -> float:
        """Seconds to wait after one more failure."""
        step = self._delays[min(self._failures, len(self._delays) - 1)]
        self._failures += 1
        return step * (1 + self._random()) / 2

    def was_online(self, seconds: float) -> None:
        """A connection that had lasted for `seconds` was lost: begin again, unless it had hardly lasted."""
        if seconds >= STABLE_AFTER:
            self._failures = 0


def may_pass(error: BaseException) -> bool:
    """Whether the same attempt may succeed later with nobody changing anything.

    No: a refusal that says so (401, 403, 404, ...; of a proxy: 407, 403), a certificate that is not trusted, TLS
    spoken to a port without it, a bug. Yes: a busy or absent relay or proxy, a network that fails, a timeout.
    """
    if isinstance(error, RelayError | ProxyError):
        return error.transient
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)  # ended in the middle: a restart
    return isinstance(error, OSError)  # TimeoutError is one
