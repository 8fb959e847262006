"""Raw peers of the data plane, and a relay in this process whose clock and entities the test moves.

async with Relay() as relay:
    listener = await relay.listener()                    # its control channel, after the 101
    sender = await relay.dial_sender()                   # its handshake is sent, and owed an answer
    leg = await relay.accept(await listener.offer())     # the listener's second WebSocket, after its 101
    answer = await sender.answer()
    relay.pass_time(61)                                  # and the relay looks at the clock
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiofastnet
import trustme

from trunkline.protocol import sas
from trunkline.protocol.frames import Close, Opcode, close_payload, encode_frame, mask_bytes, parse_close
from trunkline.protocol.sas import Right
from trunkline.server.entities.authorization import Authorizer
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import (
    Entity,
    HybridConnection,
    Namespace,
    Rule,
    hybrid_connection_id,
    namespace_id,
    to_document,
)
from trunkline.server.entities.store import Change, Document
from trunkline.server.metrics import Tallies
from trunkline.server.relay.admission import Admission
from trunkline.server.relay.broker import Broker
from trunkline.server.relay.frontend import Frontend, FrontendProtocol
from trunkline.server.relay.journal import Journal
from trunkline.server.relay.listeners import LocalDirectory
from trunkline.server.relay.splicing import Splicing

# Seconds for anything that must happen.
WITHIN = 5.0

MASK = b"\x01\x02\x03\x04"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# The example of RFC 6455 section 1.3.
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GUID = "11111111-2222-3333-4444-555555555555"

HOST = "relay.local"
NAMESPACE = namespace_id("myRelayNS")
EPOCH = 1_700_000_000.0

AUTHORITY = trustme.CA()

ROOT = Rule("Root", sas.implied({Right.MANAGE}), primary_key="root-key", secondary_key="root-key-2")


def server_tls() -> ssl.SSLContext:
    """Of a port, for `HOST`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(HOST).configure_cert(context)
    return context


def client_tls() -> ssl.SSLContext:
    """Of a peer that trusts it."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something is so that no event tells."""
    async with asyncio.timeout(WITHIN):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Answer:
    """A response head."""

    status: int
    phrase: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes = field(repr=False)

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True)
class Frame:
    """A frame as it came, unmasked."""

    opcode: Opcode
    payload: bytes
    fin: bool = True

    @property
    def close(self) -> Close:
        """What a Close frame says."""
        assert self.opcode is Opcode.CLOSE, self
        return parse_close(self.payload)


