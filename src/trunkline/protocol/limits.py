"""Every limit that a user can set, in one table, and the constants of the wire that nobody can.

A limit is set on the node, on a namespace or on a hybrid connection; the nearest wins (`resolve`). The table
is read by the node's settings, the declarative file, the management API, ``--help`` and the documentation, so
a limit is described here and nowhere else. ``preset`` selects which column of defaults lies below everything
that was set: ``default``, or ``azure`` for what the real service was seen to do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from trunkline.protocol.errors import CLOSE_REASON_LIMIT as CLOSE_REASON_LIMIT  # bytes of a close reason
from trunkline.protocol.errors import InvalidSetting

# --- the wire ---

#: Bytes of one control command, UTF-8. .NET reads commands into a buffer of this size and hangs for good
#: above it, Jetty (Java) closes with 1009; both seen. A command that would be longer is never sent.
CONTROL_MESSAGE_LIMIT = 65_536
#: Bytes of the body of a request or an answer that goes over the control channel; a longer one takes a rendezvous
#: (Azure Relay protocol page; .NET and Java send no longer one).
CONTROL_BODY_LIMIT = 65_536
#: Bytes of a text message that the relay takes on a control channel; clients stay below 64 KiB.
CONTROL_TEXT_LIMIT = 262_144
#: Bytes of a binary message (the body of a response) that the relay takes on a control channel.
CONTROL_BINARY_LIMIT = 1_048_576
#: Bytes of a request line and its headers (Azure Relay protocol page: "HTTP header metadata" up to 32 kB).
REQUEST_HEAD_LIMIT = 32_768
#: Seconds that a peer has for its request head, counted from the connection.
HEAD_TIMEOUT = 10.0
#: Seconds for which a connection is kept for another plain HTTP request.
KEEP_ALIVE_TIMEOUT = 75.0
#: Seconds for which a peer may take nothing of an answer before its connection is cut.
ANSWER_STALLED = 60.0
#: Seconds by which clocks may differ when a token is checked.
CLOCK_SKEW = 60.0
#: Seconds that a token lasts when its maker does not say (all SDKs of Azure Relay).
DEFAULT_TOKEN_LIFETIME = 3_600
#: Seconds that a token made by our own tools lasts at most.
LONGEST_TOKEN_LIFETIME = 86_400
#: Seconds before each attempt of a listener to reconnect; the last one repeats (.NET, Java, hyco-https).
RECONNECT_DELAYS = (0, 1, 2, 5, 10, 30)
#: Seconds between two pings of the SDK, on its control channel and on an idle data connection.
HEARTBEAT = 30.0
#: Characters of the path of a hybrid connection (Azure Relay).
ENTITY_PATH_LIMIT = 260
#: Authorization rules of one namespace or one hybrid connection (Azure Relay).
MAX_RULES = 12
#: Characters of a rule name or of a key (Azure Relay).
KEY_NAME_LIMIT = 256
#: Refusals of an address that has failed to authenticate so often are held before they are answered.
FAILURES_ANSWERED = 10
#: Seconds after which one of these failures is forgotten.
FAILURE_FORGOTTEN_AFTER = 6.0
#: Seconds for which a refusal is held; up to one look at the clock more.
HELD_FOR = 2.0
#: Refusals that are held at a time, of one address and of all. More are answered at once.
HELD_PER_ADDRESS = 64
HELD_PER_NODE = 1_024

# --- what a user sets ---

Preset = Literal["default", "azure"]
Scope = Literal["node", "namespace", "hybrid_connection"]
Value = int | float | bool | str

#: The columns of defaults.
PRESETS: tuple[Preset, ...] = ("default", "azure")

_ALL: frozenset[Scope] = frozenset(("node", "namespace", "hybrid_connection"))
_ABOVE_ENTITY: frozenset[Scope] = frozenset(("node", "namespace"))
_NODE: frozenset[Scope] = frozenset(("node",))

_MOST = 10_000_000  # of anything counted
_TEN_YEARS = 315_360_000  # seconds; a timer further away is a slip of the keyboard


@dataclass(frozen=True)
class Limit:
    """One row of the table."""

    #: The key, as written in a settings file; with ``TRUNKLINE_`` before it in the environment.
    name: str
    #: Value when nothing is set.
    default: Value
    #: Value when nothing is set and the preset is ``azure``.
    azure: Value
    #: A number of things, seconds (fractions allowed), bytes, yes or no, or one of `choices`.
    kind: Literal["count", "seconds", "bytes", "flag", "choice"]
    #: One sentence for ``--help`` and the documentation.
    help: str
    #: What 0 means, and a word that may be written instead of it; None when 0 is not allowed.
    zero: Literal["unlimited", "off"] | None = None
    #: Allowed values of a ``choice``, all of one type.
    choices: tuple[Value, ...] = ()
    #: Smallest number allowed apart from 0.
    minimum: float = 1
    #: Largest number allowed.
    maximum: float = _MOST
    #: Where the limit can be set.
    scopes: frozenset[Scope] = _ALL

    @property
    def allowed(self) -> str:
        """What may be written, in words, for error messages and the documentation."""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "choice":
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        number = "a number of seconds" if self.kind == "seconds" else "a whole number"
        zero = "" if self.zero is None else f', or 0 or "{self.zero}"'
        return f"{number} from {self.minimum:g} to {self.maximum:_.0f}{zero}"


def _seconds(name: str, default: float, azure: float, help: str, **more: Any) -> Limit:
    return Limit(name, float(default), float(azure), "seconds", help, minimum=0.001, maximum=_TEN_YEARS, **more)


_ROWS = (
    Limit(
        "max_hybrid_connections", 100, 10_000, "count",
        "hybrid connections of one namespace; one more is refused",
        "unlimited", scopes=_ABOVE_ENTITY,
    ),
    Limit(
        "max_senders", 25, 0, "count",
        "sender connections of one hybrid connection at a time; the next gets 429 QuotaExceeded",
        "unlimited",
    ),
    Limit(
        "max_requests", 1_000, 0, "count",
        "plain HTTP requests in flight on one hybrid connection; the next gets 429 QuotaExceeded",
        "unlimited",
    ),
    Limit(
        "max_listeners", 25, 25, "count",
        "listeners registered on one hybrid connection at a time",
        "unlimited",
    ),
    Limit(
        "listener_policy", "active-standby", "balanced", "choice",
        "who gets the next sender: one active listener while others stand by, each in turn, or the least busy",
        choices=("active-standby", "round-robin", "balanced"),
    ),
    _seconds(
        "idle_timeout", 60, 0,
        "a data connection on which neither endpoint sent a frame of its own accord for that long is ended",
        zero="off",
    ),
    _seconds(
        "control_idle_timeout", 60, 60,
        "a control channel on which nothing was received for that long is lost; a pong counts as life",
        zero="off",
    ),
    _seconds(
        "ping_interval", 30, 30,
        "the node pings each control channel that often, so that a healthy client is never idle",
        zero="off",
    ),
    Limit(
        "on_listener_loss", "teardown", "keep", "choice",
        "whether the data connections of a listener whose control channel is lost are cut or live on",
        choices=("teardown", "keep"),
    ),
    Limit(
        "no_listener_status", 504, 404, "choice",
        "status for a sender while no listener is connected (where it is 404, a plain HTTP request gets 502)",
        choices=(404, 502, 503, 504),
    ),
    _seconds(
        "max_token_lifetime", 86_400, 0,
        "a token that expires further away than that (and the clock skew of 60 s) is refused",
        zero="unlimited",
    ),
    _seconds(
        "token_grace", 30, 120,
        "a control channel lives that long after its token expired, for a renewToken on its way",
        zero="off",
    ),
    Limit(
        "frame_limit", 65_536, 65_536, "bytes",
        "payload of the longest WebSocket frame that leaves the node (the Java client closes above 64 KiB)",
        minimum=128, maximum=16_777_216,
    ),
    Limit(
        "oversize_frames", "split", "split", "choice",
        "a longer frame that arrives is cut into fragments, or its connection is closed with 1009",
        choices=("split", "reject"),
    ),
    _seconds(
        "rendezvous_timeout", 30, 30,
        "a listener that was offered a sender has that long to open the rendezvous",
    ),
    _seconds(
        "response_timeout", 60, 60,
        "a plain HTTP request that has no response after that long gets 504",
        zero="off",
    ),
    _seconds(
        "body_idle_timeout", 60, 60,
        "a relayed HTTP body of which nothing arrived for that long is given up",
        zero="off",
    ),
    Limit(
        "requires_client_authorization", True, True, "flag",
        "whether senders need a token; a listener always needs one",
    ),
    Limit(
        "plain_path_websockets", True, False, "flag",
        "whether a WebSocket to the plain path (without /$hc/), as browsers open one, is a sender's; else it gets 400",
    ),
    _seconds(
        "half_close_timeout", 120, 120,
        "a connection of which one side sent Close ends when the open direction is silent for that long",
        zero="off",
    ),
    _seconds(
        "drain_timeout", 30, 30,
        "on shutdown, live connections have that long to end by themselves",
        zero="off", scopes=_NODE,
    ),
)  # fmt: skip

#: The table: every limit by its name.
LIMITS: Mapping[str, Limit] = MappingProxyType({row.name: row for row in _ROWS})


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that hold for one entity; made by `resolve`. Counts, bytes, seconds; 0 means no limit.

    Each field is described by the row of the same name in `LIMITS`.
    """

    max_hybrid_connections: int
    max_senders: int
    max_requests: int
    max_listeners: int
    listener_policy: str
    idle_timeout: float
    control_idle_timeout: float
    ping_interval: float
    on_listener_loss: str
    no_listener_status: int
    max_token_lifetime: float
    token_grace: float
    frame_limit: int
    oversize_frames: str
    rendezvous_timeout: float
    response_timeout: float
    body_idle_timeout: float
    requires_client_authorization: bool
    plain_path_websockets: bool
    half_close_timeout: float
    drain_timeout: float


