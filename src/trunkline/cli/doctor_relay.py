"""The later steps of ``trunkline doctor``: upgrade, token, hybrid connection, listener, round trip.

A sender is tried first, and in a way that no listener notices: it allows one listener only, whose id nobody has
(``Microsoft-Relay-AllowedListeners``). The relay then says whether the token holds, whether it confers Send, and
whether somebody listens, and disturbs nobody.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import ssl
import statistics
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from trunkline.cli.diagnosis import State, Step, Subject, in_words, since
from trunkline.cli.failure import explain
from trunkline.protocol import sas, urls
from trunkline.protocol.errors import (
    AccessDenied,
    AuthorizationFailed,
    ConnectionLost,
    EndpointDisabled,
    EndpointNotFound,
    InvalidToken,
    ListenersExcluded,
    MissingToken,
    NoListener,
    NotAWebSocket,
    ProtocolViolation,
    RelayError,
)
from trunkline.protocol.limits import LONGEST_TOKEN_LIFETIME
from trunkline.sdk import Connection, ConnectionClosed, HybridConnectionClient, HybridConnectionListener
from trunkline.sdk.incoming import IncomingConnection
from trunkline.sdk.websocket import USER_AGENT, dial

#: Seconds that two clocks may differ before it is worth a word.
CLOCK_TOLERANCE = 30.0
#: Messages of a round trip; the median is told.
ROUNDS = 5

_ALLOWED_LISTENERS = "Microsoft-Relay-AllowedListeners"
#: By which our own listener knows our own sender.
_MARK = "Trunkline-Doctor"
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ?([^\r\n]*)")

_PASS_UPGRADES = (
    "let it pass WebSockets on: HTTP/1.1 with the headers Upgrade and Connection (nginx: proxy_http_version 1.1;"
    " proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)"
)
#: By the word with which a relay begins a 401.
_WHAT_TO_DO_ABOUT_A_TOKEN: Mapping[str, str] = {
    "MissingToken": "use a connection string with a key: this hybrid connection takes no anonymous senders",
    "InvalidSignature": (
        "copy the connection string anew: the rule is not one of this hybrid connection or namespace, or its key was"
        " renewed or cut off"
    ),
    "InvalidToken": "use a shared access signature: trunkline token makes one",
    "ExpiredToken": "make a new token, and set the clock of this computer if that was new",
    "InvalidAudience": "make the token for this hybrid connection, with the host name that the relay has",
    "TokenLifetimeExceeded": "make it for a shorter time: trunkline token --expires 30m, or raise max_token_lifetime",
}
#: Seconds that a port has to answer a TLS handshake; one without TLS may wait for the rest of a request.
_TLS_PATIENCE = 2.0


# --- upgrade ---


async def check_upgrade(subject: Subject) -> Step:
    """Whether a relay is there, and WebSockets reach it."""
    started = time.perf_counter()
    answer = await subject.get(subject.endpoint.ssl)
    found = _STATUS_LINE.match(answer)
    if found is None:
        return await _not_http(subject, answer)
    ms = since(started)
    status, head = int(found[1]), answer.partition(b"\r\n\r\n")[0]
    server = _header(head, "Server")
    by = f" ({server})" if server else ""
    facts: dict[str, Any] = {"status": status, "server": server, "ms": ms}
    moment = email.utils.parsedate_tz(_header(head, "Date"))
    if moment is not None:
        # The relay's seconds are whole, and it wrote them about half way.
        subject.clock_ahead = email.utils.mktime_tz(moment) + 0.5 - (time.time() - ms / 2000)
    if NotAWebSocket.default_message.encode() not in answer or b"is HTTP/1.0" in answer:
        # Servers with TLS alone say so in words of their own.
        if status == 400 and subject.endpoint.ssl is None and await _speaks_tls(subject):
            return _needs_tls(subject)
        return _no_relay(status, found[2].decode("latin-1"), answer, by, facts)
    return await _try_to_send(subject, by, facts)


def _no_relay(status: int, phrase: str, answer: bytes, by: str, facts: dict[str, Any]) -> Step:
    said = f"{status} {phrase}".strip()
    if b"HTTP/1.0" in answer.partition(b"\r\n")[2] or b"is HTTP/1.0" in answer:
        return Step(
            "upgrade", "failed", f"what stands before the relay{by} speaks HTTP/1.0 to it", _PASS_UPGRADES, facts
        )
    if status >= 500:
        remedy = "look after the relay: what stands before it answers in its place, or it is starting or draining"
        return Step("upgrade", "failed", f"the relay does not answer; {said}{by}", remedy, facts)
    portal = "a portal" if 300 <= status < 400 else "a web server or a portal"
    remedy = "check host and port in the connection string, and whether this network wants you to sign in first"
    return Step("upgrade", "failed", f"no relay answers here, but {portal}: {said}{by}", remedy, facts)


async def _not_http(subject: Subject, answer: bytes) -> Step:
    if subject.endpoint.ssl is None and await _speaks_tls(subject):
        return _needs_tls(subject)
    if not answer:
        text = "the connection is closed without an answer"
        return Step("upgrade", "failed", text, "check host and port, and what filters HTTP between here and the relay")
    text = f"port {subject.port} does not answer in HTTP, but with {answer[:20]!r}"
    return Step("upgrade", "failed", text, "check the port in the connection string")


def _needs_tls(subject: Subject) -> Step:
    text = f"port {subject.port} speaks TLS"
    return Step("upgrade", "failed", text, "leave --no-tls out (in Python ssl=False; use wss:// or https:// addresses)")


async def _speaks_tls(subject: Subject) -> bool:
    anything = ssl.create_default_context()
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(min(_TLS_PATIENCE, subject.timeout / 3)), subject.stream(anything):
            return True
    except OSError:  # TimeoutError is one
        return False


async def _try_to_send(subject: Subject, by: str, facts: dict[str, Any]) -> Step:
    """The upgrade of a sender that no listener gets to see; what it says about token and listeners is kept."""
    subject.token = await subject.endpoint.token()
    try:
        link, _ = await dial(
            urls.connect_url(subject.endpoint.base, subject.endpoint.path, id=str(uuid.uuid4())),
            timeout=None,
            headers=[("Relay-User-Agent", USER_AGENT), (_ALLOWED_LISTENERS, str(uuid.uuid4()))],
            token=subject.token.text if subject.token is not None else None,
            ssl=subject.endpoint.ssl,
            proxy=subject.proxy or False,
        )
        link.abort()
    except NotAWebSocket:
        text = f"something between here and the relay{by} takes the header Upgrade away"
        return Step("upgrade", "failed", text, _PASS_UPGRADES, facts)
    except ConnectionLost as error:
        if error.tracking_id is None:  # no answer, or one that no relay wrote
            text = "HTTP passes, and a WebSocket is cut off"
            return Step("upgrade", "failed", text, "look for a firewall or proxy that lets no WebSocket pass", facts)
        subject.refusal = error
    except ProtocolViolation as error:
        return Step("upgrade", "failed", error.message, _PASS_UPGRADES, facts)
    except RelayError as error:
        subject.refusal = error
    return Step("upgrade", "ok", f"a relay answers, and WebSockets reach it{by}", facts=facts)


def _header(head: bytes, name: str) -> str:
    found = re.search(rb"\r\n" + name.encode() + rb":[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else ""


# --- token ---


async def check_token(subject: Subject) -> Step:
    """Who we are to the relay, what we may do, and until when."""
    refusal, facts = subject.refusal, _token_facts(subject)
    who = _who(facts)
    if isinstance(refusal, AuthorizationFailed):
        remedy = _WHAT_TO_DO_ABOUT_A_TOKEN.get(refusal.message.partition(":")[0]) or explain(refusal).remedy
        if abs(subject.clock_ahead or 0) > CLOCK_TOLERANCE:
            remedy = f"{_clock(subject)}: set it; then {remedy}"
        return Step("token", "failed", f"{who}: {refusal.message}", remedy, facts)
    facts["send"] = subject.may_send
    if subject.token is None:
        return Step("token", "ok", "none; the relay takes anonymous senders here", facts=facts)
    may = "Send" if subject.may_send else "no right to send"
    warnings = _warnings(subject, facts)
    state: State = "warned" if warnings else "ok"
    text = "; ".join([f"{who}: accepted, {may}", *(what for what, _ in warnings)])
    return Step("token", state, text, "; ".join(remedy for _, remedy in warnings), facts)


def _warnings(subject: Subject, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What works now, and will not always; each with its remedy."""
    found = []
    if "manage" in str(facts.get("rule", "")).lower():
        remedy = "make a rule with Listen or Send alone for each program: this key can also change and delete"
        found.append(("the key is one for managing", remedy))
    if abs(subject.clock_ahead or 0) > CLOCK_TOLERANCE:
        found.append((_clock(subject), "set the clock: tokens begin and end at wrong times"))
    left = facts.get("seconds_left")
    if left is not None and left > LONGEST_TOKEN_LIFETIME:
        text = f"it lasts longer than {LONGEST_TOKEN_LIFETIME // 3600} h"
        found.append((text, "make tokens for a shorter time: a Trunkline node takes no others unless it is told to"))
    return found


