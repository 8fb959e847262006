"""What ``trunkline doctor`` examines, and what it finds: a `Subject`, and one `Step` for each thing looked at."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from trunkline.cli.credentials import Credentials
from trunkline.cli.failure import explain, harmless
from trunkline.protocol import urls
from trunkline.protocol.errors import RelayError
from trunkline.sdk import HybridConnectionListener
from trunkline.sdk.endpoint import Endpoint, read_endpoint
from trunkline.sdk.proxy import Proxy, open_tunnel, proxy_for
from trunkline.sdk.tokens import Token
from trunkline.sdk.websocket import USER_AGENT

State = Literal["ok", "warned", "failed", "skipped"]

#: Steps that ask nobody, so their time says nothing: they explain what the relay said before.
THOUGHT = ("token", "hybrid connection")
#: Bytes of an HTTP answer that are read, head and body.
ANSWER_LIMIT = 65_536


@dataclass
class Step:
    """One line of what was found."""

    #: ``dns``, ``tls`` and so on.
    name: str
    state: State
    #: What was found, without a secret.
    text: str
    #: What to do about it; empty where nothing is to be done.
    remedy: str = ""
    #: For programs: ``ms``, ``addresses``, ``version`` and so on.
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.text = harmless(self.text)

    def as_json(self) -> dict[str, Any]:
        """The step as an object."""
        return {"step": self.name, "state": self.state, "text": self.text, "remedy": self.remedy, **self.facts}


@dataclass
class Subject:
    """One hybrid connection on one relay, by one way, with one key."""

    who: Credentials
    endpoint: Endpoint
    proxy: Proxy | None
    #: Seconds for each step.
    timeout: float
    #: Whether a listener of our own is wanted although somebody listens.
    listen: bool = False
    #: Whether the listener that is there may see a connection.
    connect: bool = False

    # What steps leave for those behind them.

    #: The addresses of the relay, in the order in which clients try them; empty with a proxy.
    addresses: list[str] = field(default_factory=list)
    #: The one that answered, for the connections that follow; empty with a proxy.
    address: str = ""
    #: What the relay's clock is ahead of ours, in seconds; None when it does not tell.
    clock_ahead: float | None = None
    #: The token that was tried; None for an anonymous sender.
    token: Token | None = None
    #: What the relay said to a sender; None when it took it.
    refusal: RelayError | None = None
    #: Our own listener, while it is registered.
    listener: HybridConnectionListener | None = None

    @property
    def host(self) -> str:
        """Of the relay, without brackets."""
        return self.endpoint.host

    @property
    def port(self) -> int:
        """Of the relay."""
        return self.endpoint.port or (443 if self.endpoint.secure else 80)

    @property
    def may_send(self) -> bool:
        """Whether the relay has let us in as a sender, as far as our rights go."""
        return self.refusal is None or "claim" not in self.refusal.message

    async def open(self) -> socket.socket:
        """A new TCP connection, by the way that was found; the caller owns it. Raises OSError."""
        if self.proxy is not None:
            return await open_tunnel(self.proxy, self.host, self.port)
        return await connect_to(self.address, self.port)

    @contextlib.asynccontextmanager
    async def stream(
        self, ssl: Any, *, server_hostname: str | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A new connection, with TLS where `ssl` is a context; cut at the end of the block. Raises OSError."""
        sock = await self.open()
        options = {"ssl": ssl, "server_hostname": server_hostname or self.host} if ssl else {}
        try:
            reader, writer = await asyncio.open_connection(sock=sock, limit=ANSWER_LIMIT, **options)
        except BaseException:
            sock.close()
            raise
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # it is closed in the next turn of the loop

    async def get(self, ssl: Any) -> bytes:
        """Ask with plain HTTP for the address of a sender, and give the answer as it comes; empty for none.

        Raises OSError when the connection cannot be made.
        """
        address = urls.connect_url(self.endpoint.base, self.endpoint.path)
        scheme, _, rest = address.partition("://")
        authority, _, target = rest.partition("/")
        request = (
            f"GET /{target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        async with self.stream(ssl) as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(request.encode("ascii"))
                while len(answer) < ANSWER_LIMIT and (piece := await reader.read(ANSWER_LIMIT)):
                    answer += piece
        return answer


Check = Callable[[Subject], Awaitable[Step]]


def subject_of(who: Credentials, *, timeout: float, listen: bool = False, connect: bool = False) -> Subject:
    """What the options of a command describe. Raises InvalidSetting: the proxy cannot be read."""
    endpoint = read_endpoint(
        who.text,
        entity_path=who.entity,
        token_provider=None,
        key_name=None,
        key=None,
        ssl=who.ssl,
        proxy=who.proxy,
    )
    port = endpoint.port or (443 if endpoint.secure else 80)
    proxy = proxy_for(endpoint.host, port, secure=endpoint.secure, setting=endpoint.proxy)
    return Subject(who, endpoint, proxy, timeout, listen, connect)


async def connect_to(address: str, port: int) -> socket.socket:
    """TCP to one IP address; the caller owns the socket. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def run_check(name: str, check: Check, subject: Subject) -> Step:
    """One step, with its time; what it does not explain itself becomes its failure."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(subject.timeout):
            step = await check(subject)
    except TimeoutError:
        text = f"no answer within {subject.timeout:g} s"
        step = Step(name, "failed", text, "a firewall drops what passes here, or the other end is stuck: ask on both")
    except (OSError, RelayError) as error:
        failure = explain(error)
        step = Step(name, "failed", failure.what, failure.remedy)
    if step.state != "skipped" and name not in THOUGHT and (ms := since(started)) > 0:
        step.facts.setdefault("ms", ms)
    return step


def since(started: float) -> float:
    """Milliseconds since `started`, of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 2)


def in_words(ms: float) -> str:
    """Milliseconds for people: ``12.3 ms``, ``0.25 ms``."""
    return f"{round(ms, 1 if ms >= 1 else 2):g} ms"
