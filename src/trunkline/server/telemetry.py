"""The metrics of a node, and its spans, for OpenTelemetry: sent to a collector over OTLP/HTTP.

Needs the extra `opentelemetry`. Where to send is said by the usual variables (`OTEL_EXPORTER_OTLP_ENDPOINT`). The SDK
has threads of its own, which ask the event loop for a snapshot: nothing is counted in two places, and no counter is
read while it changes. Its histograms cannot be read, so each duration is recorded when it is known.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from trunkline._version import __version__
from trunkline.protocol.errors import InvalidSetting
from trunkline.server.exposition import Snapshot
from trunkline.server.metrics import METRICS, Histogram, Metric, Tallies, Tally

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

#: What stands as the instrumentation scope.
SCOPE = "trunkline"

#: Name of the span of a sender that a listener was sought for.
SPAN = "relay.rendezvous"

# Seconds that a snapshot counts for: the instruments of one collection are read one after the other.
_FRESH = 0.25

# Seconds that a thread of the SDK waits for the loop, and that the node waits, twice, for what is still to be sent.
_LOOP_TIMEOUT = 5.0
SHUTDOWN_TIMEOUT = 2.0


class Telemetry:
    """The exporter of one node; made in its event loop.

    Args:
        take: makes a snapshot of the node.
        tallies: tells of each duration.
        readers, processors: of the SDK; None makes those that send to the collector which the environment names.

    Raises:
        InvalidSetting: the packages are not installed.
    """

    def __init__(
        self,
        take: Callable[[], Snapshot],
        tallies: Tallies,
        *,
        readers: Sequence[MetricReader] | None = None,
        processors: Sequence[SpanProcessor] | None = None,
    ) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InvalidSetting(
                f"opentelemetry is on, and its packages are not there ({error.name}):"
                " pip install 'trunkline[opentelemetry]', or set opentelemetry = false"
            ) from None
        self._take = take
        self._tallies = tallies
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # The last snapshot, and until when it is fresh.
        self._taken: Snapshot = {}
        self._fresh_until = 0.0
        resource = _resource()
        # Those that were made here.
        self._exporters: list[OTLPMetricExporter | OTLPSpanExporter] = []
        if readers is None:
            self._exporters.append(metric_exporter := OTLPMetricExporter())
            readers = [PeriodicExportingMetricReader(metric_exporter)]
        if processors is None:
            self._exporters.append(span_exporter := OTLPSpanExporter())
            processors = [BatchSpanProcessor(span_exporter)]
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._tracers.add_span_processor(processor)
        self._tracer = self._tracers.get_tracer(SCOPE, __version__)
        meter = self._meters.get_meter(SCOPE, __version__)
        self._histograms = {
            metric: meter.create_histogram(
                metric.dotted,
                unit=metric.unit,
                description=metric.help,
                explicit_bucket_boundaries_advisory=metric.buckets,
            )
            for metric in METRICS
            if metric.kind == "histogram"
        }
        for metric in METRICS:
            if metric.kind != "histogram":
                self._observe(meter, metric)
        tallies.on_observed = self._record

    def __repr__(self) -> str:
        return f"<Telemetry {self._meters!r}>"

    def sought(self, began_at: float, lasted: float, attributes: Mapping[str, str | int]) -> None:
        """A span for one sender.

        Args:
            began_at: seconds since the epoch.
            lasted: seconds.
            attributes: what is known of it.
        """
        begin = int(began_at * 1e9)
        span = self._tracer.start_span(SPAN, start_time=begin, attributes=attributes)
        span.end(begin + int(lasted * 1e9))

    async def close(self) -> None:
        """Send what is left, and end the threads of the SDK; a collector that does not answer keeps nobody long."""
        self._tallies.on_observed = None
        # In threads: they wait for the collector, and the last collection asks this loop for a snapshot. Threads of
        # their own: the loop would wait at its end for one that it lent.
        left = [_Thread(self._meters.shutdown), _Thread(self._tracers.shutdown)]
        if not await _end(left, SHUTDOWN_TIMEOUT):
            for exporter in self._exporters:
                # Ends its pause before another attempt.
                exporter.shutdown()
            await _end(left, SHUTDOWN_TIMEOUT)

    # -- inside

    def _observe(self, meter: Meter, metric: Metric) -> None:
        create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge

        def read(options: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            names = metric.label_names
            for values, number in self._snapshot()[metric].items():
                assert not isinstance(number, Histogram)
                # A counter that has counted nothing begins when it does.
                if number or metric.kind == "gauge":
                    yield Observation(number, dict(zip(names, values, strict=True)))

        create(metric.dotted, [read], unit=metric.unit, description=metric.help)

    def _record(self, metric: Metric, tally: Tally, seconds: float) -> None:
        self._histograms[metric].record(seconds, dict(zip(metric.label_names, tally.labels, strict=True)))

    def _snapshot(self) -> Snapshot:
        if time.monotonic() < self._fresh_until:
            return self._taken
        if threading.get_ident() == self._thread:
            taken = self._take()
        else:
            asked: concurrent.futures.Future[Snapshot] = concurrent.futures.Future()
            self._loop.call_soon_threadsafe(lambda: _answer(asked, self._take))
            taken = asked.result(_LOOP_TIMEOUT)
        self._taken, self._fresh_until = taken, time.monotonic() + _FRESH
        return taken


class _Thread(threading.Thread):
    """Runs something that may block, and tells the loop when it is done."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name=f"trunkline-{work.__qualname__}", daemon=True)
        self._work = work
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.start()

    def run(self) -> None:
        try:
            self._work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self.ended.set)


async def _end(threads: Iterable[_Thread], within: float) -> bool:
    """Whether all of them end within so many seconds."""
    try:
        async with asyncio.timeout(within):
            for thread in threads:
                await thread.ended.wait()
    except TimeoutError:
        return False
    return True


def _answer(asked: concurrent.futures.Future[Snapshot], take: Callable[[], Snapshot]) -> None:
    try:
        asked.set_result(take())
    except Exception as error:
        asked.set_exception(error)


def _resource() -> Resource:
    from opentelemetry.sdk import resources

    attributes = {resources.SERVICE_VERSION: __version__}
    # What is given here would win over the environment.
    if "OTEL_SERVICE_NAME" not in os.environ and resources.SERVICE_NAME not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes[resources.SERVICE_NAME] = SCOPE
    return resources.Resource.create(attributes)
