"""Connection strings, as portals show them and SDKs take them.

    Endpoint=sb://HOST[:PORT]/;SharedAccessKeyName=RULE;SharedAccessKey=KEY;EntityPath=orders

Instead of a rule there may be a ready token (``SharedAccessSignature=...``), ``Authentication=Managed Identity``, or
nothing, when the token comes from elsewhere or none is needed. ``OperationTimeout`` is optional. Names have any case;
one that is not known is an error, as in the .NET and Java SDKs, because a misspelled name must not go unseen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trunkline.protocol.errors import InvalidConnectionString, InvalidUrl
from trunkline.protocol.urls import split_authority

_NAMES = {
    name.lower(): name
    for name in (
        "Endpoint",
        "SharedAccessKeyName",
        "SharedAccessKey",
        "EntityPath",
        "SharedAccessSignature",
        "OperationTimeout",
        "Authentication",
    )
}

# A TimeSpan of .NET, [days.]hours:minutes:seconds[.fraction]; Java and people write seconds.
_TIMESPAN = re.compile(r"(?:([0-9]{1,5})\.)?([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2}(?:\.[0-9]{1,7})?)")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,7})?")


@dataclass(frozen=True)
class ConnectionString:
    """Where an entity or namespace is and what proves the right to use it.

    ``str()`` gives the text *with* the key, to be stored or passed on; ``repr()`` hides it, for logs.

    Raises InvalidConnectionString when the parts do not go together.
    """

    #: Name or IP address (without brackets), lower case.
    host: str
    #: None for the default, 443.
    port: int | None = None
    #: Name of the authorization rule, together with `key`.
    key_name: str | None = None
    key: str | None = field(default=None, repr=False)
    #: Path of the hybrid connection without slashes around it; None in the connection string of a namespace.
    entity_path: str | None = None
    #: A ready token, instead of a rule.
    shared_access_signature: str | None = field(default=None, repr=False)
    #: Seconds.
    operation_timeout: float | None = None
    #: ``Managed Identity``, instead of a rule (.NET 3.x).
    authentication: str | None = None

    def __post_init__(self) -> None:
        if (self.key_name is None) != (self.key is None):
            given, missing = "SharedAccessKeyName", "SharedAccessKey"
            if self.key_name is None:
                given, missing = missing, given
            raise InvalidConnectionString(f"the connection string has {given} but no {missing}")
        proofs = (self.key, self.shared_access_signature, self.authentication)
        if sum(proof is not None for proof in proofs) > 1:
            raise InvalidConnectionString(
                "the connection string may have only one of SharedAccessKey, SharedAccessSignature, Authentication"
            )
        for name, value in self._values():
            if not value.strip() or value != value.strip() or not value.isprintable() or ";" in value:
                raise InvalidConnectionString(
                    f"{name} in the connection string is empty or holds a character that cannot be there"
                )
        try:
            normal = split_authority(_authority(self.host, self.port))
        except InvalidUrl as error:
            raise InvalidConnectionString(f"Endpoint in the connection string: {error.message}") from None
        if normal != (self.host, self.port):
            raise InvalidConnectionString("Endpoint in the connection string must have its host in lower case")

    @property
    def endpoint(self) -> str:
        """``sb://host[:port]/``; the slash is needed, because Java appends the entity path to it."""
        return f"sb://{_authority(self.host, self.port)}/"

    def __str__(self) -> str:
        return ";".join(f"{name}={value}" for name, value in self._values())

    def _values(self) -> list[tuple[str, str]]:
        timeout = self.operation_timeout
        values = (
            ("Endpoint", self.endpoint),
            ("SharedAccessKeyName", self.key_name),
            ("SharedAccessKey", self.key),
            ("SharedAccessSignature", self.shared_access_signature),
            ("Authentication", self.authentication),
            ("EntityPath", self.entity_path),
            ("OperationTimeout", None if timeout is None else _timespan(timeout)),
        )
        return [(name, value) for name, value in values if value is not None]


