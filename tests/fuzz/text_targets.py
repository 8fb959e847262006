"""Fuzz targets for what peers, users and operators write as text: each takes bytes, and raises when a rule is broken.

A target raises nothing for input that the product refuses as documented. It raises AssertionError, or whatever comes
out, when another error than the documented one is raised, when an error shows `SECRET`, or when something that was
read does not come back from what is written of it.
"""

from __future__ import annotations

import itertools
import math
import traceback
from urllib.parse import unquote_plus

from trunkline.protocol import connection_string, messages, sas, urls
from trunkline.protocol.errors import (
    AuthorizationFailed,
    InvalidConnectionString,
    InvalidMessage,
    InvalidRequest,
    InvalidToken,
    InvalidUrl,
    RelayError,
)
from trunkline.protocol.limits import resolve
from trunkline.protocol.sas import Right
from trunkline.server.config import declarative, settings
from trunkline.server.config.errors import InvalidConfiguration
from trunkline.server.entities.authorization import Authorizer, Grant
from trunkline.server.entities.catalog import Catalog
from trunkline.server.entities.model import HybridConnection, Namespace, Rule, hybrid_connection_id, namespace_id
from trunkline.server.relay.admission import find_token, headers_for_listener
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.request_head import accept_key, parse_head

#: Stands for a key or a signature wherever an input holds one. No error may show it.
SECRET = "s3cr3t-0f-th3-rul3"

_NAMESPACE = Namespace(namespace_id("ns"), rules=(Rule("root", frozenset(Right), SECRET, "secondary"),))
_ENTITY = HybridConnection(hybrid_connection_id(_NAMESPACE.id, "a/b"))
_HOSTS = ("ns.localhost",)
_LIMITS = resolve()
_BASE = "wss://node.example:8443"


def text_of(data: bytes) -> str:
    """As it comes from a decoder that refuses nothing: bytes that are no UTF-8 become halves of surrogate pairs."""
    return data.decode("utf-8", "surrogateescape")


def hides_secret(error: BaseException) -> None:
    """Fail when an error, or what a traceback prints with it, shows the secret."""
    assert SECRET not in repr(error)
    assert SECRET not in "".join(traceback.format_exception(error))


# --- tokens ---


def token(data: bytes) -> None:
    """A token: read, or refused; it lets nobody in who did not sign with a key."""
    text = text_of(data)
    _is_refused(text)
    try:
        read = sas.parse(text)
    except InvalidToken as error:
        hides_secret(error)
        return
    assert math.isfinite(read.expires_at) and read.expires_at >= 0
    assert all(read.key_names()) and len(read.key_names()) <= 3
    assert not sas.signed_by(read, SECRET)
    elsewhere = read.resource + read.key_name + read.expiry_text
    if len(read.signature) >= 8 and read.signature not in elsewhere:
        assert read.signature not in repr(read)
    for path in ("", "a", "A/b", "a/b/c", unquote_plus(read.resource)[:60]):
        if read.covers(_HOSTS, path):
            assert read.covers(_HOSTS, f"{path}/below"), "what covers an entity covers what lies below it"
    resource = unquote_plus(read.resource)
    if resource and not any("\ud800" <= char <= "\udfff" for char in resource + read.key_name):
        ours = sas.parse(sas.sign(resource, read.key_name, SECRET, expires_at=1))
        assert sas.signed_by(ours, SECRET) and read.key_name in ours.key_names()


def _is_refused(text: str) -> None:
    bearers: list[str] = []

    def take_bearer(bearer: str, *_: object) -> Grant:
        bearers.append(bearer)
        raise InvalidToken()

    for authorizer in (Authorizer(Catalog()), Authorizer(Catalog(), jwt=take_bearer)):
        try:
            grant = authorizer.authenticate(
                _NAMESPACE, "a/b", _ENTITY, text, host="localhost", limits=_LIMITS, now=1_800_000_000
            )
        except AuthorizationFailed as error:
            hides_secret(error)
        else:
            raise AssertionError(f"a token that nobody signed confers {grant}")
    for bearer in bearers:
        assert bearer in text and " " not in bearer[:1]


# --- control messages ---


def control_message(data: bytes) -> None:
    """A command of a control channel, as each end reads it; what was read is written and read back."""
    text = text_of(data)
    try:
        offered = messages.parse_from_relay(text)
    except InvalidMessage as error:
        hides_secret(error)
        offered = None
    try:
        answered = messages.parse_from_listener(text)
    except InvalidMessage as error:
        hides_secret(error)
        answered = None
    if offered is not None:
        written = messages.encode(offered)
        assert written.isascii()
        again = messages.parse_from_relay(written)
        assert again is not None and messages.encode(again) == written
        repr(offered)
    if answered is not None:
        written = messages.encode(answered)
        assert written.isascii()
        same = messages.parse_from_listener(written)
        assert same is not None and messages.encode(same) == written
        if isinstance(answered, messages.RenewToken):
            assert repr(answered) == "RenewToken()"
        elif isinstance(answered, messages.Response):
            assert 100 <= answered.status_code <= 999
            for text in (answered.status_description or "", *itertools.chain(*answered.headers)):
                assert not set("\r\n\0") & set(text)


