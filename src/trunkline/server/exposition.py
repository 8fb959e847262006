"""The metrics of a node in the text format of Prometheus.

A scrape takes a snapshot in one go, so that its numbers fit each other, and writes it a family at a time with a turn
of the event loop in between: connections go on while thousands of lines are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from trunkline.server.metrics import METRICS, Histogram, Metric, Tallies

#: What the answer of `/metrics` is.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: A metric, the values of all its labels, and the number.
Sample = tuple[Metric, tuple[str, ...], float]

#: What is known at one moment: by metric, and by the values of its labels.
Snapshot = dict[Metric, dict[tuple[str, ...], float | Histogram]]


def snapshot(tallies: Tallies, held: Iterable[Sample]) -> Snapshot:
    """Everything that can be said now.

    Args:
        tallies: what has happened.
        held: what there is at this moment; a counter among it is added to what was counted before.
    """
    taken: Snapshot = {metric: {} for metric in METRICS}
    for tally in tallies:
        for (metric, values), count in tally.counts.items():
            taken[metric][tally.labels + values] = count
        for metric, histogram in tally.histograms.items():
            taken[metric][tally.labels] = histogram.copy()
    for metric, values, number in held:
        before = taken[metric].get(values, 0)
        assert not isinstance(before, Histogram)
        taken[metric][values] = before + number
    return taken


def _family(metric: Metric, samples: dict[tuple[str, ...], float | Histogram]) -> Family:
    labels = metric.label_names
    if metric.kind == "histogram":
        histograms = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for values, histogram in samples.items():
            assert isinstance(histogram, Histogram)
            histograms.add_metric(values, list(_buckets(histogram)), histogram.total)
        return histograms
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    numbers = kind(metric.name, metric.help, labels=labels)
    for values, number in samples.items():
        assert not isinstance(number, Histogram)
        numbers.add_metric(values, number)
    return numbers


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        yield bound, below


class Exposition(Collector):
    """The collector of one node.

    Args:
        take: makes a snapshot of the node; called in the thread of its event loop.
    """

    def __init__(self, take: Callable[[], Snapshot]) -> None:
        self._take = take
        self._process = ProcessCollector(registry=None)
        #: Of this node alone: there may be several in a process.
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def describe(self) -> Iterable[Family]:
        """Nothing: so that nobody collects in order to learn the names."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Each metric of the table, then what the system says of the process."""
        for metric, samples in self._take().items():
            yield _family(metric, samples)
        yield from self._process.collect()

    async def text(self) -> bytes:
        """What `/metrics` answers."""
        pieces = []
        for family in self.collect():
            pieces.append(generate_latest(_Alone(family)))
            await asyncio.sleep(0)
        return b"".join(pieces)


class _Alone(Collector):
    """One family, as `generate_latest` takes it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)
