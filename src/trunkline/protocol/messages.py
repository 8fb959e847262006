"""The commands of the control channel, all of them.

    relay -> listener    accept          a sender waits; open a WebSocket to this address
                         request         an HTTP request, or the address to fetch a large one from
    listener -> relay    response        the answer to a request
                         renewToken      a fresh token, before the old one expires

Each command is one text message with one JSON object that has exactly one top-level key (Azure Relay protocol
page, "Control channel"). A request or response with ``body: true`` is followed at once by one binary message. There
is no reply to accept, which the listener answers by coming or not, nor to renewToken, unless it fails: close 1008.

The relay writes strictly, because clients are easily upset (Java throws on an unknown key, .NET hangs above 64 KiB),
and reads leniently, because they write loosely. Text that cannot be used at all raises InvalidMessage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NoReturn

from trunkline.protocol.errors import InvalidMessage, clean_phrase
from trunkline.protocol.records import record


@record
class RemoteEndpoint:
    """Where the sender connected from."""

    #: IP address without brackets or port (.NET ignores anything else); empty when the relay did not say.
    address: str
    #: TCP port; 0 when the relay did not say.
    port: int


@record
class Accept:
    """A sender waits for a listener. Sent by the relay; "offer" in the words of the documentation."""

    #: URL of the rendezvous, to be used as it is. Always has a "?", because SDKs append "&name=value" to reject.
    address: str = field(repr=False)  # holds the secret of the rendezvous
    #: Tracking id. Begins with a GUID, or Java throws it away and the sender waits in vain.
    id: str
    #: All headers of the sender, repeated ones joined; hyco-ws needs Sec-WebSocket-Key among them.
    connect_headers: Mapping[str, str] = field(repr=False)  # may hold credentials of the application
    #: Never left out: Java drops its control channel without it.
    remote_endpoint: RemoteEndpoint


@record
class Request:
    """An HTTP request for the listener, or, with address and id alone, the place to fetch one from."""

    #: Rendezvous for the request, or for an answer too large for the control channel; empty when not given.
    address: str = field(repr=False)
    #: Comes back as `Response.request_id`; begins with a GUID (Java).
    id: str
    #: Path and query; None in the short form, as are method and body.
    request_target: str | None = None
    #: .NET and Java know the full form by ``body``, Node by ``method``: both are there, or neither.
    method: str | None = None
    request_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    remote_endpoint: RemoteEndpoint | None = None
    #: Whether a binary message follows.
    body: bool | None = None


@record
class Response:
    """A listener's answer to a request."""

    request_id: str
    #: 100 to 999; Microsoft's tests send 306, 418, 450 and 504. May arrive as text (the protocol page does so).
    status_code: int
    #: Reason phrase, one line of Latin-1; None when the listener gave none.
    status_description: str | None = None
    #: Names as spelled; a name may come several times (an array in the JSON: Node hands on what the app sets).
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    #: Whether a binary message follows. hyco-https sends an empty one even after ``false``.
    body: bool = False


@record
class RenewToken:
    """A fresh token from a listener, in any form that a header may hold; not checked here."""

    #: Java sends the name of one of its classes instead (a bug there): that is checked, and refused, as any other.
    token: str = field(repr=False)


Command = Accept | Request | Response | RenewToken


def encode(command: Command) -> str:
    """``command`` as the text of a WebSocket message.

    ASCII only, so its length is its size in bytes; whether it is too long to be sent (`CONTROL_MESSAGE_LIMIT`) is
    the caller's to decide. What is None, and an address that is empty, is left out. A header that a response repeats
    is joined with ", ", which Azure Relay understands too.
    """
    if isinstance(command, Request):
        return _request(command)
    body: dict[str, Any]
    if isinstance(command, Accept):
        name = "accept"
        body = {
            "address": command.address,
            "id": command.id,
            "connectHeaders": dict(command.connect_headers),
            "remoteEndpoint": _endpoint(command.remote_endpoint),
        }
    elif isinstance(command, Response):
        name = "response"
        body = {"requestId": command.request_id, "statusCode": command.status_code}
        if command.status_description is not None:
            body["statusDescription"] = command.status_description
        body |= {"responseHeaders": _joined(command.headers), "body": command.body}
    else:
        name = "renewToken"
        body = {"token": command.token}
    return _ENCODER.encode({name: body})


