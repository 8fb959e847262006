"""What idle control channels and idle connections cost a node: resident memory, and processor time for pings."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from dataclasses import dataclass

from benchmarks.pairs import Pair, RelayedPairs, encode
from benchmarks.processes import Files, Measured, python_server
from benchmarks.streams import Stream

# Opened first and not counted: they pay for what the process does once.
WARM = 50

# Seconds after which a node has looked at all of them once.
SETTLE = 1.5

# Through each connection that is to have been busy, each way.
TRAFFIC = 1_048_576

_PING = b"\x89\x00"
_PONG = b"\x8a\x80"


@dataclass(frozen=True)
class Memory:
    """Resident bytes of the node for each control channel or connection."""

    idle: float
    # After traffic, and idle again; None for a control channel.
    after_traffic: float | None = None


def of_control_channels(files: Files, count: int, *, tls: bool) -> Memory:
    """For a control channel that was idle from its beginning."""
    with _node(files, tls=tls) as node, contextlib.ExitStack() as stack:
        pairs = stack.enter_context(RelayedPairs(node.port, files.client if tls else None))

        def open_some(number: int) -> None:
            for _ in range(number):
                stack.callback(pairs.listen().close)

        open_some(WARM)
        before = _settled(node)
        open_some(count)
        return Memory((_settled(node) - before) / count)


def of_connections(files: Files, count: int, *, tls: bool) -> Memory:
    """For a connection (two legs) that was idle from its beginning, and for one that was busy before."""
    with _node(files, tls=tls) as node, contextlib.ExitStack() as stack:
        pairs = stack.enter_context(RelayedPairs(node.port, files.client if tls else None))
        made: list[Pair] = []
        for _ in range(WARM + count):
            if len(made) == WARM:
                before = _settled(node)
            made.append(pairs())
            stack.callback(made[-1].close)
        idle = _settled(node)
        message = encode(os.urandom(65_536))
        for pair in made[WARM:]:
            for here, there in ((pair.sender, pair.listener), (pair.listener, pair.sender)):
                for _ in range(TRAFFIC // 65_536):
                    here.send(message)
                    there.receive_exactly(pair.arrives(65_536))
        return Memory((idle - before) / count, (_settled(node) - before) / count)


@dataclass(frozen=True)
class Idle:
    """What many idle control channels cost."""

    channels: int
    ping_interval: float
    # The part of one processor that the node used.
    share: float | None
    # Resident bytes for each.
    memory: float


def through_two_ping_rounds(files: Files, channels: int, ping_interval: float) -> Idle:
    """Hold so many control channels, without TLS, until each was pinged twice.

    Raises:
        AssertionError: one of them was closed, or was not pinged.
    """
    with _node(files, "--ping-interval", str(ping_interval), tls=False) as node, contextlib.ExitStack() as stack:
        pairs = stack.enter_context(RelayedPairs(node.port, None))
        empty = _settled(node)
        selector = stack.enter_context(selectors.DefaultSelector())
        pings: dict[Stream, int] = {}
        for _ in range(channels):
            stream = pairs.listen()
            stack.callback(stream.close)
            selector.register(stream.sock, selectors.EVENT_READ, stream)
            pings[stream] = 0
            # The first are pinged before the last are there.
            _answer(selector, pings, 0)
        pings = dict.fromkeys(pings, 0)
        cpu, started = node.cpu(), time.perf_counter()
        while min(pings.values()) < 2:
            if time.perf_counter() > started + 3 * ping_interval + 5:
                raise AssertionError("a control channel was not pinged twice in three intervals")
            _answer(selector, pings, 1.0)
        took, after = time.perf_counter() - started, node.cpu()
        share = None if cpu is None or after is None else (after - cpu) / took
        return Idle(channels, ping_interval, share, (_settled(node) - empty) / channels)


def _answer(selector: selectors.DefaultSelector, pings: dict[Stream, int], timeout: float) -> None:
    for key, _ in selector.select(timeout):
        data = key.data.receive()
        if data.count(_PING) * len(_PING) != len(data):
            raise AssertionError("a control channel got something that is no Ping: it is being closed")
        pings[key.data] += data.count(_PING)
        # One Pong answers several Pings (RFC 6455 section 5.5.3).
        key.data.send(_PONG + os.urandom(4))


def _node(files: Files, *arguments: str, tls: bool) -> contextlib.AbstractContextManager[Measured]:
    return python_server("node", *arguments, files=files if tls else None)


def _settled(node: Measured) -> int:
    time.sleep(SETTLE)
    resident = node.memory()
    if resident is None:
        raise RuntimeError("this system does not tell how much memory a process has")
    return resident
