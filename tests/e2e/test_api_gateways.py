"""API gateways in front of a hybrid connection, configured as docs/api-gateways.md shows them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import shlex
import signal
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import httpx
import pytest

from cli.program import environment
from e2e.front_proxy import Certificate, blocks, free_port, front_proxy
from trunkline.protocol import sas
from trunkline.protocol.limits import KEEP_ALIVE_TIMEOUT
from trunkline.sdk import HttpRequest, HttpResponse
from trunkline.testing import RelayNode, relay_node

pytestmark = pytest.mark.loop("uvloop")

GUIDE = Path(__file__).parent.parent.parent / "docs" / "api-gateways.md"
[NGINX] = blocks("nginx", GUIDE)
[POLICY] = blocks("xml", GUIDE)
#: What the guide has the token written with.
[TOKEN_COMMAND] = [
    line
    for block in blocks("console", GUIDE)
    for line in re.sub(r"\\\n\s+", "", block).splitlines()
    if "--write" in line
]


@dataclass
class Gateway:
    """nginx as the guide configures it, in front of a node with TLS. client: of an application that calls it."""

    node: RelayNode
    folder: Path
    client: httpx.AsyncClient

    async def write_token(self, rule: str = "send") -> None:
        """Run the guide's command once: with a command of the test in place of the reload, and no `--every`."""
        command = shlex.split(TOKEN_COMMAND.removeprefix("$ "))
        command[0:1] = [sys.executable, "-m", "trunkline"]
        for option in ("--every", "--exec"):
            place = command.index(option)
            del command[place : place + 2]
        command[command.index("--write") + 1] = str(self.folder / "relay-token.conf")
        string = self.node.connection_string("orders", rule=rule).replace("127.0.0.1", "localhost")
        process = await asyncio.create_subprocess_exec(
            *command, env=environment(TRUNKLINE_CONNECTION_STRING=string), stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()

    def reload(self) -> None:
        """What `nginx -s reload` does."""
        os.kill(int((self.folder / "nginx.pid").read_text()), signal.SIGHUP)

    async def status_of_a_new_connection(self) -> int:
        """What a request gets. A connection that is open goes on with the configuration that it began with."""
        return (await self.client.get("/orders", headers={"Connection": "close"})).status_code

    @property
    def connections(self) -> int:
        """Connections that nginx has to the node now; that of the listener was handed on to its control channel."""
        return len(self.node.node._frontend.connections)


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[Gateway]:
    certificate = Certificate.issue(folder)
    port = free_port()
    async with relay_node("orders", tls=True) as node:
        text = NGINX.replace("server relay.example.com:8443", f"server 127.0.0.1:{node.port}")
        text = text.replace("relay.example.com:8443", f"localhost:{node.port}")
        text = text.replace("relay.example.com", "localhost").replace("api.example.com", "localhost")
        text = text.replace("/etc/nginx/relay-ca.pem", str(node.ca_file))
        text = text.replace("/etc/nginx/relay-token.conf", str(folder / "relay-token.conf"))
        text = re.sub(r"/etc/nginx/api\.\w+", str(certificate.file), text)
        assert "/etc/nginx" not in text and "example.com" not in text
        base = f"https://localhost:{port}"
        async with httpx.AsyncClient(base_url=base, verify=certificate.client, timeout=20) as client:
            this = Gateway(node, folder, client)
            await this.write_token()
            async with front_proxy("nginx", text, folder, port=port, node=node.port, certificate=certificate):
                yield this


async def test_applications_reach_the_api_without_a_token_of_their_own(tmp_path: Path) -> None:
    seen: list[HttpRequest] = []

    async def answer(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(201, await request.read() or b"nothing", headers={"Seen": request.target})

    async with gateway(tmp_path) as front, front.node.listener(http_handler=answer):
        got = await front.client.get("/orders/a%20b?x=%2F", headers={"Authorization": "Bearer of the application"})
        assert (got.status_code, got.content) == (201, b"nothing")
        assert got.headers["Via"] and "Server" in got.headers
        posted = await front.client.post("/orders", content=b"p" * 100_000)
        assert posted.content == b"p" * 100_000
        elsewhere = await front.client.get("/other")
        assert elsewhere.status_code == 404
        assert [each.method for each in seen] == ["GET", "POST"]
        assert seen[0].headers["Authorization"] == "Bearer of the application"
        assert "ServiceBusAuthorization" not in seen[0].headers
        assert seen[0].query == "x=%2F"


async def test_many_requests_share_few_connections_to_the_relay(tmp_path: Path) -> None:
    async def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, b"ok")

    async with gateway(tmp_path) as front, front.node.listener(http_handler=answer):
        assert (await front.client.get("/orders/0")).status_code == 200
        before = front.connections
        for number in range(20):
            assert (await front.client.get(f"/orders/{number}")).status_code == 200
            assert (await front.client.put(f"/orders/{number}", content=b"x")).status_code == 200
        assert front.connections == before == 1


def test_the_gateway_lets_go_of_a_connection_before_the_node_does() -> None:
    found = re.search(r"keepalive_timeout (\d+)s", NGINX)
    assert found is not None and int(found[1]) < KEEP_ALIVE_TIMEOUT
    assert f"idle for {KEEP_ALIVE_TIMEOUT:g} s" in NGINX


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("PUT", 1), ("DELETE", 1), ("POST", 1)])
async def test_what_changes_something_is_asked_once(method: str, times: int, tmp_path: Path) -> None:
    """Behind nginx stands a server that cuts each connection when it has the second request of it."""
    asked: Counter[str] = Counter()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            asked[head.split()[1].decode()] += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            asked[head.split()[1].decode()] += 1
        except asyncio.IncompleteReadError:
            pass
        writer.transport.abort()

    certificate = Certificate.issue(tmp_path)
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(certificate.file)
    port = free_port()
    (tmp_path / "relay-token.conf").write_text('proxy_set_header ServiceBusAuthorization "none";\n')
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_tls)
    async with server:
        relay = server.sockets[0].getsockname()[1]
        text = NGINX.replace("relay.example.com:8443", f"127.0.0.1:{relay}").replace("relay.example.com", "localhost")
        text = text.replace("api.example.com", "localhost").replace("proxy_ssl_verify on", "proxy_ssl_verify off")
        text = text.replace("/etc/nginx/relay-token.conf", str(tmp_path / "relay-token.conf"))
        text = re.sub(r"/etc/nginx/[\w-]+\.(pem|key)", str(certificate.file), text)
        async with (
            front_proxy("nginx", text, tmp_path, port=port, node=relay, certificate=certificate),
            httpx.AsyncClient(base_url=f"https://localhost:{port}", verify=certificate.client) as client,
        ):
            assert (await client.get("/orders/first")).status_code == 200
            answer = await client.request(method, "/orders/second")
            assert asked["/orders/second"] == times
            assert (answer.status_code == 200) is (times == 2)