def check(name: str, value: object, *, scope: Scope | None = None) -> Value:
    """``value`` as the limit ``name`` keeps it: int, float (seconds), bool or str.

    Parameters
    ----------
    name: key of the table.
    value: as read from TOML or JSON. Numbers must be numbers: ``"25"`` in quotes is a mistake (`read` is for
        text). The word of `Limit.zero` stands for 0.
    scope: where it was set, to refuse a limit that cannot be set there; None leaves that unchecked.

    Raises InvalidSetting, which names the key, what is wrong and what is allowed.
    """
    limit = LIMITS.get(name)
    if limit is None:
        raise InvalidSetting(f"{_shown(name)} is not a limit{_similar(name)}")
    if scope is not None and scope not in limit.scopes:
        where = " or ".join(place for place in ("node", "namespace") if place in limit.scopes)
        raise InvalidSetting(f"{name} cannot be set on a {scope.replace('_', ' ')}, only on a {where}")
    if limit.zero is not None and value == limit.zero:
        value = 0
    if limit.kind == "flag":
        if isinstance(value, bool):
            return value
    elif limit.kind == "choice":
        for choice in limit.choices:
            if type(value) is type(choice) and value == choice:
                return choice
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # The range comes first: it lets no NaN, no infinity and no int that float() cannot hold through.
        if limit.minimum <= value <= limit.maximum or (value == 0 and limit.zero is not None):
            if limit.kind == "seconds":
                return float(value)
            if isinstance(value, int) or math.floor(value) == value:
                return int(value)
    raise InvalidSetting(f"{name} = {_shown(value)} is not allowed: it must be {limit.allowed}")