class _PausedLater:
    """Pauses a transport when it has delivered what it has: inside that, aiofastnet's TLS would keep the rest back."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def pause_reading(self) -> None:
        asyncio.get_running_loop().call_soon(self._transport.pause_reading)

    def resume_reading(self) -> None:
        asyncio.get_running_loop().call_soon(self._transport.resume_reading)


class _Writer(asyncio.StreamWriter):
    """Says nothing when it is collected, which may happen in a thread that must not touch the transport."""

    def __del__(self, *_: object) -> None:
        pass


class Peer:
    """A TCP or TLS connection that sends exactly what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, port: int, tls: ssl.SSLContext | None = None) -> Self:
        """Connect; no byte is sent but those of the TLS handshake."""
        options: dict[str, Any] = {"ssl": tls, "server_hostname": HOST} if tls is not None else {}
        async with asyncio.timeout(WITHIN):
            # Not the loop's own TLS: it loses what it has received when a peer that is paused closes (uvloop).
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader(loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            transport, _ = await aiofastnet.create_connection(loop, lambda: protocol, "127.0.0.1", port, **options)
        reader._transport = _PausedLater(transport)  # type: ignore[attr-defined]
        writer = _Writer(transport, protocol, reader, loop)
        peer = cls(reader, writer)
        sock = peer.writer.get_extra_info("socket")
        if tls is None:
            # So that bytes written one by one also leave one by one.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_frame(self, opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> None:
        self.send(frame(opcode, payload, fin=fin))

    def send_close(self, code: int | None = 1000, reason: str = "") -> None:
        self.send_frame(Opcode.CLOSE, close_payload(code, reason))

    async def answer(self) -> Answer:
        """The next response head."""
        async with asyncio.timeout(WITHIN):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, phrase = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
        return Answer(int(status), phrase, headers, raw)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(WITHIN):
            return await self.reader.readexactly(size)

    async def to_end(self) -> bytes:
        """Everything up to the orderly end; a reset raises."""
        async with asyncio.timeout(WITHIN):
            return await self.reader.read()

    async def frame(self) -> Frame:
        """The next frame."""
        first, second = await self.read(2)
        assert not second & 0x80, "a server's frame is masked"
        size = second
        if size == 126:
            (size,) = struct.unpack(">H", await self.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self.read(8))
        assert not first & 0x70, "reserved bits"
        return Frame(Opcode(first & 0x0F), await self.read(size), bool(first & 0x80))

    async def message(self) -> bytes:
        """The payload of the next data message, its fragments joined; pings are passed over."""
        whole = b""
        while True:
            got = await self.frame()
            if got.opcode is Opcode.PING:
                continue
            assert got.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION), got
            whole += got.payload
            if got.fin:
                return whole

    async def offer(self) -> dict[str, Any]:
        """The `accept` that comes next on a control channel."""
        command = json.loads(await self.message())
        assert list(command) == ["accept"]
        accept = command["accept"]
        assert isinstance(accept, dict)
        return accept

    async def asked(self) -> tuple[dict[str, Any], bytes | None]:
        """The `request` that comes next, and the body behind it; None when it has none."""
        command = json.loads(await self.message())
        assert list(command) == ["request"]
        request = command["request"]
        assert isinstance(request, dict)
        return request, await self.message() if request.get("body") else None

    def respond(
        self, id: str, status: Any = 200, body: bytes | None = None, *, headers: Any = None, **more: Any
    ) -> None:
        """Send a `response`, and its body behind it unless it is None."""
        response = {"requestId": id, "statusCode": status, "responseHeaders": headers or {}, **more}
        self.send_frame(Opcode.TEXT, json.dumps({"response": {"body": body is not None, **response}}).encode())
        if body is not None:
            self.send_frame(Opcode.BINARY, body)

    async def chunk(self) -> bytes:
        """The next chunk of a response; empty at its end."""
        async with asyncio.timeout(WITHIN):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
        assert data[size:] == b"\r\n"
        return data[:size]

    async def response(self) -> tuple[Answer, bytes]:
        """The next response with its body, which has a length or comes in chunks; none where neither is."""
        answer = await self.answer()
        if answer.all("Transfer-Encoding") == ["chunked"]:
            body = b""
            while piece := await self.chunk():
                body += piece
            return answer, body
        return answer, await self.read(int((answer.all("Content-Length") or ["0"])[0]))

    async def is_cut(self) -> bool:
        """Whether the connection ends by a reset, or without a Close, and nothing more is said."""
        try:
            return await self.to_end() == b""
        except ConnectionError:
            return True

    def end(self) -> None:
        """Send no more (TCP FIN), read on."""
        self.writer.write_eof()

    async def leave(self) -> None:
        """Close the socket."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass

    def reset(self) -> None:
        """Cut the connection by a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.transport.abort()


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame as a WebSocket client sends it."""
    return encode_frame(opcode, payload, fin=fin, mask=MASK)


def handshake(
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    host: str = HOST,
    without: Iterable[str] = (),
    method: str = "GET",
    version: str = "HTTP/1.1",
) -> bytes:
    """The request head of a WebSocket handshake."""
    usual = [
        ("Host", host),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ]
    left_out = {name.lower() for name in without}
    lines = [f"{name}: {value}" for name, value in (*usual, *headers) if name.lower() not in left_out]
    return "\r\n".join((f"{method} {target} {version}", *lines, "", "")).encode("latin-1")


def http_request(
    target: str = "/orders",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    method: str = "GET",
    host: str = HOST,
    version: str = "1.1",
) -> bytes:
    """A plain HTTP request, as long as its body unless the headers say something else."""
    lines = [f"{method} {target} HTTP/{version}", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


def target_of(address: str) -> str:
    """The request target of an `accept` address."""
    return "/" + address.split("/", 3)[3]


def token(
    path: str = "orders",
    rule: str = "Root",
    key: str = "root-key",
    *,
    host: str = HOST,
    lifetime: float = 3600,
    now: float = EPOCH + 1_000,
) -> str:
    """A shared access signature."""
    return sas.sign(sas.audience(host, path), rule, key, expires_at=int(now + lifetime))


def namespace(**fields: Any) -> Namespace:
    """The namespace of a `Relay`."""
    return Namespace(NAMESPACE, **{"hosts": (HOST,), "rules": (ROOT,), "declared_order": 0, **fields})


def hybrid_connection(name: str = "orders", *, rules: tuple[Rule, ...] = (), **fields: Any) -> HybridConnection:
    """A hybrid connection of a `Relay`; what is no field of it is a limit."""
    own = {key: fields.pop(key) for key in ("enabled", "hosts", "accepts", "user_metadata") if key in fields}
    return HybridConnection(hybrid_connection_id(NAMESPACE, name), limits=fields, rules=rules, **own)


class Serving:
    """A frontend on a port of its own."""

    def __init__(self, frontend: Frontend, tls: ssl.SSLContext | None = None) -> None:
        self.frontend = frontend
        self._tls = tls
        # What was made for each connection, the newest last.
        self.protocols: list[FrontendProtocol] = []

    def _protocol(self) -> FrontendProtocol:
        self.protocols.append(self.frontend.protocol())
        return self.protocols[-1]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await aiofastnet.create_server(loop, self._protocol, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        # One turn of the loop for a connection that was accepted this moment: aborted before it has begun, it would
        # begin all the same (aiofastnet 1.2).
        await asyncio.sleep(0)
        # Also those that a leg has taken over and that are still closing.
        self._server.abort_clients()  # type: ignore[attr-defined]  # of asyncio from 3.13 on
        async with asyncio.timeout(WITHIN):
            await self._server.wait_closed()
        assert not self.frontend.connections and not self.frontend.heads and not self.frontend.lingering
        assert not self.frontend.held


class Relay:
    """All parts of the data plane on a port, without a store; every clock is the test's.

    Args:
        entities: what is there at first; None: one namespace with the hybrid connection `orders`.
        tls: of the port.
        limits: of the hybrid connection `orders`.
    """

    def __init__(
        self,
        entities: Iterable[Entity] | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        public_url: str | None = None,
        **limits: Any,
    ) -> None:
        self.clock = Clock()
        self.catalog = Catalog(domain="localhost")
        self.authorizer = Authorizer(self.catalog)
        self.directory = LocalDirectory(clock=self.clock, chance=random.Random(1))
        self.tallies = Tallies()
        self.journal = Journal(self.tallies, self.catalog, stopwatch=self.clock, wall_clock=self.wall_clock)
        self.splicing = Splicing(clock=self.clock, masker=mask_bytes)
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.admission = Admission(
            self.catalog, self.authorizer, wall_clock=self.wall_clock, new_guid=lambda: self._unique("{:036d}")
        )
        self.broker = Broker(
            admission=self.admission,
            authorizer=self.authorizer,
            directory=self.directory,
            splicing=self.splicing,
            spawn=self._spawn,
            clock=self.clock,
            wall_clock=self.wall_clock,
            journal=self.journal,
            new_secret=lambda: self._unique("secret-{}"),
            new_id=lambda: self._unique("id-{}"),
            new_phase=lambda: 0.0,
            masker=mask_bytes,
            public_url=public_url,
        )
        self.frontend = Frontend(self.broker.serve, self.clock, phrase=self.broker.unread, keeps_alive=True)
        self.serving = Serving(self.frontend, tls)
        self._revision = 0
        self._peers: list[Peer] = []
        for entity in (namespace(), hybrid_connection(**limits)) if entities is None else entities:
            self.put(entity)
        self.catalog.subscribe(self.broker.changed)

    def wall_clock(self) -> float:
        return EPOCH + self.clock.now

    def _unique(self, form: str) -> str:
        self._count += 1
        return form.format(self._count)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aenter__(self) -> Self:
        await self.serving.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()
        self.broker.abort()
        self.splicing.abort("the test is over")
        await self.serving.__aexit__(kind, error, trace)
        await until(lambda: not self.broker.channels and not self._tasks)

    @property
    def port(self) -> int:
        return self.serving.port

    # -- entities and time

    def put(self, entity: Entity) -> None:
        """Make or change an entity."""
        self._revision += 1
        document = Document(entity.id, str(self._revision), self._revision, to_document(entity))
        self.catalog.apply(Change(entity.id, self._revision, document))

    def remove(self, id: str) -> None:
        """Delete an entity."""
        self._revision += 1
        self.catalog.apply(Change(id, self._revision, None))

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and let the relay look at the clock."""
        self.clock.now += seconds
        self.frontend.tick(self.clock.now)
        self.broker.tick(self.clock.now)
        self.splicing.tick(self.clock.now)

    def counts(self) -> dict[str, int]:
        """What it holds; what is not 0."""
        counts = {
            **self.directory.counts(),
            "channels": len(self.broker.channels),
            "waiting_senders": self.broker.waiting_senders,
            "connections": len(self.splicing),
            "http_requests": len(self.broker.http),
            "rendezvous": self.broker.http.rendezvous,
            "closing": len(self.splicing._closing),
            "handshakes": len(self.frontend.connections),
            "tasks": len(self._tasks),
        }
        return {name: count for name, count in counts.items() if count}

    async def quiet(self) -> None:
        """Nothing is held any more, for whatever reason."""
        try:
            await until(lambda: not self.counts())
        except TimeoutError:
            raise AssertionError(f"left over: {self.counts()}") from None
        assert repr(self.directory) == "<LocalDirectory entities=0 listeners=0>"

    # -- peers

    async def dial(
        self,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        early: bytes = b"",
        signature: str | None = None,
        tls: ssl.SSLContext | None = None,
        **request: Any,
    ) -> Peer:
        """Connect and send a WebSocket handshake. The connection is cut at the end of the test."""
        peer = await Peer.dial(self.port, tls)
        self._peers.append(peer)
        more = [("ServiceBusAuthorization", signature)] if signature is not None else []
        peer.send(handshake(target, [*more, *headers], **request) + early)
        return peer

    async def dial_listener(
        self, path: str = "orders", headers: Iterable[tuple[str, str]] = (), *, id: str | None = None, **more: Any
    ) -> Peer:
        """A listener whose handshake is owed an answer."""
        target = f"/$hc/{path}?sb-hc-action=listen" + (f"&sb-hc-id={id}" if id is not None else "")
        return await self.dial(target, headers, **{"signature": token(path), **more})

    async def listener(self, path: str = "orders", headers: Iterable[tuple[str, str]] = (), **more: Any) -> Peer:
        """A control channel."""
        peer = await self.dial_listener(path, headers, **more)
        answer = await peer.answer()
        assert answer.status == 101, answer
        return peer

    async def dial_sender(
        self, path: str = "orders", headers: Iterable[tuple[str, str]] = (), *, query: str = "", **more: Any
    ) -> Peer:
        """A sender whose handshake is owed an answer."""
        target = f"/$hc/{path}?{query}sb-hc-action=connect"
        return await self.dial(target, headers, **{"signature": token(path.split("/")[0]), **more})

    async def ask(
        self,
        target: str = "/orders",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        signature: str | None = "",
        tls: ssl.SSLContext | None = None,
        **request: Any,
    ) -> Peer:
        """Connect and send a plain HTTP request, with a token unless `signature` is None."""
        peer = await Peer.dial(self.port, tls)
        self._peers.append(peer)
        more = [] if signature is None else [("ServiceBusAuthorization", signature or token())]
        peer.send(http_request(target, [*more, *headers], body, **request))
        return peer

    async def dial_accept(
        self, offer: Mapping[str, Any], headers: Iterable[tuple[str, str]] = (), *, more: str = "", **request: Any
    ) -> Peer:
        """A listener that opens the address of an offer, with `more` behind it."""
        return await self.dial(target_of(offer["address"]) + more, headers, **request)

    async def accept(self, offer: Mapping[str, Any], headers: Iterable[tuple[str, str]] = (), **more: Any) -> Peer:
        """The listener's leg."""
        peer = await self.dial_accept(offer, headers, **more)
        answer = await peer.answer()
        assert answer.status == 101, answer
        return peer

    async def pair(self, listener: Peer, path: str = "orders", **more: Any) -> tuple[Peer, Peer]:
        """A sender and a listener's leg, joined."""
        sender = await self.dial_sender(path, **more)
        leg = await self.accept(await listener.offer(), tls=more.get("tls"))
        answer = await sender.answer()
        assert answer.status == 101, answer
        return sender, leg