def _clock(subject: Subject) -> str:
    ahead = subject.clock_ahead or 0
    return f"the clock of this computer is {abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the relay's"


def _token_facts(subject: Subject) -> dict[str, Any]:
    """What the token says of itself."""
    facts: dict[str, Any] = {"clock_ahead": subject.clock_ahead}
    if subject.token is None:
        return facts
    try:
        token = sas.parse(subject.token.text)
    except InvalidToken:
        return {**facts, "kind": "jwt" if subject.token.text.count(".") == 2 else "unknown"}
    return {
        **facts,
        "kind": "sas",
        "rule": token.key_names()[-1],
        "audience": unquote_plus(token.resource),
        "expires_at": token.expires_at,
        "seconds_left": round(token.expires_at - time.time()),
    }


def _who(facts: dict[str, Any]) -> str:
    if "kind" not in facts:
        return "no token"
    if facts["kind"] != "sas":
        return "a token that is no shared access signature"
    until = _moment(facts["expires_at"])
    return f"rule {facts['rule']} for {facts['audience']} until {until}"


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):
        return "the end of time"


# --- hybrid connection ---


async def check_entity(subject: Subject) -> Step:
    """Whether it is there, and enabled."""
    path, refusal = subject.endpoint.path, subject.refusal
    name = "hybrid connection"
    if isinstance(refusal, EndpointNotFound):
        remedy = "check EntityPath in the connection string, or --entity, against what the relay has"
        return Step(name, "failed", refusal.message, remedy)
    if isinstance(refusal, EndpointDisabled | AccessDenied) and subject.may_send:
        return Step(name, "failed", refusal.message, explain(EndpointDisabled()).remedy)
    return Step(name, "ok", f"{path} is there")


