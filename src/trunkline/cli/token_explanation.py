"""Any token explained: what it says, until when, whether a key fits, and what is wrong with it. No I/O.

It reads more than a relay takes, to be able to say what is wrong: quotes, a header's name or ``Bearer`` in front,
fields that are missing, things encoded twice. The signature is never among what is told.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus, unquote, unquote_plus

from trunkline.protocol import sas
from trunkline.protocol.errors import InvalidToken
from trunkline.protocol.limits import CLOCK_SKEW, LONGEST_TOKEN_LIFETIME

#: An ``se`` above it is taken for milliseconds: in seconds it is the year 5138.
_MILLISECONDS_FROM = 1e11
_HEADER = re.compile(r"\s*(ServiceBusAuthorization|Authorization)\s*:\s*", re.IGNORECASE)
_SAS = re.compile(r"SharedAccessSignature(?:\s+|\+|%(?:25)*20)", re.IGNORECASE)
_FIELDS = ("sr", "sig", "se", "skn")
#: Audiences of Microsoft Entra ID tokens for Azure Relay.
_ENTRA_AUDIENCE = "https://relay.azure.net"


@dataclass(frozen=True)
class KnownKey:
    """A key that a token may have been signed with."""

    rule: str
    key: str = field(repr=False)
    #: Where it is from, behind "of": "the rule send of orders (primary)", "the connection string".
    origin: str


@dataclass(frozen=True)
class Remark:
    """Something about a token, and what to do about it."""

    what: str
    remedy: str = ""


@dataclass
class Explanation:
    """What is known of a token."""

    #: ``shared access signature``, ``JWT`` or ``unknown``.
    kind: str = "unknown"
    #: For people: a word, and what is said.
    lines: list[tuple[str, str]] = field(default_factory=list)
    #: For programs.
    facts: dict[str, Any] = field(default_factory=dict)
    #: Why a relay refuses it; empty for a token that is good, as far as can be told.
    problems: list[Remark] = field(default_factory=list)
    #: What a relay takes all the same, others perhaps not.
    remarks: list[Remark] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All of it as an object."""
        return {
            "ok": not self.problems,
            "kind": self.kind,
            **self.facts,
            "problems": [{"what": each.what, "remedy": each.remedy} for each in self.problems],
            "remarks": [{"what": each.what, "remedy": each.remedy} for each in self.remarks],
        }


def explain_token(
    text: str, *, now: float, keys: Sequence[KnownKey] = (), host: str | None = None, entity: str | None = None
) -> Explanation:
    """Everything that can be said about a token without asking a relay.

    Args:
        text: what somebody takes for a token.
        now: seconds since the epoch.
        keys: tried one after the other.
        host: of the relay that the token is meant for; None when that is not known.
        entity: path of the hybrid connection that it is meant for; None when that is not known.
    """
    found = Explanation()
    rest = _unwrapped(text, found)
    if _SAS.match(rest) or re.match(r"(sr|sig|se|skn)=", rest, re.IGNORECASE):
        _explain_sas(rest, found, now, keys, host, entity)
    elif rest.count(".") == 2 and rest.startswith("eyJ"):
        _explain_jwt(rest, found, now)
    elif not rest:
        found.problems.append(Remark("there is no text", "give the token, or - to read it from standard input"))
    else:
        what = f"the {len(rest)} characters are neither a shared access signature nor a JWT"
        remedy = "a shared access signature begins with the word SharedAccessSignature, a JWT with eyJ"
        if "SharedAccessKey=" in rest:
            what, remedy = "this is a connection string", "trunkline token --connection-string makes a token with it"
        found.problems.append(Remark(what, remedy))
    return found


