"""What of a plain HTTP request goes to the listener, and what of its response to the sender.

    request_headers    the sender's headers as `requestHeaders`
    request_target     path and query as `requestTarget`
    response_head      status, reason phrase and headers for the sender

The rules are those of the Azure Relay protocol page ("Request message", "Response message"), of RFC 9110 section 7.6
for what ends at each hop, and of what Microsoft's own tests assert: names keep their spelling, repeated headers are
joined, the path is decoded, the query is passed on as it is, the listener's reason phrase is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import field
from http import HTTPStatus
from urllib.parse import quote

from trunkline.protocol.errors import BadGateway, clean_phrase
from trunkline.protocol.messages import Response
from trunkline.protocol.records import record

#: Ends at each hop, in both directions (RFC 9110 section 7.6.1); "close" is in the list of the protocol page.
_HOP_BY_HOP = frozenset(
    ("close", "connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
#: What the relay answers or reads itself.
_OWN = frozenset(("expect", "http2-settings", "servicebusauthorization"))
_NOT_FORWARDED = _HOP_BY_HOP | _OWN
#: Never taken out because `Connection` names them: a sender could hide from the listener who asks, and whom.
_NEVER_NAMED = frozenset(("host", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"))

_PREFIX = "X-Forwarded-Prefix"
_PREFIX_LOWER = _PREFIX.lower()

_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/-]*")
# A "%" that begins no escape could begin one once what follows it is decoded.
_ESCAPES = re.compile(r"(?:%[0-9A-Fa-f]{2})+|%")
# Of the characters that can be decoded, those that mean something else once they are.
_AMBIGUOUS = frozenset("%/\\?#")
# A quoted text is skipped; a comma separates two cookies where a name and "=" follow, not inside of an Expires date.
_COOKIE_BORDER = re.compile(r'"[^"]*"|(,[ \t]*)(?=[A-Za-z0-9!#$%&\'*+.^_`|~-]+=)')
_DIGITS = re.compile(r"[0-9]{1,18}")

_PHRASES = {each.value: each.phrase for each in HTTPStatus}

#: Statuses whose responses have no body (RFC 9110 section 6.4.1).
WITHOUT_BODY = frozenset((204, 304))

_DEFAULT_CONTENT_TYPE = ("Content-Type", "application/octet-stream")


def request_headers(
    headers: Iterable[tuple[str, str]], *, token_header: str | None, via: str, own_host: bool = False
) -> dict[str, str]:
    """The headers of a request as the listener gets them.

    Left out: what ends at this hop, `Expect`, what `Connection` names, `Proxy-...`, and the relay's own token.
    Repeated ones are joined, cookies with "; " (RFC 6265 section 5.4), others with ", ". `Host` goes on: listeners
    build addresses with it.

    Args:
        headers: as sent.
        token_header: the header whose token the relay has taken; `ServiceBusAuthorization` is never passed on.
        via: the relay's entry in `Via`, added behind those that are there.
        own_host: the request came by a host name of the entity's own. Then `X-Forwarded-Prefix: /` says that the
            public path does not begin with the name of the entity. Otherwise a sender cannot say that: listeners
            believe it.
    """
    joined: dict[str, str] = {}
    # Names as spelled, by their lower case.
    spelled: dict[str, str] = {}
    taken = token_header.lower() if token_header is not None else ""
    named = ""
    for name, value in headers:
        lower = name.lower()
        if lower in _NOT_FORWARDED:
            if lower == "connection":
                named = f"{named},{value}"
        elif lower in spelled:
            name = spelled[lower]
            joined[name] = f"{joined[name]}{'; ' if lower == 'cookie' else ', '}{value}"
        elif lower != taken and not lower.startswith("proxy-"):
            spelled[lower] = name
            joined[name] = value
    if named:
        for each in named.lower().split(","):
            each = each.strip()
            if each in spelled and each not in _NEVER_NAMED:
                del joined[spelled.pop(each)]
    before = spelled.get("via")
    if before is None:
        joined["Via"] = via
    else:
        joined[before] = f"{joined[before]}, {via}"
    prefix = spelled.get(_PREFIX_LOWER)
    if own_host:
        joined[prefix or _PREFIX] = "/"
    elif prefix is not None and joined[prefix] == "/":
        del joined[prefix]
    return joined


def request_target(entity: str, rest: str, query: str) -> str:
    """`requestTarget`: the path, decoded, and the query as it was sent. Begins with a slash and the entity.

    Decoded, because the listeners of Azure Relay expect it so (Java encodes it again). What would mean something else
    once decoded stays escaped: a slash, backslash, percent or question mark, a control character, bytes that
    are no UTF-8.

    Args:
        entity: path of the hybrid connection, decoded.
        rest: what follows it in the path, with its slash, as sent; may be empty.
        query: without "?"; empty for none.
    """
    if not _PLAIN_PATH.fullmatch(entity):
        entity = "/".join("".join(map(_plain, segment)) for segment in entity.split("/"))
    path = f"/{entity}{_ESCAPES.sub(_decode, rest) if '%' in rest else rest}"
    return f"{path}?{query}" if query else path


def _decode(escapes: re.Match[str]) -> str:
    if escapes.group() == "%":
        return "%25"
    text = bytes.fromhex(escapes.group().replace("%", "")).decode("utf-8", "surrogateescape")
    return "".join(map(_plain, text))


def _plain(char: str) -> str:
    """A character of a decoded path, escaped where it would be read as something else."""
    if char in _AMBIGUOUS or not char.isprintable():
        return quote(char, safe="", errors="surrogateescape")
    return char


@record
class ResponseHead:
    """The head of a response, as the sender is to get it."""

    status: int
    phrase: str
    headers: list[tuple[str, str]] = field(repr=False)
    #: What the listener says of the length of the body that a GET would have; only to HEAD, and with a 304.
    announced: int | None
    #: A response that has no body whatever the listener sends: to HEAD, 204, 304.
    is_bodyless: bool


def response_head(response: Response, *, method: str, via: str, has_body: bool) -> ResponseHead:
    """The listener's response as the sender gets it.

    Left out: what ends at this hop, and the length, which the relay finds out itself. A `Set-Cookie` into which .NET
    has joined several becomes several again. What has a body and no type gets `application/octet-stream`.

    Args:
        response: of the listener.
        method: of the request.
        via: the relay's entry in `Via`; its absence tells the answers that the relay made itself.
        has_body: whether the response has a body that is not empty, or may have.

    Raises:
        BadGateway: a status that ends no request (100 to 199).
    """
    status = response.status_code
    if status < 200:
        raise BadGateway(f"The listener answered with status {status}, which ends no request")
    empty = method == "HEAD" or status in WITHOUT_BODY
    headers: list[tuple[str, str]] = []
    vias = named = ""
    announced: int | None = None
    typed = empty or not has_body
    for name, value in response.headers:
        lower = name.lower()
        if not (value.isascii() and value.isprintable()):
            value = _clean(value)
        if lower in _HOP_BY_HOP:
            if lower == "connection":
                named = f"{named},{value}"
            elif lower == "content-length" and empty and status != 204 and _DIGITS.fullmatch(value.strip()):
                announced = int(value)
        elif lower == "via":
            vias = f"{vias}{value}, "
        elif lower != "proxy-connection":
            if lower == "content-type":
                typed = True
            headers.append((name, value))
    if named:
        hidden = {each.strip() for each in named.lower().split(",")}
        headers = [each for each in headers if each[0].lower() not in hidden]
    if not typed:
        headers.append(_DEFAULT_CONTENT_TYPE)
    headers.append(("Via", vias + via))
    phrase = response.status_description
    if phrase is None:
        phrase = _PHRASES.get(status, "")
    return ResponseHead(status, phrase, _cookies_apart(headers), announced, empty)


def _clean(value: str) -> str:
    """A header value of one line, in Latin-1; a tab may stand in it (RFC 9110 section 5.5)."""
    return "\t".join(map(clean_phrase, value.split("\t")))


def _cookies_apart(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """`headers` with a `Set-Cookie` for each cookie. Where there are several already, nobody has joined them."""
    places = [place for place, (name, _) in enumerate(headers) if len(name) == 10 and name.lower() == "set-cookie"]
    if len(places) != 1 or "," not in headers[places[0]][1]:
        return headers
    (place,) = places
    name, value = headers[place]
    return [*headers[:place], *((name, each) for each in split_cookies(value)), *headers[place + 1 :]]


def split_cookies(value: str) -> Sequence[str]:
    """The cookies that were joined into one `Set-Cookie`, as .NET joins them; the commas of dates join nothing."""
    cookies: list[str] = []
    start = 0
    for border in _COOKIE_BORDER.finditer(value):
        if border.group(1) is not None:
            cookies.append(value[start : border.start()])
            start = border.end()
    return [*cookies, value[start:]]
