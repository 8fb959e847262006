"""The same node in a thread of its own, for tests that have no event loop, or whose loop is not free."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from trunkline.server.entities.catalog import Catalog
from trunkline.testing.address import Address
from trunkline.testing.relay_node import RelayNode, relay_node

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a call waits for the thread; it takes milliseconds, or something is badly wrong.
PATIENCE = 60.0


@functools.wraps(relay_node, assigned=("__doc__",))
def relay_node_thread(*args: Any, **options: Any) -> RelayNodeThread:
    """A relay node for a plain ``with`` block; takes what `relay_node` takes."""
    return RelayNodeThread(relay_node(*args, **options))


class RelayNodeThread(Address):
    """A `RelayNode` in a thread, with calls that block until they are done; made by `relay_node_thread`.

    In an async test, call what stops or changes the node with ``await asyncio.to_thread(node.restart)``: the node says
    goodbye to its listeners and waits for their answer, which a blocked loop cannot give.
    """

    def __init__(self, inner: RelayNode) -> None:
        self._inner = inner
        self.host, self.namespace, self.entity, self.tls = inner.host, inner.namespace, inner.entity, inner.tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<RelayNodeThread {self._inner!r}>"

    def __enter__(self) -> Self:
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: a test run that is interrupted must not wait for it.
        self._thread = threading.Thread(target=self._run, args=(started,), name="trunkline-node", daemon=True)
        self._thread.start()
        try:
            started.result(PATIENCE)
            self._call(self._inner.__aenter__)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._inner.__aexit__, None, None, None)
        finally:
            self._end()

    # --- as in RelayNode, only that each call waits ---

    @property
    def port(self) -> int:
        """Port of the data plane; stays the same over restarts."""
        return self._inner.port

    @property
    def admin_url(self) -> str:
        """Where ``/healthz`` and ``/readyz`` are."""
        return self._inner.admin_url

    @property
    def ca_file(self) -> Path | None:
        """The certificate authority that clients must trust, as PEM; None without TLS. Gone when the block ends."""
        return self._inner.ca_file

    def start(self) -> None:
        """See `RelayNode.start`."""
        self._call(self._inner.start)

    def stop(self, *, abrupt: bool = False) -> None:
        """See `RelayNode.stop`."""
        self._call(self._inner.stop, abrupt=abrupt)

    def restart(self, *, outage: float = 0, abrupt: bool = False) -> None:
        """See `RelayNode.restart`."""
        self._call(self._inner.restart, outage=outage, abrupt=abrupt)

    def drain(self) -> None:
        """See `RelayNode.drain`."""
        self._call(self._inner.drain)

    def counts(self) -> dict[str, int]:
        """See `RelayNode.counts`."""
        return self._look(self._inner.counts)

    def listener_count(self, entity: str | None = None) -> int:
        """See `RelayNode.listener_count`."""
        return self._look(lambda: self._inner.listener_count(entity))

    def until(self, condition: Callable[[dict[str, int]], bool], *, timeout: float = 5) -> dict[str, int]:
        """See `RelayNode.until`; `condition` is called in the thread."""
        return self._call(self._inner.until, condition, timeout=timeout)

    def add_hybrid_connection(self, name: str, **options: object) -> None:
        """See `RelayNode.add_hybrid_connection`."""
        self._call(self._inner.add_hybrid_connection, name, **options)

    def remove_hybrid_connection(self, name: str) -> bool:
        """See `RelayNode.remove_hybrid_connection`."""
        return self._call(self._inner.remove_hybrid_connection, name)

    def change_hybrid_connection(self, name: str, **options: object) -> None:
        """See `RelayNode.change_hybrid_connection`."""
        self._call(self._inner.change_hybrid_connection, name, **options)

    def add_rule(self, name: str, rights: Iterable[str], *, entity: str | None = "") -> None:
        """See `RelayNode.add_rule`."""
        self._call(self._inner.add_rule, name, rights, entity=entity)

    def remove_rule(self, name: str, *, entity: str | None = "") -> None:
        """See `RelayNode.remove_rule`."""
        self._call(self._inner.remove_rule, name, entity=entity)

    # --- the thread ---

    def _catalog(self) -> Catalog:
        return self._inner._catalog()

    def _rule(self, *args: Any) -> Any:
        # The catalog belongs to the thread of the loop.
        return self._look(lambda: self._inner._rule(*args))

    def _run(self, started: concurrent.futures.Future[None]) -> None:
        try:
            runner = asyncio.Runner(loop_factory=_new_event_loop)
        except BaseException as error:
            started.set_exception(error)
            return
        with runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(started.set_result, None)
            self._loop.run_forever()

    def _end(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _call(self, function: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """The result of a coroutine function, run in the thread."""

        async def call() -> T:
            return await function(*args, **options)

        if self._loop is None or self._loop.is_closed():
            raise RuntimeError("The node is not running: use it in a `with` block")
        if self._thread is threading.current_thread():
            raise RuntimeError("The node cannot wait for itself: call this from another thread")
        job = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return job.result(PATIENCE)
        except BaseException:
            job.cancel()
            raise

    def _look(self, function: Callable[[], T]) -> T:
        """The result of a function that does not wait, run in the thread."""

        async def look() -> T:
            return function()

        return self._call(look)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """What a node runs on in production: uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
