"""The store of one node: an SQLite file that the node alone writes.

One table is both the documents and the feed: each row carries the revision of its last change, and a deleted
document leaves its row, without a body, as a marker. So the feed cannot disagree with the documents, and it
is as long as there are documents, however often they change.

SQLite runs in a thread of its own. A commit takes 0.3 ms on a good disk, but it waits for the disk
(``synchronous=FULL``), and on a busy one for seconds; every relayed connection of the node would wait with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from trunkline.server.entities.ownership import Ownership
from trunkline.server.entities.store import (
    Change,
    ChangesForgotten,
    Document,
    EtagMismatch,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
)

T = TypeVar("T")

#: Kept in the file (PRAGMA application_id, user_version), to know it as ours and of which version.
APPLICATION_ID = 0x54_52_4B_4C  # "TRKL"
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE document (
    key       TEXT PRIMARY KEY,         -- the id in lower case
    id        TEXT NOT NULL,            -- in the spelling of its creation
    revision  INTEGER NOT NULL UNIQUE,  -- of the last change; also the etag
    body      TEXT                      -- JSON; NULL: deleted
) WITHOUT ROWID;
CREATE INDEX deleted ON document (revision) WHERE body IS NULL;
CREATE TABLE forgotten (revision INTEGER NOT NULL);  -- markers up to here are gone
INSERT INTO forgotten VALUES (0);
"""

#: Markers of deleted documents that are kept before the older half is forgotten.
MARKERS_KEPT = 10_000
#: Changes read at a time; bounds the memory of a feed.
_BATCH = 256
#: Above every character that an id can hold, in the order of UTF-8 bytes.
_LAST = "\U0010ffff"


