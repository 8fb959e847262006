"""`make bench PROFILE=1`: where a node spends its time under a load of large and of small messages.

The profiler sees Python functions; what the event loop, the transports and the system do is in the time of none of
them. So the processor time of the process is given as well, from a run without the profiler.
"""

from __future__ import annotations

import io
import pstats
from pathlib import Path

from benchmarks.connects import connects
from benchmarks.load import Sizes, throughput
from benchmarks.pairs import RelayedPairs
from benchmarks.processes import python_server

LINES = 20


def profile(folder: Path, seconds: float) -> str:
    """Profiles of one connection with messages of 64 KiB, of 64 B, and of connections that are set up and cut."""
    text = []
    for sizes in (Sizes.of(65_536), Sizes.of(64)):
        with python_server("node") as node, RelayedPairs(node.port, None) as make:
            plain = throughput(make, node, sizes, 1, seconds)
        file = folder / f"{sizes.name}.profile"
        with python_server("node", "--profile", str(file)) as node, RelayedPairs(node.port, None) as make:
            throughput(make, node, sizes, 1, seconds)
        cpu = "" if plain.cpu_per_gb is None else f", {plain.cpu_per_gb:.2f} s of processor time per GB"
        text.append(f"messages of {sizes.name}: {plain.messages_per_second:,.0f} per second{cpu}. In Python:")
        text.append(_table(file))
    with python_server("node") as node, RelayedPairs(node.port, None) as pairs:
        rate = connects(pairs, node, seconds)
    file = folder / "connects.profile"
    with python_server("node", "--profile", str(file)) as node, RelayedPairs(node.port, None) as pairs:
        connects(pairs, node, seconds)
    cpu = "" if rate.cpu is None else f", {rate.cpu * 1e3:.2f} ms of processor time each"
    text.append(f"connections: {rate.per_second:,.0f} per second{cpu}. In Python:")
    text.append(_table(file))
    return "\n".join(text)


def _table(file: Path) -> str:
    out = io.StringIO()
    pstats.Stats(str(file), stream=out).strip_dirs().sort_stats("tottime").print_stats(LINES)
    lines = out.getvalue().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.lstrip().startswith("ncalls"))
    return "\n".join(line for line in lines[begin:] if line.strip()) + "\n"
