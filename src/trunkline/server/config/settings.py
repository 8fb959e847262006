"""Settings of a node: one table, `NodeSettings`, read from flags, environment, file and defaults, nearest first.

Each field of the table is one setting: its name, default, check and help are here and nowhere else. It is
``port`` in the ``[node]`` table of a file, ``TRUNKLINE_PORT`` in the environment and ``--port`` on the command
line. The limits of `trunkline.protocol.limits` are settings of the node as well.

A node that runs can take other settings over (SIGHUP); each row says whether it does so at once, see `in_force`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from trunkline.protocol.errors import InvalidSetting
from trunkline.protocol.limits import LIMITS, Value, check, read
from trunkline.server.config import names
from trunkline.server.config.declarative import Declaration
from trunkline.server.config.errors import InvalidConfiguration, nearest, shown

ENVIRONMENT_PREFIX = "TRUNKLINE_"

# Characters; what has fewer can be tried out.
SHORTEST_ADMIN_TOKEN = 16

# Settings that no message, `repr`, page or log ever shows.
SECRETS = frozenset({"admin_token"})


def _path(value: Path) -> Path:
    if not str(value).isprintable():
        raise InvalidSetting("a path holds only printable characters")
    return value


class TlsFiles(BaseModel, frozen=True, extra="forbid"):
    """A certificate that somebody else made."""

    #: PEM: the certificate of the node, then those between it and its authority.
    certificate: Annotated[Path, AfterValidator(_path)]
    #: PEM, without a passphrase.
    key: Annotated[Path, AfterValidator(_path)]


def _port(value: object) -> int:
    """0 to 65535; 0 lets the system choose. Booleans are numbers to Python, and no ports."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65_535:
        raise InvalidSetting("it must be a number from 0 to 65535")
    return value


def _tls(value: object) -> object:
    if isinstance(value, Mapping):
        wrong = [key for key in value if key not in TlsFiles.model_fields]
        missing = [key for key in TlsFiles.model_fields if not isinstance(value.get(key), str | Path)]
        if not wrong and not missing:
            return dict(value)
    elif isinstance(value, TlsFiles) or value in ("development", "off"):
        return value
    raise InvalidSetting('it must be "development", "off" or { certificate = "FILE", key = "FILE" }')


def _public_url(value: object) -> object:
    if value is None:
        return None
    try:
        parts = urlsplit(str(value))
        host, port = names.host_name(parts.hostname), parts.port
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or "@" in parts.netloc:
        raise InvalidSetting("it must be https://HOST[:PORT] or http://HOST[:PORT]")
    if parts.query or parts.fragment:
        raise InvalidSetting("it must have neither a query nor a fragment")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"