# --- addresses ---


def url(data: bytes) -> None:
    """A request target, and the address of a rendezvous that is made of it."""
    try:
        target = urls.parse_target(data.decode("latin-1"))
    except (InvalidUrl, InvalidRequest) as error:
        hides_secret(error)
        return
    for segment in target.segments:
        assert ".." not in segment.replace("\\", "/").split("/")
    assert urls.user_query(target.query) == target.query
    if isinstance(target, urls.HttpTarget):
        return
    for depth in range(3):
        found = urls.match_entity(target.segments, target.raw_segments, lambda path: path.count("/") <= depth)  # noqa: B023
        if found is not None:
            _comes_back(target, *found)


def _comes_back(target: urls.RelayTarget, entity: str, suffix: str) -> None:
    """The address of a rendezvous says what the sender's said, and the relay's own part cannot be forged."""
    secret = "A-secret_of~24.characters"
    address = urls.accept_address(
        _BASE, entity, suffix, target.query, action=urls.Action.ACCEPT, id="an-id", secret=secret
    )
    assert all("!" <= char <= "~" for char in address) and "#" not in address and "?" in address
    back = urls.parse_target(address.removeprefix(_BASE))
    assert isinstance(back, urls.RelayTarget)
    assert (back.action, back.id, back.secret) == (urls.Action.ACCEPT, "an-id", secret)
    assert back.status_code is None and back.status_description is None
    matched = urls.match_entity(back.segments, back.raw_segments, lambda path: path == entity)
    assert matched is not None and matched[0] == entity
    if "%" not in target.query + suffix and matched[1] == suffix:
        assert unquote_plus(back.query) == unquote_plus(target.query)
    back = urls.parse_target(urls.rejection_address(address, 418, "No badge, sorry").removeprefix(_BASE))
    assert isinstance(back, urls.RelayTarget)
    assert (back.status_code, back.status_description) == ("418", "No badge, sorry")


def address(data: bytes) -> None:
    """An address as users write it; the URL that is made of it means the same."""
    try:
        host, port, path, secure = urls.parse_address(text_of(data))
    except InvalidUrl as error:
        hides_secret(error)
        return
    assert host == host.lower() and (port is None or 0 < port < 65_536)
    if not any("\ud800" <= char <= "\udfff" for char in path):
        made = urls.connect_url(urls.base_url(host, port, secure=secure), path, id="an-id", token=SECRET)
        assert urls.parse_address(made) == (host, port, path, secure)


def connection_strings(data: bytes) -> None:
    """A connection string; its text reads back, its repr hides the key."""
    try:
        read = connection_string.parse(text_of(data))
    except InvalidConnectionString as error:
        hides_secret(error)
        return
    again = connection_string.parse(str(read))
    assert str(again) == str(read)
    assert (again.host, again.port, again.key_name, again.key, again.entity_path) == (
        read.host,
        read.port,
        read.key_name,
        read.key,
        read.entity_path,
    )
    if SECRET in (read.key or "") or SECRET in (read.shared_access_signature or ""):
        others = (read.host, read.key_name or "", read.entity_path or "")
        assert SECRET not in repr(read) or any(SECRET in other for other in others)


# --- files and requests ---


def declarative_file(data: bytes) -> None:
    """The declarative file: what is wrong has its line, and no key is shown."""
    text = data.decode("utf-8", "replace")
    # Elsewhere than as a key it is a value like others, which an error shows.
    is_key = text.count(SECRET) == text.count(f'_key = "{SECRET}"') and '"""' not in text and "'''" not in text
    try:
        declaration = declarative.parse(text, "trunkline.toml")
        settings.load(declaration)
    except InvalidConfiguration as error:
        if error.line is not None:
            assert 1 <= error.line <= text.count("\n") + text.count("\r") + 1
        assert error.message.isprintable()
        if is_key:
            hides_secret(error)
    else:
        assert not is_key or SECRET not in repr(declaration)


def request_head(data: bytes) -> None:
    """A request head as the front end hands it on: it begins with a letter and ends with its empty line."""
    data = data.lstrip(b"\r\n").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    if not b"A" <= data[:1] <= b"Z":
        return
    try:
        head = parse_head(data)
    except RelayError as error:
        hides_secret(error)
        return
    assert sum(name.lower() == "host" for name, _ in head.headers) in ((1,) if head.version == "1.1" else (0, 1))
    for text in (head.target, *(part for header in head.headers for part in header)):
        assert not set("\r\n\0") & set(text)
    if head.is_websocket:
        assert head.method == "GET"
        assert len(accept_key(head.get("Sec-WebSocket-Key") or "")) == 28
    if SECRET not in head.target.partition("?")[0]:
        assert SECRET not in repr(head) + repr(Exchange(None, head, ("", 0), False))  # type: ignore[arg-type]
    try:
        target = urls.parse_target(head.target)
    except RelayError as error:
        hides_secret(error)
        return
    if isinstance(target, urls.RelayTarget):
        _, header = find_token(head, target)
        shown = headers_for_listener(head, header)
        assert not {name.lower() for name in shown} & {"servicebusauthorization", (header or "").lower()}
        assert len({name.lower() for name in shown}) == len(shown)
