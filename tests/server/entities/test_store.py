"""Any store against the simplest one there could be: a dict and a number."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline.server.entities.sqlite import SqliteStore
from trunkline.server.entities.store import Document, EtagMismatch

T = TypeVar("T")

IDS = st.sampled_from(["/a", "/A", "/a/b", "/a/B", "/ab", "/b/c", "/b/c/d", "/B_", "/b%"])
VALUES = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.booleans(), max_size=2)
BODIES = st.dictionaries(st.text(max_size=3), VALUES, max_size=2)


class StoreAgainstADict(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.store = SqliteStore(":memory:")
        #: By lower-case id.
        self.expected: dict[str, Document] = {}
        self.etags = {"0"}
        self.revision = 0
        #: A reader of the feed that comes by now and then, and what it believes.
        self.seen = 0
        self.believed: dict[str, Document] = {}

    def run_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def refused(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            self.run_(work)
        except EtagMismatch:
            return
        raise AssertionError("a write against another version was taken")

    @rule(id=IDS, body=BODIES)
    def create(self, id: str, body: dict[str, Any]) -> None:
        if id.lower() in self.expected:
            self.refused(self.store.put(id, body, etag=None))
        else:
            self.wrote(id, body, self.run_(self.store.put(id, body, etag=None)))

    @rule(id=IDS, body=BODIES, data=st.data())
    def replace(self, id: str, body: dict[str, Any], data: st.DataObject) -> None:
        etag = data.draw(st.sampled_from(sorted(self.etags)))
        before = self.expected.get(id.lower())
        if before is None or before.etag != etag:
            self.refused(self.store.put(id, body, etag=etag))
        else:
            self.wrote(before.id, body, self.run_(self.store.put(id, body, etag=etag)))

    @precondition(lambda self: self.expected)
    @rule(body=BODIES, data=st.data())
    def replace_current(self, body: dict[str, Any], data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(list(self.expected.values())))
        self.wrote(before.id, body, self.run_(self.store.put(before.id.upper(), body, etag=before.etag)))

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        before = data.draw(st.sampled_from(list(self.expected.values())))
        revision = self.run_(self.store.delete(before.id.upper(), etag=before.etag))
        assert revision > self.revision
        self.revision = revision
        del self.expected[before.id.lower()]

    @rule(id=IDS, data=st.data())
    def delete_another_version(self, id: str, data: st.DataObject) -> None:
        before = self.expected.get(id.lower())
        etag = data.draw(st.sampled_from(sorted(self.etags - ({before.etag} if before else set()))))
        self.refused(self.store.delete(id, etag=etag))

    def wrote(self, id: str, body: dict[str, Any], document: Document) -> None:
        assert (document.id, document.body) == (id, body)
        assert document.revision > self.revision and document.etag not in self.etags
        self.revision = document.revision
        self.etags.add(document.etag)
        self.expected[id.lower()] = document

    @rule(prefix=st.sampled_from(["", "/", "/a", "/A/", "/b/", "/b/c/", "/b_", "/c", "/b%"]))
    def list(self, prefix: str) -> None:
        found = self.run_(self.store.list(prefix))
        keys = sorted(key for key in self.expected if key.startswith(prefix.lower()))
        assert found == tuple(self.expected[key] for key in keys)

    @rule()
    def read_the_feed(self) -> None:
        async def read() -> None:
            async with aclosing(self.store.changes(self.seen)) as feed:
                while self.seen < self.revision:
                    change = await anext(feed)
                    assert change.revision > self.seen
                    self.seen = change.revision
                    if change.document is None:
                        self.believed.pop(change.id.lower(), None)
                    else:
                        assert change.document.revision == change.revision
                        self.believed[change.id.lower()] = change.document

        self.run_(read())
        assert self.believed == self.expected

    @invariant()
    def everything_is_found_in_any_case(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.run_(self.store.revision()) == self.revision
        for key, document in self.expected.items():
            assert self.run_(self.store.get(key.upper())) == document

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
            self.runner.close()


StoreAgainstADict.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestStoreAgainstADict = StoreAgainstADict.TestCase
