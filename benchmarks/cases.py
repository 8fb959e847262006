"""The cases of connections: each measures all subjects in turn, and makes rows and targets of what came out.

What is compared in one row was measured in the same minute; see `benchmarks.report`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import memory
from benchmarks.connects import Rate, connects
from benchmarks.load import Sizes, Throughput, check_content, round_trip, throughput
from benchmarks.paced import CONNECTIONS as PACED_CONNECTIONS
from benchmarks.paced import PER_SECOND, SIZE, Paced, paced
from benchmarks.pairs import RelayedPairs
from benchmarks.processes import Files
from benchmarks.report import Spread, Table, Target
from benchmarks.rounds import Run, median_or_dash
from benchmarks.subjects import BASELINES, Subject, available, running

SIZES = (Sizes.of(1_048_576), Sizes.of(65_536), Sizes.of(1_024), Sizes.of(64), Sizes.mixed())
CONNECTIONS = (1, 50)
TRANSPORTS = ("plain", "tls")

#: Words that choose these cases.
WORDS = frozenset((*(each.name for each in SIZES), *map(str, CONNECTIONS), *TRANSPORTS)) | {
    "rtt",
    "connects",
    "paced",
    "memory",
    "idle",
}

ROUND_TRIPS = 1_000


class ConnectionCases:
    """The cases in which a sender and a listener are joined.

    Args:
        run: what they are part of.
        files: the certificate of everything.
        folder: for files of the subjects.
    """

    def __init__(self, run: Run, files: Files, folder: Path) -> None:
        self._run = run
        self._options = run.options
        self._against = tuple(name for name in run.options.against if name in BASELINES)
        self._files = files
        self._folder = folder

    def run(self) -> None:
        """Measure everything that was chosen."""
        for transport in TRANSPORTS:
            self._throughputs(transport)
        self._round_trips()
        self._connects()
        self._paced()
        self._memory()
        if self._options.wants("idle", "plain"):
            self._idle()

    # -- throughput

    def _throughputs(self, transport: str) -> None:
        chosen = [
            (sizes, connections)
            for sizes in SIZES
            for connections in CONNECTIONS
            if self._options.wants(sizes.name, transport, str(connections))
        ]
        if not chosen:
            return
        with self._running(("node", *available(self._against)), transport) as subjects:
            for subject in subjects:
                with subject.pairs() as make:
                    check_content(make)
            rows = [self._throughput(subjects, sizes, connections, transport) for sizes, connections in chosen]
        others = [subject.name for subject in subjects[1:]]
        self._run.tables.append(
            Table(
                f"Throughput, {'TLS on both legs' if transport == 'tls' else 'without TLS'}",
                "Behind the node's own figures: bytes per second, divided by those of each other. By CPU: how much the "
                "forwarder can send for the processor time that the node needs. A star: in that case the load was busy "
                "all the time and one of the two was not, so the ratio says less than the one by CPU.",
                ("messages", "Gbit/s", "messages/s", "CPU s/GB", *_ratio_heads(others)),
                rows,
            )
        )

    def _throughput(
        self, subjects: Sequence[Subject], sizes: Sizes, connections: int, transport: str
    ) -> tuple[str, ...]:
        def measure(subject: Subject) -> Throughput:
            assert subject.measured is not None
            with subject.pairs() as make:
                return throughput(make, subject.measured, sizes, connections, self._options.seconds)

        results = self._run.rounds(f"{sizes.name} {transport} {connections}", subjects, measure)
        node = results["node"]
        row = [
            f"{sizes.name}, {connections} connection{'s' if connections > 1 else ''}",
            f"{statistics.median(each.bytes_per_second for each in node) * 8 / 1e9:.2f}",
            f"{statistics.median(each.messages_per_second for each in node):,.0f}",
            median_or_dash([each.cpu_per_gb for each in node]),
        ]
        for name in (subject.name for subject in subjects[1:]):
            theirs = results[name]
            ratio = Spread.of_ratios(_rates(node), _rates(theirs))
            limited = any(one.load_is_the_limit for one in (*node, *theirs))
            row.append(f"{ratio}{' *' if limited else ''}")
            if name == "forwarder":
                row.append(_by_cpu(node, theirs))
            self._throughput_target(sizes, connections, transport, name, ratio)
        if sizes.name == "64B" and connections == 1 and transport == "plain":
            rate = statistics.median(each.messages_per_second for each in node)
            self._run.targets.append(Target.at_least("64 B messages per second, saturated", 1_000_000, rate))
        return tuple(row)

    def _throughput_target(self, sizes: Sizes, connections: int, transport: str, name: str, ratio: Spread) -> None:
        if connections != 1:
            return
        if name == "forwarder" and sizes.name == "64KiB":
            what = f"64 KiB messages, {transport}, node / forwarder"
            self._run.targets.append(Target.at_least(what, 0.8, ratio.median))
        elif name == "aiohttp" and sizes.name == "64B" and transport == "plain":
            self._run.targets.append(Target.at_least("64 B messages, node / aiohttp relay", 8, ratio.median))

    # -- round trips and set-ups

    def _round_trips(self) -> None:
        rows = []
        for transport in TRANSPORTS:
            if not self._options.wants("rtt", transport):
                continue
            names = ("direct", "node", *(name for name in available(self._against) if name != "socat"))
            with self._running(names, transport) as subjects:

                def measure(subject: Subject) -> float:
                    with subject.pairs() as make:
                        return round_trip(make, 64, ROUND_TRIPS)

                results = self._run.rounds(f"rtt {transport}", subjects, measure)
            direct = results["direct"]
            for name in names:
                added = Spread.of((there - here) * 1e6 for there, here in zip(results[name], direct, strict=True))
                whole = statistics.median(results[name]) * 1e6
                rows.append((transport, name, f"{whole:.0f}", "" if name == "direct" else f"{added}"))
                if name == "node" and transport == "plain":
                    self._run.targets.append(Target.below("round trip added, plain", 150, added.median, " us"))
        if rows:
            note = (
                f"64 B there and back, microseconds, median of {ROUND_TRIPS:,}. Added: what it is more than with "
                "nothing in between."
            )
            self._run.tables.append(Table("Round trip", note, ("", "through", "round trip", "added"), rows))

    def _connects(self) -> None:
        rows = []
        for transport in TRANSPORTS:
            if not self._options.wants("connects", transport):
                continue
            with self._running(("node",), transport) as subjects:

                def measure(subject: Subject) -> Rate:
                    assert subject.measured is not None
                    with subject.pairs() as pairs:
                        assert isinstance(pairs, RelayedPairs)
                        return connects(pairs, subject.measured, self._options.seconds * 2)

                rates = self._run.rounds(f"connects {transport}", subjects, measure)["node"]
            rate = Spread.of(each.per_second for each in rates)
            cpu = median_or_dash([None if each.cpu is None else each.cpu * 1e3 for each in rates])
            rows.append((transport, f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})", cpu))
            if transport == "plain":
                self._run.targets.append(Target.at_least("relayed connections set up, plain", 500, rate.median, "/s"))
        if rows:
            note = "Sender, offer, listener, both 101, cut; TLS with two full handshakes."
            self._run.tables.append(
                Table("Relayed connections set up", note, ("", "per second", "CPU ms of the node, each"), rows)
            )

    def _paced(self) -> None:
        rows = []
        for transport in TRANSPORTS:
            if not self._options.wants("paced", transport):
                continue
            with self._running(("node", "forwarder"), transport) as subjects:

                def measure(subject: Subject) -> Paced:
                    assert subject.measured is not None
                    with subject.pairs() as make:
                        return paced(make, subject.measured, self._options.seconds * 4)

                results = self._run.rounds(f"paced {transport}", subjects, measure)
            node, forwarder = (
                median_or_dash([None if each.share is None else each.share * 100 for each in results[name]])
                for name in ("node", "forwarder")
            )
            rate = statistics.median(each.messages_per_second for each in results["node"])
            on_time = statistics.median(each.on_time for each in results["node"])
            rows.append((transport, f"{rate:,.0f}", f"{on_time:.0%}", f"{node} %", f"{forwarder} %"))
            if transport == "plain" and node != "-":
                what = f"{PER_SECOND:,} messages of {SIZE} B in a second, evenly, of one processor, plain"
                self._run.targets.append(Target.below(what, 40, float(node), " %"))
        if rows:
            note = (
                f"{SIZE} B from listeners to senders on {PACED_CONNECTIONS} connections in turn, each message alone and"
                " when it is due. What is late comes in a bunch and costs less: on a busy machine this looks too good."
            )
            head = ("", "messages/s", "on time", "node, of one processor", "forwarder")
            self._run.tables.append(Table("Messages one by one", note, head, rows))

    # -- memory

    def _memory(self) -> None:
        rows = []
        for transport, most in (("plain", 16), ("tls", 48)):
            if not self._options.wants("memory", transport):
                continue
            tls, many = transport == "tls", self._options.many
            self._run.say(f"memory {transport}")
            channel = memory.of_control_channels(self._files, 2 * many, tls=tls)
            connection = memory.of_connections(self._files, many, tls=tls)
            assert connection.after_traffic is not None
            rows.append((transport, "control channel", f"{channel.idle / 1024:.1f}", ""))
            after = f"{connection.after_traffic / 1024:.1f}"
            rows.append((transport, "connection (two legs)", f"{connection.idle / 1024:.1f}", after))
            what = f"idle control channel, {transport}"
            self._run.targets.append(Target.below(what, most, channel.idle / 1024, " KiB"))
        if rows:
            note = "Resident KiB of the node for each: idle from its beginning, and idle again after 1 MiB each way."
            self._run.tables.append(Table("Memory", note, ("", "", "idle", "after traffic"), rows))

    def _idle(self) -> None:
        self._run.say("idle control channels")
        idle = memory.through_two_ping_rounds(self._files, self._options.channels, self._options.ping_interval)
        share = "-" if idle.share is None else f"{idle.share:.1%}"
        row = (f"{idle.channels:,}", f"{idle.ping_interval:g} s", share, f"{idle.memory / 1024:.1f}")
        if idle.share is not None:
            what = f"{idle.channels:,} idle control channels, of one processor"
            self._run.targets.append(Target.below(what, 20, idle.share * 100, " %"))
        head = ("control channels", "ping interval", "of one processor", "KiB each")
        self._run.tables.append(Table("Idle control channels through two rounds of pings", "", head, [row]))

    # -- how

    @contextlib.contextmanager
    def _running(self, names: Sequence[str], transport: str) -> Iterator[list[Subject]]:
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(running(name, self._files, self._folder, tls=transport == "tls")) for name in names
            ]


def _rates(results: Sequence[Throughput]) -> list[float]:
    return [each.bytes_per_second for each in results]


def _ratio_heads(others: Sequence[str]) -> Iterator[str]:
    for name in others:
        yield f"/ {name}"
        if name == "forwarder":
            yield "by CPU"


def _by_cpu(ours: Sequence[Throughput], theirs: Sequence[Throughput]) -> str:
    pairs = [
        (mine.cpu_per_gb, other.cpu_per_gb)
        for mine, other in zip(ours, theirs, strict=True)
        if mine.cpu_per_gb and other.cpu_per_gb
    ]
    return str(Spread.of(other / mine for mine, other in pairs)) if pairs else "-"