def _unwrapped(text: str, found: Explanation) -> str:
    """`text` without what people leave around a token."""
    rest = text.removesuffix("\n").removesuffix("\r")
    if rest.strip() != rest or any(character in rest for character in "\r\n\t"):
        found.remarks.append(Remark("white space is around it or a line ends within it", "remove it"))
    rest = " ".join(rest.split())
    if header := _HEADER.match(rest):
        found.problems.append(Remark(f"the name of the header {header[1]} is part of it", "leave the name out"))
        rest = rest[header.end() :]
    if len(rest) > 1 and rest[0] in "\"'`" and rest[-1] == rest[0]:
        found.problems.append(Remark("quotes are around it", "leave them out: they are sent as they are"))
        rest = rest[1:-1].strip()
    if rest[:7].lower() == "bearer ":
        rest = rest[7:].lstrip()
        if not rest.startswith("eyJ"):
            what = "the word Bearer is in front of a shared access signature"
            found.problems.append(Remark(what, "leave Bearer out"))
    return rest


# --- shared access signatures ---


def _explain_sas(
    text: str, found: Explanation, now: float, keys: Sequence[KnownKey], host: str | None, entity: str | None
) -> None:
    found.kind = "shared access signature"
    fields = _fields(text, found)
    if "sr" in fields:
        _explain_audience(fields["sr"], found)
    if "skn" in fields:
        names = dict.fromkeys((fields["skn"], unquote_plus(fields["skn"])))
        found.facts["rule"] = list(names)[-1]
        found.lines.append(("rule", found.facts["rule"]))
    if "se" in fields:
        _explain_expiry(fields["se"], found, now)
    if "sig" in fields:
        _explain_signature(fields["sig"], found)
    try:
        token = sas.parse(text)
    except InvalidToken as error:
        if not found.problems:  # everything that has a name was named
            found.problems.append(Remark(error.message.partition(": ")[2] or error.message))
        return
    if host is not None or entity is not None:
        _explain_coverage(token, found, host, entity)
    _try_keys(token, found, keys)


def _fields(text: str, found: Explanation) -> dict[str, str]:
    """The fields of a token, however they are wrapped."""
    word = _SAS.match(text)
    if word is None:
        what = "the word SharedAccessSignature is missing in front"
        found.problems.append(Remark(what, "write SharedAccessSignature, a space, and then sr=..."))
        rest = text
    else:
        rest = text[word.end() :]
        if not word[0].endswith(" ") or re.match(r"s[a-z]+%3d", rest, re.IGNORECASE):
            what = "it is encoded as a whole, as the query parameter sb-hc-token needs it"
            found.remarks.append(Remark(what, "decode it once for a header"))
        if re.match(r"s[a-z]+%253d", rest, re.IGNORECASE):
            found.problems.append(Remark("it is encoded twice as a whole", "decode it once"))
            rest = unquote(rest)
        if re.match(r"s[a-z]+%3d", rest, re.IGNORECASE):
            rest = unquote(rest)
    fields: dict[str, str] = {}
    for part in rest.split("&"):
        name, _, value = part.partition("=")
        name = name.strip().lower()
        if name not in _FIELDS:
            shown = f" {name}" if re.fullmatch(r"[a-z]{1,16}", name) else ""
            found.problems.append(Remark(f"it has a field{shown} that no token has", "leave it out"))
        elif name in fields:
            found.problems.append(Remark(f"it has {name} twice", "leave one out"))
        elif value:
            fields[name] = value
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        found.problems.append(Remark(f"it has no {', '.join(missing)}", "copy it whole, or make a new one"))
    return fields


def _explain_audience(resource: str, found: Explanation) -> None:
    audience = unquote_plus(resource)
    if "%" in audience and unquote(audience) != audience:
        what = "its audience is encoded twice"
        found.remarks.append(Remark(what, "encode it once: a Trunkline node takes it, others may not"))
        audience = unquote_plus(audience)
    found.facts["audience"] = audience
    found.lines.append(("audience", audience))
    host, _, path = re.sub(r"^[a-z+.-]*://", "", audience, flags=re.IGNORECASE).partition("/")
    path = re.sub(r"^\$hc/", "", path).strip("/")
    found.facts |= {"host": host, "entity": path or None}
    found.lines.append(("covers", f"{path}, and what is below it, on {host}" if path else f"everything on {host}"))
    if "://" in resource:
        what = "its audience is not encoded"
        found.remarks.append(Remark(what, "encode it, and sign the encoded text: some clients encode it again"))


