"""A sender that asks for a connection, as the listener's accept handler sees it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import NamedTuple

from trunkline.protocol import urls
from trunkline.protocol.errors import InvalidRequest, InvalidSetting, InvalidUrl
from trunkline.protocol.messages import Accept


class CaseInsensitiveHeaders(Mapping[str, str]):
    """Headers by name in any case; iterating gives the names as they were sent."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.lower(): (name, value) for name, value in headers.items()}

    def __getitem__(self, name: str) -> str:
        return self._headers[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._headers.values())

    def __len__(self) -> int:
        return len(self._headers)

    def items(self) -> ItemsView[str, str]:
        return dict(self._headers.values()).items()  # in one step: hosted applications read all of them each time

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._headers

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"  # names only: values may be credentials


class Rejection(NamedTuple):
    """What a sender is told instead of being connected."""

    status: int
    reason: str


class IncomingConnection:
    """What a sender asked for. The accept handler gets it; later it is `Connection.request`."""

    def __init__(self, accept: Accept, entity_path: str) -> None:
        self._id = accept.id
        self._headers = CaseInsensitiveHeaders(accept.connect_headers)
        self._remote_address = (accept.remote_endpoint.address, accept.remote_endpoint.port)
        self._suffix, self._query = _suffix_and_query(accept.address, entity_path)
        offered = self._headers.get("Sec-WebSocket-Protocol", "")
        self._subprotocols = tuple(name.strip() for name in offered.split(",") if name.strip())
        # The first one unless the handler says otherwise, as .NET and hyco-ws do; browsers fail when none is chosen.
        self._subprotocol = self._subprotocols[0] if self._subprotocols else None
        self._rejection: Rejection | None = None

    def __repr__(self) -> str:
        rejected = f" rejected={self._rejection.status}" if self._rejection else ""
        return f"<IncomingConnection from={self._remote_address[0]} suffix={self._suffix!r} id={self._id}{rejected}>"

    @property
    def tracking_id(self) -> str:
        """Names this connection in the relay's log lines and errors."""
        return self._id

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's headers, by name in any case; repeated ones are joined with ``", "``."""
        return self._headers

    @property
    def suffix(self) -> str:
        """What the sender appended to the path of the hybrid connection: no slash in front, escapes as sent."""
        return self._suffix

    @property
    def query(self) -> str:
        """The sender's own query as sent, without ``?`` and without the relay's parameters."""
        return self._query

    @property
    def remote_address(self) -> tuple[str, int]:
        """IP address and port of the sender, as the relay saw them; ``("", 0)`` if it did not say."""
        return self._remote_address

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The WebSocket subprotocols that the sender offers, in its order of preference."""
        return self._subprotocols

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol of the connection: the first one offered, unless the handler sets another, or None."""
        return self._subprotocol

    @subprotocol.setter
    def subprotocol(self, name: str | None) -> None:
        if name is not None and name not in self._subprotocols:
            raise InvalidSetting(f"The sender does not offer the subprotocol {name!r}, only {list(self._subprotocols)}")
        self._subprotocol = name

    @property
    def rejection(self) -> Rejection | None:
        """What `reject` was called with; None while the connection is welcome."""
        return self._rejection

    def reject(self, status: int = 400, reason: str = "Rejected by user code") -> None:
        """Refuse the connection once the handler returns.

        Args:
            status: HTTP status that the sender gets, 200 to 599.
            reason: reason phrase that it gets, unchanged; the relay makes it one line of Latin-1.

        Raises:
            InvalidSetting: the relay would not pass `status` on.
        """
        if not 200 <= status <= 599:
            raise InvalidSetting(f"status is {status}; a sender can be given 200 to 599")
        self._rejection = Rejection(status, reason)


def _suffix_and_query(address: str, entity_path: str) -> tuple[str, str]:
    """What the sender added to the hybrid connection's path, and its own query, from the rendezvous address."""
    try:
        target = urls.parse_target(address)
    except (InvalidUrl, InvalidRequest):  # it is dialled as it is; only its meaning stays unknown
        return "", ""
    wanted = entity_path.lower()
    found = urls.match_entity(target.segments, target.raw_segments, lambda path: path.lower() == wanted)
    return found[1] if found else "", target.query
