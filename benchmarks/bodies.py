"""Large bodies: one request or answer of many megabytes, compared by its hash, and what memory it takes meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from benchmarks.applications import BLOCK, content
from benchmarks.routes import Route
from benchmarks.servers import PATH
from benchmarks.streams import TIMEOUT

# Through each way before anything is measured: what a process does once is paid for.
WARM = 4_194_304

# Bytes after which memory is looked at.
_LOOK = 8_388_608


@dataclass(frozen=True)
class Body:
    """What one transfer gave."""

    size: int
    seconds: float
    # Seconds of processor time of what is measured; None: the system does not tell.
    cpu: float | None
    # Bytes by which the memory of what is measured, and of what answers, grew at most; None where there is no such.
    grew: int | None
    application_grew: int | None


class _Growth:
    """The most memory that a route took beyond what it had."""

    def __init__(self, route: Route) -> None:
        self._processes = [process for process in (route.measured, route.application) if process is not None]
        self._before = [process.memory() or 0 for process in self._processes]
        self._most = list(self._before)
        self._passed = 0

    def look(self, passed: int) -> None:
        """So many bytes have passed since the last time."""
        self._passed += passed
        if self._passed >= _LOOK:
            self._passed = 0
            self.look_now()

    def look_now(self) -> None:
        self._most = [max(most, each.memory() or 0) for most, each in zip(self._most, self._processes, strict=True)]

    @property
    def grew(self) -> tuple[int, int | None]:
        """Of what is measured, and of what answers."""
        first, *rest = (most - before for most, before in zip(self._most, self._before, strict=True))
        return first, rest[0] if rest else None


def download(route: Route, size: int) -> Body:
    """An answer of so many bytes, of a length that nobody knows before.

    Raises:
        AssertionError: something else came.
    """

    def run(connection: http.client.HTTPConnection, growth: _Growth) -> None:
        connection.request("GET", f"/{PATH}/stream/{size}", headers=_headers(route))
        response = connection.getresponse()
        hashed, buffer, came = sha256(), memoryview(bytearray(4 * BLOCK)), 0
        while count := response.readinto(buffer):
            hashed.update(buffer[:count])
            came += count
            growth.look(count)
        _check(response.status, hashed.hexdigest(), size, came)

    return _measured(route, size, run)


def upload(route: Route, size: int) -> Body:
    """A request of so many bytes, which is answered with their hash.

    Raises:
        AssertionError: it is the hash of something else.
    """

    def run(connection: http.client.HTTPConnection, growth: _Growth) -> None:
        def body() -> Iterator[bytes]:
            for block in content(size):
                growth.look(len(block))
                yield block

        headers = {**_headers(route), "Content-Length": str(size), "Content-Type": "application/octet-stream"}
        connection.request("POST", f"/{PATH}/hash", body=body(), headers=headers)
        response = connection.getresponse()
        _check(response.status, response.read().decode(), size, size)

    return _measured(route, size, run)


def _measured(route: Route, size: int, run: Callable[[http.client.HTTPConnection, _Growth], None]) -> Body:
    with contextlib.closing(_connect(route)) as connection:
        growth, cpu, started = _Growth(route), route.measured.cpu(), time.perf_counter()
        run(connection, growth)
        growth.look_now()
        took, after = time.perf_counter() - started, route.measured.cpu()
    return Body(size, took, None if cpu is None or after is None else after - cpu, *growth.grew)


def _connect(route: Route) -> http.client.HTTPConnection:
    if route.tls is None:
        return http.client.HTTPConnection("127.0.0.1", route.port, timeout=TIMEOUT)
    return http.client.HTTPSConnection("127.0.0.1", route.port, timeout=TIMEOUT, context=route.tls)


def _headers(route: Route) -> dict[str, str]:
    given = dict(header.split(": ", 1) for header in route.headers)
    return {"Host": "localhost", **given}


def _check(status: int, came: str, size: int, length: int) -> None:
    if status != 200 or length != size:
        raise AssertionError(f"a body of {size} bytes: status {status}, {length} bytes came")
    hashed = sha256()
    for block in content(size):
        hashed.update(block)
    if came != hashed.hexdigest():
        raise AssertionError(f"a body of {size} bytes came out changed")
