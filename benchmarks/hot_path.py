"""`make bench PROFILE=1`: where a node spends its time: with large and small messages, connects, and HTTP requests.

The profiler sees Python functions; what the event loop, the transports and the system do is in the time of none of
them. So the processor time of the process is given as well, from a run without the profiler.
"""

from __future__ import annotations

import io
import pstats
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.connects import connects
from benchmarks.exchanges import saturate, senders
from benchmarks.http_cases import small_request
from benchmarks.load import Sizes, throughput
from benchmarks.pairs import RelayedPairs
from benchmarks.processes import Files, python_server
from benchmarks.routes import running

LINES = 20

# HTTP connections, each with one request after the other.
SENDERS = 16


def profile(files: Files, folder: Path, seconds: float) -> str:
    """Profiles of one connection with messages of 64 KiB, of 64 B, of connections that are set up and cut, of requests.

    Args:
        files: the certificate of what is measured.
        folder: for the files of the profiler.
        seconds: length of one measurement.
    """

    def messages(sizes: Sizes, node_arguments: Sequence[str]) -> str:
        with python_server("node", *node_arguments) as node, RelayedPairs(node.port, None) as make:
            result = throughput(make, node, sizes, 1, seconds)
        return f"{result.messages_per_second:,.0f} per second, {result.cpu_per_gb or 0:.2f} s of processor time per GB"

    def set_ups(node_arguments: Sequence[str]) -> str:
        with python_server("node", *node_arguments) as node, RelayedPairs(node.port, None) as pairs:
            rate = connects(pairs, node, seconds)
        return f"{rate.per_second:,.0f} per second, {(rate.cpu or 0) * 1e3:.2f} ms of processor time each"

    def requests(kind: str, node_arguments: Sequence[str]) -> str:
        with (
            running("bare", files, folder, tls=False, node=node_arguments) as route,
            senders(route.port, None, SENDERS) as made,
        ):
            result = saturate(made, small_request(kind, route), route.measured, seconds, seconds / 3)
        cpu = (result.cpu or 0) / max(1, len(result.times)) * 1e6
        return f"{result.per_second:,.0f} per second, {cpu:.0f} us of processor time each"

    cases: dict[str, Callable[[Sequence[str]], str]] = {
        "messages of 64 KiB": lambda arguments: messages(Sizes.of(65_536), arguments),
        "messages of 64 B": lambda arguments: messages(Sizes.of(64), arguments),
        "connections": set_ups,
        "GET of 100 B": lambda arguments: requests("get", arguments),
        "POST of 10 KiB": lambda arguments: requests("post", arguments),
    }
    text = []
    for name, run in cases.items():
        file = folder / f"{name}.profile"
        text.append(f"{name}: {run(())}. In Python:")
        run(("--profile", str(file)))
        text.append(_table(file))
    return "\n".join(text)


def _table(file: Path) -> str:
    out = io.StringIO()
    pstats.Stats(str(file), stream=out).strip_dirs().sort_stats("tottime").print_stats(LINES)
    lines = out.getvalue().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
    return "\n".join(line for line in lines[begin:] if line.strip()) + "\n"