def read(name: str, text: str, *, scope: Scope | None = None) -> Value:
    """Like `check`, for a value that arrives as text: an environment variable or a flag.

    Numbers are ASCII decimals (``60``, ``0.5``), flags ``true``, ``yes``, ``on``, ``1`` and their opposites.

    Raises InvalidSetting.
    """
    limit = LIMITS.get(name)
    text = text.strip()
    value: object = text
    if limit is not None:
        if limit.kind == "flag":
            value = _FLAGS.get(text.lower(), text)
        elif limit.kind != "choice" or isinstance(limit.default, int):
            value = _number(text)
    return check(name, value, scope=scope)


def resolve(preset: str = "default", *layers: Mapping[str, object]) -> Limits:
    """The limits in force, from what was set at each level.

    Parameters
    ----------
    preset: which column of defaults lies at the bottom, ``default`` or ``azure``.
    layers: what was set, from the furthest (node) to the nearest (hybrid connection); the nearest wins.

    Raises InvalidSetting for an unknown preset, an unknown key or a wrong value.
    """
    if preset not in PRESETS:
        allowed = " or ".join(PRESETS)
        raise InvalidSetting(f"preset = {_shown(preset)} is not allowed: it must be {allowed}")
    values: dict[str, Any] = {
        name: limit.azure if preset == "azure" else limit.default for name, limit in LIMITS.items()
    }
    for layer in layers:
        for name, value in layer.items():
            values[name] = check(name, value)
    return Limits(**values)


_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _number(text: str) -> object:
    """The number that ``text`` writes in plain ASCII, else ``text`` itself, which `check` then refuses."""
    whole, _, fraction = text.partition(".")
    if len(text) > 32 or not text.isascii() or not (whole + fraction).isdigit():
        return text
    return float(text) if "." in text else int(text)


def _shown(value: object) -> str:
    """``value`` for an error message: short, whatever was written."""
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4,300 digits
        return "that number"
    return text if len(text) <= 60 else text[:57] + "..."


def _similar(name: str) -> str:
    close = difflib.get_close_matches(name[:60], LIMITS, n=1)
    return f"; did you mean {close[0]}?" if close else "; the limits are " + ", ".join(LIMITS)


assert tuple(LIMITS) == tuple(field.name for field in dataclasses.fields(Limits))
