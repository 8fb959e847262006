"""A network that fails when a test says so: a TCP proxy between clients and a server.

    async with FaultyNetwork(node.port) as network:
        client -> 127.0.0.1:network.port -> Link -> 127.0.0.1:node.port

A `Link` is one connection, a `Way` is one direction of it. What can go wrong:

    Way.latency, jitter, stall    bytes come late, in order (a lost segment shows as a stall until it is sent again)
    Way.bytes_per_second          a narrow line
    Way.after(n, action)          `action` exactly behind the first n bytes: `link.reset`, `link.silence`, `way.hold`
    Link.reset                    RST to one end or both; an end that is kept hears nothing any more
    Link.finish                   FIN to one end while the other stays
    Link.silence, Link.heal       nothing arrives from one end or both, not even acknowledgements; and again it does
    FaultyNetwork.silence, heal   the same for all links and for those that would be made

Nothing is ever lost, doubled or reordered inside of what TCP delivers: that is TCP's own promise. Silence is real where
the system can drop segments in front of a socket (Linux): neither data nor keepalive nor FIN of the other end is
acknowledged. Elsewhere the proxy only reads no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import random
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self

# Of Linux, not in the socket module (asm-generic/socket.h), and a classic BPF program of one instruction: keep nothing.
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))

#: Pieces under way in one direction; bounds what the network itself holds.
_UNDER_WAY = 16
_PIECE = 65_536


class Way:
    """One direction of a link. Its attributes may be set at any time and hold for what comes from then on.

    Args:
        source, target: the sockets that it reads and writes.
        chance: for jitter and stalls.
    """

    def __init__(self, source: socket.socket, target: socket.socket, chance: random.Random) -> None:
        self.source = source
        self.target = target
        self._chance = chance
        #: Seconds that each piece takes, and at most so many more by chance.
        self.latency = 0.0
        self.jitter = 0.0
        #: A piece is held up for `stall` seconds with this probability.
        self.stall = 0.0
        self.stall_chance = 0.0
        #: None: as fast as the machine.
        self.bytes_per_second: float | None = None
        #: Bytes that have been handed on.
        self.passed = 0
        # What is to happen behind so many bytes, the nearest first.
        self._watches: list[tuple[int, Callable[[], object]]] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        #: The target got a FIN, and nothing after it.
        self.finished = False

    def __repr__(self) -> str:
        return f"<Way passed={self.passed} {'flowing' if self._flowing.is_set() else 'held'}>"

    def after(self, passed: int, action: Callable[[], object]) -> None:
        """Call `action` when exactly `passed` bytes have been handed on, before the next one; at once if they have."""
        if passed <= self.passed:
            action()
            return
        self._watches.append((passed, action))
        self._watches.sort(key=lambda watch: watch[0])

    async def until(self, passed: int) -> None:
        """Wait until so many bytes have been handed on."""
        reached = asyncio.Event()
        self.after(passed, reached.set)
        await reached.wait()

    def hold(self) -> None:
        """Hand nothing on; what is under way waits."""
        self._flowing.clear()

    def release(self) -> None:
        """Undo `hold`."""
        self._flowing.set()

    def finish(self) -> None:
        """FIN to the target: for it, the other end has sent everything."""
        if not self.finished:
            self.finished = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)

    async def run(self) -> None:
        """Carry bytes until the source has ended; raises OSError when an end was reset."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._write())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            data = await loop.sock_recv(self.source, _PIECE)
            late = self.latency + self.jitter * self._chance.random()
            if self._chance.random() < self.stall_chance:
                late += self.stall
            await self._under_way.put((loop.time() + late, data))

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await self._under_way.get()
            if (delay := due - loop.time()) > 0:
                await asyncio.sleep(delay)
            for part in self._up_to_watches(data):
                await self._flowing.wait()
                if self.finished:
                    return
                await loop.sock_sendall(self.target, part)
                self.passed += len(part)
                if self.bytes_per_second is not None:
                    await asyncio.sleep(len(part) / self.bytes_per_second)
                while self._watches and self._watches[0][0] <= self.passed:
                    self._watches.pop(0)[1]()
            if not data:
                await self._flowing.wait()
                self.finish()
                return

    def _up_to_watches(self, data: bytes) -> Iterator[bytes]:
        while data:
            size = self._watches[0][0] - self.passed if self._watches else len(data)
            yield data[:size]
            data = data[size:]


