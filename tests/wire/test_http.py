"""hyco-https, unmodified, as listener: the cases of `http_cases`, and Python, curl and Node as senders.

What it cannot do is named where a test goes round it; each was read in its source and seen:

- it sends the first of several values of a header (`repeated`);
- on a request that came over the control channel it keeps an answer back until 64 KiB or its end (`small pieces`);
- it takes a request's body as one message, when it is whole (`request pieces`);
- `response.end(Buffer.alloc(0))` sends nothing at all;
- it closes no rendezvous, and follows an answer without a body with an empty binary message.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import httpx
import pytest

import http_cases
from http_cases import Exchange, Relay
from http_echo import content
from http_sender import Answer
from required_program import required
from trunkline.testing import RelayNode, relay_node
from wire import http_clients
from wire.addresses import Addresses
from wire.node_script import NodeScript

pytestmark = pytest.mark.loop("uvloop")

HYCO_LACKS = frozenset({"repeated", "small pieces", "request pieces"})

Start = Callable[..., NodeScript]


@asynccontextmanager
async def hyco_https(start: Start, node: RelayNode, **options: object) -> AsyncIterator[tuple[NodeScript, Relay]]:
    """A listener that is listening, and where its senders go."""
    at = Addresses(node.connection_string(), secure=node.tls)
    options = {"url": at.listen_url, "token": at.token_options(), **options}
    async with start("http_listener", ca_file=node.ca_file, **options) as listener:
        await listener.expect("listening")
        yield listener, Relay.of(node, lacks=HYCO_LACKS)


GROUPS = [
    pytest.param(group, marks=pytest.mark.slow) if group in http_cases.SLOW_GROUPS else group
    for group in http_cases.GROUPS
]


@pytest.mark.parametrize("group", GROUPS)
async def test_hyco_https_serves_the_cases_over_tls(node_script: Start, group: str) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        await http_cases.run(group, relay)


@pytest.mark.parametrize("group", ["bodies", "framing", "broken ends"])
async def test_hyco_https_serves_the_cases_without_tls(node_script: Start, group: str) -> None:
    async with relay_node() as node, hyco_https(node_script, node) as (_, relay):
        await http_cases.run(group, relay)


def small(cases: Iterable[Exchange]) -> list[Exchange]:
    """Without the larger ones, which were tried above."""
    return [case for case in cases if case.size <= 100_000 and len(case.body or b"") <= 100_000]


#: What every client can say in its own way.
EXCHANGES = small(http_cases.exchanges("bodies", "headers", "status codes"))
METHODS = list(http_cases.exchanges("methods"))
TARGETS = list(http_cases.exchanges("targets"))


async def run_all(cases: Iterable[Exchange], relay: Relay, send: Callable[[Exchange, int], Awaitable[Answer]]) -> None:
    for n, case in enumerate(cases):
        if relay.lacks.isdisjoint(case.lacks):
            try:
                case.check(await send(case, n), relay)
            except BaseException as error:
                error.add_note(f"in the case: {case}")
                raise


CLIENTS = pytest.mark.parametrize(
    "client", [http_clients.with_httpx, http_clients.with_http_client, http_clients.with_curl], ids=lambda c: c.__name__
)


@CLIENTS
async def test_python_and_curl_get_their_answers_from_hyco_https(
    node_script: Start, client: http_clients.Client
) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        await run_all(EXCHANGES, relay, lambda case, _: client(case, relay, node.ca_file))


@pytest.mark.slow
@CLIENTS
async def test_python_and_curl_ask_hyco_https_with_every_method_and_odd_target(
    node_script: Start, client: http_clients.Client
) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        # curl takes either --head or a body.
        cases = [case for case in METHODS if client is not http_clients.with_curl or case.name != "HEAD with a body"]
        await run_all(cases + TARGETS, relay, lambda case, _: client(case, relay, node.ca_file))


LARGE = list(http_cases.exchanges("large bodies"))


@pytest.mark.slow
@CLIENTS
async def test_python_and_curl_exchange_16_mib_with_hyco_https(node_script: Start, client: http_clients.Client) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        await run_all(LARGE, relay, lambda case, _: client(case, relay, node.ca_file))


@pytest.mark.slow
async def test_hyco_https_request_exchanges_16_mib_with_hyco_https(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        async with node_script("http_sender", ca_file=node.ca_file) as sender:
            token = Addresses(node.connection_string()).token()
            await run_all(LARGE, relay, lambda case, n: http_clients.with_hyco_https(case, relay, sender, token, n))


async def test_httpx_sends_a_hundred_requests_at_the_same_time_to_hyco_https(node_script: Start) -> None:
    meeting, number = http_cases.gate(), 100
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        limits = httpx.Limits(max_connections=number)
        async with (
            httpx.AsyncClient(verify=node.client_context(), trust_env=False, limits=limits, timeout=30) as client,
            asyncio.TaskGroup() as tasks,
        ):

            async def one(each: int) -> None:
                plan = {"before": [["meet", meeting, number]], "body": [["bytes", each * 1000, str(each)]]}
                response = await client.get(f"{node.url}/{relay.entity}", headers=relay.request_headers(plan))
                assert response.status_code == 200 and response.content == content(each * 1000, str(each))

            for each in range(number):
                tasks.create_task(one(each))


async def test_httpx_and_curl_get_each_event_of_hyco_https_before_the_next_is_made(node_script: Start) -> None:
    # Behind a piece of more than 64 KiB: before that hyco-https keeps everything back.
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (listener, relay):
        url = f"{node.url}/{relay.entity}"

        def asked() -> tuple[list[str], list[tuple[str, str]]]:
            gates = [http_cases.gate() for _ in range(3)]
            steps: list[list[object]] = [["bytes", 100_000, "first"]]
            for each in gates:
                steps += [["wait", each], ["text", f"data: {each}\n\n"]]
            return gates, relay.request_headers({"body": steps})

        async def check(gates: list[str], read: Callable[[int], Awaitable[bytes]]) -> None:
            assert await read(100_000) == content(100_000, "first")
            for each in gates:
                listener.tell("open", gate=each)
                event = f"data: {each}\n\n".encode()
                assert await read(len(event)) == event

        gates, headers = asked()
        async with (
            httpx.AsyncClient(verify=node.client_context(), trust_env=False, timeout=30) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            pieces, held = response.aiter_bytes(), bytearray()

            async def read(size: int) -> bytes:
                while len(held) < size:
                    held.extend(await anext(pieces))
                taken = bytes(held[:size])
                del held[:size]
                return taken

            await check(gates, read)
        curl = required(shutil.which("curl"), "the wire tests need the program curl")
        gates, headers = asked()
        options = [option for name, value in headers for option in ("--header", f"{name}: {value}")]
        process = await asyncio.create_subprocess_exec(
            *(curl, "--silent", "--no-buffer", "--noproxy", "*", "--cacert", str(node.ca_file), *options, url),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await check(gates, process.stdout.readexactly)
        assert await process.wait() == 0


#: Methods of Node's own parser, which is older than the node's.
NODE_METHODS = [case for case in METHODS if case.method not in ("QUERY",)]


async def test_hyco_https_request_gets_its_answers_from_hyco_https(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        at = Addresses(node.connection_string())
        token = {"uri": f"https://{at.host}/{at.entity}", "rule": at.rule, "key": at.key, "seconds": 600}
        async with node_script("http_sender", ca_file=node.ca_file) as sender:
            await run_all(
                EXCHANGES + NODE_METHODS + TARGETS,
                relay,
                lambda case, n: http_clients.with_hyco_https(case, relay, sender, token, n),
            )


async def test_fetch_of_node_gets_its_answers_from_hyco_https(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        # It sends no body with GET, and says itself how long a body is.
        cases = [case for case in small(http_cases.exchanges("bodies")) if case.chunks is None]
        async with node_script("http_sender", ca_file=node.ca_file) as sender:
            await run_all(cases, relay, lambda case, n: http_clients.with_fetch(case, relay, sender, n))


async def test_token_in_the_query_that_hyco_https_makes_lets_a_sender_in(node_script: Start) -> None:
    async with relay_node(tls=True) as node, hyco_https(node_script, node) as (_, relay):
        at = Addresses(node.connection_string())
        identifier = "7b1c2d3e-0000-4000-8000-123456789abc"
        async with node_script("http_sender", ca_file=node.ca_file) as sender:
            sender.tell("uri", host=f"{at.host}:{node.port}", path=at.entity, token=at.token(), id=identifier)
            uri = (await sender.expect("uri"))["uri"]
            sender.tell("fetch", n=1, url=f"{uri}&city=K%C3%B6ln", method="GET")
            answered = await sender.expect("answered", n=1)
        assert answered["status"] == 200
        assert json.loads(answered["body"])["target"] == f"/{at.entity}?city=K%C3%B6ln"


async def test_hyco_https_that_sends_nothing_leaves_the_sender_with_504(node_script: Start) -> None:
    # A bug of hyco-https: `response.end` with an empty buffer sends no answer.
    async with relay_node(tls=True, response_timeout=0.5) as node, hyco_https(node_script, node) as (_, relay):
        async with relay.connect() as sender:
            relay.ask(sender, {"body": [["empty"]]})
            answer = await sender.answer()
            assert answer.status == 504 and not answer.all("via")
            assert "did not" in json.loads(answer.body)["error"]["message"]
            relay.ask(sender)
            assert (await sender.answer()).status == 200


@pytest.mark.parametrize("size", [10, 100_000])
async def test_hyco_https_answers_too_late_and_goes_on(node_script: Start, size: int) -> None:
    # It has no handler for the error of a rendezvous that is refused, and would die of it.
    late = http_cases.gate()
    async with relay_node(tls=True, response_timeout=0.5) as node, hyco_https(node_script, node) as (listener, relay):
        async with relay.connect() as sender:
            relay.ask(sender, {"before": [["wait", late]], "body": [["bytes", size, "late"]]})
            assert (await sender.answer()).status == 504
            listener.tell("open", gate=late)
            for _ in range(3):
                relay.ask(sender)
                assert (await sender.answer()).status == 200
        assert not listener.said("error")
