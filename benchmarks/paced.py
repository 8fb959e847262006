"""Messages that come one by one, evenly, from many listeners: the scenario that wakes a node most for the fewest bytes.

50 gateways send 10,000 readings of 200 bytes in a second, each 100 microseconds after the one before it and on another
connection. The load spins, so that each is sent when it is due.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass

from benchmarks.pairs import Make, encode, several
from benchmarks.processes import Measured
from benchmarks.streams import Records

CONNECTIONS = 50
PER_SECOND = 10_000
SIZE = 200

# Messages that are made beforehand for each connection, and sent again and again.
_MADE = 20

# Seconds for the last ones to come out.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Paced:
    """What one measurement gave."""

    # As they were sent.
    messages_per_second: float
    # The part of them that were sent before the next one was due. The others came in a bunch, which costs less.
    on_time: float
    # The part of a processor that it took; None: the system does not tell.
    share: float | None


def paced(make: Make, measured: Measured, seconds: float) -> Paced:
    """Send evenly from the listeners to the senders, for so long, and see that all of it comes out.

    Raises:
        AssertionError: something was lost.
    """
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(several(make, CONNECTIONS))
        messages = [[encode(os.urandom(SIZE)) for _ in range(_MADE)] for _ in pairs]
        buffer = bytearray(65_536)
        records = {pair.sender.sock: Records() if pair.sender.is_encrypted else None for pair in pairs}
        received = 0

        def receive() -> None:
            nonlocal received
            for sock in select.select(list(records), [], [], 0)[0]:
                count = sock.recv_into(buffer)
                if not count:
                    raise ConnectionError("the sender's connection was closed")
                counter = records[sock]
                received += count if counter is None else counter.payload(buffer, count)

        sent, late, cpu, started = 0, 0, measured.cpu(), time.perf_counter()
        while sent < PER_SECOND * seconds:
            due = started + sent / PER_SECOND
            while (now := time.perf_counter()) < due:
                receive()
            late += now > due + 1 / PER_SECOND
            pairs[sent % CONNECTIONS].listener.send(messages[sent % CONNECTIONS][sent // CONNECTIONS % _MADE])
            sent += 1
        after, took = measured.cpu(), time.perf_counter() - started
        expected, deadline = sent * pairs[0].arrives(SIZE), time.perf_counter() + _PATIENCE
        while received < expected:
            receive()
            if time.perf_counter() > deadline:
                raise AssertionError(f"{expected - received} bytes did not come out")
    used = None if cpu is None or after is None else after - cpu
    return Paced(sent / took, 1 - late / sent, None if used is None else used / took)