def _request(request: Request) -> str:
    """A request as text, put together by hand: one is written for each small request, and so it costs a third."""
    address = f'"address":{_quoted(request.address)},' if request.address else ""
    if request.method is None:
        return f'{{"request":{{{address}"id":{_quoted(request.id)}}}}}'
    target = "null" if request.request_target is None else _quoted(request.request_target)
    headers = ",".join([f"{_quoted(name)}:{_quoted(value)}" for name, value in request.request_headers.items()])
    remote = request.remote_endpoint
    endpoint = (
        "" if remote is None else f',"remoteEndpoint":{{"address":{_quoted(remote.address)},"port":{remote.port}}}'
    )
    return (
        f'{{"request":{{{address}"id":{_quoted(request.id)},"requestTarget":{target},'
        f'"method":{_quoted(request.method)},"requestHeaders":{{{headers}}},'
        f'"body":{"true" if request.body else "false"}{endpoint}}}}}'
    )


def parse_from_relay(text: str) -> Accept | Request | None:
    """Read a command that a relay (Trunkline or Azure) sent to a listener.

    Returns None for a command that is not known, which a listener ignores.

    Raises InvalidMessage: no JSON object, an address or id missing, a field of the wrong type.
    """
    command = _load(text)
    if "accept" in command:
        accept = _object(command, "accept")
        return Accept(
            address=_required(accept, "address"),
            id=_required(accept, "id"),
            connect_headers=_plain_headers(accept, "connectHeaders"),
            remote_endpoint=_remote_endpoint(accept) or RemoteEndpoint("", 0),
        )
    if "request" in command:
        request = _object(command, "request")
        body = request.get("body")
        if body is not None and not isinstance(body, bool):
            raise InvalidMessage("request.body must be true or false")
        return Request(
            address=_optional(request, "address") or "",
            id=_required(request, "id"),
            request_target=_optional(request, "requestTarget"),
            method=_optional(request, "method"),
            request_headers=_plain_headers(request, "requestHeaders"),
            remote_endpoint=_remote_endpoint(request),
            body=body,
        )
    return None


def parse_from_listener(text: str) -> Response | RenewToken | None:
    """Read a command that a listener sent to the relay.

    Lenient as the real clients need it: keys in any order, a status code or description as text or number, headers
    missing, null, numbers, flags or arrays. A header that cannot be one (null, an object, a name that is no token)
    is left out, line ends in a value become spaces (RFC 9110 section 5.5).

    Returns None for a command that is not known (``injectFault`` of .NET's debug builds), which the relay ignores.

    Raises InvalidMessage: no JSON object, the id or status of a response missing, a token that is no text.
    """
    command = _load(text)
    if "response" in command:
        response = _object(command, "response")
        phrase = response.get("statusDescription")
        return Response(
            request_id=_required(response, "requestId", lenient=True),
            status_code=_status(response.get("statusCode")),
            status_description=(clean_phrase(_text(phrase)) or None) if isinstance(phrase, str) else None,
            headers=_response_headers(response.get("responseHeaders")),
            body=response.get("body") in (True, "true"),
        )
    if "renewToken" in command:
        return RenewToken(_required(_object(command, "renewToken"), "token"))
    return None


class _Number(str):
    """A JSON number, kept as it was written: no rounding, no infinity, no limit on digits."""

    __slots__ = ()


_STATUS = re.compile(r"([1-9][0-9]{2})(?:\.0+)?")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_PORT = re.compile(r"[0-9]{1,5}")
_LINE_ENDS = str.maketrans("\r\n\0", "   ")


