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
PIECE = 262_144

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
    """One pair with a stream running through it."""

    def __init__(self, pair: Pair, pieces: Sequence[bytes]) -> None:
        self.pair = pair
        self._pieces = pieces
        self._next = 0
        self._left = memoryview(b"")
        # Pieces begun, bytes that came out.
        self.begun = 0
        self.received = 0
        self._records = Records() if pair.listener.is_encrypted else None

    def send(self) -> None:
        if not self._left:
            self._left = memoryview(self.pair.sender.encode(self._pieces[self._next]))
            self._next = (self._next + 1) % len(self._pieces)
            self.begun += 1
        self._left = self._left[self.pair.sender.sock.send(self._left) :]

    def is_between_pieces(self) -> bool:
        return not self._left

    def receive(self, buffer: bytearray) -> None:
        count = self.pair.listener.sock.recv_into(buffer, len(buffer), _DROP if self._records is None else 0)
        if not count:
            raise ConnectionError("the listener's connection was closed")
        self.received += count if self._records is None else self._records.payload(buffer, count)


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
    """Send messages through so many connections at once, as fast as they pass.

    What comes out is counted, after the stream has run for a while.
    """
    pieces = _pieces(sizes.sizes)
    blobs = [blob for blob, _ in pieces]
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(several(make, connections))
        run = stack.enter_context(contextlib.closing(_Run([_Flow(pair, blobs) for pair in pairs])))
        run.until(time.perf_counter() + seconds / 3)
        before = run.received
        cpu, load_cpu, started = measured.cpu(), time.process_time(), time.perf_counter()
        run.until(started + seconds)
        took = time.perf_counter() - started
        load_cpu = time.process_time() - load_cpu
        after = measured.cpu()
        batches = (run.received - before) / sum(map(pairs[0].arrives, sizes.sizes))
        if not pairs[0].listener.is_encrypted:
            # Under TLS the session tickets were counted as well.
            run.finish([sum(map(pairs[0].arrives, inside)) for _, inside in pieces])
    used = None if cpu is None or after is None else after - cpu
    payload = batches * sum(sizes.sizes)
    return Throughput(
        bytes_per_second=payload / took,
        messages_per_second=batches * len(sizes.sizes) / took,
        cpu_per_gb=None if used is None else used / payload * 1e9,
        share=None if used is None else used / took,
        load_share=load_cpu / took,
    )


class _Run:
    """All streams of a measurement, served by one thread."""

    def __init__(self, flows: list[_Flow]) -> None:
        self._flows = flows
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(BATCH)
        for flow in flows:
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

    def finish(self, piece_sizes: Sequence[int]) -> None:
        """Stop sending between two messages, and see that all that was sent comes out: nothing may be lost."""
        sending = set(self._flows)
        missing = 1
        while sending or missing:
            for flow in [flow for flow in sending if flow.is_between_pieces()]:
                self._selector.unregister(flow.pair.sender.sock)
                sending.discard(flow)
            full, rest = zip(*(divmod(flow.begun, len(piece_sizes)) for flow in self._flows), strict=True)
            expected = sum(full) * sum(piece_sizes) + sum(sum(piece_sizes[:count]) for count in rest)
            missing = expected - self.received
            if missing < 0:
                raise AssertionError(f"{-missing} bytes came out that were never sent")
            if sending or missing:
                self._turn()

    def _turn(self) -> None:
        ready = self._selector.select(_STALLED)
        if not ready:
            raise TimeoutError(f"nothing moved for {_STALLED:g} s")
        for key, events in ready:
            if events & selectors.EVENT_READ:
                key.data.receive(self._buffer)
            else:
                key.data.send()


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
