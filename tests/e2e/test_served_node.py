"""`trunkline serve` with a file, as an operator runs it: signals, and changes of the file while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from e2e.raw_websocket import RawWebSocket
from trunkline.protocol import connection_string
from trunkline.protocol.errors import ConnectionLost, EndpointNotFound, NoListener, QuotaExceeded, ServerBusy
from trunkline.sdk import HybridConnectionClient, HybridConnectionListener, ListenerState

pytestmark = [
    pytest.mark.loop("uvloop"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them"),
]

FILE = """\
[node]
host = "127.0.0.1"           # bind address
port = 0                     # data plane
admin_port = 0               # /healthz, /readyz, later /metrics; loopback unless set
tls = "development"          # or "off", or { certificate = "...", key = "..." }
domain = "localhost"         # a namespace is <name>.<domain>
data = "./data"

[[namespace]]
name = "myRelayNS"
hosts = ["relay.local"]      # further names in URLs, tokens and certificates

[[namespace.rule]]
name = "RootManageSharedAccessKey"
rights = ["Listen", "Send", "Manage"]
primary_key = "secretkey"    # generated and kept when left out

[[namespace.hybrid_connection]]
name = "orders"
max_senders = 2              # any limit
listener_policy = "round-robin"
user_metadata = "anything"

[[namespace.hybrid_connection.rule]]
name = "orders-listener"
rights = ["Listen"]
"""


class ServedNode:
    """A running `trunkline serve`."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path, port: int) -> None:
        self.process = process
        self.file = file
        self.port = port
        authority = file.parent / "data" / "ca.pem"
        self.ssl = ssl.create_default_context(cafile=authority if authority.exists() else None)

    def connection_string(self, entity: str = "orders") -> str:
        return connection_string.build(
            "127.0.0.1", port=self.port, key_name="RootManageSharedAccessKey", key="secretkey", entity_path=entity
        )

    def listener(self, entity: str = "orders") -> HybridConnectionListener:
        return HybridConnectionListener(self.connection_string(entity), ssl=self.ssl)

    def client(self, entity: str = "orders") -> HybridConnectionClient:
        return HybridConnectionClient(self.connection_string(entity), ssl=self.ssl)

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        async with asyncio.timeout(10):
            return await self.process.wait()


