"""Shared access signatures: making them, reading them, and saying what they cover.

    SharedAccessSignature sr=<resource>&sig=<signature>&se=<unix seconds>&skn=<rule name>

The signature is base64(HMAC-SHA256(key, resource + "\\n" + expiry)) over the resource *exactly as transmitted*:
encoders differ (``%3A`` or ``%3a``, ``+`` or ``%20``, bare ``!'()*``), so a token is checked over its own bytes and
never encoded again. The key is the UTF-8 of the key's text; it is not base64-decoded (all SDKs of Azure Relay).

Who a rule is, whether a token is still valid and which rights it confers is decided by the server, which knows
rules and the time; here is only what the token itself says.
"""

from __future__ import annotations

import base64
import enum
import hmac
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote_plus, unquote, unquote_plus

from trunkline.protocol.errors import InvalidSetting, InvalidToken

_SCHEME = "SharedAccessSignature"
_FIELDS = {"sr", "sig", "se", "skn"}

# Characters. The longest path, host and rule name, escaped twice, stay well below; a renewToken could be larger.
_LONGEST = 16_384

# "se may be a decimal number"; twenty digits hold the largest 64-bit number, which some sign as "never".
# ASCII digits only, no sign, no exponent, so neither inf nor nan nor a number that float() cannot hold.
_EXPIRY = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,9})?")

_URL_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PORT = re.compile(r":[0-9]*$")


class Right(enum.StrEnum):
    """What an authorization rule may confer; spelled as Azure does."""

    LISTEN = "Listen"
    SEND = "Send"
    MANAGE = "Manage"


def implied(rights: Iterable[Right]) -> frozenset[Right]:
    """``rights`` with what they imply: Manage includes Listen and Send (Azure Relay)."""
    held = frozenset(rights)
    return frozenset(Right) if Right.MANAGE in held else held


@dataclass(frozen=True, slots=True)
class SharedAccessSignature:
    """A token that was read, and not checked yet. Its repr hides the signature."""

    #: ``sr`` as transmitted, still encoded; this is what was signed.
    resource: str
    #: ``sig`` decoded to its base64 text.
    signature: str = field(repr=False)
    #: ``se`` as seconds since the epoch.
    expires_at: float
    #: ``skn`` as transmitted; see `key_names`.
    key_name: str
    #: ``se`` as transmitted; this is what was signed.
    expiry_text: str

    def key_names(self) -> tuple[str, ...]:
        """The rule names that ``skn`` may mean, most literal first, without repeats.

        Node's clients send the name bare, spaces and all; .NET and Java encode it as a form field.
        """
        forms = (self.key_name, unquote(self.key_name), unquote_plus(self.key_name))
        return tuple(dict.fromkeys(forms))

    def covers(self, hosts: Collection[str], path: str) -> bool:
        """Whether the token was made for the entity ``path`` on one of ``hosts``.

        Scheme, port, query and fragment of the audience do not count, nor does a ``$hc/`` in front of its path;
        its path must be the entity's or, by whole segments, above it (the namespace itself has an empty path).
        Case does not count. An audience that was escaped twice is understood (hyco-ws does so for a space).

        Parameters
        ----------
        hosts: names of the namespace in lower case, without port; an IPv6 address with or without brackets.
        path: path of the entity without leading slash; empty for the namespace.
        """
        known = {host.strip("[]") for host in hosts}
        wanted = _segments(path)
        for audience in self._audiences():
            host, segments = _split_audience(audience)
            if host and host in known and wanted[: len(segments)] == segments:
                return True
        return False

    def _audiences(self) -> tuple[str, ...]:
        once = (unquote_plus(self.resource), unquote(self.resource))
        return tuple(dict.fromkeys((*once, *(unquote(form) for form in once))))


