"""`make bench`: a node and a bare forwarder, one core each, measured in turn.

python -m benchmarks [--pairs 5] [--seconds 1.0] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.load import ForwardedPairs, Pair, RelayedPairs, check_content, round_trip, throughput


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[int]:
    """Run a process of `benchmarks.servers`; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.servers", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def once(make: Callable[[], Pair], measure: Callable[[Pair], float]) -> float:
    """One measurement on a fresh connection."""
    pair = make()
    try:
        return measure(pair)
    finally:
        pair.close()


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure a node against a bare forwarder.")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each case (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement (default 1)")
    parser.add_argument("--write", type=Path, help="write the table to this file as well")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        relayed = RelayedPairs(stack.enter_context(server("node")))
        forwarded = ForwardedPairs(stack.enter_context(server("forwarder", str(target.getsockname()[1]))), target)
        once(relayed.make, check_content)
        rows = [
            *_throughput_rows(relayed, forwarded, options.pairs, options.seconds),
            _round_trip_row(relayed, forwarded, options.pairs),
            _setup_row(relayed, options.pairs, options.seconds),
        ]
    text = "\n".join((_where(options.pairs), "", *_table(rows), ""))
    print(text)
    if options.write:
        options.write.write_text(f'# Benchmarks\n\nMade by `make bench ARGS="--write {options.write}"`.\n\n{text}')


def _throughput_rows(
    relayed: RelayedPairs, forwarded: ForwardedPairs, pairs: int, seconds: float
) -> Iterator[tuple[str, str, str, str]]:
    for size in (1_048_576, 65_536, 1_024, 64):

        def measure(pair: Pair, size: int = size) -> float:
            return throughput(pair, size, seconds)

        both = [(once(relayed.make, measure), once(forwarded.make, measure)) for _ in range(pairs)]
        ours, theirs = zip(*both, strict=True)
        ratios = [a / b for a, b in both]
        unit = f"{size * 8 * statistics.median(ours) / 1e9:.2f} Gbit/s, {statistics.median(ours):,.0f} messages/s"
        yield (f"messages of {size:,} B", unit, f"{statistics.median(theirs):,.0f} messages/s", _spread(ratios))


def _round_trip_row(relayed: RelayedPairs, forwarded: ForwardedPairs, pairs: int) -> tuple[str, str, str, str]:
    def measure(pair: Pair) -> float:
        return round_trip(pair, 64, 2_000)

    both = [(once(relayed.make, measure), once(forwarded.make, measure)) for _ in range(pairs)]
    ours, theirs = (statistics.median(column) * 1e6 for column in zip(*both, strict=True))
    return ("round trip of 64 B", f"{ours:.0f} us", f"{theirs:.0f} us", _spread([a / b for a, b in both]))


def _setup_row(relayed: RelayedPairs, pairs: int, seconds: float) -> tuple[str, str, str, str]:
    rates = []
    for _ in range(pairs):
        started, count = time.perf_counter(), 0
        while time.perf_counter() < started + seconds:
            relayed.make().close()
            count += 1
        rates.append(count / (time.perf_counter() - started))
    return ("connections set up, one after the other", f"{statistics.median(rates):,.0f} per second", "", "")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _where(pairs: int) -> str:
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{date}, {os.cpu_count()} processors ({platform.machine()}), Python {platform.python_version()}, without TLS, "
        f"one connection, the measured process on one core and the load on another; median of {pairs} interleaved "
        "pairs, spread in brackets."
    )


def _table(rows: list[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "| case | node | bare forwarder | node / forwarder |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    main()
