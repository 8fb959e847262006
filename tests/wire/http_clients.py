"""Senders that others wrote, each as a function that sends an `Exchange` and gives its `Answer`."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http.client
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import httpx

from http_cases import Exchange, Relay
from http_sender import Answer
from required_program import required
from wire.node_script import NodeScript

#: Seconds for one exchange.
PATIENCE = 30.0

#: Sends one exchange. The path is that of the authority to trust, None without TLS.
Client = Callable[[Exchange, Relay, Path | None], Awaitable[Answer]]


def request_headers(case: Exchange, relay: Relay) -> list[tuple[str, str]]:
    plan = dict(case.plan) | ({"tell": True} if case.body is not None else {})
    return relay.request_headers(plan or None, case.headers)


def request_target(case: Exchange, relay: Relay) -> str:
    return case.target.replace("/ENTITY", f"/{relay.entity}")


def pieces(case: Exchange) -> Iterator[bytes]:
    """The body of a case in the pieces that it names."""
    body, at = case.request_body, 0
    for size in case.chunks or ():
        if body[at : at + size]:
            yield body[at : at + size]
        at += size
    if body[at:]:
        yield body[at:]


@functools.lru_cache(maxsize=1)
def trust(ca_file: Path) -> ssl.SSLContext:
    """What trusts this authority: made once for all exchanges of a test, as it takes longer than each of them."""
    return ssl.create_default_context(cafile=ca_file)


async def with_httpx(case: Exchange, relay: Relay, ca_file: Path | None) -> Answer:
    """httpx, over a client of its own. The target goes out as the case has it, which `URL` would tidy."""

    async def streamed() -> AsyncIterator[bytes]:
        for piece in pieces(case):
            yield piece

    scheme = "https" if ca_file else "http"
    verify = trust(ca_file) if ca_file else True
    async with httpx.AsyncClient(verify=verify, trust_env=False, timeout=PATIENCE) as client:
        response = await client.request(
            case.method,
            f"{scheme}://{relay.host}:{relay.port}/",
            headers=request_headers(case, relay),
            content=case.request_body or None if case.chunks is None else streamed(),
            extensions={"target": request_target(case, relay).encode()},
        )
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw]
    return Answer(response.status_code, response.reason_phrase, headers, response.content)


async def with_http_client(case: Exchange, relay: Relay, ca_file: Path | None) -> Answer:
    """http.client of the standard library."""

    def exchange() -> Answer:
        if ca_file:
            context = trust(ca_file)
            client: http.client.HTTPConnection = http.client.HTTPSConnection(
                relay.host, relay.port, context=context, timeout=PATIENCE
            )
        else:
            client = http.client.HTTPConnection(relay.host, relay.port, timeout=PATIENCE)
        try:
            client.putrequest(case.method, request_target(case, relay), skip_host=True, skip_accept_encoding=True)
            for name, value in request_headers(case, relay):
                client.putheader(name, value)
            if case.chunks is not None:
                client.putheader("Transfer-Encoding", "chunked")
                client.endheaders(pieces(case), encode_chunked=True)
            else:
                if case.size or case.method in ("POST", "PUT", "PATCH"):
                    client.putheader("Content-Length", str(case.size))
                client.endheaders(case.request_body or None)
            response = client.getresponse()
            return Answer(response.status, response.reason, response.getheaders(), response.read())
        finally:
            client.close()

    return await asyncio.to_thread(exchange)


async def with_curl(case: Exchange, relay: Relay, ca_file: Path | None) -> Answer:
    """The program curl."""
    curl = required(shutil.which("curl"), "the wire tests need the program curl")
    with tempfile.TemporaryDirectory() as folder:
        head, body, sent = (Path(folder) / name for name in ("head", "body", "sent"))
        command = [curl, "--http1.1", "--silent", "--show-error", "--path-as-is", "--globoff", "--noproxy", "*"]
        command += ["--max-time", str(PATIENCE), "--dump-header", str(head), "--output", str(body)]
        command += ["--head"] if case.method == "HEAD" else ["--request", case.method]
        for name, value in request_headers(case, relay):
            command += ["--header", f"{name}: {value}" if value else f"{name};"]
        if ca_file:
            command += ["--cacert", str(ca_file)]
        if case.size or case.chunks is not None:
            sent.write_bytes(case.request_body)
            command += ["--data-binary", f"@{sent}"]
            if not any(name.lower() == "content-type" for name, _ in case.headers):
                command += ["--header", "Content-Type:"]  # none, where curl would name the one of forms
            if case.chunks is not None:
                command += ["--header", "Transfer-Encoding: chunked"]
        command += [f"{'https' if ca_file else 'http'}://{relay.host}:{relay.port}{request_target(case, relay)}"]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        # curl writes interim heads too, one behind the other.
        last = head.read_bytes().decode("latin-1").rstrip("\r\n").split("\r\n\r\n")[-1].split("\r\n")
        _, status, *reason = last[0].split(" ", 2)
        fields = [line.partition(":") for line in last[1:]]
        headers = [(name, value.strip()) for name, _, value in fields]
        # With --head the output is the head once more.
        content = b"" if case.method == "HEAD" or not body.exists() else body.read_bytes()
        return Answer(int(status), " ".join(reason), headers, content)


async def with_hyco_https(case: Exchange, relay: Relay, sender: NodeScript, token: object, n: int) -> Answer:
    """hyco-https's own `request`, address and token, in the running script `http_sender`."""
    path, _, query = request_target(case, relay).removeprefix("/").partition("?")
    headers = [pair for pair in request_headers(case, relay) if pair[0] != "ServiceBusAuthorization"]
    sender.tell(
        "request",
        n=n,
        host=f"{relay.host}:{relay.port}",
        path=path,
        query=f"&{query}" if query else "",
        token=token,
        method=case.method,
        headers=_as_object(headers),
        size=case.size,
        seed=case.name,
        pieces=case.chunks,
    )
    return await _answered(case, sender, n)


async def with_fetch(case: Exchange, relay: Relay, sender: NodeScript, n: int) -> Answer:
    """Node's fetch, in the running script `http_sender`."""
    headers = [pair for pair in request_headers(case, relay) if pair[0] != "Host"]
    scheme = "https" if relay.ssl else "http"
    sender.tell(
        "fetch",
        n=n,
        url=f"{scheme}://{relay.host}:{relay.port}{request_target(case, relay)}",
        method=case.method,
        headers=headers,
        size=case.size,
        seed=case.name,
    )
    return await _answered(case, sender, n)


async def _answered(case: Exchange, sender: NodeScript, n: int) -> Answer:
    event = await sender.expect("answered", n=n)
    if event["body"] is not None:
        body = event["body"].encode("latin-1")
    else:
        # The script tells a long one by its hash.
        body = case.body or b""
        assert event["sha256"] == hashlib.sha256(body).hexdigest(), event["size"]
    headers = [(name, value) for name, value in event["headers"]]
    return Answer(event["status"], event["reason"], headers, body)


def _as_object(headers: Sequence[tuple[str, str]]) -> dict[str, str | list[str]]:
    """As `https.request` takes them: a list where a name is there several times."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(next((key for key in found if key.lower() == name.lower()), name), []).append(value)
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}
