"""Where documents are kept: the interface that SQLite fills on one node and a NATS key-value bucket in a cluster.

So it asks for nothing that a key-value bucket with revisions cannot give: no transaction over two documents,
every write a compare-and-set, and a feed that shows the latest version of each document in the order of
revisions (a version that was replaced before it was read may never be seen).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trunkline.protocol.errors import RelayError


class StoreError(RelayError):
    """The store cannot do what it was asked; the message names the file and says what to do."""

    code = "StoreError"
    default_message = "The store failed"


class StoreLocked(StoreError):
    """Another process owns the file."""

    code = "StoreLocked"
    status = 503
    transient = True
    default_message = "Another process owns the store"


class StoreFull(StoreError):
    """The disk is full, or a quota is used up. Nothing was written."""

    code = "StoreFull"
    status = 507  # RFC 4918 section 11.5
    transient = True
    default_message = "There is no room to write"


class StoreDamaged(StoreError):
    """The file is no store, is damaged, or was made by a newer version."""

    code = "StoreDamaged"
    default_message = "The store cannot be read"


class StoreClosed(StoreError):
    """The store was closed; the node is shutting down."""

    code = "StoreClosed"
    status = 503
    transient = True
    default_message = "The store is closed"


class ChangesForgotten(StoreError):
    """`EntityStore.changes` was asked to go on from a point whose deletions are forgotten: begin again at 0."""

    code = "ChangesForgotten"
    status = 410
    default_message = "The changes since then are forgotten; read everything again"


class EtagMismatch(RelayError):
    """The document is not (any more) the one that the writer had read. Read it again and decide again."""

    code = "EtagMismatch"
    status = 412
    default_message = "The entity was changed in the meantime"


@dataclass(frozen=True, slots=True)
class Document:
    """One kept document."""

    #: In the spelling of its creation.
    id: str
    #: Opaque; changes with every write.
    etag: str
    #: Grows with every write to the store.
    revision: int
    #: What JSON can hold; not shown, because it holds keys.
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What the feed says about one id: there is this document now, or there is none."""

    id: str
    revision: int
    #: None: deleted.
    document: Document | None


class EntityStore(Protocol):
    """Ids are compared without regard to case (ASCII). Everything raises StoreError when the engine fails."""

    async def get(self, id: str) -> Document | None:
        """The document with that id, or None."""
        ...

    async def put(self, id: str, body: Mapping[str, Any], *, etag: str | None) -> Document:
        """Writes a document; it is durable when this returns.

        Parameters
        ----------
        body: what JSON can hold.
        etag: of the version that the writer has read; None: there must be none yet.

        Raises EtagMismatch when that is not so. A write that was cancelled may or may not have happened.
        """
        ...

    async def delete(self, id: str, *, etag: str) -> int:
        """Removes the version that the writer has read, and gives the revision of that. Raises EtagMismatch."""
        ...

    async def list(self, prefix: str) -> tuple[Document, ...]:
        """Every document whose id begins with ``prefix``, by id. End the prefix with a slash to stay in a folder."""
        ...

    async def revision(self) -> int:
        """The revision of the latest change; 0 in an empty store."""
        ...

    def changes(self, after: int = 0) -> AsyncGenerator[Change, None]:
        """The latest change of each document that was changed after a revision, then every new one as it comes.

        Ends when the store is closed. To go on later, ask again after the last revision seen; whoever stops
        before the end calls ``aclose``.
        Raises ChangesForgotten when ``after`` lies too far back for deletions to be known.
        """
        ...

    async def close(self) -> None:
        """Ends every feed, finishes what was begun and lets go of the file. May be called twice."""
        ...
