"""A relay node: the one file that knows all parts. Builds them, starts and stops them in order.

Start, each step because the next one needs it:

    store        entities are kept there
    repair       what a crash left half written is put right while nobody else writes
    declaration  what the file declares must exist before a listener asks for it
    catalog      the data plane authorizes from memory, never from the store
    admin port   and its Unix socket: say "starting" before the first listener can come
    data port    last: whoever connects finds everything in place

Stop:

    drain        no new senders (503), listen handshakes wait without an answer, established connections may end.
                 Sockets that the node was handed accept no more: who comes now waits in the kernel for the next node
    channels     closed with 1001 at the very end: a listener that reconnects should find the next node
    ports, connections, tasks, store    nothing uses the store when it is closed
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import platform
import random
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiofastnet

from trunkline._version import __version__
from trunkline.protocol.errors import InvalidSetting, ServerBusy
from trunkline.protocol.frames import Masker, mask_bytes
from trunkline.protocol.limits import resolve
from trunkline.server import exposition, metrics
from trunkline.server.admin.doors import bind_socket, socket_path, token_of
from trunkline.server.admin.routes import Admin
from trunkline.server.config.declarative import Declaration
from trunkline.server.config.settings import NodeSettings, in_force
from trunkline.server.entities import declaration as declarations
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.authorization import Authorizer
from trunkline.server.entities.catalog import Catalog, CatalogChange
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import EntityStore
from trunkline.server.exposition import Exposition, Sample, Snapshot, snapshot
from trunkline.server.metrics import Tallies
from trunkline.server.relay import readings
from trunkline.server.relay.admission import Admission
from trunkline.server.relay.broker import Broker
from trunkline.server.relay.forwarded import TrustedProxies
from trunkline.server.relay.frontend import Frontend, FrontendProtocol
from trunkline.server.relay.journal import Journal
from trunkline.server.relay.listeners import LocalDirectory
from trunkline.server.relay.sockets import TLS_READ_SIZE, descriptor_limit, has_descriptors, lengthen_backlog
from trunkline.server.relay.splicing import Splicing
from trunkline.server.spare_memory import SpareMemory
from trunkline.server.status import Answer, Phase
from trunkline.server.steady_clock import SteadyClock
from trunkline.server.telemetry import Telemetry
from trunkline.server.tls import Certificates

try:
    from websockets.speedups import apply_mask
except ImportError:  # websockets without its C part: slower, and the same bytes
    _masker: Masker = mask_bytes
else:
    # It takes a memoryview as key as well, which its declaration does not say.
    _masker = cast(Masker, apply_mask)

log = logging.getLogger("trunkline.node")

# Connections that the system may hold for us while the loop is busy; a node restart brings all listeners at once.
BACKLOG = 4_096

# Of those, how many are taken at a time. With TLS the first step of each costs a fifth of a millisecond, and whoever
# is connected already waits meanwhile.
ACCEPTED_AT_ONCE = 64

# Seconds for a TLS handshake, and for the peer's close_notify.
TLS_HANDSHAKE_TIMEOUT = 10.0
TLS_SHUTDOWN_TIMEOUT = 3.0
TLS_OPTIONS: Mapping[str, Any] = {
    "ssl_handshake_timeout": TLS_HANDSHAKE_TIMEOUT,
    "ssl_shutdown_timeout": TLS_SHUTDOWN_TIMEOUT,
    "ssl_incoming_bio_size": TLS_READ_SIZE,
}

# Seconds that listeners have to answer the Close of a node that stops.
FAREWELL = 2.0

# Seconds that a node looks for a moment in which nobody is half way, before it leaves its sockets to the next one.
HANDING_OVER = 2.0

# Seconds that listeners have to come back to a node that was handed its sockets, before senders are told of nobody.
LISTENERS_COME_BACK = 5.0

# File descriptors that connections leave for the node itself, and those of the data plane for the admin port.
DESCRIPTORS_KEPT = 32
DESCRIPTORS_KEPT_FOR_ADMIN = 32


#: Sockets that listen, by what they are for: ``data``, ``admin``.
HandedSockets = Mapping[str, Sequence[socket.socket]]


class Tasks:
    """Keeps the tasks that run beside the caller. One that fails is logged and takes nobody with it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` to its end; the reference is kept here."""
        # Not a task group: there, one failed handshake would cancel all others.
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the node failed", exc_info=task.exception())

    async def finish(self, within: float) -> None:
        """Wait for the end of all, cancel those that last longer than so many seconds."""
        deadline = asyncio.get_running_loop().time() + within
        # One that ends may have begun another.
        while running := [task for task in self._running if task is not asyncio.current_task()]:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                for task in running:
                    task.cancel()
            await asyncio.wait(running, timeout=left if left > 0 else None)


class Node:
    """One relay node in the running event loop; `async with` starts and stops it.

    Args:
        settings: of the node.
        declaration: entities that a file, or the caller, declares; None leaves the store as it is.
        store: where entities are kept; None opens `entities.db` in the data folder.
        sockets: that listen already, for ``data`` or ``admin`` or both, in place of the hosts and ports of the
            settings. They outlive the node where somebody else holds them too.
        tick: seconds between two looks at the clock; time-outs are as exact as that.
        monotonic: the clock by which peers are judged; None for the loop's.
        wall_clock: seconds since the epoch, for tokens and for people.
    """

    def __init__(
        self,
        settings: NodeSettings,
        declaration: Declaration | None = None,
        *,
        store: EntityStore | None = None,
        sockets: HandedSockets | None = None,
        tick: float = 1.0,
        monotonic: Callable[[], float] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.phase = Phase.STARTING
        self._declaration = declaration
        self._store = store
        self._tick = tick
        # Those that last as long as the node, and the short ones of the data plane.
        self._watches = Tasks()
        self._tasks = Tasks()
        self._handed = dict(sockets or {})
        self._servers: list[asyncio.Server] = []
        # The ports of `_servers`, which know them no more when they are closed.
        self._ports: list[int] = []
        # Set when a drain need not wait any longer.
        self._quiet = asyncio.Event()
        # Seconds that listeners have to answer the Close of a node that stops.
        self._patience = FAREWELL
        self.catalog = Catalog(**_catalog_settings(settings))
        self._clock = SteadyClock(monotonic or asyncio.get_running_loop().time, tick)
        self._wall_clock = wall_clock
        authorizer = Authorizer(self.catalog)
        self.directory = LocalDirectory(clock=self._clock, chance=random.Random(secrets.randbits(64)))
        self.tallies = Tallies()
        self.journal = Journal(self.tallies, self.catalog, stopwatch=time.perf_counter, wall_clock=wall_clock)
        self.exposition = Exposition(self.measure)
        self.splicing = Splicing(clock=self._clock, masker=_masker)
        admission = Admission(self.catalog, authorizer, wall_clock=wall_clock, new_guid=_new_guid)
        self.broker = Broker(
            admission=admission,
            authorizer=authorizer,
            directory=self.directory,
            splicing=self.splicing,
            spawn=self._tasks.spawn,
            clock=self._clock,
            wall_clock=wall_clock,
            journal=self.journal,
            new_secret=lambda: secrets.token_urlsafe(24),
            new_id=_short_ids(),
            new_phase=random.random,
            masker=_masker,
            public_url=_websocket_url(settings.public_url),
        )
        kept = DESCRIPTORS_KEPT + DESCRIPTORS_KEPT_FOR_ADMIN
        self._frontend = Frontend(
            self.broker.serve,
            self._clock,
            has_room=partial(has_descriptors, kept),
            phrase=self.broker.unread,
            proxies=TrustedProxies(settings.trusted_proxies),
            proxy_protocol=settings.proxy_protocol,
            keeps_alive=True,
        )
        # The admin port and its two doors: the port itself, and the Unix socket. Made when the node starts.
        self._routes: Admin | None = None
        self._admin: list[Admin | Frontend] = []
        self._certificates: Certificates | None = None
        self._spare_memory = SpareMemory()
        self._telemetry: Telemetry | None = None

    def __repr__(self) -> str:
        return f"<Node {self.phase} {self.counts()}>"

    # -- start

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything.

        Raises:
            RelayError: the store, a certificate, the declaration or a port is not usable; the message says what to do.
        """
        if self._store is None:
            self._store = SqliteStore(self.settings.data / "entities.db")
        await self._administration(self.settings).repair()
        if self._declaration is not None:
            await self._declare(self._declaration, self.settings)
        await self.catalog.load(self._store)
        self.catalog.subscribe(self._changed)
        for work in (self.catalog.follow(self._store), self._watch_the_clock()):
            _ = self._watches.spawn(work)
        if self.settings.opentelemetry:
            self._telemetry = telemetry = Telemetry(self.measure, self.tallies)
            self.journal.on_sought = lambda each: telemetry.sought(each.began_at, each.lasted, each.attributes)
        await self._open_admin()
        context = None
        if self.settings.tls != "off":
            self._certificates = Certificates(self.settings, self.catalog)
            context = self._certificates.context
            if self.settings.proxy_protocol:
                # The header stands ahead of TLS: connections come in plain.
                self._frontend.begin_tls = self._begin_tls
                context = None
        await self._listen(self._frontend, "", context)
        if self._handed.get("data"):
            self.broker.patient_until = self._clock() + LISTENERS_COME_BACK
        self.phase = Phase.READY
        log.debug("ready on %s", self.url)  # whoever runs the node says so to people

    async def _open_admin(self) -> None:
        """Open the admin port and its Unix socket."""
        admin = self._routes = Admin(
            token=token_of(self.settings),
            host=self.settings.admin_host,
            broker=self.broker,
            splicing=self.splicing,
            phase=lambda: self.phase,
            counts=self.counts,
            metrics=self._metrics,
            spawn=self._tasks.spawn,
            clock=self._clock,
            wall_clock=self._wall_clock,
        )
        port, socket = (
            Frontend(serve, self._clock, has_room=partial(has_descriptors, DESCRIPTORS_KEPT))
            for serve in (admin.serve_port, admin.serve_socket)
        )
        self._admin = [admin, port, socket]
        await self._listen(port, "admin_", None)
        path = socket_path(self.settings)
        # A node that keeps nothing has no folder for one.
        bound = bind_socket(path) if path is not None and path.parent.is_dir() else None
        if bound is not None:
            loop = asyncio.get_running_loop()
            # Its file goes when it is closed.
            self._servers.append(await aiofastnet.create_unix_server(loop, socket.protocol, sock=bound))

    async def _listen(self, frontend: Frontend, prefix: str, context: ssl.SSLContext | None) -> None:
        """Open the port that the settings `{prefix}host` and `{prefix}port` say, or serve the sockets handed for it."""
        host: str = getattr(self.settings, f"{prefix}host")
        port: int = getattr(self.settings, f"{prefix}port")
        options: dict[str, Any] = {"ssl": context, "backlog": ACCEPTED_AT_ONCE}
        if context is not None:
            options |= TLS_OPTIONS
        handed = self._handed.get(prefix.rstrip("_") or "data", ())
        places: list[dict[str, Any]] = [{"sock": each} for each in handed] or [{"host": host, "port": port}]
        loop = asyncio.get_running_loop()
        try:
            for place in places:
                server = await aiofastnet.create_server(loop, frontend.protocol, **place, **options)
                self._servers.append(server)
        except OSError as error:
            remedy = {
                errno.EADDRINUSE: f"Another program has it, perhaps a node: stop that one, or set another {prefix}port",
                errno.EACCES: f"The system does not allow it: set {prefix}port to one above 1023",
            }.get(error.errno or 0, f"Set {prefix}host to an address of this machine")
            why = error.strerror or error
            raise InvalidSetting(f"The node cannot listen on {host}:{port}: {why}. {remedy}") from error
        for server in self._servers[-len(places) :]:
            lengthen_backlog(server, BACKLOG)
        self._ports.append(self._servers[-len(places)].sockets[0].getsockname()[1])

    def _begin_tls(self, transport: asyncio.Transport, protocol: FrontendProtocol) -> None:
        _ = self._tasks.spawn(self._secure(transport, protocol))

    async def _secure(self, transport: asyncio.Transport, protocol: FrontendProtocol) -> None:
        """Run the TLS handshake of a connection that came in plain."""
        assert self._certificates is not None
        loop, context = asyncio.get_running_loop(), self._certificates.context
        try:
            secured = await aiofastnet.start_tls(loop, transport, protocol, context, server_side=True, **TLS_OPTIONS)
        except OSError:
            # A peer that left, or speaks no TLS that we do: the loop is told, as with any other handshake.
            return
        protocol.secured(secured)

    async def _declare(self, declaration: Declaration, settings: NodeSettings) -> None:
        applied = await declarations.apply(self._administration(settings), declaration)
        for what in ("added", "changed", "removed"):
            for entity in getattr(applied, what):
                log.info("%s %s %s", declaration.origin, what, entity)
        for problem in applied.left_alone:
            log.warning("%s: left alone: %s", declaration.origin, problem)

    def _administration(self, settings: NodeSettings) -> Administration:
        assert self._store is not None
        return Administration(
            self._store, preset=settings.preset, node_limits=settings.limits, wall_clock=self._wall_clock
        )

    # -- reload

    async def reload(self, declaration: Declaration | None, settings: NodeSettings | None = None) -> tuple[str, ...]:
        """Take over a declaration, other settings, and certificate files as they are now, without a cut.

        Gives the names of the settings that differ and wait for a restart.

        Args:
            declaration: what is to be there from now on; None leaves the entities as they are.
            settings: those wanted from now on; None leaves them as they are.

        Raises:
            RelayError: it cannot be taken over, and the node goes on as it was. A store that failed half way
                (StoreError) may have some of the entities.
        """
        settings, waiting = in_force(self.settings, settings or self.settings)
        # What can be refused comes first: the admin token, the certificates, then the declaration with its room.
        token = token_of(settings)
        if self._certificates is not None:
            self._certificates.check(settings)
        if declaration is not None:
            await self._declare(declaration, settings)
        self._take_settings(settings)
        if self._routes is not None:
            self._routes.take_token(token)
        if declaration is not None:
            assert self._store is not None
            await self.catalog.wait_applied(await self._store.revision())
        if self._certificates is not None:
            # Behind the catalog: it may have brought names.
            self._certificates.reload(settings)
        return waiting

    def _take_settings(self, settings: NodeSettings) -> None:
        """The settings that can change while the node runs: each part that keeps some of them is told here."""
        self.settings = settings
        self.catalog.take_settings(**_catalog_settings(settings))
        self.broker.public_url = _websocket_url(settings.public_url)
        self.broker.limits_changed()
        self._frontend.proxies = TrustedProxies(settings.trusted_proxies)

    # -- what it is

    @property
    def port(self) -> int:
        """The port of the data plane; with the setting 0, the one that the system chose."""
        return self._ports[1]

    @property
    def admin_port(self) -> int:
        """The admin port; with the setting 0, the one that the system chose."""
        return self._ports[0]

    @property
    def url(self) -> str:
        """How listeners and senders reach it."""
        if self.settings.public_url is not None:
            return self.settings.public_url
        scheme = "http" if self.settings.tls == "off" else "https"
        return f"{scheme}://{self.settings.domain}:{self.port}"

    @property
    def ca_file(self) -> Path | None:
        """What clients have to trust, when the node makes its own certificates; else None."""
        return None if self._certificates is None else self._certificates.ca_file

    def counts(self) -> dict[str, int]:
        """What it holds now."""
        return {
            **self.directory.counts(),
            "control_channels": len(self.broker.channels),
            "waiting_senders": self.broker.waiting_senders,
            "connections": len(self.splicing),
            "http_requests": len(self.journal.requests),
            "held_refusals": self.broker.held_refusals,
            "handshakes": self._frontend.handshakes,
        }

    def measure(self) -> Snapshot:
        """Every metric as it is now."""
        return snapshot(self.tallies, self._held())

    def _held(self) -> Iterator[Sample]:
        yield from readings.held(self.catalog, self.broker, self.directory, self.splicing, self._wall_clock())
        yield metrics.HANDSHAKES, (), self._frontend.handshakes
        yield metrics.HELD_REFUSALS, (), self.broker.held_refusals
        if (limit := descriptor_limit()) != sys.maxsize:
            yield metrics.OPEN_FILES_LIMIT, (), limit
        if self._certificates is not None:
            yield metrics.CERTIFICATE_EXPIRY, (), self._certificates.ends
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        yield metrics.BUILD_INFO, (__version__, platform.python_version(), loop), 1

    async def _metrics(self) -> Answer:
        return Answer(200, await self.exposition.text(), exposition.CONTENT_TYPE)

    def _changed(self, change: CatalogChange) -> None:
        self.broker.changed(change)

    async def _watch_the_clock(self) -> None:
        looks = (
            self._frontend.tick,
            self._look_at_admin,
            self.broker.tick,
            self.splicing.tick,
            self._look_at_certificates,
            self._look_at_memory,
        )
        # From now on a standstill is one.
        self._clock.look()
        while True:
            before = time.perf_counter()
            await asyncio.sleep(self._tick)
            self.tallies.node.observe(metrics.LOOP_LAG, max(0.0, time.perf_counter() - before - self._tick))
            now = self._clock.look()
            for look in looks:
                try:
                    look(now)
                except Exception:
                    log.exception("the node failed at %r", look)
            # A connection that has ended, or a request that is answered, may have its last bytes still to send.
            busy = len(self.splicing) or self.splicing.unsent or self.broker.waiting_senders or len(self.broker.http)
            if self.phase is Phase.DRAINING and not busy and not self._frontend.is_answering:
                self._quiet.set()

    def _look_at_admin(self, now: float) -> None:
        for part in self._admin:
            part.tick(now)

    def _look_at_certificates(self, now: float) -> None:
        if self._certificates is not None:
            self._certificates.refresh()

    def _look_at_memory(self, now: float) -> None:
        broker = self.broker
        held = self._frontend.open + len(broker.channels) + 2 * len(self.splicing) + broker.http.rendezvous
        self._spare_memory.tick(held, now)

    # -- stop

    @property
    def drain_timeout(self) -> float:
        """Seconds that `drain` takes at most; where the node was handed sockets, `HANDING_OVER` more."""
        return resolve(self.settings.preset, self.settings.limits).drain_timeout

    async def drain(self) -> None:
        """Take nothing new and wait until what runs has ended, at most `drain_timeout`; then say goodbye.

        `hurry` ends the wait. The node still has to be stopped.
        """
        if self.phase is not Phase.READY:
            return
        self.phase = Phase.DRAINING
        await self._accept_no_more()
        self.broker.draining = True
        self._frontend.drain()
        drain_timeout = self.drain_timeout
        log.info("draining for at most %g s: %s", drain_timeout, self.counts())
        try:
            async with asyncio.timeout(drain_timeout):
                await self._quiet.wait()
        except TimeoutError:
            log.warning("connections are cut after %g s of draining: %s", drain_timeout, self.counts())

    async def _accept_no_more(self) -> None:
        """Leave who comes from now on to the next node, where that has the same sockets.

        In a moment in which nobody is half way: who was accepted has to be served here, and the listener that a sender
        waits for dials back to this node.
        """
        loop = asyncio.get_running_loop()
        given_up = loop.time() + HANDING_OVER
        handed = self._handed.get("data", ())
        while handed and self._is_anybody_half_way() and loop.time() < given_up:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        for each in handed:
            # Not closed: aiofastnet cuts a TLS handshake that is still going on when its server is.
            loop.remove_reader(each.fileno())

    def _is_anybody_half_way(self) -> bool:
        return bool(
            self._frontend.arriving or self._frontend.heads or self.broker.waiting_senders or len(self.broker.http)
        )

    def hurry(self) -> None:
        """Wait for nobody any more: neither in `drain` nor, in `stop`, for listeners to answer their Close."""
        self._patience = 0.0
        self._quiet.set()

    async def stop(self) -> None:
        """Stop at once what is left, in order; may be called twice, and after a start that failed."""
        self.broker.draining = True
        await self.broker.close_channels(ServerBusy("ServerBusy: The relay is shutting down"), timeout=self._patience)
        self.phase = Phase.STOPPED
        for server in self._servers:
            server.close()
        self.broker.abort()
        self.splicing.abort("the relay stopped")
        # One turn of the loop, for a connection that was accepted this moment: its transport, aborted before it has
        # begun, would begin all the same (aiofastnet 1.2) and leave the loop deaf on the next socket of that number.
        await asyncio.sleep(0)
        for server in self._servers:
            # Also those that had ended and were only closing in order.
            server.abort_clients()  # type: ignore[attr-defined]  # of asyncio from 3.13 on; aiofastnet always has it
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                for server in self._servers:
                    await server.wait_closed()
        await self._tasks.finish(within=FAREWELL)
        await self._watches.finish(within=0)
        if self._telemetry is not None:
            # Behind the last connection: it sends what that has left.
            telemetry, self._telemetry = self._telemetry, None
            await telemetry.close()
        if self._store is not None:
            await self._store.close()


def _short_ids() -> Callable[[], str]:
    """Makes the names of control channels and connections: counted, and marked so that no other run gives them."""
    run, numbers = secrets.token_hex(2), itertools.count(1)
    return lambda: f"{next(numbers)}-{run}"


def _new_guid() -> str:
    """A random GUID (RFC 9562 section 5.4). At half the price of `uuid.uuid4`: each request has one."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


def _catalog_settings(settings: NodeSettings) -> dict[str, Any]:
    """What the catalog keeps of the settings."""
    public_host = urlsplit(settings.public_url).hostname if settings.public_url is not None else None
    return {
        "preset": settings.preset,
        "node_limits": settings.limits,
        "domain": settings.domain,
        "public_host": public_host,
    }


def _websocket_url(url: str | None) -> str | None:
    """`https://...` as `wss://...`, as control messages give addresses."""
    return None if url is None else "ws" + url.removeprefix("http")
