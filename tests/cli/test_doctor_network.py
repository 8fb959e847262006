"""Proxy, DNS, TCP and TLS, each broken for real."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from cli.test_diagnosis import TEXT
from proxy_servers import http_proxy
from trunkline.cli import credentials
from trunkline.cli.diagnosis import Step, Subject, subject_of
from trunkline.cli.doctor_network import check_dns, check_proxy, check_tcp, check_tls
from trunkline.testing import RelayNodeThread, relay_node_thread


def subject(host: str, port: int, *, ca: Path | None = None, tls: bool = False, proxy: str | None = None) -> Subject:
    text = TEXT.replace("relay.example:8443", f"{host}:{port}")
    found = subject_of(credentials.read(text, None, ca, not tls, proxy), timeout=2)
    found.address = host
    return found


async def through(found: Subject) -> list[Step]:
    """The first four steps, whatever each says."""
    return [await check(found) for check in (check_proxy, check_dns, check_tcp, check_tls)]


@pytest.fixture(scope="module")
def node() -> Iterator[RelayNodeThread]:
    with relay_node_thread(tls=True) as running:
        yield running


async def test_every_step_says_what_it_found(node: RelayNodeThread) -> None:
    proxy, dns, tcp, tls = await through(subject("localhost", node.port, ca=node.ca_file, tls=True))
    assert (proxy.state, proxy.text) == ("skipped", "none")
    assert dns.state == "ok" and "localhost is " in dns.text and "127.0.0.1" in dns.facts["v4"]
    assert tcp.state == "ok" and f"127.0.0.1 port {node.port}" in tcp.text and tcp.facts["ms"] > 0
    assert tls.state == "ok" and tls.facts["ms"] > 0 and tls.facts["version"] == "TLSv1.3"
    assert "localhost" in tls.facts["names"] and "development authority" in tls.facts["issuer"]


# --- DNS and TCP ---


async def test_name_that_nobody_knows() -> None:
    step = await check_dns(subject("no-such-relay.invalid", 443))
    assert step.state == "failed" and step.text.startswith("no-such-relay.invalid is not known: ")
    assert "misspelled" in step.remedy
    assert (await check_dns(subject("127.0.0.1", 443))).text == "127.0.0.1 is an address already"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


async def test_closed_port() -> None:
    found = subject("127.0.0.1", free_port())
    await check_dns(found)
    step = await check_tcp(found)
    assert step.state == "failed" and step.text == f"port {found.port}: 127.0.0.1 connection refused"
    assert "relay runs there" in step.remedy


async def test_address_that_refuses_costs_nothing_and_one_that_says_nothing_is_a_warning() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        found = subject("127.0.0.1", server.getsockname()[1])
        found.timeout = 0.3
        found.addresses = ["127.0.0.9", "127.0.0.1"]
        step = await check_tcp(found)
        assert step.state == "ok" and step.text == f"127.0.0.1 port {found.port} (127.0.0.9 connection refused)"
        assert found.address == step.facts["address"] == "127.0.0.1"
        # A full queue of connections drops what comes.
        stack.enter_context(socket.create_server(("127.0.0.9", found.port), backlog=0))
        stack.enter_context(socket.create_connection(("127.0.0.9", found.port)))
        step = await check_tcp(found)
        assert step.state == "warned" and "127.0.0.9 does not answer" in step.text and "DNS" in step.remedy
        assert step.facts["addresses"]["127.0.0.9"] == "does not answer"
        found.addresses = ["127.0.0.9"]
        assert (await check_tcp(found)).state == "failed"


# --- proxy ---


async def test_proxy_that_works_and_a_relay_that_it_does_not_reach(node: RelayNodeThread) -> None:
    with http_proxy("ada:s3cret") as server:
        found = subject("127.0.0.1", node.port, ca=node.ca_file, tls=True, proxy=server.url)
        proxy, dns, tcp, tls = await through(found)
        assert [each.state for each in (proxy, dns, tcp, tls)] == ["ok", "skipped", "ok", "ok"]
        assert f"{server.address} connects to 127.0.0.1:{node.port}" in proxy.text
        assert dns.text == "the proxy resolves the name" and "through the proxy" in tcp.text
        found = subject("127.0.0.1", free_port(), proxy=server.url)
        proxy, tcp = await check_proxy(found), await check_tcp(found)
        assert (proxy.state, tcp.state) == ("ok", "failed") and "cannot reach 127.0.0.1" in tcp.text
        wrong = await check_proxy(subject("127.0.0.1", node.port, proxy=server.with_credentials("ada:hush")))
        assert wrong.state == "failed" and "407" in wrong.text and "hush" not in wrong.text
    gone = await check_proxy(found)
    assert gone.state == "failed" and "cannot be reached" in gone.text and "NO_PROXY" in gone.remedy


async def test_relay_of_this_computer_behind_a_proxy_of_the_environment_is_to_be_excluded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    step = await check_proxy(subject("localhost", 8443))
    assert step.state == "failed" and step.remedy == "go directly to this computer: set NO_PROXY=localhost"


# --- TLS ---


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    made = trustme.CA()
    file = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(file))
    return made, file


@contextmanager
def served(certificate: trustme.LeafCert | None, answer: Callable[[bytes], bytes] = lambda head: b"") -> Iterator[int]:
    """A port where each request head is answered so, and the connection closed, by a thread: no loop is in the way."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)

    def serve(server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            if stopping.is_set():
                connection.close()
                return
            connection.settimeout(1)
            with suppress(OSError):
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                head = b""
                while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
                    head += piece
                connection.sendall(answer(head))
            connection.close()

    stopping = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield port
        finally:
            stopping.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


Authority = tuple[trustme.CA, Path]


async def test_authority_that_is_not_trusted(node: RelayNodeThread, authority: Authority) -> None:
    step = await check_tls(subject("127.0.0.1", node.port, ca=authority[1], tls=True))
    assert step.state == "failed" and "is not trusted" in step.text
    assert "issued by Trunkline development authority" in step.text and "127.0.0.1" in step.text
    assert f"is not trusted by {authority[1]} (" in step.text
    assert "--ca" in step.remedy and len(step.facts["sha256"]) == 64
    step = await check_tls(subject("127.0.0.1", node.port, tls=True))
    assert "is not trusted by the authorities of this computer (" in step.text


async def test_chain_is_told_up_to_the_authority_that_is_trusted(authority: Authority) -> None:
    below = authority[0].create_child_ca()
    with served(below.issue_cert("127.0.0.1", common_name="relay")) as port:
        step = await check_tls(subject("127.0.0.1", port, ca=authority[1], tls=True))
    assert step.state == "ok" and step.facts["trusted_by"] == str(authority[1])
    assert len(step.facts["chain"]) == 3 and step.facts["chain"][0] == "relay"
    assert " issued by trustme" in step.text and f" below {step.facts['chain'][-1]}, for " in step.text


async def test_certificate_whose_chain_is_not_sent_is_not_trusted(authority: Authority) -> None:
    whole = authority[0].create_child_ca().issue_cert("127.0.0.1")
    with served(trustme.LeafCert(whole.private_key_pem.bytes(), whole.cert_chain_pems[0].bytes(), [])) as port:
        step = await check_tls(subject("127.0.0.1", port, ca=authority[1], tls=True))
    assert step.state == "failed" and "may not send the certificates in between" in step.remedy


async def test_certificate_for_another_host(authority: Authority) -> None:
    with served(authority[0].issue_cert("relay.example", "192.0.2.1")) as port:
        step = await check_tls(subject("127.0.0.1", port, ca=authority[1], tls=True))
    assert step.state == "failed" and "the certificate is for " in step.text and "not for 127.0.0.1" in step.text
    assert sorted(step.facts["names"]) == ["192.0.2.1", "relay.example"]


async def test_certificate_that_has_ended_ends_soon_or_begins_later(authority: Authority) -> None:
    now = datetime.now(UTC)

    async def step(begin: float, end: float) -> Step:
        certificate = authority[0].issue_cert(
            "127.0.0.1", not_before=now + timedelta(days=begin), not_after=now + timedelta(days=end)
        )
        with served(certificate) as port:
            return await check_tls(subject("127.0.0.1", port, ca=authority[1], tls=True))

    ended = await step(-30, -3)
    assert ended.state == "failed" and ended.text == "the certificate has ended 3 days ago" and "renew" in ended.remedy
    soon = await step(-30, 13.4)
    assert soon.state == "warned" and soon.text.endswith("for 13 days") and "renew" in soon.remedy
    assert (await step(-30, 15)).state == "ok"
    later = await step(2, 30)
    assert later.state == "failed" and later.text.startswith("the certificate is not valid before") and later.remedy


async def test_port_without_tls_and_ports_that_speak_something_else() -> None:
    with relay_node_thread() as plain:
        step = await check_tls(subject("127.0.0.1", plain.port, tls=True))
    assert step.state == "failed" and step.text == f"port {plain.port} speaks HTTP without TLS"
    assert "--no-tls" in step.remedy

    with served(None, lambda head: b"220 mail.example ESMTP\r\n") as port:
        step = await check_tls(subject("127.0.0.1", port, tls=True))
    assert step.state == "failed" and step.text.startswith(f"port {port} does not complete a TLS handshake: ")
