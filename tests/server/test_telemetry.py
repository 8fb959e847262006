"""What OpenTelemetry gets: read with its own reader, and received by a collector over OTLP/HTTP."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otlp_collector import collector
from server.relay.peers import until
from trunkline.protocol.errors import InvalidSetting
from trunkline.server import metrics
from trunkline.server import telemetry as telemetry_module
from trunkline.server.exposition import Sample, snapshot
from trunkline.server.metrics import METRICS, Tallies
from trunkline.server.telemetry import Telemetry

LABELS = ("ns", "orders", "hybrid_connection")
ORDERS = {"namespace": "ns", "entity": "orders", "kind": "hybrid_connection"}


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """The data points that the SDK has, by the name of the metric."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def counted() -> Tallies:
    tallies = Tallies()
    tallies.of("key", "ns", "orders").add(metrics.BYTES, "to_sender", by=100)
    return tallies


async def test_same_metrics_are_read_under_their_dotted_names() -> None:
    tallies, reader = counted(), InMemoryMetricReader()
    held: list[Sample] = [(metrics.ACTIVE_CONNECTIONS, LABELS, 0), (metrics.BYTES, (*LABELS, "to_sender"), 11)]
    telemetry = Telemetry(lambda: snapshot(tallies, held), tallies, readers=[reader], processors=[])
    tally = tallies.find("key")
    assert tally is not None
    tally.observe(metrics.CONNECT_SECONDS, 0.03)
    tallies.node.observe(metrics.LOOP_LAG, 0.5)
    told = points(reader)
    (sent,) = told["relay.bytes"]
    assert (sent.value, sent.attributes) == (111, {**ORDERS, "direction": "to_sender"})
    (active,) = told["relay.connections.active"]
    assert (active.value, active.attributes) == (0, ORDERS)
    (connect,) = told["relay.connect.duration"]
    assert (connect.count, connect.sum, connect.attributes) == (1, 0.03, ORDERS)
    assert tuple(connect.explicit_bounds) == metrics.CONNECT_SECONDS.buckets
    assert told["relay.loop.lag"][0].attributes == {}
    assert set(told) <= {metric.dotted for metric in METRICS}
    await telemetry.close()
    assert tallies.on_observed is None


async def test_thread_of_the_sdk_gets_a_snapshot_that_the_loop_made() -> None:
    tallies, reader, threads = counted(), InMemoryMetricReader(), list[int]()

    def take() -> Any:
        threads.append(threading.get_ident())
        return snapshot(tallies, ())

    telemetry = Telemetry(take, tallies, readers=[reader], processors=[])
    told = await asyncio.to_thread(points, reader)
    assert told["relay.bytes"][0].value == 100
    # One for all instruments.
    assert threads == [threading.get_ident()]
    await telemetry.close()


async def test_snapshot_that_fails_is_a_gap_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    reader = InMemoryMetricReader()

    def take() -> Any:
        raise ZeroDivisionError

    telemetry = Telemetry(take, Tallies(), readers=[reader], processors=[])
    with caplog.at_level(logging.CRITICAL):
        assert await asyncio.to_thread(reader.get_metrics_data) is None
    await telemetry.close()


async def test_sender_that_a_listener_was_sought_for_is_a_span() -> None:
    exporter = InMemorySpanExporter()
    tallies = Tallies()
    telemetry = Telemetry(
        lambda: snapshot(tallies, ()), tallies, readers=[], processors=[SimpleSpanProcessor(exporter)]
    )
    telemetry.sought(1_700_000_000.5, 0.25, {"relay.tracking_id": "t-1", "http.response.status_code": 101})
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.start_time, span.end_time) == (
        "relay.rendezvous",
        1_700_000_000_500_000_000,
        1_700_000_000_750_000_000,
    )
    assert span.attributes == {"relay.tracking_id": "t-1", "http.response.status_code": 101}
    assert span.resource.attributes["service.name"] == "trunkline"
    await telemetry.close()


async def test_collector_that_the_environment_names_gets_metrics_and_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "relay-1")
        tallies, before = counted(), threading.enumerate()
        telemetry = Telemetry(lambda: snapshot(tallies, ()), tallies)
        telemetry.sought(1_700_000_000.0, 0.25, {"relay.tracking_id": "t-1"})
        assert len(threading.enumerate()) > len(before)
        # The threads of the SDK send what they have, with a last collection, and end.
        await telemetry.close()
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")]
        assert left == []
    (metric,) = [
        metric
        for request in receiver.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "relay.bytes"
    ]
    (point,) = metric.sum.data_points
    assert point.as_int == 100 and metric.sum.is_monotonic and metric.unit == "By"
    assert {each.key: each.value.string_value for each in point.attributes} == {**ORDERS, "direction": "to_sender"}
    (resource_spans,) = receiver.traces[0].resource_spans
    service = {each.key: each.value.string_value for each in resource_spans.resource.attributes}["service.name"]
    assert service == "relay-1"
    (span,) = resource_spans.scope_spans[0].spans
    assert (span.name, span.attributes[0].value.string_value) == ("relay.rendezvous", "t-1")


async def test_collector_that_is_away_keeps_the_node_only_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(telemetry_module, "SHUTDOWN_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    # Other tests of this process may have left threads of their own, such as one that writes a log.
    tallies, before = counted(), set(threading.enumerate())
    telemetry = Telemetry(lambda: snapshot(tallies, ()), tallies)
    telemetry.sought(1_700_000_000.0, 0.25, {"relay.tracking_id": "t-1"})

    def own_threads() -> list[str]:
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        return [name for name in names if name.startswith(("Otel", "trunkline-"))]

    assert own_threads()
    async with asyncio.timeout(5):
        await telemetry.close()
        # Each would have tried for ten seconds.
        await until(lambda: not own_threads())


async def test_without_the_extra_the_setting_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'trunkline\[opentelemetry\]', or set opentelemetry = false"):
        Telemetry(dict, Tallies())