def build(
    host: str,
    *,
    port: int | None = None,
    key_name: str | None = None,
    key: str | None = None,
    entity_path: str | None = None,
    shared_access_signature: str | None = None,
) -> str:
    """The text of a connection string; parameters are the fields of `ConnectionString`.

    Raises InvalidConnectionString.
    """
    return str(
        ConnectionString(
            host=host.lower(),
            port=port,
            key_name=key_name,
            key=key,
            entity_path=None if entity_path is None else entity_path.strip("/"),
            shared_access_signature=shared_access_signature,
        )
    )


def parse(text: str) -> ConnectionString:
    """Read a connection string: parts are split at ";", name and value at the first "=".

    White space around names and values does not count, nor does a ";" at the end. ``OperationTimeout`` is a time
    (``00:01:00``, as .NET writes it) or a number of seconds (as Java does).

    Raises InvalidConnectionString; names the part that is wrong and never shows the text.
    """
    values: dict[str, str] = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        written, equals, value = part.partition("=")
        name = _NAMES.get(written.strip().lower())
        if name is None or not equals:
            # Only something that looks like a name is shown: a key that lost its name must not be.
            known = ", ".join(_NAMES.values())
            shown = f" {written.strip()}" if equals and re.fullmatch(r"\s*[A-Za-z]{1,32}\s*", written) else ""
            raise InvalidConnectionString(f"the connection string has an unknown part{shown}; parts are {known}")
        if name in values:
            raise InvalidConnectionString(f"the connection string has {name} twice")
        values[name] = value.strip()
    if "Endpoint" not in values:
        raise InvalidConnectionString("the connection string has no Endpoint (sb://host/)")
    host, port = _endpoint(values["Endpoint"])
    path = values.get("EntityPath")
    timeout = values.get("OperationTimeout")
    return ConnectionString(
        host=host,
        port=port,
        key_name=values.get("SharedAccessKeyName"),
        key=values.get("SharedAccessKey"),
        entity_path=None if path is None else path.strip("/"),
        shared_access_signature=values.get("SharedAccessSignature"),
        operation_timeout=None if timeout is None else _timeout(timeout),
        authentication=_authentication(values.get("Authentication")),
    )


def _authority(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _endpoint(text: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"sb://([^/?#]*)/*", text, re.IGNORECASE)
    if found is None:
        raise InvalidConnectionString(
            "Endpoint in the connection string must look like sb://host[:port]/ (a path belongs into EntityPath)"
        )
    try:
        return split_authority(found.group(1))
    except InvalidUrl as error:
        raise InvalidConnectionString(f"Endpoint in the connection string: {error.message}") from None


def _timeout(text: str) -> float:
    span = _TIMESPAN.fullmatch(text)
    if span:
        days, hours, minutes, seconds = span.groups(default="0")
        total = ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)
    else:
        total = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 1e-6 <= total < 1e9:
        raise InvalidConnectionString(
            "OperationTimeout in the connection string must be a time (00:01:00) or a number of seconds above 0"
        )
    return total


def _timespan(seconds: float) -> str:
    """``hh:mm:ss`` with days in front and a fraction behind where needed, as .NET reads it."""
    if not 1e-6 <= seconds < 1e9:
        raise InvalidConnectionString("OperationTimeout in the connection string must be above 0 and below 1e9")
    whole, fraction = divmod(round(seconds * 10_000_000), 10_000_000)
    days, whole = divmod(whole, 86_400)
    clock = f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{f'{days}.' if days else ''}{clock}{f'.{fraction:07}' if fraction else ''}"


def _authentication(text: str | None) -> str | None:
    if text is None:
        return None
    if text.replace(" ", "").lower() != "managedidentity":
        raise InvalidConnectionString("Authentication in the connection string can only be Managed Identity")
    return "Managed Identity"
