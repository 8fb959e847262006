"""The metrics as Prometheus reads them: parsed with its own parser."""

from __future__ import annotations

import asyncio

from prometheus_client import generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from trunkline.server import metrics
from trunkline.server.exposition import Exposition, Sample, snapshot
from trunkline.server.metrics import METRICS, Tallies

ORDERS = {"namespace": "ns", "entity": "orders", "kind": "hybrid_connection"}
LABELS = tuple(ORDERS.values())


def parsed(text: bytes) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def numbers(family: Family, **labels: str) -> dict[str, float]:
    """Its samples with these labels, by name and what else they bear."""
    found = {}
    for sample in family.samples:
        if labels.items() <= sample.labels.items():
            rest = ",".join(value for name, value in sample.labels.items() if name not in labels)
            found[f"{sample.name} {rest}".strip()] = sample.value
    return found


def exposition(tallies: Tallies, *held: Sample) -> Exposition:
    return Exposition(lambda: snapshot(tallies, held))


async def test_what_was_counted_and_what_is_held_are_told_together() -> None:
    tallies = Tallies()
    tally = tallies.of("key", "ns", "orders")
    tally.add(metrics.BYTES, "to_sender", by=100)
    tally.add(metrics.LISTENER_CONNECTIONS, "success")
    text = await exposition(
        tallies, (metrics.BYTES, (*LABELS, "to_sender"), 11), (metrics.ACTIVE_CONNECTIONS, LABELS, 3)
    ).text()
    families = parsed(text)
    assert numbers(families["relay_bytes"], **ORDERS) == {
        "relay_bytes_total to_listener": 0,
        "relay_bytes_total to_sender": 111,
    }
    assert families["relay_bytes"].type == "counter"
    assert numbers(families["relay_active_connections"], **ORDERS) == {"relay_active_connections": 3}
    assert families["relay_active_connections"].type == "gauge"
    assert numbers(families["relay_listener_connections"], **ORDERS)["relay_listener_connections_total success"] == 1


async def test_a_histogram_has_its_buckets_sum_and_count() -> None:
    tallies = Tallies()
    tally = tallies.of("key", "ns", "orders")
    for seconds in (0.001, 0.002, 0.03, 60.0):
        tally.observe(metrics.CONNECT_SECONDS, seconds)
    family = parsed(await exposition(tallies).text())["relay_connect_seconds"]
    told = numbers(family, **ORDERS)
    assert family.type == "histogram"
    assert told["relay_connect_seconds_bucket 0.001"] == 1
    assert told["relay_connect_seconds_bucket 0.0025"] == 2
    assert told["relay_connect_seconds_bucket 0.05"] == 3
    assert told["relay_connect_seconds_bucket 30.0"] == 3
    assert told["relay_connect_seconds_bucket +Inf"] == told["relay_connect_seconds_count"] == 4
    assert told["relay_connect_seconds_sum"] == 60.033


async def test_every_metric_of_the_table_is_told_with_its_help() -> None:
    families = parsed(await exposition(Tallies()).text())
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.documentation, family.type) == (metric.help, metric.kind)
    assert families["process_open_fds"].samples[0].value > 2
    assert families["process_max_fds"].samples[0].value > 2
    assert families["process_resident_memory_bytes"].samples[0].value > 1_000_000


async def test_a_name_that_needs_it_is_escaped() -> None:
    tallies = Tallies()
    tallies.of("key", "ns", 'a"b\\c\nd')
    text = await exposition(tallies).text()
    assert 'entity="a\\"b\\\\c\\nd"' in text.decode()
    entities = {sample.labels["entity"] for sample in parsed(text)["relay_bytes"].samples}
    assert entities == {'a"b\\c\nd'}


async def test_a_scrape_leaves_the_loop_its_turns_and_its_numbers_fit_each_other() -> None:
    tallies = Tallies()
    tally = tallies.of("key", "ns", "orders")
    writing = asyncio.get_running_loop().create_task(exposition(tallies).text())
    turns = 0
    while not writing.done():
        await asyncio.sleep(0)
        turns += 1
        tally.add(metrics.BYTES, "to_sender")
        tally.add(metrics.TOKEN_EXPIRATIONS)
    assert turns >= len(METRICS)
    families = parsed(await writing)
    counted = numbers(families["relay_bytes"], **ORDERS)["relay_bytes_total to_sender"]
    assert counted == families["relay_token_expirations"].samples[0].value <= 1


async def test_each_node_has_a_registry_of_its_own() -> None:
    one, other = Tallies(), Tallies()
    one.of("key", "ns", "orders").add(metrics.TOKEN_EXPIRATIONS, by=3)
    registries = [exposition(tallies).registry for tallies in (one, other)]
    told = [parsed(generate_latest(registry))["relay_token_expirations"].samples for registry in registries]
    assert [[sample.value for sample in samples] for samples in told] == [[3], []]
