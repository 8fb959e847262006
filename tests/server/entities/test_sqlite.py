from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from trunkline.server.entities import sqlite
from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import (
    Change,
    ChangesForgotten,
    EntityStore,
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
)


async def test_store_has_the_interface() -> None:
    store: EntityStore = SqliteStore(":memory:")
    assert repr(store) == "<SqliteStore :memory: open>"
    await store.close()
    assert repr(store) == "<SqliteStore :memory: closed>"


async def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    program = f"""
import asyncio, os, signal
from trunkline.server.entities.sqlite import SqliteStore
async def main():
    store = SqliteStore({str(file)!r})
    await store.put("/kept", {{"a": 1}}, etag=None)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], timeout=30)
    assert ended.returncode == -signal.SIGKILL
    reader = SqliteStore(file, read_only=True)
    assert [document.body for document in await reader.list("/")] == [{"a": 1}]
    await reader.close()
    store = SqliteStore(file)
    document = await store.get("/KEPT")
    assert document is not None and document.id == "/kept"
    assert await store.revision() == document.revision == 1
    await store.close()


async def test_file_is_for_this_user_alone_from_the_start(tmp_path: Path) -> None:
    file = tmp_path / "made" / "entities.db"
    before = os.umask(0)
    try:
        store = SqliteStore(file)
        await store.put("/a", {}, etag=None)
        modes = {each.name: each.stat().st_mode & 0o777 for each in file.parent.iterdir()}
    finally:
        os.umask(before)
    names = ["entities.db", "entities.db-shm", "entities.db-wal", "entities.db.lock"]
    assert modes == dict.fromkeys(names, 0o600)
    await store.close()


async def test_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    await SqliteStore(file).close()
    file.chmod(0o644)
    await SqliteStore(file).close()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_second_owner_is_told_who_has_the_file_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    store = SqliteStore(file)
    with pytest.raises(StoreLocked) as refused:
        SqliteStore(file)
    assert str(file) in str(refused.value) and f"process {os.getpid()}" in str(refused.value)
    assert "Ask that node" in str(refused.value)
    await store.close()
    await SqliteStore(file).close()


async def test_second_process_that_would_write_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "entities.db")
    program = (
        f"from trunkline.server.entities.sqlite import SqliteStore; SqliteStore({str(tmp_path / 'entities.db')!r})"
    )
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], timeout=30, capture_output=True, text=True
    )
    assert ended.returncode == 1 and f"is in use by process {os.getpid()}" in ended.stderr
    await store.close()


async def test_reader_looks_at_the_file_of_a_running_node_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    store = SqliteStore(file)
    written = await store.put("/a", {"n": 1}, etag=None)
    reader = SqliteStore(file, read_only=True)
    assert await reader.get("/a") == written
    assert [change async for change in reader.changes()] == [Change("/a", 1, written)]
    with pytest.raises(StoreLocked, match="was opened to be read; ask the node"):
        await reader.put("/b", {}, etag=None)
    with pytest.raises(StoreLocked):
        await reader.delete("/a", etag=written.etag)
    later = await store.put("/a", {"n": 2}, etag=written.etag)
    assert await reader.get("/a") == later
    await reader.close()
    await store.close()


def test_reader_of_nothing_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"there is no store at {tmp_path}/entities.db"):
        SqliteStore(tmp_path / "entities.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


async def test_feed_tells_what_is_there_and_then_what_comes_and_ends_with_the_store() -> None:
    store = SqliteStore(":memory:")
    first = await store.put("/a", {"n": 1}, etag=None)
    feed = store.changes()
    assert await anext(feed) == Change("/a", 1, first)
    waiting = asyncio.gather(_next(feed))
    second = await store.put("/b", {}, etag=None)
    assert list(await waiting) == [Change("/b", 2, second)]
    waiting = asyncio.gather(_next(feed))
    assert await store.delete("/a", etag=first.etag) == 3
    assert list(await waiting) == [Change("/a", 3, None)]
    rest = asyncio.gather(_all(feed))
    await asyncio.sleep(0)
    await store.close()
    assert list(await rest) == [[]]


async def _next(feed: AsyncGenerator[Change, None]) -> Change:
    return await anext(feed)


async def _all(feed: AsyncGenerator[Change, None]) -> list[Change]:
    return [change async for change in feed]


async def test_feed_of_many_changes_comes_whole_and_in_order() -> None:
    store = SqliteStore(":memory:")
    for number in range(700):  # more than are read at a time
        await store.put(f"/{number}", {}, etag=None)
    async with aclosing(store.changes(3)) as feed:
        revisions = [(await anext(feed)).revision for _ in range(697)]
    assert revisions == list(range(4, 701))
    await store.close()


async def test_write_that_nobody_waits_for_any_more_still_reaches_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    put = SqliteStore._put

    def slow_put(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return put(*arguments)

    monkeypatch.setattr(SqliteStore, "_put", slow_put)
    store = SqliteStore(":memory:")
    async with aclosing(store.changes()) as feed, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_next(feed))
        writing = tasks.create_task(store.put("/a", {}, etag=None))
        # The reader's first look comes before the write in the worker; it waits when the write has begun.
        assert await asyncio.to_thread(begun.wait, 30)
        writing.cancel()
        go_on.set()
        assert (await reading).id == "/a"
    assert writing.cancelled()
    await store.close()


async def test_old_deletions_are_forgotten_and_a_reader_from_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MARKERS_KEPT", 10)
    store = SqliteStore(":memory:")
    kept = await store.put("/kept", {}, etag=None)
    for number in range(11):
        document = await store.put(f"/{number}", {}, etag=None)
        await store.delete(document.id, etag=document.etag)
    async with aclosing(store.changes()) as feed:
        from_start = [await anext(feed) for _ in range(6)]
    assert from_start[0] == Change("/kept", kept.revision, kept)
    assert [change.document for change in from_start[1:]] == [None] * 5  # the younger half of the markers
    with pytest.raises(ChangesForgotten):
        await anext(store.changes(2))
    async with aclosing(store.changes(from_start[1].revision)) as feed:
        assert await anext(feed) == from_start[2]
    assert await store.revision() == from_start[-1].revision
    await store.close()


async def test_closed_store_says_so() -> None:
    store = SqliteStore(":memory:")
    await store.close()
    await store.close()
    with pytest.raises(StoreClosed):
        await store.get("/a")
    assert [change async for change in store.changes()] == []


async def test_text_of_any_kind_comes_back() -> None:
    store = SqliteStore(":memory:")
    body = {"half a pair": "\ud800", "nul": "\0", "emoji": "😀", "nested": {"list": [1, 2.5, None, True]}}
    document = await store.put("/a", body, etag=None)
    assert document.body == body
    found = await store.get("/a")
    assert found is not None and found.body == body
    await store.close()


# --- what goes wrong with files ---


async def test_full_disk_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "entities.db")
    await store.put("/a", {}, etag=None)
    # The engine's own limit gives the very error of a full disk.
    store._connection.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreFull, match="entities.db cannot grow: the disk is full; make room"):
        await store.put("/big", {"text": "x" * 1_000_000}, etag=None)
    assert await store.get("/big") is None
    assert (await store.put("/small", {}, etag=None)).revision == 2
    await store.close()


async def test_file_that_another_program_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "entities.db")
    store._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(tmp_path / "entities.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreLocked, match="entities.db is locked by another program"):
        await store.put("/a", {}, etag=None)
    other.close()
    await store.put("/a", {}, etag=None)
    await store.close()


async def test_other_errors_of_the_engine_are_told_with_the_file(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "entities.db")
    store._connection.execute("DROP TABLE forgotten")
    with pytest.raises(StoreError, match="entities.db cannot be used: no such table: forgotten; check the disk"):
        await anext(store.changes())
    await store.close()


def test_write_that_ends_after_its_loop_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    put = SqliteStore._put

    def slow_put(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return put(*arguments)

    monkeypatch.setattr(SqliteStore, "_put", slow_put)
    store = SqliteStore(":memory:")

    async def leave_in_the_middle() -> None:
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(store.put("/a", {}, etag=None))
            assert await asyncio.to_thread(begun.wait, 30)
            writing.cancel()

    asyncio.run(leave_in_the_middle())
    go_on.set()

    async def look() -> None:
        assert [document.id for document in await store.list("/")] == ["/a"]
        await store.close()

    asyncio.run(look())


async def test_damage_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    store = SqliteStore(file)
    for number in range(200):
        await store.put(f"/{number}", {"text": "x" * 500}, etag=None)
    await store.close()
    data = bytearray(file.read_bytes())
    data[3 * 4096 : 3 * 4096 + 2000] = b"\xff" * 2000
    file.write_bytes(data)
    with pytest.raises(StoreDamaged, match="entities.db is damaged.*restore a backup"):
        SqliteStore(file)


def test_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreDamaged, match="text.db is no store of Trunkline"):
        SqliteStore(text)
    assert text.read_bytes() == b"no database at all" * 100
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE something (a)")
    connection.close()
    with pytest.raises(StoreDamaged, match="other.db is no store of Trunkline"):
        SqliteStore(other)


async def test_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    await SqliteStore(file).close()
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreDamaged, match="newer version"):
        SqliteStore(file)


def test_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"{tmp_path}/file/entities.db cannot be used: "):
        SqliteStore(tmp_path / "file" / "entities.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=f"{tmp_path}/folder cannot be used: "):
        SqliteStore(tmp_path / "folder")


async def test_store_that_could_not_be_opened_is_not_owned(tmp_path: Path) -> None:
    file = tmp_path / "entities.db"
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreDamaged):
        SqliteStore(file)
    file.unlink()
    await SqliteStore(file).close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a file that is in use")
@pytest.mark.parametrize("replaced", [False, True])
async def test_file_that_was_removed_or_replaced_takes_no_changes(replaced: bool, tmp_path: Path) -> None:
    """They would be acknowledged, and gone with the process."""
    file = tmp_path / "entities.db"
    store = SqliteStore(file)
    document = await store.put("/kept", {"a": 1}, etag=None)
    file.rename(tmp_path / "elsewhere")
    if replaced:
        file.write_bytes((tmp_path / "elsewhere").read_bytes())
    for change in (store.put("/lost", {}, etag=None), store.delete("/kept", etag=document.etag)):
        with pytest.raises(StoreError, match=rf"{file} was removed or replaced .* restart the node"):
            await change
    assert [each.id for each in await store.list("/")] == ["/kept"]
    (tmp_path / "elsewhere").rename(file)
    await store.put("/more", {}, etag=None)
    await store.close()
