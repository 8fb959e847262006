"""The settings of a node as command line options: made from the one table, so that none is missing or differs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import typer

from trunkline.cli.failure import usage
from trunkline.protocol.limits import LIMITS, PRESETS
from trunkline.server.config.settings import SETTINGS, Setting

#: A certificate and its key are two options for the one setting ``tls``.
_TLS_FILES = {
    "tls_certificate": "Certificate file (PEM), with --tls-key; instead of --tls.",
    "tls_key": "Key file (PEM) of --tls-certificate.",
}


def with_settings(names: Collection[str], *, defaults: Mapping[str, object] | None = None) -> Callable[..., Any]:
    """Give a command the settings `names` as options; it gets those that were used in its `**settings`.

    Args:
        names: of the settings, in the order of `--help`.
        defaults: what the command sets when an option is not given, to be shown instead of the node's default.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        made = [_parameter(SETTINGS[name], (defaults or {}).get(name, SETTINGS[name].default)) for name in names]
        if "tls" in names:
            made += [_option(name, f"--{name.replace('_', '-')}", text, "FILE") for name, text in _TLS_FILES.items()]
        command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
        return command

    return decorate


def flags(used: Mapping[str, str | None]) -> dict[str, object]:
    """What `trunkline.server.config.settings.load` takes: the settings by name, files of TLS as one.

    Raises:
        Failure: the options for TLS contradict each other.
    """
    found: dict[str, object] = {name: value for name, value in used.items() if name not in _TLS_FILES}
    certificate, key = used.get("tls_certificate"), used.get("tls_key")
    if certificate is None and key is None:
        return found
    if certificate is None or key is None:
        raise usage("A certificate and its key go together", "give both --tls-certificate and --tls-key")
    if used.get("tls") is not None:
        raise usage("--tls and --tls-certificate go not together", "leave --tls out: the files say it")
    return {**found, "tls": {"certificate": certificate, "key": key}}


def _parameter(setting: Setting, default: object) -> inspect.Parameter:
    shown = "none" if default in (None, ()) else f"{default:g}" if isinstance(default, float) else str(default).lower()
    text = setting.help if setting.help.startswith(_VALUE) else setting.help[0].upper() + setting.help[1:]
    return _option(setting.name, setting.flag, f"{text} [default: {shown}]", _metavar(setting.name))


#: What stays in lower case: a value, as it is to be typed.
_VALUE = "development"
_METAVARS = {
    **{"host": "ADDRESS", "admin_host": "ADDRESS", "port": "PORT", "admin_port": "PORT", "tls": "development|off"},
    **{"admin_socket": "FILE|off", "admin_token": "TEXT"},
    **{"domain": "NAME", "data": "DIR", "public_url": "URL", "preset": "|".join(PRESETS)},
    **{"trusted_proxies": "ADDRESS,...", "proxy_protocol": "true|false", "event_loop": "auto|uvloop|asyncio"},
    **{"log_format": "auto|text|json", "log_level": "debug|info|warning|error"},
    **{"opentelemetry": "true|false"},
}


def _metavar(name: str) -> str:
    """What is to be typed: of a limit its unit, or the words that it may be."""
    if name not in LIMITS:
        return _METAVARS[name]
    limit = LIMITS[name]
    words = {"count": "NUMBER", "seconds": "SECONDS", "bytes": "BYTES", "flag": "true|false"}
    return words.get(limit.kind) or "|".join(map(str, limit.choices))


def _option(name: str, flag: str, help: str, metavar: str) -> inspect.Parameter:
    annotation = Annotated[str | None, typer.Option(flag, help=help, metavar=metavar, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