# Values in a command, by the commas that stand between them: more cost more to read than any command is worth (a text
# of 256 KiB that is one list of numbers: 40 ms). Commas in a header count too; no header has that many.
_MOST_COMMAS = 4_096


def _load(text: str) -> dict[str, Any]:
    if text.count(",") > _MOST_COMMAS:
        raise InvalidMessage("the control message holds too many values")
    command: object = None
    fault = ""
    try:
        command = _DECODER.decode(text)
    except RecursionError:
        fault = "the control message is nested too deeply"
    except ValueError:
        fault = "the control message is not JSON"
    if fault:  # raised out here, so that the error does not carry the library's, which holds the whole text
        raise InvalidMessage(fault)
    if not isinstance(command, dict):
        raise InvalidMessage("the control message is not a JSON object")
    return command


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 8259 section 4: what a repeated name means is anybody's guess, so nobody has to make it.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidMessage("the control message repeats a name")
    return found


# Made once: a small request takes them twice, and to make one costs as much as a command.
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_DECODER = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_refuse_constant, object_pairs_hook=_unique
)


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent[name]
    if not isinstance(value, dict):
        raise InvalidMessage(f"{name} must be a JSON object")
    return value


def _required(parent: dict[str, Any], name: str, *, lenient: bool = False) -> str:
    value = parent.get(name)
    if not isinstance(value, str) or not value or (isinstance(value, _Number) and not lenient):
        raise InvalidMessage(f"{name} must be a text that is not empty")
    return _text(value)


def _optional(parent: dict[str, Any], name: str) -> str | None:
    return None if parent.get(name) is None else _required(parent, name)


def _text(value: str) -> str:
    """``value`` that can be encoded: half a surrogate pair (JSON can escape one) becomes ``?``."""
    if value.isascii():
        return str(value)
    return value.encode("utf-8", "replace").decode()


def _status(value: object) -> int:
    found = _STATUS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidMessage("statusCode must be a number of three digits")
    return int(found.group(1))


def _header_value(value: object) -> str | None:
    """A JSON value as the value of a header, None when it cannot be one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return None
    text = _text(value)
    return text if text.isprintable() else text.translate(_LINE_ENDS)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _plain_headers(parent: dict[str, Any], name: str) -> dict[str, str]:
    headers = parent.get(name)
    if headers is None:
        return {}
    if not isinstance(headers, dict):
        raise InvalidMessage(f"{name} must be a JSON object")
    if (
        set(map(type, headers.values())) <= {str}
        and _is_plain("".join(headers))
        and _is_plain("".join(headers.values()))
    ):
        return headers  # as nearly all of them are: nothing to look at one by one
    values = {_text(key): _header_value(value) for key, value in headers.items()}
    return {key: value for key, value in values.items() if value is not None}


def _response_headers(headers: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(headers, dict):
        return ()
    found: list[tuple[str, str]] = []
    for name, given in headers.items():
        if not _TOKEN.fullmatch(name):
            continue
        for value in map(_header_value, given if isinstance(given, list) else [given]):
            if value is not None:
                found.append((name, value))
    return tuple(found)


def _remote_endpoint(parent: dict[str, Any]) -> RemoteEndpoint | None:
    """The remote endpoint; it only informs, so what is wrong in it is left out (as .NET does)."""
    value = parent.get("remoteEndpoint")
    if not isinstance(value, dict):
        return None
    address, port = value.get("address"), value.get("port")
    return RemoteEndpoint(
        _text(address) if isinstance(address, str) else "",
        int(port) if isinstance(port, str) and _PORT.fullmatch(port) else 0,
    )


def _endpoint(remote: RemoteEndpoint) -> dict[str, Any]:
    return {"address": remote.address, "port": remote.port}


def _joined(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    spelled: dict[str, str] = {}
    joined: dict[str, str] = {}
    for name, value in headers:
        first = spelled.setdefault(name.lower(), name)
        joined[first] = f"{joined[first]}, {value}" if first in joined else value
    return joined
