"""How many relayed connections a node sets up in a second: token, offer, the listener's answer, two times 101."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.pairs import RelayedPairs
from benchmarks.processes import Measured
from benchmarks.streams import expect_upgrade

# So many are under way at once: the node is never without work, and the load stays simple.
TOGETHER = 16


@dataclass(frozen=True)
class Rate:
    """What one measurement gave."""

    per_second: float
    # Seconds of the node's processor for each; None: the system does not tell.
    cpu: float | None


def connects(pairs: RelayedPairs, measured: Measured, seconds: float) -> Rate:
    """Set connections up and cut them at once, for so long."""
    count, cpu, started = 0, measured.cpu(), time.perf_counter()
    while time.perf_counter() < started + seconds:
        senders = [pairs.ask() for _ in range(TOGETHER)]
        listeners = [pairs.accept() for _ in range(TOGETHER)]
        for stream in (*listeners, *senders):
            expect_upgrade(stream)
        for stream in (*listeners, *senders):
            stream.close()
        count += TOGETHER
    took = time.perf_counter() - started
    after = measured.cpu()
    return Rate(count / took, None if cpu is None or after is None else (after - cpu) / count)