def sign(audience: str, key_name: str, key: str, *, expires_at: int) -> str:
    """A new token.

    Parameters
    ----------
    audience: URL of the entity or of the namespace, not encoded; see `audience`.
    key_name: name of the authorization rule.
    key: its primary or secondary key, as text.
    expires_at: seconds since the epoch.

    Raises InvalidSetting when a part is empty or cannot be written.
    """
    if not (audience and key_name and key) or expires_at < 0:
        raise InvalidSetting("a token needs an audience, the name and the key of a rule, and a time of expiry")
    if not all(map(_is_unicode, (audience, key_name, key))):
        raise InvalidSetting("audience, rule name and key of a token must be Unicode text")
    resource, expiry = quote_plus(audience), str(int(expires_at))
    signature = quote_plus(_signature(key, resource, expiry))
    return f"{_SCHEME} sr={resource}&sig={signature}&se={expiry}&skn={quote_plus(key_name)}"


def parse(text: str) -> SharedAccessSignature:
    """Read a token as it came in a header, a query (already form-decoded) or a ``renewToken``.

    The scheme word may have any case and the fields any order; a token without a space in it is taken to be
    percent-encoded as a whole. Only the four fields, each once and not empty, make a token, as in .NET's own
    validator: with a second ``sr`` or an unknown field it would not be clear what was signed.

    Raises InvalidToken; what was wrong is told, the text is not shown.
    """
    if len(text) > _LONGEST:
        raise _invalid("it is too long")
    text = text.strip()
    if " " not in text:
        whole = unquote_plus if text[len(_SCHEME) : len(_SCHEME) + 1] == "+" else unquote
        text = whole(text)
    scheme, _, rest = text.partition(" ")
    if scheme.lower() != _SCHEME.lower():
        raise _invalid("it does not begin with the word SharedAccessSignature")
    fields: dict[str, str] = {}
    for part in rest.lstrip(" ").split("&", len(_FIELDS)):
        name, _, value = part.partition("=")
        if name.lower() not in _FIELDS or name.lower() in fields or not value:
            raise _invalid("it must hold each of sr, sig, se and skn once, and nothing else")
        fields[name.lower()] = value
    if len(fields) != len(_FIELDS):
        raise _invalid("it must hold each of sr, sig, se and skn once, and nothing else")
    if not _EXPIRY.fullmatch(fields["se"]):
        raise _invalid("its expiry is not a number of seconds since 1970")
    if not _is_unicode(text):
        raise _invalid("it is not Unicode text")
    return SharedAccessSignature(
        resource=fields["sr"],
        # Only percent-decoded: base64 has a "+" of its own, and one that a form decoder ate comes back.
        signature=unquote(fields["sig"]).replace(" ", "+"),
        expires_at=float(fields["se"]),
        key_name=fields["skn"],
        expiry_text=fields["se"],
    )


def signed_by(token: SharedAccessSignature, key: str) -> bool:
    """Whether ``token`` was signed with ``key``; takes the same time whatever differs."""
    if not _is_unicode(key):  # such a key never signed anything
        return False
    expected = _signature(key, token.resource, token.expiry_text)
    return hmac.compare_digest(expected.encode(), token.signature.encode("utf-8", "replace"))


def audience(host: str, path: str) -> str:
    """The audience of an entity as hyco-ws writes it: ``http://host/path``, with ``http`` whatever the transport.

    Parameters
    ----------
    host: host name, with or without port.
    path: path of the entity; empty for the namespace.
    """
    return f"http://{host.lower()}/{path.strip('/')}"


def _is_unicode(text: str) -> bool:
    """Whether ``text`` can be encoded, that is, holds no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _signature(key: str, resource: str, expiry: str) -> str:
    digest = hmac.digest(key.encode(), f"{resource}\n{expiry}".encode(), "sha256")
    return base64.b64encode(digest).decode("ascii")


def _split_audience(audience: str) -> tuple[str, list[str]]:
    """Host in lower case without port, and path segments in lower case without ``$hc``."""
    scheme = _URL_SCHEME.match(audience)
    rest = audience[scheme.end() :] if scheme else audience
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, _, path = rest.partition("/")
    segments = _segments(path)
    if segments[:1] == ["$hc"]:
        segments = segments[1:]
    return _PORT.sub("", host).strip("[]").lower(), segments


def _segments(path: str) -> list[str]:
    return [segment for segment in path.casefold().split("/") if segment]


def _invalid(why: str) -> InvalidToken:
    return InvalidToken(f"{InvalidToken.default_message}: {why}")