# --- listener ---


async def check_listener(subject: Subject) -> Step:
    """Whether somebody listens; when nobody does, or we may only listen, our own listener is tried."""
    refusal = subject.refusal
    if isinstance(refusal, ListenersExcluded) or refusal is None:
        if not subject.listen:
            return Step("listener", "ok", "somebody listens", facts={"listening": True})
        there = "somebody listens"
    elif isinstance(refusal, NoListener):
        there = "nobody listens"
    elif not subject.may_send:
        there = "whether somebody listens, only a sender is told"
    else:
        failure = explain(refusal)
        return Step("listener", "failed", refusal.message, failure.remedy)
    facts = {"listening": there == "somebody listens" if subject.may_send else None}
    listener = subject.who.listener(accept_handler=_only_ours)
    try:
        await listener.open(subject.timeout)
    except (RelayError, TimeoutError) as error:
        failure = explain(error)
        if there == "nobody listens" and isinstance(error, AccessDenied | MissingToken | AuthorizationFailed):
            return Step("listener", "failed", "nobody listens", "start a listener: trunkline listen", facts)
        what = f"{there}, and this key cannot listen: {failure.what}"
        return Step("listener", "failed", what, failure.remedy, facts)
    subject.listener = listener
    facts["listen"] = True
    if there == "nobody listens":
        text = "nobody listens; this key may, and the doctor stands in for a moment"
        return Step("listener", "warned", text, "start a listener: trunkline listen", facts)
    return Step("listener", "ok", f"{there}; this key may listen", facts=facts)


def _only_ours(incoming: IncomingConnection) -> None:
    """The accept handler of our listener: a stranger's connection is not for us."""
    if _MARK not in incoming.headers:
        incoming.reject(503, "trunkline doctor is looking at this hybrid connection; try again")


# --- round trip ---


async def check_round_trip(subject: Subject) -> Step:
    """A connection through the relay: to our own listener with messages, or to the one that is there without."""
    if subject.listener is not None and subject.may_send:
        return await _to_ourselves(subject, subject.listener)
    if not subject.may_send:
        return Step("round trip", "skipped", "this key may not send")
    if not subject.connect:
        return Step("round trip", "skipped", "--connect makes a connection to the listener that is there")
    started = time.perf_counter()
    connection = await subject.who.client().create_connection(timeout=subject.timeout)
    ms = since(started)
    await _close(connection)
    return Step("round trip", "ok", f"a listener took a connection after {in_words(ms)}", facts={"connect_ms": ms})


async def _to_ourselves(subject: Subject, listener: HybridConnectionListener) -> Step:
    client: HybridConnectionClient = subject.who.client()
    started = time.perf_counter()
    connection = await client.create_connection(
        headers={_ALLOWED_LISTENERS: listener.tracking_id, _MARK: "1"}, timeout=subject.timeout
    )
    connected = since(started)
    served = await listener.accept()
    rounds = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        await connection.send(f"round {number}")
        await served.send(await served.recv())
        if await connection.recv() != f"round {number}":
            return Step("round trip", "failed", "what came back is not what was sent", "please report it")
        rounds.append(since(started))
    for each in (connection, served):
        each.abort()
    trip = round(statistics.median(rounds), 2)
    # A message goes to the relay and on to the listener, and so does its answer: each way once.
    text = f"connected after {in_words(connected)}; a message and its answer take {in_words(trip)}"
    return Step("round trip", "ok", text, facts={"connect_ms": connected, "round_trip_ms": trip})


async def _close(connection: Connection) -> None:
    """End it in order, and do not wait for a listener that does not."""
    try:
        connection.write_eof()
        await connection.drain()
    except (ConnectionClosed, ConnectionLost):
        pass
    connection.abort()