def _explain_expiry(text: str, found: Explanation, now: float) -> None:
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]+)?", text):
        what = "its expiry (se) is not a number"
        found.problems.append(Remark(what, "write the seconds since 1970-01-01, in UTC"))
        return
    expires_at = float(text)
    if expires_at >= _MILLISECONDS_FROM:
        what = "its expiry (se) seems to be in milliseconds"
        found.problems.append(Remark(what, "write seconds since 1970, and sign anew"))
        expires_at /= 1000
    left = expires_at - now
    found.facts |= {"expires_at": expires_at, "seconds_left": round(left)}
    found.lines.append(("expires", f"{_moment(expires_at)}, {_how_long(left)}"))
    if left <= 0:
        found.problems.append(Remark(f"it has expired {_how_long(left)}", "make a new one: trunkline token"))
    elif left > LONGEST_TOKEN_LIFETIME + CLOCK_SKEW:
        hours = LONGEST_TOKEN_LIFETIME // 3600
        what = f"it lasts longer than the {hours} h that a Trunkline node takes by default"
        found.problems.append(Remark(what, "make one that ends sooner, or raise max_token_lifetime on the node"))


def _explain_signature(text: str, found: Explanation) -> None:
    once = unquote(text)
    if " " in once or "+" in text:
        what = "a + of its signature is not encoded"
        found.remarks.append(Remark(what, "encode it as %2B: a form decoder makes a space of it"))
    if re.search(r"%[0-9a-f]{2}", once, re.IGNORECASE):
        found.problems.append(Remark("its signature is encoded twice", "encode it once"))
        return
    try:
        size = len(base64.b64decode(once.replace(" ", "+"), validate=True))
    except binascii.Error:
        size = 0
    if size != 32:
        what = "its signature is not the base64 of 32 bytes"
        found.problems.append(Remark(what, "copy it whole; it is the HMAC-SHA256 of audience and expiry, not in hex"))


def _explain_coverage(
    token: sas.SharedAccessSignature, found: Explanation, host: str | None, entity: str | None
) -> None:
    # Its own host where the relay is not known: then the path alone counts.
    host = host or re.sub(r":[0-9]*$", "", found.facts["host"]).strip("[]").lower()
    where = f"{host}/{entity}" if entity else host
    # A token for one hybrid connection is right for its namespace's connection string too.
    path = entity if entity is not None else str(found.facts.get("entity") or "")
    fits = token.covers([host], path)
    found.facts["covers_it"] = fits
    if not fits:
        found.problems.append(Remark(f"it is not for {where}", "make one for it: trunkline token --entity NAME"))


def _try_keys(token: sas.SharedAccessSignature, found: Explanation, keys: Sequence[KnownKey]) -> None:
    if not keys:
        found.lines.append(("signature", "not checked: no key was given"))
        return
    names = {name.lower() for name in token.key_names()}
    fitting = next((known for known in keys if sas.signed_by(token, known.key)), None)
    found.facts["signature_fits"] = fitting is not None
    if fitting is None:
        found.lines.append(("signature", "fits no key that was given"))
        found.problems.append(_why_no_key_fits(token, keys, names))
        return
    found.lines.append(("signature", f"fits the key of {fitting.origin}"))
    if fitting.rule.lower() not in names:
        what = f"it names another rule than the one whose key signed it, {fitting.rule}"
        found.problems.append(Remark(what, f"write skn={quote_plus(fitting.rule)}"))


