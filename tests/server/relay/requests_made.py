"""Plain HTTP requests as the journal sees them, without a socket."""

from __future__ import annotations

from collections.abc import Iterable

from server.relay.peers import Relay, handshake, token
from trunkline.server.relay.admission import Admitted
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.request_head import parse_head
from trunkline.server.relay.request_record import RequestRecord

# What makes a plain request of a handshake.
LEFT_OUT = ("Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key")


def asked(
    target: str = "/orders/secret?also=secret", headers: Iterable[tuple[str, str]] = (), *, method: str = "GET"
) -> Exchange:
    """A request whose head is whole."""
    signed = [("ServiceBusAuthorization", token()), ("User-Agent", "library/1.0"), *headers]
    head = parse_head(handshake(target, signed, without=LEFT_OUT, method=method))
    return Exchange(None, head, ("192.0.2.1", 4711), False)  # type: ignore[arg-type]


def begun(relay: Relay, *, method: str = "GET") -> RequestRecord:
    """A request that was let in."""
    exchange = asked(method=method)
    admitted = relay.admission.admit(exchange)
    assert isinstance(admitted, Admitted)
    return relay.journal.request_began(admitted, exchange, "id-9")
