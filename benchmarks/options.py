"""The options of `make bench`, and which cases they choose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import routes, subjects

BASELINES = (*subjects.BASELINES, *routes.BESIDE)


@dataclass(frozen=True)
class Options:
    """What was asked for; see `--help`."""

    # Each is a set of words of which a case must have all; none chooses every case.
    only: tuple[frozenset[str], ...]
    against: tuple[str, ...]
    pairs: int
    seconds: float
    many: int
    channels: int
    ping_interval: float
    minute: float
    write: Path | None
    profile: bool

    def wants(self, *words: str) -> bool:
        """Whether the case with these words is chosen."""
        return not self.only or any(chosen <= set(words) for chosen in self.only)

    def unknown(self, words: frozenset[str]) -> list[str]:
        """Words that were asked for and that no case has."""
        return sorted(frozenset().union(*self.only) - words) if self.only else []


def read(arguments: Sequence[str] | None = None) -> Options:
    """Read a command line; ends the program with a message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure a node beside a bare forwarder and others. A case has words: its size (1MiB, 64KiB, 1KiB, "
        "64B, mixed) or its kind (rtt, connects, paced, memory, idle), plain or tls, and 1 or 50 for connections. "
        "Those of HTTP requests have http, and get or post with 1, 16 or 128, or constant, parallel, bodies.",
    )
    parser.add_argument("--only", default="", help='cases by their words, like "64KiB+plain,rtt"')
    parser.add_argument("--against", default=",".join(BASELINES), help="baselines (default: all that are installed)")
    parser.add_argument("--pairs", type=_count, default=5, help="rounds of each case (default 5)")
    parser.add_argument("--seconds", type=_positive, default=0.4, help="length of one measurement (default 0.4)")
    parser.add_argument("--many", type=_count, default=500, help="connections whose memory is measured (default 500)")
    parser.add_argument("--channels", type=_count, default=5_000, help="idle control channels (default 5000)")
    parser.add_argument(
        "--ping-interval", type=_positive, default=10.0, help="seconds, for the idle ones (default 10; a node has 30)"
    )
    parser.add_argument(
        "--minute", type=_positive, default=60.0, help="seconds of the cases that last for a minute (default 60)"
    )
    parser.add_argument("--write", type=Path, help="write the results into this page as well")
    parser.add_argument("--profile", action="store_true", help="print profiles of the node and measure nothing else")
    given = parser.parse_args(arguments)
    against = tuple(filter(None, given.against.split(",")))
    if wrong := [name for name in against if name not in BASELINES]:
        parser.error(f"--against: there is no {wrong[0]}; there are {', '.join(BASELINES)}")
    return Options(
        only=tuple(frozenset(item.split("+")) for item in given.only.split(",") if item),
        against=against,
        pairs=given.pairs,
        seconds=given.seconds,
        many=given.many,
        channels=given.channels,
        ping_interval=given.ping_interval,
        minute=given.minute,
        write=given.write,
        profile=given.profile,
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("it must be more than 0")
    return number