class SqliteStore:
    """Documents in one file; see `trunkline.server.entities.store.EntityStore` for what each method does.

    Parameters
    ----------
    path: the file, made with its folder when missing, readable by this user alone; ``":memory:"`` keeps
        everything in this process.
    read_only: look at the file of a node that may be running: takes no ownership, refuses writes, and its feed
        ends with what is there.

    All methods belong to one event loop; the constructor opens the file at once, on the calling thread.
    Raises StoreLocked, StoreDamaged or StoreError, each of which names the file.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self._file = None if path == ":memory:" else Path(path)
        self._read_only = read_only
        self._closed = False
        self._owned: Ownership | None = None
        #: One for each feed that is being read; set when there may be something new.
        self._feeds: set[asyncio.Event] = set()
        if self._file is not None:
            self._prepare(self._file)
        try:
            with self._declared_errors():
                self._connection = self._open()
            if self._file is not None:
                # Which file it is, whatever bears its name later.
                self._opened = os.stat(self._file)
        except BaseException:
            self._disown()
            raise
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="trunkline-store")

    def __repr__(self) -> str:
        state = "closed" if self._closed else "read-only" if self._read_only else "open"
        return f"<SqliteStore {self._file or ':memory:'} {state}>"

    # --- the interface ---

    async def get(self, id: str) -> Document | None:
        documents = await self._run(self._select, "WHERE key = ? AND body IS NOT NULL", (id.lower(),))
        return documents[0] if documents else None

    async def put(self, id: str, body: Mapping[str, Any], *, etag: str | None) -> Document:
        # ASCII escapes: JSON may hold half of a surrogate pair, which SQLite's UTF-8 cannot.
        return await self._run(self._put, id, json.dumps(body, allow_nan=False, separators=(",", ":")), etag)

    async def delete(self, id: str, *, etag: str) -> int:
        return (await self._run(self._put, id, None, etag)).revision

    async def list(self, prefix: str) -> tuple[Document, ...]:
        prefix = prefix.lower()
        where = "WHERE key >= ? AND key < ? AND body IS NOT NULL ORDER BY key"
        return await self._run(self._select, where, (prefix, prefix + _LAST))

    async def revision(self) -> int:
        return await self._run(self._latest)

    async def changes(self, after: int = 0) -> AsyncGenerator[Change, None]:
        news = asyncio.Event()
        self._feeds.add(news)
        try:
            while not self._closed:
                news.clear()  # before reading: what is written while we read sets it again
                batch = await self._run(self._read_changes, after)
                for change in batch:
                    yield change
                    after = change.revision
                if not batch:
                    if self._read_only:
                        return
                    await news.wait()
        finally:
            self._feeds.discard(news)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._wake_feeds()
            # The worker takes its jobs in order, so everything begun is finished before.
            closing = self._worker.submit(self._connection.close)
            self._worker.shutdown(wait=False)
            try:
                await asyncio.wrap_future(closing)
            finally:
                self._disown()

    # --- files ---

    def _prepare(self, file: Path) -> None:
        """Folder, ownership, and a file that nobody else could ever read; WAL and index get the file's mode."""
        try:
            if self._read_only:
                if not file.is_file():
                    raise StoreError(f"there is no store at {file}; start a node that keeps its data there first")
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            self._owned = Ownership(file)
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            for part in (file, Path(f"{file}-wal"), Path(f"{file}-shm")):
                # Not ours to have made so: a restored backup, or a volume whose files the system opens to a group.
                if part.exists() and part.stat().st_mode & 0o077:
                    part.chmod(0o600)
        except OSError as error:
            self._disown()
            raise StoreError(f"{file} cannot be used: {error.strerror}; check who owns it and its folder") from None

    def _disown(self) -> None:
        if self._owned is not None:
            self._owned.release()
            self._owned = None

    def _open(self) -> sqlite3.Connection:
        # Read-only is query_only and not SQLite's mode=ro, which cannot read a WAL that a killed node left behind.
        target = "file::memory:" if self._file is None else self._file.resolve().as_uri() + "?mode=rw"
        connection = sqlite3.connect(target, uri=True, isolation_level=None, check_same_thread=False, timeout=2)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        def pragma(text: str) -> Any:
            return connection.execute(f"PRAGMA {text}").fetchone()

        if self._read_only:
            pragma("query_only = ON")
        else:
            pragma("journal_mode = WAL")
            pragma("synchronous = FULL")
        [application], [version] = pragma("application_id"), pragma("user_version")
        [tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables and not self._read_only:
            statements = f"{_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            connection.executescript(f"BEGIN IMMEDIATE; {statements} COMMIT;")
        elif application != APPLICATION_ID:
            raise StoreDamaged(f"{self._file} is no store of Trunkline; name another data folder")
        elif version > SCHEMA_VERSION:
            raise StoreDamaged(f"{self._file} was made by a newer version of Trunkline; use that one")
        [verdict] = pragma("quick_check(1)")
        if verdict != "ok":
            raise StoreDamaged(f"{self._file} is damaged ({verdict.splitlines()[-1]}); restore a backup")

    # --- in the worker thread ---

    def _select(self, where: str, values: tuple[Any, ...]) -> tuple[Document, ...]:
        rows = self._connection.execute(f"SELECT id, revision, body FROM document {where}", values)
        return tuple(Document(id, str(revision), revision, json.loads(body)) for id, revision, body in rows)

    def _latest(self) -> int:
        [latest] = self._connection.execute("SELECT coalesce(max(revision), 0) FROM document").fetchone()
        return int(latest)

    def _put(self, id: str, body: str | None, etag: str | None) -> Document:
        """Writes one document, or a marker when ``body`` is None."""
        if self._read_only:
            raise StoreLocked(f"{self._file} was opened to be read; ask the node that owns it for changes")
        self._check_is_there()
        with self._transaction():
            where = "SELECT id, revision FROM document WHERE key = ? AND body IS NOT NULL"
            found = self._connection.execute(where, (id.lower(),)).fetchone()
            if (None if found is None else str(found[1])) != etag:
                raise EtagMismatch("it exists already" if etag is None else "", entity=id)
            kept_id = id if found is None else found[0]
            revision = self._latest() + 1
            row = (id.lower(), kept_id, revision, body)
            self._connection.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)", row)
            if body is None:
                self._forget_markers()
        return Document(kept_id, str(revision), revision, {} if body is None else json.loads(body))

    def _check_is_there(self) -> None:
        """Writes to a file that has lost its name would succeed, and be gone with the process. SQLite does not look."""
        if self._file is None:
            return
        try:
            is_there = os.path.samestat(os.stat(self._file), self._opened)
        except OSError:
            is_there = False
        if not is_there:
            raise StoreError(
                f"{self._file} was removed or replaced while it was in use, and takes no changes any more; put back"
                " what was there, or a backup, and restart the node"
            )

    def _forget_markers(self) -> None:
        """Drops the older half of the markers when there are too many; never the newest, which holds the revision."""
        [count] = self._connection.execute("SELECT count(*) FROM document WHERE body IS NULL").fetchone()
        if count > MARKERS_KEPT:
            last = "SELECT revision FROM document WHERE body IS NULL ORDER BY revision LIMIT 1 OFFSET ?"
            [until] = self._connection.execute(last, (count // 2,)).fetchone()
            self._connection.execute("DELETE FROM document WHERE body IS NULL AND revision <= ?", (until,))
            self._connection.execute("UPDATE forgotten SET revision = ?", (until,))

    def _read_changes(self, after: int) -> tuple[Change, ...]:
        [forgotten] = self._connection.execute("SELECT revision FROM forgotten").fetchone()
        if 0 < after < forgotten:
            raise ChangesForgotten()
        statement = "SELECT id, revision, body FROM document WHERE revision > ? ORDER BY revision LIMIT ?"
        changes = []
        for id, revision, body in self._connection.execute(statement, (after, _BATCH)):
            document = None if body is None else Document(id, str(revision), revision, json.loads(body))
            changes.append(Change(id, revision, document))
        return tuple(changes)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # something was raised, perhaps by the commit
                self._connection.execute("ROLLBACK")

    # --- between the threads ---

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of ``function`` from the worker; feeds look again when it is done, wanted or not."""
        if self._closed:
            raise StoreClosed()
        loop = asyncio.get_running_loop()
        job = self._worker.submit(self._declare_errors, function, *arguments)
        if function == self._put:
            job.add_done_callback(lambda _: self._announce(loop))
        return await asyncio.wrap_future(job)

    def _declare_errors(self, function: Callable[..., T], *arguments: Any) -> T:
        with self._declared_errors():
            return function(*arguments)

    def _announce(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._wake_feeds)
        except RuntimeError:  # the loop is closed, and with it whoever read the feed
            pass

    def _wake_feeds(self) -> None:
        for news in self._feeds:
            news.set()

    @contextmanager
    def _declared_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # https://www.sqlite.org/rescode.html: the low byte is the primary code.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            raise _ERRORS.get(code, _other_error)(str(self._file or ":memory:"), str(error)) from error


def _other_error(file: str, what: str) -> StoreError:
    return StoreError(f"{file} cannot be used: {what}; check the disk and who owns the file and its folder")


_ERRORS: dict[int, Callable[[str, str], StoreError]] = {
    sqlite3.SQLITE_BUSY: lambda file, _: StoreLocked(f"{file} is locked by another program; stop what writes to it"),
    sqlite3.SQLITE_LOCKED: lambda file, _: StoreLocked(f"{file} is locked by another program; stop what writes to it"),
    sqlite3.SQLITE_FULL: lambda file, _: StoreFull(f"{file} cannot grow: the disk is full; make room and try again"),
    sqlite3.SQLITE_CORRUPT: lambda file, _: StoreDamaged(f"{file} is damaged; restore a backup"),
    sqlite3.SQLITE_NOTADB: lambda file, _: StoreDamaged(f"{file} is no store of Trunkline; name another data folder"),
}
