"""``trunkline expose``: a web server of this network under an address of the relay."""

from __future__ import annotations

import logging
import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli import credentials
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage
from trunkline.cli.request_view import Opened, View, view_of

if TYPE_CHECKING:
    from trunkline.expose import Exposure
    from trunkline.sdk import HybridConnectionListener

#: Seconds that requests in hand have to finish after Ctrl-C or SIGTERM.
GRACE = 5.0


def command(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The web server: http://localhost:3000, 3000, unix:/run/app.sock.")
    ],
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    ca: credentials.CaOption = None,
    no_tls: credentials.NoTlsOption = False,
    proxy: credentials.ProxyOption = None,
    preserve_host: Annotated[
        bool, typer.Option("--preserve-host", help="Send the Host that the sender used, not that of the target.")
    ] = False,
    host_header: Annotated[
        str | None, typer.Option("--host-header", metavar="HOST", help="Send this Host to the target.")
    ] = None,
    keep_path: Annotated[
        bool, typer.Option("--keep-path", help="Leave the path of the hybrid connection in front of the target's.")
    ] = False,
    trust_forwarded: Annotated[
        bool,
        typer.Option("--trust-forwarded", help="Keep X-Forwarded-* of senders: a gateway before the relay sets them."),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Do not check the certificate of an https target.")
    ] = False,
    target_ca: Annotated[
        Path | None,
        typer.Option("--target-ca", metavar="FILE", help="Trust this authority (PEM) for an https target."),
    ] = None,
    connect_timeout: Annotated[
        float,
        typer.Option("--connect-timeout", metavar="SECONDS", min=0.001, help="For one connection to the target."),
    ] = 10.0,
    response_timeout: Annotated[
        float,
        typer.Option("--response-timeout", metavar="SECONDS", min=0.001, help="For the target to begin an answer."),
    ] = 300.0,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up registering after that long.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line for all that happens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Expose a web server: HTTP requests and WebSockets to the hybrid connection go there.

    No port is opened. The path of the hybrid connection is taken off, so that /myHC/index.html is /index.html there;
    redirects and cookies get it back. Each request is a line: method, status, milliseconds, bytes, path. A target that
    is down is told, and senders get 502 until it is back. Ctrl-C lets requests in hand finish.

    \b
    Examples:
      trunkline expose 3000 --hybrid-connection myHC
      trunkline expose http://printer.lan/admin --preserve-host
      trunkline expose https://localhost:8444 --insecure
      trunkline expose unix:/run/app.sock --json | jq 'select(.status >= 500)'
    """
    from trunkline.expose import Exposure, HeaderRules, parse_target, tls_settings

    if host_header is not None and preserve_host:
        raise usage("--host-header and --preserve-host go not together", "leave one of them out")
    if as_json and quiet:
        raise usage("--json and --quiet go not together", "leave one of them out")
    where = parse_target(target)
    tls = tls_settings(insecure=insecure, ca=None if target_ca is None else str(target_ca))
    who = credentials.read(connection_string, entity, ca, no_tls, proxy)
    rules = HeaderRules(
        where,
        preserve_host=preserve_host,
        host=host_header,
        trust_forwarded=trust_forwarded,
        keep_path=keep_path,
        scheme="http" if no_tls else "https",
        # Another one for each process, so that a chain of several is no loop.
        pseudonym=f"trunkline-{secrets.token_hex(4)}",
    )
    view = view_of(str(where), as_json=as_json, quiet=quiet)
    exposure = Exposure(
        rules, view, entity=who.entity, tls=tls, connect_timeout=connect_timeout, response_timeout=response_timeout
    )
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="%(message)s", stream=sys.stderr)
    run(_expose(who, exposure, str(where), view, timeout))


async def _expose(who: credentials.Credentials, exposure: Exposure, target: str, view: View, timeout: float) -> None:
    from trunkline.expose.access import ask, public_url

    was_online = False

    def online(_: HybridConnectionListener) -> None:
        nonlocal was_online
        if was_online:
            view.relay_changed(True, "")
        was_online = True

    def connecting(listener: HybridConnectionListener) -> None:
        if was_online:
            view.relay_changed(False, str(listener.last_error))

    def is_for_the_terminal(record: logging.LogRecord) -> bool:
        """What the view does not tell: why the listener cannot register at first, and what must not happen."""
        return record.exc_info is not None or (not was_online and record.levelno < logging.ERROR)

    logging.getLogger("trunkline.sdk.listener").addFilter(is_for_the_terminal)
    try:
        async with exposure:
            listener = who.listener(on_online=online, on_connecting=connecting, **exposure.handlers)
            with who.reaching():
                await listener.open(timeout)
            try:
                endpoint = who.endpoint()
                url = public_url(endpoint)
                information = await ask(endpoint)
                access = access_lines(url, information.requires_token, who.ca)
                access += others_lines(who.entity, information.listeners)
                view.opened(Opened(url, target, who.entity, access))
                await exposure.health.check()
                await listener.serve(exposure.serve)
            finally:
                await listener.close(wait=GRACE)
    finally:
        view.close()


def others_lines(entity: str, listeners: int | None) -> list[str]:
    """A word about other listeners, which may be the ones that senders reach."""
    if listeners is None or listeners < 2:
        return []
    return [
        f"{entity} has {listeners} listeners. Unless it says otherwise (listener_policy), the first one is active and"
        " this one stands by."
    ]


def access_lines(url: str, needs_token: bool | None, ca: Path | None) -> list[str]:
    """How a sender gets in, for the user to pass on.

    Args:
        url: the public address.
        needs_token: whether senders need a token; None when the relay did not say.
        ca: the authority that senders must trust, where it is not one that computers trust anyway.
    """
    curl = "curl" if ca is None else f"curl --cacert {shlex.quote(str(ca))}"
    if needs_token is False:
        return [f"Anybody who reaches the relay gets in, without a token: {curl} {url}"]
    unless = "" if needs_token else " unless the hybrid connection is anonymous"
    return [
        f"Senders need a token{unless}; with a connection string that has the right Send:",
        f'  {curl} -H "ServiceBusAuthorization: $(trunkline token)" {url}',
    ]
