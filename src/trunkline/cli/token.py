"""``trunkline token``: a shared access signature."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from trunkline.cli import credentials, rules
from trunkline.cli.connection_string import find
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage
from trunkline.protocol.limits import LONGEST_TOKEN_LIFETIME
from trunkline.protocol.sas import audience, sign

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)?", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, None: 1}


def command(
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    config: rules.ConfigOption = None,
    data: rules.DataOption = None,
    namespace: rules.NamespaceOption = None,
    rule: rules.RuleOption = None,
    rights: rules.RightsOption = None,
    endpoint: rules.EndpointOption = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="DURATION", help="How long it lasts: 90s, 30m, 12h; at most 24h.")
    ] = "1h",
    as_json: Annotated[bool, typer.Option("--json", help="Print it with what it allows and until when.")] = False,
) -> None:
    """Print a token, a shared access signature.

    It goes into the header ServiceBusAuthorization or, percent-encoded, into the query parameter sb-hc-token. Without a
    hybrid connection it is for the whole namespace.

    \b
    Examples:
      trunkline token --entity orders --expires 30m
      trunkline token --config trunkline.toml --entity orders --rights Send
      websocat -H "ServiceBusAuthorization: $(trunkline token)" wss://HOST/PATH
    """
    lifetime = seconds(expires)

    async def show() -> None:
        source = await find(config, data, connection_string, entity, namespace, rule, rights, endpoint)
        if source.key is None or source.key_name is None:
            raise usage(
                "The connection string holds no key to make a token with", "use one with SharedAccessKeyName and key"
            )
        host = f"[{source.host}]" if ":" in source.host else source.host
        whom = audience(host, source.entity_path or "")
        expires_at = int(time.time()) + lifetime
        token = sign(whom, source.key_name, source.key, expires_at=expires_at)
        if as_json:
            until = datetime.fromtimestamp(expires_at, UTC).isoformat()
            print(json.dumps({"token": token, "audience": whom, "rule": source.key_name, "expires_at": until}))
        else:
            print(token)

    run(show())


def seconds(text: str) -> int:
    """A duration such as 90s, 30m, 12h or 3600.

    Raises:
        Failure: it is none, or longer than a token may last.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    lifetime = int(match[1]) * _UNITS[match[2]] if match else 0
    if lifetime < 1:
        raise usage(f"--expires {text} is no duration", "write for example --expires 90s, 30m or 12h")
    if lifetime > LONGEST_TOKEN_LIFETIME:
        raise usage(f"--expires {text} is longer than a token may last", "write at most --expires 24h")
    return lifetime
