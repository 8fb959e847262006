"""``trunkline connect``: netcat over the relay."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trunkline.cli import credentials
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage


def command(
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    ca: credentials.CaOption = None,
    no_tls: credentials.NoTlsOption = False,
    proxy: credentials.ProxyOption = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="For the listener; repeatable.")
    ] = None,
    subprotocol: Annotated[
        list[str] | None, typer.Option("--subprotocol", metavar="NAME", help="To offer; repeatable, best first.")
    ] = None,
    path: Annotated[
        str, typer.Option("--path", metavar="SUFFIX", help="What to add to the path, with ?query if wanted.")
    ] = "",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up connecting after that long.")
    ] = 70.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr when the connection stands.")] = False,
) -> None:
    """Connect to a listener: standard input there, what it sends to standard output.

    Bytes pass as they are. The end of the input closes that direction alone; the command ends when the listener has
    closed the other one. At a terminal it ends as soon as the listener closes.

    \b
    Examples:
      echo hello | trunkline connect
      trunkline connect < backup.tar > answer
      trunkline connect --entity orders -H "X-Room: 7" --path rooms/7?since=5
    """
    who = credentials.read(connection_string, entity, ca, no_tls, proxy)
    headers = [_header(text) for text in header or ()]
    run(_connect(who, headers, tuple(subprotocol or ()), path, timeout, verbose))


async def _connect(
    who: credentials.Credentials,
    headers: list[tuple[str, str]],
    subprotocols: tuple[str, ...],
    path: str,
    timeout: float,
    verbose: bool,
) -> None:
    from trunkline.cli.standard_streams import StandardStream, join

    suffix, _, query = path.partition("?")
    with who.reaching():
        connection = await who.client().create_connection(
            headers=headers, subprotocols=subprotocols, path_suffix=suffix, query=query, timeout=timeout
        )
    async with connection:
        if verbose:
            chosen = f" subprotocol {connection.subprotocol}" if connection.subprotocol else ""
            print(f"connected to {who.address}{chosen} TrackingId:{connection.tracking_id}", file=sys.stderr)
        await join(connection, StandardStream(0), StandardStream(1))


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise usage(f"--header {text!r} is no header", 'write it as "Name: value"')
    return name.strip(), value.strip()