def _admin_token(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if text is None:
        return None
    # It stands in a header behind "Bearer " (RFC 6750 section 2.1 allows these and some letters fewer).
    if not isinstance(text, str) or len(text) < SHORTEST_ADMIN_TOKEN or not all("!" <= each <= "~" for each in text):
        raise InvalidSetting(
            f"it must be at least {SHORTEST_ADMIN_TOKEN} characters of ASCII without spaces (the value is not shown)"
        )
    return text


def _networks(value: object) -> tuple[Network, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list | tuple):
        raise InvalidSetting('it must be a list of addresses and networks, ["10.0.0.0/8", "192.0.2.7"]')
    found = []
    for entry in entries:
        text = entry.strip() if isinstance(entry, str) else entry
        if text == "" and isinstance(value, str):
            continue
        try:
            # A number would be an address to it too, and true is a number.
            if not isinstance(text, str | ipaddress.IPv4Network | ipaddress.IPv6Network):
                raise ValueError
            found.append(ipaddress.ip_network(text))
        except ValueError:
            problem = f"{shown(text)} is neither an address nor a network"
            raise InvalidSetting(f'{problem}; write "192.0.2.7" or "10.0.0.0/8"') from None
    return tuple(found)


def _flag(value: object) -> bool:
    words = {True: True, False: False, "true": True, "false": False}
    if not isinstance(value, bool | str) or value not in words:
        raise InvalidSetting("it must be true or false")
    return words[value]


#: When a setting takes effect that was changed while the node runs.
Effect = Literal["at once", "restart", "other files at once, else restart"]


def _setting(default: object, description: str, effect: Effect) -> Any:
    return Field(default=default, description=description, json_schema_extra={"effect": effect})


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Host = Annotated[str, AfterValidator(names.host_name)]
Port = Annotated[int, BeforeValidator(_port)]


class NodeSettings(BaseSettings):
    """The settings of one node; made by `load`, or directly with the values that differ from the defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",  # TRUNKLINE_TLS__CERTIFICATE and TRUNKLINE_TLS__KEY
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    host: Host = _setting("127.0.0.1", "address that the data plane binds to; 0.0.0.0 or :: is all of them", "restart")
    port: Port = _setting(8443, "port of the data plane; 0 lets the system choose", "restart")
    admin_host: Host = _setting("127.0.0.1", "address of the admin port", "restart")
    admin_port: Port = _setting(
        8081, "port of /healthz, /readyz and of trunkline listeners; 0 lets the system choose", "restart"
    )
    admin_socket: Annotated[Path, AfterValidator(_path)] = _setting(
        Path("admin.sock"),
        "Unix socket with what the admin port has, for the user of the node alone; begins at the data folder;"
        " off: none",
        "restart",
    )
    admin_token: Annotated[SecretStr | None, BeforeValidator(_admin_token)] = _setting(
        None,
        "what callers of the admin port have to know; not given, the node makes one and keeps it in"
        " admin-token in the data folder; other users of this computer may see options, not variables",
        "at once",
    )
    tls: Annotated[Literal["development", "off"] | TlsFiles, BeforeValidator(_tls)] = _setting(
        "development",
        "development: certificates of an authority that the node makes and keeps in the data folder;"
        " off: none, for a proxy in front that ends TLS; or a certificate file and its key file",
        "other files at once, else restart",
    )
    domain: Host = _setting("localhost", "a namespace is reached as <name>.<domain>", "at once")
    data: Annotated[Path, AfterValidator(_path)] = _setting(
        Path("data"), "folder for entities, keys and certificates that the node keeps", "restart"
    )
    public_url: Annotated[str | None, BeforeValidator(_public_url)] = _setting(
        None, "how listeners and senders reach this node, when that is not the host and port it binds to", "at once"
    )
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)] = _setting(
        (),
        "addresses and networks of proxies in front that are believed when they say whose connection they pass on:"
        " X-Forwarded-For, X-Forwarded-Proto, the PROXY protocol",
        "at once",
    )
    proxy_protocol: Annotated[bool, BeforeValidator(_flag)] = _setting(
        False,
        "trusted proxies begin each connection with a header of the PROXY protocol, version 1 or 2, ahead of TLS too",
        "restart",
    )
    preset: Literal["default", "azure"] = _setting(
        "default", "defaults of every limit; azure: as the real service was seen to do", "at once"
    )
    log_format: Literal["auto", "text", "json"] = _setting(
        "auto", "lines of the log: text for people, json for machines; auto: text on a terminal, else json", "at once"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "how much is logged: this and what is graver", "at once"
    )
    opentelemetry: Annotated[bool, BeforeValidator(_flag)] = _setting(
        False,
        "send metrics and spans to the collector that the OTEL_... variables name; needs trunkline[opentelemetry]",
        "restart",
    )
    event_loop: Literal["auto", "uvloop", "asyncio"] = _setting(
        "auto",
        "what the node runs on: uvloop, which is faster, or the loop of Python; auto: uvloop where it is installed",
        "restart",
    )
    #: The limits that were set on the node itself; what was not set is decided by `preset`.
    limits: Mapping[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.proxy_protocol and not self.trusted_proxies:
            raise InvalidSetting("it needs trusted_proxies: the proxies that send the header")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` lays the sources over each other: it must say which one was wrong


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table, for ``--help`` and the documentation."""

    #: Key in the ``[node]`` table.
    name: str
    #: As it would be written in the file; None: nothing.
    default: object
    #: Environment variable.
    variable: str
    #: Command line option.
    flag: str
    help: str
    #: When it takes effect in a node that runs.
    effect: Effect


#: The table: every setting of a node by its name, limits last.
SETTINGS: Mapping[str, Setting] = {
    name: Setting(name, default, f"{ENVIRONMENT_PREFIX}{name.upper()}", f"--{name.replace('_', '-')}", help, effect)
    for name, default, help, effect in (
        *(
            (name, row.default, row.description or "", cast(dict[str, Effect], row.json_schema_extra)["effect"])
            for name, row in NodeSettings.model_fields.items()
            if name != "limits"
        ),
        *((name, row.default, row.help, "at once") for name, row in LIMITS.items()),
    )
}


def in_force(running: NodeSettings, wanted: NodeSettings) -> tuple[NodeSettings, tuple[str, ...]]:
    """What a running node makes of other settings: those that count from now on, and the names of those that do not.

    Parameters
    ----------
    running: as they are in force.
    wanted: as somebody wants them.
    """
    waiting = {}
    for name in NodeSettings.model_fields:
        before, after = getattr(running, name), getattr(wanted, name)
        if before == after or name == "limits" or SETTINGS[name].effect == "at once":
            continue
        if not (SETTINGS[name].effect != "restart" and isinstance(before, TlsFiles) and isinstance(after, TlsFiles)):
            waiting[name] = before
    return wanted.model_copy(update=waiting), tuple(waiting)


def load(declaration: Declaration | None = None, flags: Mapping[str, object] | None = None) -> NodeSettings:
    """The settings in force.

    Parameters
    ----------
    declaration: its ``[node]`` table counts; relative paths in it begin at the folder of the file, all others
        at the working folder.
    flags: by name of the setting; None means that the flag was not given.

    Raises InvalidConfiguration, which names the flag, the variable or the line of the file.
    """
    layers = (
        (_from_file(declaration), partial(_in_file, declaration), check),
        (_from_environment(), _in_environment, _checked_text),
        ({name: value for name, value in (flags or {}).items() if value is not None}, _in_flags, _checked_text),
    )
    values: dict[str, object] = {}
    limits: dict[str, Value] = {}
    places: dict[str, _Place] = {}
    for layer, place_of, checked in layers:
        for name, value in layer.items():
            places[name] = place_of(name)
            if name not in SETTINGS:
                raise places[name](f"there is no such setting{nearest(name, SETTINGS)}")
            if name not in LIMITS:
                values[name] = value
                continue
            try:
                limits[name] = checked(name, value)
            except InvalidSetting as error:
                raise places[name](error.message) from None
    try:
        return NodeSettings.model_validate({**values, "limits": limits})
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # each setting is right, and they do not go together
            raise places["proxy_protocol"](problem) from None
        name = str(first["loc"][0])
        value = "the value" if name in SECRETS else shown(values[name])
        raise places[name](f"{value} is not allowed: {problem}") from None


#: Makes the error about a value, from what is wrong with it, in the place where it was written.
_Place = Callable[[str], InvalidConfiguration]


def _in_file(declaration: Declaration | None, name: str) -> _Place:
    assert declaration is not None
    return partial(declaration.error, ("node", name))


def _in_environment(name: str) -> _Place:
    return partial(InvalidConfiguration, place=SETTINGS[name].variable)


def _in_flags(name: str) -> _Place:
    return partial(InvalidConfiguration, place=f"--{name.replace('_', '-')}")


def _checked_text(name: str, value: object) -> Value:
    """A limit from a place that knows only text; the CLI may have made a number of it already."""
    return read(name, value) if isinstance(value, str) else check(name, value)


def _from_file(declaration: Declaration | None) -> dict[str, object]:
    if declaration is None:
        return {}
    values, folder = dict(declaration.node), declaration.folder or Path()
    if isinstance(values.get("data"), str):
        values["data"] = folder / values["data"]
    if isinstance(tls := values.get("tls"), Mapping):
        values["tls"] = {key: folder / file if isinstance(file, str) else file for key, file in tls.items()}
    return values


def _from_environment() -> dict[str, object]:
    try:
        values = dict(EnvSettingsSource(NodeSettings)())
    except SettingsError as error:
        raise InvalidConfiguration(str(error), place="environment") from None
    values.pop("limits", None)
    # Kubernetes sets TRUNKLINE_PORT=tcp://10.0.0.1:8443 in every pod when a service is named "trunkline".
    if str(values.get("port")).startswith("tcp://"):
        del values["port"]
    for name in LIMITS:
        text = os.environ.get(SETTINGS[name].variable)
        if text:
            values[name] = text
    return values
