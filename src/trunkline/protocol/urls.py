"""Addresses of the relay: reading those that arrive, writing those that are handed out.

    /$hc/PATH[/SUFFIX]?[user query&]sb-hc-action=connect&sb-hc-id=ID&sb-hc-token=TOKEN      WebSocket
    /PATH[/SUFFIX]?[user query&]sb-hc-token=TOKEN                                           plain HTTP

PATH names the hybrid connection and may hold slashes; what follows it, and the user's own query, pass through byte
for byte. The entity is looked up segment by segment, each decoded by itself, so an escaped slash never becomes a
border between two, and a target that could climb above its entity (``..``, escaped or not) is refused: the
decoded path reaches listeners that resolve it against a base.

Parameter names are fixed by the clients (``sb-hc-...``) and compared without case, as are the four actions.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from trunkline.protocol.errors import InvalidRequest, InvalidUrl
from trunkline.protocol.limits import ENTITY_PATH_LIMIT
from trunkline.protocol.records import record

_PREFIX = "sb-hc-"
_ACTION = "sb-hc-action"
_ID = "sb-hc-id"
_TOKEN = "sb-hc-token"
# Our own. Any sb-hc- name will do: .NET and Java then hide it from the application (seen in the real clients).
_RENDEZVOUS = "sb-hc-rendezvous"

_RELAY_PATH = re.compile(r"/+(?:\$|%24)hc(?:/+|$)", re.IGNORECASE)
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://[^/?]*", re.IGNORECASE)
# What RFC 3986 never allows in a URL; everything below and including the space, DEL and what is not ASCII.
_FORBIDDEN = re.compile(r"[^!-~]|#")
# What cannot stand in a query or path as it is, but is sent bare by browsers; Java's URI class throws on it.
_UNSAFE = re.compile(r'[^!-~]|["#<>\\^`{|}]|%(?![0-9A-Fa-f]{2})')
# A segment that means its parent, on its own or once an escaped slash in it is decoded.
_PARENT = re.compile(r"(?:^|[/\\])\.\.(?:$|[/\\])")
_NON_ASCII_ESCAPE = re.compile(r"%[89A-Fa-f][0-9A-Fa-f]")
_GUID = re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")
# What follows it in the ids of the real service, and of .NET: "_G12_G34".
_TRACKING_ID = re.compile(_GUID.pattern + r"[A-Za-z0-9._-]{0,64}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._~-]")


def _escapable(name: str) -> str:
    """A pattern for a name that any of its characters may be percent-encoded in, to be compiled with IGNORECASE."""
    return "".join(f"(?:{char}|%{ord(char):02x}|%{ord(char.upper()):02x})" for char in name)


# A part of a query that is the relay's: it has a "=", and its name begins so. Found in one scan: to split and decode
# a query of 32 KiB part by part took 28 ms.
_OWN_PART = re.compile(rf"(?:^|&)({_escapable(_PREFIX)}[^&=]*)=([^&]*)", re.IGNORECASE)
_STATUS_PART = re.compile(
    rf"(?:^|&)({_escapable('statuscode')}|{_escapable('statusdescription')})=([^&]*)", re.IGNORECASE
)
# Stands for an escaped slash while a path is decoded and split; no decoded text holds it.
_SLASH = "\udc2f"
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]")
_PATH_SAFE = "/!$&'()*+,;=:@-._~"


class Action(enum.StrEnum):
    """What a WebSocket on ``/$hc/`` is for."""

    LISTEN = "listen"
    CONNECT = "connect"
    ACCEPT = "accept"
    REQUEST = "request"


@record
class RelayTarget:
    """A request target below ``/$hc/``. Empty parameters count as absent, of repeated ones the first holds."""

    #: Path after the prefix, without leading slash, as sent.
    raw_path: str
    #: Path segments, percent-decoded, empty ones left out.
    segments: tuple[str, ...]
    #: All segments of `raw_path` as sent: the same up to the first empty one.
    raw_segments: tuple[str, ...]
    #: CONNECT when the address does not say: Microsoft's own test connects a sender without it.
    action: Action
    #: ``sb-hc-id``; may be any text, see `tracking_guid`.
    id: str | None
    #: ``sb-hc-token``, form-decoded ("+" is a space: seen in the real service).
    token: str | None = field(repr=False)
    #: ``sb-hc-rendezvous``, the capability in an accept or request address.
    secret: str | None = field(repr=False)
    #: Status and words of a rejection. hyco-websocket leaves out the prefix: understood behind the secret only,
    #: because in front of it is the sender's own query, which may use these names.
    status_code: str | None
    status_description: str | None
    #: The user's own query, see `user_query`.
    query: str


@record
class HttpTarget:
    """Any other request target: a plain HTTP request for a hybrid connection, or for nothing that exists."""

    #: Path without leading slash, as sent.
    raw_path: str
    #: Path segments, percent-decoded, empty ones left out.
    segments: tuple[str, ...]
    #: All segments of `raw_path` as sent.
    raw_segments: tuple[str, ...]
    #: The user's own query; escapes of non-ASCII bytes in upper case, as the real service hands them on.
    query: str
    #: ``sb-hc-token``, form-decoded.
    token: str | None = field(repr=False)


def parse_target(target: str) -> RelayTarget | HttpTarget:
    """Read the target of a request line, in origin form or absolute form (RFC 9112 section 3.2).

    Parameters
    ----------
    target: as sent, each byte one character.

    Raises InvalidUrl: another form, a character that must be escaped, no path below ``/$hc/``, a path that climbs.
    Raises InvalidRequest: an unknown ``sb-hc-action``.
    """
    if not target.startswith("/"):
        absolute = _ABSOLUTE.match(target)
        if absolute:
            target = target[absolute.end() :]
            target = target if target.startswith("/") else "/" + target
    if not target.startswith("/"):
        raise InvalidUrl("The address is malformed: it must begin with a slash")
    if _FORBIDDEN.search(target):
        raise InvalidUrl("The address is malformed: it holds characters that must be percent-encoded")
    path, _, query = target.partition("?")
    prefix = _RELAY_PATH.match(path)
    raw_path = path[prefix.end() :] if prefix else path.lstrip("/")
    raw_segments = tuple(raw_path.split("/")) if raw_path else ()
    if _climbs(raw_path):
        raise InvalidUrl("The address is malformed: its path must not hold '..'")
    segments = _segments(raw_path)
    parameters = _parameters(query) if query else {}
    if prefix is None:
        query = user_query(query)
        if "%" in query:
            query = _NON_ASCII_ESCAPE.sub(lambda escape: escape.group().upper(), query)
        return HttpTarget(raw_path, segments, raw_segments, query, parameters.get(_TOKEN))
    if not segments:
        raise InvalidUrl("The address is malformed: it names no hybrid connection")
    action = parameters.get(_ACTION, Action.CONNECT).lower()
    if action not in set(Action):
        raise InvalidRequest("The sb-hc-action must be listen, connect, accept or request")
    return RelayTarget(
        raw_path=raw_path,
        segments=segments,
        raw_segments=raw_segments,
        action=Action(action),
        id=parameters.get(_ID),
        token=parameters.get(_TOKEN),
        secret=parameters.get(_RENDEZVOUS),
        status_code=parameters.get("sb-hc-statuscode", parameters.get("statuscode")),
        status_description=parameters.get("sb-hc-statusdescription", parameters.get("statusdescription")),
        query=user_query(query),
    )


def user_query(query: str) -> str:
    """``query`` without the relay's own parameters, byte for byte.

    A part goes if it has a "=" and its name, decoded, begins with ``sb-hc-`` in any case; every other part stays,
    empty ones and a bare ``sb-hc-x`` included (asserted by Microsoft's own tests).

    Parameters
    ----------
    query: without the "?".
    """
    if not query:
        return query
    rest = _OWN_PART.sub("", query)
    # Of a part that goes, the "&" in front of it goes too; the first one has none.
    return rest[1:] if not query.startswith("&") and _OWN_PART.match(query) else rest


def match_entity(
    segments: Sequence[str], raw_segments: Sequence[str], exists: Callable[[str], bool]
) -> tuple[str, str] | None:
    """The entity that a target means: the longest path in front that exists, and the rest.

    Parameters
    ----------
    segments, raw_segments: of a parsed target.
    exists: tells whether there is an entity of that path; decides about case.

    Returns the path, decoded and spelled as sent, and the suffix exactly as sent (without the slash between; empty
    for one trailing slash); None when no entity is there. A segment that is empty, or holds a slash, a backslash
    or a dot segment once decoded, is never part of an entity.
    """
    candidates: list[str] = []
    path = ""
    for segment, raw in zip(segments, raw_segments, strict=False):
        if not raw or segment in (".", "..") or "/" in segment or "\\" in segment:
            break
        path = f"{path}/{segment}" if path else segment
        if len(path) > ENTITY_PATH_LIMIT:
            break
        candidates.append(path)
    for count in range(len(candidates), 0, -1):
        if exists(candidates[count - 1]):
            return candidates[count - 1], "/".join(raw_segments[count:])
    return None


def accept_address(base: str, entity: str, suffix: str, query: str, *, action: Action, id: str, secret: str) -> str:
    """The address of a rendezvous, for ``accept`` (and ``request``) commands.

    Always holds a "?", is always a valid URL (Java throws on others, and on a second "=" in a decoded pair), and
    begins with the user's query, so that what follows is the relay's own.

    Parameters
    ----------
    base: ``wss://host:port`` as the listener reaches this node.
    entity: path of the entity, decoded.
    suffix, query: of the sender, as sent; only what no URL may hold is escaped.
    action: ACCEPT or REQUEST.
    id: tracking id; characters other than letters, digits and ``-._~`` become ``_``.
    secret: url-safe text without "=".
    """
    own = f"{_ACTION}={action}&{_ID}={_NOT_PLAIN.sub('_', id)}&{_RENDEZVOUS}={quote(secret, safe='')}"
    return _relay_url(base, entity, suffix, query, own)


def request_address(base: str, entity: str, *, id: str, secret: str) -> str:
    """The address of the rendezvous of a plain HTTP request: `accept_address` for ``request``.

    Without the sender's suffix and query, which are in the request itself. One is made for each request, so what is
    the same for all of an entity is made once.
    """
    return f"{_request_prefix(base, entity)}{_NOT_PLAIN.sub('_', id)}&{_RENDEZVOUS}={secret}"


@functools.lru_cache(maxsize=1_024)
def _request_prefix(base: str, entity: str) -> str:
    return _relay_url(base, entity, "", "", f"{_ACTION}={Action.REQUEST}&{_ID}=")


def rejection_address(address: str, status: int, description: str) -> str:
    """The rendezvous address by which a listener says no, form-encoded as .NET does.

    Parameters
    ----------
    address: as received with ``accept``.
    status: HTTP status for the sender.
    description: reason phrase for the sender.
    """
    joint = "&" if "?" in address else "?"
    words = quote_plus(description, errors="replace")
    return f"{address}{joint}sb-hc-statusCode={status}&sb-hc-statusDescription={words}"


def listen_url(base: str, path: str, *, id: str | None = None, token: str | None = None) -> str:
    """The address of a control channel.

    Parameters
    ----------
    base: ``wss://host:port``.
    path: path of the hybrid connection, decoded.
    id: tracking id.
    token: goes into the query; prefer the header ``ServiceBusAuthorization``, which no log shows.
    """
    return _relay_url(base, path, "", "", _own(Action.LISTEN, id, token))


def connect_url(
    base: str, path: str, *, suffix: str = "", query: str = "", id: str | None = None, token: str | None = None
) -> str:
    """The address of a sender.

    Parameters
    ----------
    base, path, id, token: as in `listen_url`.
    suffix: further path for the listener; escapes in it stay as they are.
    query: the application's own query without "?"; relay parameters in it are left out.
    """
    return _relay_url(base, path, suffix.removeprefix("/"), user_query(query), _own(Action.CONNECT, id, token))


def base_url(host: str, port: int | None, *, secure: bool) -> str:
    """``wss://host:port`` (``ws`` when not secure), as the functions above take it.

    Parameters
    ----------
    host: name or IP address without brackets.
    port: None for the default of the scheme.
    secure: whether TLS is used.
    """
    name = f"[{host}]" if ":" in host else host
    return f"{'wss' if secure else 'ws'}://{name}{'' if port is None else f':{port}'}"


def parse_address(text: str) -> tuple[str, int | None, str, bool]:
    """Read an address as users write it: ``sb://host[:port]/path``, or ``wss``, ``ws``, ``https``, ``http``.

    A ``$hc/`` in front of the path is dropped, query and fragment do not count.

    Returns host (lower case, without brackets), port or None, path (decoded, no slash at its ends) and whether TLS
    is used; ``sb`` means TLS, as with all SDKs of Azure Relay.

    Raises InvalidUrl; the text is not shown, it may hold a token.
    """
    found = re.fullmatch(r"(sb|wss?|https?)://([^/?#]*)([^?#]*)(?:[?#].*)?", text.strip(), re.IGNORECASE | re.DOTALL)
    if found is None:
        raise InvalidUrl("The address must look like sb://host[:port]/path (or wss, ws, https, http)")
    scheme, authority, raw_path = found.groups()
    host, port = split_authority(authority)
    prefix = _RELAY_PATH.match(raw_path)
    raw_path = raw_path[prefix.end() :] if prefix else raw_path
    if _climbs(raw_path):
        raise InvalidUrl("The path of the address must not hold '..'")
    return host, port, unquote(raw_path).strip("/"), scheme.lower() in ("sb", "wss", "https")


@functools.lru_cache(maxsize=1_024)
def split_authority(authority: str) -> tuple[str, int | None]:
    """Host (lower case, without brackets) and port of ``host[:port]``, for example of a Host header.

    Raises InvalidUrl: no host, characters that no host has (write an international name in its ``xn--`` form), a
    port that is not 1 to 65535, or a user name in front of the host.
    """
    host, port = authority, ""
    if "@" in authority:
        raise InvalidUrl("The address must not hold a user name or password")
    if ":" in authority and not authority.endswith("]"):
        host, _, port = authority.rpartition(":")
    if not _HOST.fullmatch(host):
        raise InvalidUrl("The host of the address is malformed")
    if not port:  # "host:" is allowed (RFC 3986 section 3.2.3)
        return host.strip("[]").lower(), None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        raise InvalidUrl("The port of the address must be a number from 1 to 65535")
    return host.strip("[]").lower(), int(port)


def tracking_guid(id: str | None) -> str | None:
    """The GUID of 36 characters that ``id`` begins with, as spelled, or None.

    .NET and Java send one as ``sb-hc-id``, sometimes with ``_G12`` behind it; Java cannot read an id without one.
    """
    found = _GUID.match(id) if id else None
    return found.group() if found else None


def tracking_id(id: str | None) -> str | None:
    """``id`` if it can name a connection in log lines and messages, else the GUID it begins with, or None.

    An id comes from the peer and may hold anything: what is kept is a GUID and up to 64 plain characters.
    """
    return id if id and _TRACKING_ID.fullmatch(id) else tracking_guid(id)


def _parameters(query: str) -> dict[str, str]:
    """The relay's parameters by their names in lower case, form-decoded, the first of each; none that is empty."""
    found: dict[str, str] = {}
    after_secret = -1
    for part in _OWN_PART.finditer(query):
        name = unquote_plus(part[1]).lower()
        value = unquote_plus(part[2])
        if value and name not in found:
            found[name] = value
            if name == _RENDEZVOUS:
                after_secret = part.end()
    if after_secret >= 0:
        for part in _STATUS_PART.finditer(query, after_secret):
            value = unquote_plus(part[2])
            if value:
                found.setdefault(unquote_plus(part[1]).lower(), value)
    return found


def _segments(raw_path: str) -> tuple[str, ...]:
    """The segments of a path, each decoded by itself, without empty ones."""
    if "%" not in raw_path:
        return tuple(filter(None, raw_path.split("/")))
    # All at once, which is much cheaper where there are thousands; an escaped slash is no border.
    decoded = unquote(raw_path.replace("%2F", _SLASH).replace("%2f", _SLASH))
    segments = tuple(segment for segment in decoded.split("/") if segment)
    return tuple(segment.replace(_SLASH, "/") for segment in segments) if _SLASH in decoded else segments


def _decodings(path: str) -> Iterator[str]:
    """``path`` as sent and after each further decoding that a listener may do, at most three."""
    for _ in range(4):
        yield path
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded


def _climbs(raw: str) -> bool:
    """Whether a segment of a path, or a part of one once decoded, means its parent."""
    if "%" not in raw:
        return ".." in raw and _PARENT.search(raw) is not None
    return any(_PARENT.search(form) for form in _decodings(raw))


def _own(action: Action, id: str | None, token: str | None) -> str:
    parts = [f"{_ACTION}={action}"]
    if id:
        parts.append(f"{_ID}={quote(id, safe='', errors='replace')}")
    if token:
        parts.append(f"{_TOKEN}={quote(token, safe='', errors='replace')}")
    return "&".join(parts)


def _relay_url(base: str, entity: str, suffix: str, query: str, own: str) -> str:
    path = quote(entity.strip("/"), safe=_PATH_SAFE, errors="replace")
    rest = f"/{_escaped(suffix)}" if suffix else ""
    user = f"{_escaped(query)}&" if query else ""
    return f"{base.rstrip('/')}/$hc/{path}{rest}?{user}{own}"


def _escaped(text: str) -> str:
    """``text`` with only that escaped which no URL may hold; existing escapes stay."""
    return _UNSAFE.sub(lambda char: quote(char.group(), safe="", errors="replace"), text)
