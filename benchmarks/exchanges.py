"""HTTP requests from one process: as many as get through, or one whenever it is due.

The load is cheap: a request is made beforehand, an answer is looked for where the last one ended its head, and a head
that came before is not read again. It is honest: every status is looked at and every body compared, each connection
is kept alive as that of an application is, and each request has its token. It sleeps while nothing has come, because
the application shares its processor.
"""

from __future__ import annotations

import collections
import contextlib
import re
import select
import selectors
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.processes import Measured
from benchmarks.streams import Stream, dial

# Seconds for what is under way at the end.
_PATIENCE = 10.0

# Heads that are kept: they differ by their date.
_MOST_HEADS = 1_000

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What is asked for again and again, and what has to come."""

    name: str
    data: bytes
    answer: bytes

    @classmethod
    def of(cls, name: str, method: str, target: str, body: bytes, answer: bytes, *headers: str) -> Request:
        """A request with a body where the method has one."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "User-Agent: bench", "Accept: */*", *headers]
        if method == "POST":
            lines += ["Content-Type: application/octet-stream", f"Content-Length: {len(body)}"]
        return cls(name, "\r\n".join((*lines, "", "")).encode() + body, answer)


@dataclass
class Result:
    """What one measurement gave."""

    # Of what was answered as it should be, in the order in which it came: seconds.
    times: list[float] = field(default_factory=list)
    # What was not, by what was wrong.
    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    # Seconds that it took, and of the processor of what is measured; None: the system does not tell.
    took: float = 0.0
    cpu: float | None = None

    @property
    def per_second(self) -> float:
        """Requests that were answered as they should be."""
        return len(self.times) / self.took

    def at(self, part: float) -> float:
        """Seconds within which that part of the requests was answered; nan when none was."""
        if not self.times:
            return float("nan")
        return sorted(self.times)[min(len(self.times) - 1, int(len(self.times) * part))]

    @property
    def share(self) -> float | None:
        """The part of a processor that it used."""
        return None if self.cpu is None else self.cpu / self.took


class Sender:
    """One connection that is kept alive, with at most one request under way.

    Args:
        make: connects.
        heads: what is known of heads: status and length of the body, None when it is chunked. Shared.
    """

    def __init__(self, make: Callable[[], Stream], heads: dict[bytes, tuple[int, int | None]]) -> None:
        self._make = make
        self._heads = heads
        self.stream = make()
        self.stream.sock.setblocking(False)
        # When the request that is under way was sent, or was due.
        self.since = 0.0
        self._request: Request | None = None
        self._data = b""

    def send(self, request: Request, since: float) -> None:
        """Begin a request."""
        self.since, self._request, self._data = since, request, b""
        # What the peer has closed is found when it is read.
        with contextlib.suppress(ConnectionError):
            data = self.stream.encode(request.data)
            if self.stream.sock.send(data) != len(data):
                raise AssertionError("a request is larger than what the system takes at once")

    def read(self) -> str | None:
        """Read what has come; "" when the answer is whole and right, what is wrong, or None when it is not whole."""
        try:
            outcome = self._take(self.stream.receive())
            # A read may have brought several records of TLS.
            while outcome is None and self.stream.is_encrypted:
                outcome = self._take(self.stream.receive())
        except BlockingIOError:
            return None
        except (OSError, ssl.SSLError) as error:
            return f"connection lost ({type(error).__name__})"
        return outcome

    def _take(self, data: bytes) -> str | None:
        request = self._request
        if request is None:
            return "bytes that nobody asked for"
        self._data = data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head = data[:end]
        known = self._heads.get(head)
        if known is None:
            known = self._read_head(head)
        status, length = known
        if length is None:
            if not data.endswith(_LAST_CHUNK):
                return None
            body = b"".join(chunks(data[end:]))
        else:
            if len(data) < end + length:
                return None
            body = data[end:]
        self._request = None
        if status != 200:
            return str(status)
        return "" if body == request.answer else "another body"

    def _read_head(self, head: bytes) -> tuple[int, int | None]:
        found = _LENGTH.search(head)
        if found is None and not _CHUNKED.search(head):
            raise AssertionError(f"an answer has no length: {head!r}")
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[head] = known = int(head[9:12]), None if found is None else int(found.group(1))
        return known

    def reconnect(self) -> None:
        """Begin anew after an error."""
        self.close()
        self.stream = self._make()
        self.stream.sock.setblocking(False)
        self._request = None

    def close(self) -> None:
        self.stream.close()


def chunks(data: bytes) -> Iterator[bytes]:
    """The pieces of a whole chunked body."""
    position = 0
    while True:
        end = data.index(b"\r\n", position)
        size = int(data[position:end].partition(b";")[0], 16)
        if not size:
            return
        yield data[end + 2 : end + 2 + size]
        position = end + 2 + size + 2


@contextlib.contextmanager
def senders(port: int, tls: ssl.SSLContext | None, count: int) -> Iterator[list[Sender]]:
    """So many connections."""
    heads: dict[bytes, tuple[int, int | None]] = {}
    made: list[Sender] = []
    try:
        for _ in range(count):
            made.append(Sender(lambda: dial(port, tls), heads))
        yield made
    finally:
        for sender in made:
            sender.close()


def saturate(
    connections: Sequence[Sender],
    request: Request,
    measured: Measured,
    seconds: float,
    warm: float = 0.0,
    fewest: int = 1,
) -> Result:
    """On each connection one request after the other, for so long.

    Args:
        connections: idle.
        request: what is asked for.
        measured: whose processor time counts.
        seconds: how long it is measured.
        warm: seconds before that.
        fewest: it is measured on until so many were answered as they should be.
    """
    result = Result()
    clock = time.perf_counter
    with selectors.DefaultSelector() as selector:
        for sender in connections:
            selector.register(sender.stream.sock, selectors.EVENT_READ, sender)
            sender.send(request, clock())
        counts_from = clock() + warm
        cpu, started, end = measured.cpu(), clock(), counts_from + seconds
        under_way, is_warm, is_over = len(connections), False, False
        while under_way:
            ready = selector.select(_PATIENCE)
            now = clock()
            if not ready:
                result.errors["no answer"] += under_way
                break
            if not is_warm and now >= counts_from:
                is_warm, cpu, started = True, measured.cpu(), now
            for key, _ in ready:
                sender = key.data
                outcome = sender.read()
                if outcome is None:
                    continue
                if outcome:
                    result.errors[outcome] += 1
                    selector.unregister(sender.stream.sock)
                    sender.reconnect()
                    selector.register(sender.stream.sock, selectors.EVENT_READ, sender)
                elif is_warm and not is_over:
                    result.times.append(now - sender.since)
                if not is_over and now >= end and (len(result.times) >= fewest or now > end + _PATIENCE):
                    is_over, result.took, result.cpu = True, clock() - started, _difference(cpu, measured.cpu())
                if is_over:
                    under_way -= 1
                else:
                    sender.send(request, clock())
    if not is_over:
        result.took, result.cpu = clock() - started, _difference(cpu, measured.cpu())
    return result


def constant(
    connections: Sequence[Sender], request: Request, measured: Measured, per_second: float, seconds: float
) -> Result:
    """One request whenever it is due, on a connection that is free.

    The time of each counts from when it was due, also when it had to wait for a connection: a relay that falls behind
    is not asked less.
    """
    result = Result()
    clock = time.perf_counter
    free = collections.deque(connections)
    by_socket = {sender.stream.sock: sender for sender in connections}
    sent, whole = 0, int(per_second * seconds)
    cpu, started = measured.cpu(), clock()
    next_due = started
    while (now := clock()) < next_due + _PATIENCE:
        while sent < whole and next_due <= now and free:
            free.popleft().send(request, next_due)
            sent += 1
            next_due = started + sent / per_second
        if sent == whole and len(free) == len(connections):
            break
        wait = next_due - now if free and sent < whole else _PATIENCE
        # Not a selector of another kind: their timeouts are whole milliseconds.
        for sock in select.select(by_socket, [], [], max(0.0, wait))[0]:
            sender = by_socket[sock]
            outcome = sender.read()
            if outcome is None:
                continue
            if outcome:
                result.errors[outcome] += 1
                del by_socket[sock]
                sender.reconnect()
                by_socket[sender.stream.sock] = sender
            else:
                result.times.append(clock() - sender.since)
            free.append(sender)
    result.took, result.cpu = clock() - started, _difference(cpu, measured.cpu())
    if missing := whole - len(result.times) - result.errors.total():
        result.errors["no answer"] += missing
    return result


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
