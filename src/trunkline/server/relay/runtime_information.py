"""What the .NET client of Azure Relay asks of a hybrid connection: `GetRuntimeInformationAsync`.

    GET /PATH?api-version=2016-07        X-PROCESS-AT: ServiceBus, and a token

The answer is an Atom entry whose content is a `HybridConnectionDescription`. .NET reads it with a serializer that
passes over an element in the wrong place, so their order is fixed (read in azure-relay-dotnet). Refusals are XML as
well: the client shows `Detail`, and makes its exceptions of the status, 403 being "quota exceeded" to it.

Such a request is never relayed, whatever its method.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from trunkline.protocol.errors import AccessDenied, RelayError
from trunkline.protocol.limits import Limits
from trunkline.server.entities.model import HybridConnection
from trunkline.server.relay.exchange import Exchange
from trunkline.server.relay.request_head import RequestHead

HEADER = "X-PROCESS-AT"
_VALUE = "servicebus"

ENTRY_TYPE = "application/atom+xml;type=entry;charset=utf-8"
ERROR_TYPE = "application/xml;charset=utf-8"
ATOM = "http://www.w3.org/2005/Atom"
DESCRIPTION = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"

# What XML 1.0 cannot hold, not even escaped (section 2.2).
_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def is_inquiry(head: RequestHead) -> bool:
    """Whether a plain HTTP request asks the relay, and not a listener."""
    value = head.get(HEADER)
    return value is not None and value.strip().lower() == _VALUE


def entry(entity: HybridConnection, limits: Limits, listener_count: int) -> bytes:
    """The Atom entry.

    Args:
        entity: what is asked about.
        limits: in force on it.
        listener_count: registered listeners at this moment.
    """
    known: list[tuple[str, str | None]] = [
        ("CreatedAt", _moment(entity.created_at)),
        ("UpdatedAt", _moment(entity.updated_at)),
        ("RequiresClientAuthorization", "true" if limits.requires_client_authorization else "false"),
        ("UserMetadata", entity.user_metadata),
        ("ListenerCount", str(listener_count)),
    ]
    elements = "".join(f"<{name}>{_text(value)}</{name}>" for name, value in known if value is not None)
    return (
        f'<entry xmlns="{ATOM}"><title type="text">{_text(entity.name)}</title><content type="application/xml">'
        f'<HybridConnectionDescription xmlns="{DESCRIPTION}">{elements}</HybridConnectionDescription>'
        "</content></entry>"
    ).encode()


def refuse(exchange: Exchange, error: RelayError, phrase: str) -> None:
    """Answer an inquiry with an error, in the form that the client reads."""
    # To .NET a 403 says that a quota is exceeded.
    status = 401 if isinstance(error, AccessDenied) else error.status
    body = f"<Error><Code>{status}</Code><Detail>{_text(phrase)}</Detail></Error>".encode()
    exchange.respond(status, phrase, body=body, content_type=ERROR_TYPE)


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _text(value: str) -> str:
    """Escaped. A carriage return would be read as a line feed, and what no XML can hold becomes a question mark."""
    return escape(_NO_XML.sub("?", value), {"\r": "&#13;"})