@asynccontextmanager
async def served_node(folder: Path, text: str = FILE) -> AsyncIterator[ServedNode]:
    """`trunkline serve --config FILE`, with the file above unless there is another."""
    file = folder / "trunkline.toml"
    file.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trunkline",
        "serve",
        "--config",
        str(file),
        stderr=asyncio.subprocess.PIPE,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")},
            "TRUNKLINE_LOG_FORMAT": "text",
        },
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            line = await process.stderr.readline()
            while not line.startswith(b"ready on "):
                assert line, "it ended"
                line = await process.stderr.readline()
        reading = asyncio.get_running_loop().create_task(process.stderr.read())  # kept until the end of this block
        yield ServedNode(process, file, int(line.split(b",")[0].rpartition(b":")[2]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await reading


async def test_sigterm_drains_and_a_second_one_ends_it_at_once(tmp_path: Path) -> None:
    async with served_node(tmp_path) as node, node.listener() as listener:
        sender = await node.client().create_connection()
        accepted = await listener.accept()
        node.process.send_signal(signal.SIGTERM)
        # It goes on for those who are there, and refuses the others: the first refusal shows that it heard.
        with pytest.raises(ServerBusy):
            for _ in range(1_000):
                other = await node.client().create_connection()
                await asyncio.gather(other.close(), (await listener.accept()).close())
        held = RawWebSocket(f"wss://127.0.0.1:{node.port}/$hc/orders?sb-hc-action=listen", ssl=node.ssl, token="")
        await held.connect()
        await sender.send(bytes(1_000_000))
        assert await accepted.recv() == bytes(1_000_000)
        assert node.process.returncode is None
        node.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionLost):
            await sender.recv()
        held.abort()
        await listener.close()
        assert await node.ended() == 0


async def test_sigterm_ends_it_as_soon_as_the_last_connection_has_ended(tmp_path: Path) -> None:
    async with served_node(tmp_path) as node, node.listener() as listener:
        sender = await node.client().create_connection()
        accepted = await listener.accept()
        node.process.send_signal(signal.SIGTERM)
        await sender.send("the last order")
        assert await accepted.recv() == "the last order"
        await asyncio.gather(sender.close(), accepted.close())
        await listener.close()
        assert await node.ended() == 0


async def test_sighup_applies_what_changed_in_the_file_and_cuts_nobody(tmp_path: Path) -> None:
    async with served_node(tmp_path) as node, node.listener() as listener:
        client = node.client()
        first, second = await client.create_connection(), await client.create_connection()
        with pytest.raises(QuotaExceeded):
            await client.create_connection()
        with pytest.raises(EndpointNotFound):
            await node.client("parts").create_connection()
        text = FILE.replace("max_senders = 2", "max_senders = 3")
        node.file.write_text(text + '\n[[namespace.hybrid_connection]]\nname = "parts"\n')
        node.process.send_signal(signal.SIGHUP)
        for _ in range(500):
            with contextlib.suppress(EndpointNotFound):
                with pytest.raises(NoListener):
                    await node.client("parts").create_connection()
                break
            await asyncio.sleep(0.01)
        third = await client.create_connection()
        accepted = [await listener.accept() for _ in range(3)]
        for sender, listening in zip((first, second, third), accepted, strict=True):
            await sender.send(b"still here")
            assert await listening.recv() == b"still here"
        # A file with a mistake changes nothing.
        node.file.write_text("[[namespace]]\nnam = 1\n")
        node.process.send_signal(signal.SIGHUP)
        await first.send(b"and still")
        assert await accepted[0].recv() == b"and still"
        # What the file drops is closed and gone.
        node.file.write_text(FILE.partition("[[namespace.hybrid_connection]]")[0])
        node.process.send_signal(signal.SIGHUP)
        with pytest.raises(EndpointNotFound):
            await listener.accept()
        for sender in (first, second, third):
            with pytest.raises(ConnectionLost, match="Endpoint does not exist"):
                await sender.recv()


async def test_sighup_gives_new_handshakes_a_new_certificate_and_new_limits_and_cuts_no_connection(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    first, second = (tmp_path / name for name in ("first.pem", "second.pem"))

    def issue(file: Path, name: str) -> None:
        leaf = authority.issue_cert("127.0.0.1", name)
        file.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())

    trusts = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusts)

    async def shown(name: str) -> bool:
        """Whether a handshake for that name succeeds."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=trusts, server_hostname=name)
        except ssl.SSLCertVerificationError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def reload(text: str, name: str) -> None:
        node.file.write_text(text)
        node.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while not await shown(name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def text(file: Path, more: str = "") -> str:
        tls = f'tls = {{ certificate = "{file.name}", key = "{file.name}" }}\n'
        without = FILE.replace("max_senders = 2", "enabled = true")
        return without.replace(FILE.splitlines()[4], tls + more)

    issue(first, "one.example")
    async with served_node(tmp_path, text(first, "max_senders = 1\n")) as node:
        node.ssl = trusts
        assert await shown("one.example") and not await shown("two.example")
        async with node.listener() as listener:
            sender = await node.client().create_connection()
            accepted = await listener.accept()
            with pytest.raises(QuotaExceeded):
                await node.client().create_connection()
            # The same file with another certificate in it, then another file.
            issue(first, "two.example")
            await reload(text(first, "max_senders = 2\n"), "two.example")
            again = await node.client().create_connection()
            accepted_again = await listener.accept()
            issue(second, "three.example")
            await reload(text(second, "max_senders = 2\n"), "three.example")
            assert not await shown("one.example")
            for one, other in ((sender, accepted), (again, accepted_again)):
                await one.send(b"still here")
                assert await other.recv() == b"still here"
                await asyncio.gather(one.close(), other.close())
            assert listener.state is ListenerState.ONLINE


async def test_name_of_the_namespace_and_its_other_hosts_are_in_the_certificate(tmp_path: Path) -> None:
    async with served_node(tmp_path) as node:
        for name in ("myrelayns.localhost", "relay.local", "localhost"):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port, ssl=node.ssl, server_hostname=name)
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", node.port, ssl=node.ssl, server_hostname="elsewhere.example")
