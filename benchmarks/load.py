"""What is done to pairs: a stream of messages as fast as they pass, round trips, and a look at the content.

The stream is cheap, so that the load is not what is measured: frames are made beforehand with random keys and random
payloads, and what comes out is counted and dropped by the system without being copied (without TLS), or counted by
the heads of its records without being decrypted (with it). `check_content` is a pass of its own that looks at every
byte.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.pairs import FRAME_LIMIT, Make, Pair, encode, several
from benchmarks.processes import Measured
from benchmarks.streams import Records
from trunkline.protocol.frames import Data, FrameDecoder

# About this much is made beforehand and sent again and again, in pieces of about that.
BATCH = 1_048_576
PIECE = 131_072

# No new piece is begun on a connection while so many bytes are under way. Without a bound megabytes wait in buffers of
# the system until they have left the caches of the processor, behind whoever is slower: it would pay twice.
WINDOW = 262_144

# Linux drops the bytes of a TCP stream without handing them over.
_DROP = socket.MSG_TRUNC if sys.platform == "linux" else 0

# Seconds without any byte after which something is broken.
_STALLED = 20.0

# The share of a processor from which on it is taken to be busy all the time.
BUSY = 0.92


@dataclass(frozen=True)
class Sizes:
    """The messages of one case: their sizes in bytes, in an order that repeats."""

    name: str
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, size: int) -> Sizes:
        """Messages of one size."""
        for unit, name in ((1_048_576, "MiB"), (1_024, "KiB")):
            if size % unit == 0:
                return cls(f"{size // unit}{name}", (size,) * max(1, BATCH // size))
        return cls(f"{size}B", (size,) * (BATCH // size))

    @classmethod
    def mixed(cls) -> Sizes:
        """From an empty message to one longer than the frame limit, in an order drawn once."""
        drawn = random.Random(6455)
        some = [0, 16, 64, 125, 126, 200, 1_000, 1_400, 4_096, 16_000, 65_535, 65_536, 200_000]
        sizes = [size for size in some for _ in range(1 + 8_000 // (size + 100))]
        drawn.shuffle(sizes)
        return cls("mixed", tuple(sizes))


@dataclass(frozen=True)
class Throughput:
    """What one measurement gave."""

    # Of payload.
    bytes_per_second: float
    messages_per_second: float
    # Seconds of processor time of what was measured, for 10^9 bytes of payload; None: the system does not tell.
    cpu_per_gb: float | None
    # The part of a processor that it used, and that the load used.
    share: float | None
    load_share: float

    @property
    def load_is_the_limit(self) -> bool:
        """True when the load was busy all the time and what is measured was not."""
        return self.share is not None and self.share < BUSY <= self.load_share


class _Flow:
    """One pair with a stream running through it.

    Args:
        pair: its ends.
        pieces: what to send again and again, each with its size when it comes out.
    """

    def __init__(self, pair: Pair, pieces: Sequence[tuple[bytes, int]]) -> None:
        self.pair = pair
        self._pieces = pieces
        self._next = 0
        self._left = memoryview(b"")
        self.received = 0
        # Bytes that have been sent and have still to come out.
        self.owed = 0
        # No new piece is begun any more.
        self.stopped = False
        self._records = Records() if pair.listener.is_encrypted else None

    def send(self) -> bool:
        """Send what may be sent; False when the socket takes no more for now."""
        while self._left or (self.owed < WINDOW and not self.stopped):
            if not self._left:
                piece, arrives = self._pieces[self._next]
                self._next = (self._next + 1) % len(self._pieces)
                self._left = memoryview(self.pair.sender.encode(piece))
                self.owed += arrives
            try:
                self._left = self._left[self.pair.sender.sock.send(self._left) :]
            except BlockingIOError:
                return False
        return True

    def receive(self, buffer: bytearray) -> None:
        count = self.pair.listener.sock.recv_into(buffer, len(buffer), _DROP if self._records is None else 0)
        if not count:
            raise ConnectionError("the listener's connection was closed")
        if self._records is not None:
            count = self._records.payload(buffer, count)
        self.received += count
        self.owed -= count


def _pieces(sizes: Sequence[int]) -> list[tuple[bytes, list[int]]]:
    """Messages put together to pieces, each with the sizes of its messages."""
    pieces: list[tuple[bytes, list[int]]] = []
    frames: list[bytes] = []
    inside: list[int] = []
    for size in sizes:
        frames.append(encode(os.urandom(size)))
        inside.append(size)
        if sum(inside) >= PIECE:
            pieces.append((b"".join(frames), inside))
            frames, inside = [], []
    if frames:
        pieces.append((b"".join(frames), inside))
    return pieces


def throughput(make: Make, measured: Measured, sizes: Sizes, connections: int, seconds: float) -> Throughput:
    """Send messages through so many connections at once, as fast as they pass, and count what comes out."""
    pieces = _pieces(sizes.sizes)
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(several(make, connections))
        arrivals = [(piece, sum(map(pairs[0].arrives, inside))) for piece, inside in pieces]
        run = stack.enter_context(contextlib.closing(_Run([_Flow(pair, arrivals) for pair in pairs])))
        run.until(time.perf_counter() + seconds / 3)
        received, idle, cpu, started = run.received, run.idle, measured.cpu(), time.perf_counter()
        run.until(started + seconds)
        took = time.perf_counter() - started
        received, idle, after = run.received - received, run.idle - idle, measured.cpu()
        if not pairs[0].listener.is_encrypted:
            # Under TLS the session tickets were counted as well.
            run.finish()
    batches = received / sum(arrives for _, arrives in arrivals)
    used = None if cpu is None or after is None else after - cpu
    payload = batches * sum(sizes.sizes)
    return Throughput(
        bytes_per_second=payload / took,
        messages_per_second=batches * len(sizes.sizes) / took,
        cpu_per_gb=None if used is None else used / payload * 1e9,
        share=None if used is None else used / took,
        load_share=1 - idle / took,
    )


class _Run:
    """All streams of a measurement, served by one thread that never sleeps.

    Whoever sleeps has to be woken up, and that costs the one who wakes it: a load that is faster than what it
    measures would make it slower.
    """

    def __init__(self, flows: list[_Flow]) -> None:
        self._flows = flows
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(BATCH)
        self._moved_at = time.perf_counter()
        # Seconds in which there was nothing to do.
        self.idle = 0.0
        for flow in flows:
            flow.pair.sender.sock.setblocking(False)
            self._selector.register(flow.pair.sender.sock, selectors.EVENT_WRITE, flow)
            self._selector.register(flow.pair.listener.sock, selectors.EVENT_READ, flow)

    @property
    def received(self) -> int:
        return sum(flow.received for flow in self._flows)

    def close(self) -> None:
        self._selector.close()

    def until(self, end: float) -> None:
        """Let everything flow until then, on the clock of `time.perf_counter`, and until something has come out."""
        before = self.received
        while time.perf_counter() < end or self.received == before:
            self._turn()

    def finish(self) -> None:
        """Stop sending between two messages, and see that all that was sent comes out: nothing may be lost."""
        for flow in self._flows:
            flow.stopped = True
        while any(flow.owed > 0 for flow in self._flows):
            self._turn()
        if any(flow.owed < 0 for flow in self._flows):
            raise AssertionError("more came out than was sent")

    def _turn(self) -> None:
        looked_at = time.perf_counter()
        ready = self._selector.select(0)
        if not ready:
            now = time.perf_counter()
            self.idle += now - looked_at
            if now - self._moved_at > _STALLED:
                raise TimeoutError(f"nothing moved for {_STALLED:g} s")
            return
        self._moved_at = looked_at
        for key, events in ready:
            flow = key.data
            if events & selectors.EVENT_READ:
                flow.receive(self._buffer)
            sock = flow.pair.sender.sock
            waits = sock in self._selector.get_map()
            if flow.send() == waits:
                if waits:
                    self._selector.unregister(sock)
                else:
                    self._selector.register(sock, selectors.EVENT_WRITE, flow)


def round_trip(make: Make, size: int, count: int) -> float:
    """Median seconds of a message that goes from the sender to the listener and back."""
    with several(make, 1) as (pair,):
        message, arrives = encode(os.urandom(size)), pair.arrives(size)
        times = []
        for _ in range(count):
            started = time.perf_counter()
            pair.sender.send(message)
            pair.listener.receive_exactly(arrives)
            pair.listener.send(message)
            pair.sender.receive_exactly(arrives)
            times.append(time.perf_counter() - started)
        # The first ones pay for what is done once.
        return sorted(times[count // 10 :])[len(times[count // 10 :]) // 2]


def check_content(make: Make, connections: int = 3) -> int:
    """What comes out is what went in: sizes around every border through several connections at once.

    Every byte is compared, and that each message ends where it ended. Gives the number of messages.

    Raises:
        AssertionError: something came out changed.
    """
    borders = (0, 1, 125, 126, 1_000, FRAME_LIMIT - 1, FRAME_LIMIT, FRAME_LIMIT + 1, 200_000)
    with several(make, connections) as pairs:
        for size in borders:
            sent = [os.urandom(size) for _ in pairs]
            for pair, payload in zip(pairs, sent, strict=True):
                pair.sender.send(encode(payload))
            for pair, payload in zip(pairs, sent, strict=True):
                came = _message(pair, size)
                if came != payload:
                    raise AssertionError(f"a message of {size} bytes came out changed")
    return len(borders) * connections


def _message(pair: Pair, size: int) -> bytes:
    decoder = FrameDecoder(masked=pair.masked)
    payload = b""
    for item in decoder.feed(pair.listener.receive_exactly(pair.arrives(size))):
        assert isinstance(item, Data)
        payload += item.payload
        if item.end and len(payload) == size:
            return payload
    raise AssertionError(f"a message of {size} bytes came out with another end")