class Link:
    """One connection through the network.

    Args:
        client: the end that connected, as the network sees it.
        server: where it is connected to.
        chance: for jitter and stalls.
    """

    def __init__(self, client: socket.socket, server: socket.socket, chance: random.Random) -> None:
        self.client = client
        self.server = server
        self.to_server = Way(client, server, chance)
        self.to_client = Way(server, client, chance)
        #: Set when both ends are closed.
        self.closed = asyncio.Event()
        # One end was reset and the other kept.
        self._half_open = False
        # Carries bytes; None until it begins.
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed.is_set() else 'open'} {self.to_server!r} {self.to_client!r}>"

    def reset(self, *, client: bool = True, server: bool = True) -> None:
        """RST to one end or both. An end that is kept is in a silent network from now on."""
        for way in (self.to_server, self.to_client):
            way.hold()
        for sock, wanted in ((self.client, client), (self.server, server)):
            if not wanted:
                drop_segments(sock)
                continue
            _reset_when_closed(sock)
        if client and server:
            self.close()
        else:
            # Not closed: the loop still waits for it. Disconnecting from the peer (AF_UNSPEC) resets at once.
            self._half_open = True
            _disconnect(self.client if client else self.server)

    def finish(self, *, client: bool = True, server: bool = True) -> None:
        """FIN to one end or both; what is under way to it is not delivered."""
        if client:
            self.to_client.finish()
        if server:
            self.to_server.finish()

    def silence(self, *, client: bool = True, server: bool = True) -> None:
        """Nothing arrives any more from that end: no byte, no acknowledgement, no FIN, no RST."""
        for wanted, sock, way in ((client, self.client, self.to_server), (server, self.server, self.to_client)):
            if wanted:
                way.hold()
                drop_segments(sock)

    def heal(self) -> None:
        """Undo `silence`; what was sent meanwhile arrives when its sender repeats it."""
        for way in (self.to_server, self.to_client):
            pass_segments(way.source)
            way.release()

    def close(self) -> None:
        """End both sides: with a FIN, or as `reset` prepared it."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        """Carry bytes until both directions have ended, or one end was reset."""
        self._task = asyncio.current_task()
        try:
            if self._closing:
                return
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self.to_server.run())
                ways.create_task(self.to_client.run())
        except* OSError:
            if self._half_open:
                await asyncio.Event().wait()  # until it is closed
            # A network passes a RST on.
            for sock in (self.client, self.server):
                _reset_when_closed(sock)
        finally:
            # Only here, when no task of the loop waits for them: their numbers are given to others at once.
            self.client.close()
            self.server.close()
            self.closed.set()


class FaultyNetwork:
    """Listens on a port of its own and carries what comes to a server on 127.0.0.1.

    Args:
        port: of the server.
        prepare: called with each link before it carries anything.
        seed: for jitter and stalls.
    """

    def __init__(self, port: int, *, prepare: Callable[[Link], object] | None = None, seed: int = 0) -> None:
        self._server_port = port
        self.prepare = prepare
        self._chance = random.Random(seed)
        #: Every link there ever was, in the order of their beginning.
        self.links: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._more = asyncio.Condition()

    def __repr__(self) -> str:
        return f"<FaultyNetwork {self.port} to {self._server_port} links={len(self.links)}>"

    async def __aenter__(self) -> Self:
        self._spawn(self._accept())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listening.close()

    @property
    def open_links(self) -> list[Link]:
        """Those that have not ended."""
        return [link for link in self.links if not link.closed.is_set()]

    async def link(self, index: int) -> Link:
        """The link with that number, once it is there."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.links) > index)
        return self.links[index]

    def silence(self) -> None:
        """All links fall silent, and whoever connects gets no answer."""
        drop_segments(self._listening)
        for link in self.open_links:
            link.silence()

    def heal(self) -> None:
        """Undo `silence`."""
        pass_segments(self._listening)
        for link in self.open_links:
            link.heal()

    def reset(self) -> None:
        """RST on all links."""
        for link in self.open_links:
            link.reset()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listening)
            pass_segments(client)
            self._spawn(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        server = socket.socket()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(server, ("127.0.0.1", self._server_port))
        except OSError:
            # As from a machine on which nobody listens.
            _reset_when_closed(client)
            client.close()
            server.close()
            return
        link = Link(client, server, self._chance)
        if self.prepare is not None:
            self.prepare(link)
        self.links.append(link)
        async with self._more:
            self._more.notify_all()
        await link.run()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Kept here, and ended with the block.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reset_when_closed(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drop_segments(sock: socket.socket) -> None:
    """Nothing that the other end sends reaches this socket any more; the other end sees nothing of that."""
    with contextlib.suppress(OSError):  # closed, or not on Linux
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(_DROP)))


def pass_segments(sock: socket.socket) -> None:
    """Undo `drop_segments`."""
    with contextlib.suppress(OSError):  # there was no filter
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _disconnect(sock: socket.socket) -> None:
    """Reset a connection and keep its descriptor (connect to AF_UNSPEC, which the socket module cannot say)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)
