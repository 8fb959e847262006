"""``trunkline token``: makes a shared access signature, keeps one fresh in a file, and explains any token."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from trunkline.cli import credentials, rules
from trunkline.cli.connection_string import find
from trunkline.cli.event_loop import run
from trunkline.cli.failure import harmless, usage
from trunkline.cli.token_explanation import Explanation, KnownKey, explain_token
from trunkline.protocol import connection_string as strings
from trunkline.protocol.limits import LONGEST_TOKEN_LIFETIME
from trunkline.protocol.sas import audience, sign

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d)?", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, None: 1}
#: Characters of standard input that are taken for a token.
_LONGEST = 65_536


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
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="Write it to this file, which only you can read.")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="DURATION", help="Go on, and write a new one that often; less than --expires."),
    ] = None,
    execute: Annotated[
        str | None, typer.Option("--exec", metavar="COMMAND", help="Run this in a shell after each write.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="TEXT", help="What to write, with {token} where the token goes."),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="TOKEN", help="Explain this token instead; - reads it from standard input."),
    ] = None,
) -> None:
    """Print a token, a shared access signature; keep one fresh in a file; or explain one.

    It goes into the header ServiceBusAuthorization or, percent-encoded, into the query parameter sb-hc-token. Without a
    hybrid connection it is for the whole namespace.

    With --every the file is replaced that often, by the wall clock, and at the latest when half of the token's life is
    over. A new one that cannot be made leaves the old one there. Ctrl-C or SIGTERM ends it.

    --explain says what a token is for, until when, and what is wrong with it; whether its signature fits, when a
    connection string, --config or --data has the key. It shows no signature. The exit status is 1 when a relay
    refuses such a token.

    \b
    Examples:
      trunkline token --entity orders --expires 30m
      trunkline token --config trunkline.toml --entity orders --rights Send
      websocat -H "ServiceBusAuthorization: $(trunkline token)" wss://HOST/PATH
      trunkline token --write token --every 30m --exec "nginx -s reload"
      trunkline token --explain - < token
    """
    if explain is not None:
        _no_others("--explain", {"--write": write, "--every": every, "--exec": execute, "--template": template})
        run(_explain(explain, config, data, connection_string, entity, as_json))
        return
    if write is None:
        _no_others("without --write", {"--every": every, "--exec": execute, "--template": template})
    elif as_json:
        raise usage("--write and --json go not together", "the file holds the token, or what --template says")
    lifetime = seconds(expires, "--expires")
    interval = None if every is None else seconds(every, "--every")
    if interval is not None and interval >= lifetime:
        raise usage(
            f"--every {every} is no shorter than the life of a token, {expires}", "renew it sooner, or raise --expires"
        )

    async def make() -> Made:
        source = await find(config, data, connection_string, entity, namespace, rule, rights, endpoint)
        return _make(source, lifetime)

    run(_print(make, as_json) if write is None else _write(make, write, interval, lifetime, template, execute))


def _no_others(option: str, others: dict[str, object]) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise usage(f"{given[0]} means nothing {option if ' ' in option else 'with ' + option}", "see --help")


class Made(NamedTuple):
    """A token and what it says."""

    text: str
    audience: str
    rule: str
    #: Seconds since the epoch.
    expires_at: int


def _make(found: strings.ConnectionString, lifetime: int) -> Made:
    if found.key is None or found.key_name is None:
        raise usage(
            "The connection string holds no key to make a token with", "use one with SharedAccessKeyName and key"
        )
    host = f"[{found.host}]" if ":" in found.host else found.host
    whom = audience(host, found.entity_path or "")
    expires_at = int(time.time()) + lifetime
    text = sign(whom, found.key_name, found.key, expires_at=expires_at)
    return Made(text, whom, found.key_name, expires_at)


async def _print(make: Callable[[], Awaitable[Made]], as_json: bool) -> None:
    made = await make()
    if as_json:
        until = datetime.fromtimestamp(made.expires_at, UTC).isoformat()
        print(json.dumps({"token": made.text, "audience": made.audience, "rule": made.rule, "expires_at": until}))
    else:
        print(made.text)


async def _write(
    make: Callable[[], Awaitable[Made]],
    path: Path,
    every: int | None,
    lifetime: int,
    template: str | None,
    execute: str | None,
) -> None:
    # Not imported to print a token, which scripts do often: it brings the SDK along.
    from trunkline.cli.token_file import PLACEHOLDER, TokenFile, keep_fresh
    from trunkline.sdk.tokens import Token

    async def token() -> Token:
        made = await make()
        return Token(made.text, float(made.expires_at))

    file = TokenFile(path, template=template or PLACEHOLDER, command=execute or "")
    if every is None:
        file.write(await token())
        await file.run_command()
        return
    try:
        await keep_fresh(file, token, every=every, lifetime=lifetime)
    except asyncio.CancelledError:
        return  # a signal is the usual end of a program that runs for ever, and no failure of it


# --- explaining ---


async def _explain(
    text: str,
    config: Path | None,
    data: Path | None,
    connection_string: str | None,
    entity: str | None,
    as_json: bool,
) -> None:
    if text == "-":
        text = sys.stdin.read(_LONGEST)
    keys: list[KnownKey] = []
    host = None
    path = (entity or "").strip("/") or None
    if config is not None or data is not None:
        keys = await rules.keys(config=config, data=data)
    elif connection_string:
        parts = strings.parse(connection_string)
        host, path = parts.host, path or parts.entity_path
        if parts.key_name is not None and parts.key is not None:
            keys = [KnownKey(parts.key_name, parts.key, f"the rule {parts.key_name} (connection string)")]
    found = explain_token(text, now=time.time(), keys=keys, host=host, entity=path)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: Explanation) -> None:
    for word, said in (("kind", found.kind), *found.lines):
        print(f"{word:<12}{harmless(said)}")
    for word, remarks in (("wrong", found.problems), ("note", found.remarks)):
        for remark in remarks:
            print(f"{word:<12}{harmless(remark.what)}")
            if remark.remedy:
                print(f"{'':<12}remedy: {remark.remedy}")
    if found.problems:
        verdict = "a relay refuses it"
    elif found.facts.get("signature_fits"):
        verdict = "nothing is wrong with it"
    else:
        verdict = "nothing is wrong with what it says; whether its signature fits was not checked"
    print(f"\n{verdict}")


def seconds(text: str, option: str) -> int:
    """A duration such as 90s, 30m, 12h or 3600.

    Args:
        option: the one that it was given with, for messages.

    Raises:
        Failure: it is none, or longer than a token may last.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    duration = int(match[1]) * _UNITS[match[2]] if match else 0
    if duration < 1:
        raise usage(f"{option} {text} is no duration", f"write for example {option} 90s, 30m or 12h")
    if duration > LONGEST_TOKEN_LIFETIME:
        raise usage(f"{option} {text} is longer than a token may last", f"write at most {option} 24h")
    return duration
