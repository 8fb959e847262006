"""The table of metrics, and the integers behind it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import ERRORS, InvalidSignature, RelayError
from trunkline.server import metrics
from trunkline.server.entities.model import DamagedDocument
from trunkline.server.metrics import METRICS, Histogram, Metric, Tallies, Tally

#: Those of Microsoft.Relay/namespaces that concern hybrid connections.
AZURE = {
    *(f"ListenerConnections-{result}" for result in ("Success", "ClientError", "ServerError", "TotalRequests")),
    *(f"SenderConnections-{result}" for result in ("Success", "ClientError", "ServerError", "TotalRequests")),
    "ActiveConnections",
    "ActiveListeners",
    "BytesTransferred",
    "ListenerDisconnects",
    "SenderDisconnects",
}


def test_every_metric_of_azure_has_its_own() -> None:
    mapped = [name for metric in METRICS for name in metric.azure]
    assert len(mapped) == len(set(mapped)) == 13
    assert set(mapped) == AZURE


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_are_those_of_their_world(metric: Metric) -> None:
    assert re.fullmatch(r"relay(_[a-z0-9]+)+", metric.name)
    assert re.fullmatch(r"relay(\.[a-z0-9_]+)+", metric.dotted)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(metric.buckets)
    assert metric.help and metric.help[-1] != "."


def test_names_are_given_once() -> None:
    assert len({metric.name for metric in METRICS}) == len({metric.dotted for metric in METRICS}) == len(METRICS)
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert set(declared) == set(METRICS)


def test_every_error_and_every_cause_is_a_reason() -> None:
    (reasons,) = (values for _, values in metrics.REFUSALS.labels)
    assert [kind.__name__ for kind in ERRORS if metrics.reason_of(kind.__new__(kind)) not in reasons] == []
    assert metrics.reason_of(InvalidSignature()) == "invalid_signature"
    # An error of one part alone is counted as what it is a kind of.
    assert metrics.reason_of(DamagedDocument()) == metrics.reason_of(RelayError()) == "relay_error"
    assert {*metrics.LISTENER_CAUSES, *metrics.SENDER_CAUSES} == set(Cause)


def test_only_errors_about_tokens_are_failures_of_authorization() -> None:
    assert set(metrics.AUTH_FAILURES) == {
        "authorization_failed",
        "missing_token",
        "invalid_signature",
        "invalid_token",
        "expired_token",
        "invalid_audience",
        "token_lifetime_exceeded",
        "access_denied",
    }


@given(st.lists(st.floats(0, 100)))
def test_histogram_counts_each_value_once_under_its_bound(values: list[float]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    assert histogram.counts == [
        sum(value <= 0.1 for value in values),
        sum(0.1 < value <= 1.0 for value in values),
        sum(1.0 < value <= 10.0 for value in values),
        sum(value > 10.0 for value in values),
    ]
    assert histogram.total == pytest.approx(sum(values))


def test_copy_of_a_histogram_stays_as_it_was() -> None:
    histogram = Histogram((1.0,))
    copy = histogram.copy()
    histogram.observe(0.5)
    assert (repr(copy), repr(histogram)) == ("<Histogram count=0 total=0>", "<Histogram count=1 total=0.5>")


def test_tally_begins_with_a_zero_for_everything_so_that_the_first_event_is_a_rise() -> None:
    tally = Tallies().of("key", "ns", "orders")
    assert tally.labels == ("ns", "orders", "hybrid_connection")
    assert set(tally.counts.values()) == {0}
    assert (metrics.LISTENER_DISCONNECTS, ("token_expired",)) in tally.counts
    assert (metrics.TOKEN_EXPIRATIONS, ()) in tally.counts
    tally.add(metrics.BYTES, "to_sender", by=5)
    tally.add(metrics.BYTES, "to_sender", by=2)
    assert tally.counts[metrics.BYTES, ("to_sender",)] == 7
    assert repr(tally) == "<Tally ('ns', 'orders', 'hybrid_connection') 7>"


def test_tallies_are_kept_by_entity_until_they_are_forgotten() -> None:
    tallies = Tallies()
    tally = tallies.of("key", "ns", "orders")
    assert tallies.of("key", "ns", "orders") is tally is tallies.find("key")
    assert list(tallies) == [tallies.node, tally]
    tallies.forget("key")
    tallies.forget("key")
    assert tallies.find("key") is None
    assert tallies.of("key", "ns", "orders") is not tally
    assert tallies.of("", "", "").labels == ("", "", "")
    assert repr(tallies) == "<Tallies entities=2>"


def test_durations_are_told_to_who_wants_them() -> None:
    tallies, told = Tallies(), list[tuple[Metric, Tally, float]]()
    tally = tallies.of("key", "ns", "orders")
    tally.observe(metrics.CONNECT_SECONDS, 0.5)
    tallies.on_observed = lambda *what: told.append(what)
    tally.observe(metrics.CONNECT_SECONDS, 0.25)
    assert told == [(metrics.CONNECT_SECONDS, tally, 0.25)]
    assert tally.histograms[metrics.CONNECT_SECONDS].total == 0.75
