"""The cases of HTTP requests: through a node to a listener, beside the same application alone and behind nginx."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.applications import ANSWER
from benchmarks.bodies import WARM, Body, download, upload
from benchmarks.exchanges import Request, Result, constant, saturate, senders
from benchmarks.load import BUSY
from benchmarks.processes import Files
from benchmarks.report import Spread, Table, Target
from benchmarks.rounds import Run, median_or_dash
from benchmarks.routes import BESIDE, RELAYED, Route, available, running
from benchmarks.servers import PATH

CONNECTIONS = (1, 16, 128)
# Of these, under TLS.
TLS_CONNECTIONS = (16,)

POSTED = 10_240

# Scenario 1 of what a relay is for: a web API on premises, called from a cloud.
PER_SECOND = 500
# More than are ever under way, so that a request waits for none.
POOL = 64

PARALLEL = 200

MIB = 1_048_576
BODY = 100 * MIB
LONG_BODY = 1_024 * MIB

#: Words that choose these cases.
WORDS = frozenset(("http", "get", "post", "constant", "parallel", "bodies", *map(str, CONNECTIONS)))

# The listener of the cases with one: what it answers with is what uvicorn answers with.
SDK = "asgi"

_KINDS = ("get", "post")


class HttpCases:
    """The cases in which requests are relayed.

    Args:
        run: what they are part of.
        files: the certificate of everything.
        folder: for files of the routes.
    """

    def __init__(self, run: Run, files: Files, folder: Path) -> None:
        self._run = run
        self._options = run.options
        self._files = files
        self._folder = folder
        # The best of the bare listener, over all cases without TLS.
        self._peak = 0.0

    def run(self) -> None:
        """Measure everything that was chosen."""
        self._rates("plain", CONNECTIONS)
        self._rates("tls", TLS_CONNECTIONS)
        if self._options.wants("http", "constant"):
            self._constant()
        if self._options.wants("http", "parallel"):
            self._parallel()
        if self._options.wants("http", "bodies"):
            self._bodies()

    # -- as many as get through

    def _rates(self, transport: str, numbers: Sequence[int]) -> None:
        chosen = [
            (kind, connections)
            for kind in _KINDS
            for connections in numbers
            if self._options.wants("http", kind, transport, str(connections))
        ]
        if not chosen:
            return
        names = (*RELAYED, *available(tuple(name for name in BESIDE if name in self._options.against)))
        if any(connections == 1 for _, connections in chosen):
            names = (*names, "origin")
        rows: list[tuple[str, ...]] = []
        with self._running(names, transport) as routes:
            for kind, connections in chosen:
                taking_part = [route for route in routes if route.name != "origin" or connections == 1]
                rows += self._rate(taking_part, kind, connections, transport)
        if self._peak:
            self._run.targets.append(
                Target.at_least("small requests per second, bare listener", 6_000, self._peak, "/s")
            )
            self._peak = 0.0
        self._run.tables.append(
            Table(
                f"HTTP requests, {'TLS' if transport == 'tls' else 'without TLS'}",
                f"A GET answered with {len(ANSWER)} B, and a POST of {POSTED // 1024} KiB answered with as much, one "
                "after the other on each connection. Milliseconds. The share of a processor, and the microseconds of "
                "it for a request, are those of the node, of nginx, or of uvicorn where it is alone. A star: it had "
                "time left, so the load or the listener on the other processor was the limit.",
                ("", "through", "requests/s", "p50", "p99", "of one processor", "us each", "/ uvicorn"),
                rows,
            )
        )

    def _rate(self, routes: Sequence[Route], kind: str, connections: int, transport: str) -> Iterator[tuple[str, ...]]:
        def measure(route: Route) -> Result:
            with senders(route.port, route.tls, connections) as made:
                return saturate(
                    made, small_request(kind, route), route.measured, self._options.seconds, self._options.seconds / 3
                )

        results = self._run.rounds(f"http {kind} {transport} {connections}", routes, measure)
        self._rate_targets(results, kind, connections, transport)
        for route in routes:
            mine = results[route.name]
            rate = Spread.of(each.per_second for each in mine)
            share = statistics.median(each.share or 0.0 for each in mine)
            each_us = [None if each.cpu is None else each.cpu / max(1, len(each.times)) * 1e6 for each in mine]
            errors = sum(each.errors.total() for each in mine)
            ratio = "-"
            if "uvicorn" in results and route.name not in ("uvicorn", "origin"):
                theirs = [each.per_second for each in results["uvicorn"]]
                ratio = str(Spread.of_ratios([each.per_second for each in mine], theirs))
            yield (
                f"{kind.upper()}, {connections} connection{'s' if connections > 1 else ''}",
                route.name,
                f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f}){f', {errors} errors' if errors else ''}",
                _milliseconds(mine, 0.5),
                _milliseconds(mine, 0.99),
                f"{share:.0%}{' *' if share < BUSY and connections > 1 else ''}",
                median_or_dash(each_us),
                ratio,
            )

    def _rate_targets(self, results: dict[str, list[Result]], kind: str, connections: int, transport: str) -> None:
        if transport != "plain" or kind != "get":
            return
        self._peak = max(self._peak, statistics.median(each.per_second for each in results["bare"]))
        if connections != 1:
            return
        for name, beside in (("bare", "origin"), (SDK, "uvicorn")):
            if beside not in results:
                continue
            pairs = zip(results[name], results[beside], strict=True)
            added = Spread.of((through.at(0.5) - direct.at(0.5)) * 1e3 for through, direct in pairs)
            what = f"latency added at one connection, median, {name} beside {beside}"
            self._run.targets.append(Target.below(what, 0.5, added.median, " ms"))

    # -- for a minute

    def _constant(self) -> None:
        self._run.say(f"{PER_SECOND} requests a second for {self._options.minute:g} s")
        with running(SDK, self._files, self._folder, tls=True) as route:
            assert route.application is not None
            with senders(route.port, route.tls, POOL) as made:
                saturate(made, small_request("get", route), route.measured, self._options.seconds)
                before = route.application.cpu()
                result = constant(made, small_request("get", route), route.measured, PER_SECOND, self._options.minute)
                after = route.application.cpu()
        listener = "-" if before is None or after is None else f"{(after - before) / result.took:.0%}"
        row = (
            f"{len(result.times):,}",
            str(result.errors.total()),
            *(f"{result.at(part) * 1e3:.2f}" for part in (0.5, 0.99, 1.0)),
            "-" if result.share is None else f"{result.share:.0%}",
            listener,
        )
        self._run.tables.append(
            Table(
                f"A web API on premises that a cloud calls: {PER_SECOND} requests in a second for "
                f"{self._options.minute:g} s",
                "Scenario 1: each request is sent when it is due, whether or not those before it have their answer, "
                "and its milliseconds count from then. TLS on the sender's side and the listener's; an ASGI "
                "application that the SDK's listener hosts, beside the load.",
                ("answered", "errors", "p50", "p99", "longest", "node, of one processor", "listener"),
                [row],
            )
        )
        what = f"{PER_SECOND} requests a second"
        self._run.targets.append(Target.none(f"{what}, errors", result.errors.total()))
        self._run.targets.append(Target.below(f"{what}, p99", 25, result.at(0.99) * 1e3, " ms"))
        if result.share is not None:
            self._run.targets.append(Target.below(f"{what}, node, of one processor", 60, result.share * 100, " %"))

    def _parallel(self) -> None:
        self._run.say(f"{PARALLEL} requests in parallel for {self._options.minute:g} s")
        with (
            running(SDK, self._files, self._folder, tls=False) as route,
            senders(route.port, route.tls, PARALLEL) as made,
        ):
            result = saturate(made, small_request("get", route), route.measured, self._options.minute)
        errors = ", ".join(f"{what}: {count}" for what, count in result.errors.items()) or "none"
        times = (f"{result.at(part) * 1e3:.1f}" for part in (0.5, 0.99, 1.0))
        self._run.tables.append(
            Table(
                f"{PARALLEL} requests in parallel through one listener for {self._options.minute:g} s",
                "An ASGI application that the SDK's listener hosts; milliseconds.",
                ("requests/s", "answered", "errors", "p50", "p99", "longest"),
                [(f"{result.per_second:,.0f}", f"{len(result.times):,}", errors, *times)],
            )
        )
        what = f"{PARALLEL} requests in parallel for {self._options.minute:g} s, errors"
        self._run.targets.append(Target.none(what, result.errors.total()))

    # -- large bodies

    def _bodies(self) -> None:
        names = (SDK, *available(tuple(name for name in BESIDE if name in self._options.against)))
        rows: list[tuple[str, ...]] = []
        grew: list[int] = []
        with self._running(names, "plain") as routes:
            for route in routes:
                for transfer in (download, upload):
                    transfer(route, WARM)
            for what, transfer, size in (
                ("down", download, BODY),
                ("up", upload, BODY),
                ("down", download, LONG_BODY),
            ):
                for route in routes:
                    if size == LONG_BODY and route.name != SDK:
                        continue
                    self._run.say(f"{size // MIB} MiB {what} through {route.name}")
                    body = transfer(route, size)
                    rows.append(_body_row(f"{size // MIB:,} MiB {what}", route.name, body))
                    if route.name == SDK:
                        grew += [number for number in (body.grew, body.application_grew) if number is not None]
        self._run.tables.append(
            Table(
                "Large bodies",
                "One request, whose content is compared by its hash: on the load's processor, so that the figures are "
                "below what a relay can do. MiB by which the memory of the process grew at most meanwhile.",
                ("", "through", "Gbit/s", "CPU s/GB", "grew", "listener or uvicorn grew"),
                rows,
            )
        )
        self._run.targets.append(
            Target.below("memory of node or listener grows by, during large bodies", 16, max(grew) / MIB, " MiB")
        )

    @contextlib.contextmanager
    def _running(self, names: Sequence[str], transport: str) -> Iterator[list[Route]]:
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(running(name, self._files, self._folder, tls=transport == "tls")) for name in names
            ]


def small_request(kind: str, route: Route) -> Request:
    """The request of most cases: `kind` is get or post."""
    body = os.urandom(POSTED) if kind == "post" else b""
    return Request.of(kind, kind.upper(), f"/{PATH}/small", body, ANSWER, *route.headers)


def _milliseconds(results: Sequence[Result], part: float) -> str:
    return f"{statistics.median(each.at(part) for each in results) * 1e3:.2f}"


def _body_row(what: str, name: str, body: Body) -> tuple[str, ...]:
    cpu = "-" if body.cpu is None else f"{body.cpu / body.size * 1e9:.2f}"
    grew = ("-" if number is None else f"{number / MIB:.1f}" for number in (body.grew, body.application_grew))
    return (what, name, f"{body.size * 8 / 1e9 / body.seconds:.2f}", cpu, *grew)