def _why_no_key_fits(token: sas.SharedAccessSignature, keys: Sequence[KnownKey], names: set[str]) -> Remark:
    """The usual mistakes are tried: a key that was decoded, an audience that was signed as it is read."""
    what = "its signature does not fit"
    for known in keys:
        with_decoded = base64.b64decode(known.key, validate=True) if _is_base64(known.key) else b""
        if with_decoded and _signed(token, with_decoded, token.resource):
            return Remark(
                f"{what}: the key was base64-decoded before signing", "sign with the text of the key as it is"
            )
        plain = unquote_plus(token.resource)
        for audience in (plain, plain.lower(), quote_plus(plain), quote_plus(plain.lower()), _lower_escapes(plain)):
            if audience != token.resource and _signed(token, known.key.encode(), audience):
                return Remark(f"{what}: another spelling of the audience was signed", "sign exactly what sr holds")
    if not any(known.rule.lower() in names for known in keys):
        return Remark(f"{what}: no key of that rule was given", "give the connection string or the file that has it")
    return Remark(f"{what}: another key signed it, or it was changed", "make a new one with the key of now")


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


def _lower_escapes(plain: str) -> str:
    return re.sub(r"%[0-9A-F]{2}", lambda escape: escape[0].lower(), quote_plus(plain))


def _signed(token: sas.SharedAccessSignature, key: bytes, audience: str) -> bool:
    digest = hmac.digest(key, f"{audience}\n{token.expiry_text}".encode(), "sha256")
    return hmac.compare_digest(base64.b64encode(digest), token.signature.encode("utf-8", "replace"))


# --- JWT ---


def _explain_jwt(text: str, found: Explanation, now: float) -> None:
    found.kind = "JWT"
    try:
        head, claims = (_json_part(part) for part in text.split(".")[:2])
    except (ValueError, RecursionError):
        found.problems.append(Remark("its parts are not JSON in base64url", "copy it whole, or get a new one"))
        return
    found.lines.append(("signature", "not checked: that needs the keys of its issuer"))
    found.facts["algorithm"] = str(head.get("alg", ""))
    for name, word in (("iss", "issuer"), ("aud", "audience"), ("sub", "subject"), ("appid", "application")):
        if name in claims:
            found.facts[word] = claims[name]
            found.lines.append((word, _shown(claims[name])))
    for name in ("roles", "scp"):
        if name in claims:
            found.facts[name] = claims[name]
            found.lines.append((name, _shown(claims[name])))
    for name, late in (("exp", "has expired"), ("nbf", "is not valid yet; it begins")):
        value = claims.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _MILLISECONDS_FROM:
            continue
        left = value - now
        if name == "exp":
            found.facts |= {"expires_at": value, "seconds_left": round(left)}
            found.lines.append(("expires", f"{_moment(value)}, {_how_long(left)}"))
        if (left <= 0) if name == "exp" else left > CLOCK_SKEW:
            found.problems.append(Remark(f"it {late} {_how_long(left)}", "get a new one, and check the clock"))
    audiences = claims.get("aud")
    wanted = audiences if isinstance(audiences, list) else [audiences]
    if not any(str(each).rstrip("/") == _ENTRA_AUDIENCE for each in wanted):
        what = f"its audience is not {_ENTRA_AUDIENCE}"
        found.remarks.append(Remark(what, f"ask for the scope {_ENTRA_AUDIENCE}//.default for Azure Relay"))
    found.remarks.append(Remark("a Trunkline node takes no JWT", "use a shared access signature there"))


def _json_part(text: str) -> dict[str, Any]:
    """One part of a JWT. Raises ValueError."""
    value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- time in words ---


def _moment(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return "after the year 9999"


def _how_long(seconds: float) -> str:
    """``in 5 minutes`` or ``3 days ago``: the largest unit of which there are two."""
    units = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    unit, name = next((each for each in units if abs(seconds) >= 2 * each[0]), units[-1])
    words = f"{abs(seconds) / unit:.0f} {name}"
    return f"in {words}" if seconds > 0 else f"{words} ago"