async def test_a_token_that_is_written_anew_counts_after_a_reload(tmp_path: Path) -> None:
    async def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, b"ok")

    async with gateway(tmp_path) as front, front.node.listener(http_handler=answer):
        assert (await front.client.get("/orders")).status_code == 200
        before = (tmp_path / "relay-token.conf").read_text()
        (tmp_path / "relay-token.conf").write_text('proxy_set_header ServiceBusAuthorization "stale";\n')
        front.reload()
        async with asyncio.timeout(10):
            while (await front.status_of_a_new_connection()) != 401:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await front.write_token()
        written = (tmp_path / "relay-token.conf").read_text()
        assert re.fullmatch(r'proxy_set_header ServiceBusAuthorization "SharedAccessSignature sr=.*";\n', written)
        assert before.partition("&")[0] == written.partition("&")[0]
        assert (tmp_path / "relay-token.conf").stat().st_mode & 0o777 == 0o600
        front.reload()
        async with asyncio.timeout(10):
            while (await front.status_of_a_new_connection()) != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


# -- Azure API Management

#: Each statement of the policy, with what it means: the variables so far go in, what the statement sets comes out.
STATEMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    'string audience = Uri.EscapeDataString("http://relay.example.com/orders");': lambda known: quote(
        "http://relay.example.com/orders", safe=""
    ),
    "long now = (long)(DateTime.UtcNow - new DateTime(1970, 1, 1)).TotalSeconds;": lambda known: int(time.time()),
    "string expiry = ((now / 300 + 2) * 300).ToString();": lambda known: str((known["now"] // 300 + 2) * 300),
    'byte[] key = System.Text.Encoding.UTF8.GetBytes("{{relay-gateway-key}}");': lambda known: known["named value"],
    'byte[] text = System.Text.Encoding.UTF8.GetBytes(audience + "\\n" + expiry);': lambda known: (
        f"{known['audience']}\n{known['expiry']}".encode()
    ),
    "byte[] hash = new System.Security.Cryptography.HMACSHA256(key).ComputeHash(text);": lambda known: hmac.new(
        known["key"], known["text"], hashlib.sha256
    ).digest(),
    "string signature = Uri.EscapeDataString(Convert.ToBase64String(hash));": lambda known: quote(
        base64.b64encode(known["hash"]), safe=""
    ),
    'return "SharedAccessSignature sr=" + audience + "\\u0026sig=" + signature + "\\u0026se=" + expiry'
    ' + "\\u0026skn=gateway";': lambda known: (
        f"SharedAccessSignature sr={known['audience']}&sig={known['signature']}&se={known['expiry']}&skn=gateway"
    ),
}


def computed_by_the_policy(key: str) -> str:
    """The header that the policy of the guide sets, statement by statement."""
    policy = ElementTree.fromstring(POLICY)
    header = policy.find("inbound/set-header[@name='ServiceBusAuthorization']")
    assert header is not None and header.get("exists-action") == "override"
    expression = (header.findtext("value") or "").strip()
    assert expression.startswith("@{") and expression.endswith("}")
    known: dict[str, Any] = {"named value": key.encode()}
    for statement in filter(None, map(str.strip, expression[2:-1].splitlines())):
        name = statement.partition("=")[0].split()[-1] if not statement.startswith("return") else "return"
        known[name] = STATEMENTS[statement](known)
    return str(known["return"])


def test_the_relay_takes_the_token_that_the_policy_computes() -> None:
    token = sas.parse(computed_by_the_policy("the key+/="))
    assert token.key_names()[0] == "gateway"
    assert sas.signed_by(token, "the key+/=") and not sas.signed_by(token, "another")
    assert token.covers(["relay.example.com"], "orders") and not token.covers(["relay.example.com"], "other")
    assert 300 <= token.expires_at - time.time() <= 600


def test_the_policy_asks_once_and_goes_where_the_token_is_for() -> None:
    policy = ElementTree.fromstring(POLICY)
    backend = policy.find("inbound/set-backend-service")
    assert backend is not None and backend.get("base-url") == "https://relay.example.com:8443/orders"
    assert policy.find(".//retry") is None
