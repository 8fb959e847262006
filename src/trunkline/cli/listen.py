"""``trunkline listen``: a listener for trying things out, and for scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.cli import credentials
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage

if TYPE_CHECKING:
    from trunkline.sdk import Connection

Handler = Callable[["Connection"], Awaitable[None]]


def command(
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    ca: credentials.CaOption = None,
    no_tls: credentials.NoTlsOption = False,
    proxy: credentials.ProxyOption = None,
    print_: Annotated[bool, typer.Option("--print", help="Write what arrives to standard output.")] = False,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Answer one connection from standard input, as netcat does.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End after one connection.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up registering after that long.")
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
) -> None:
    """Listen on a hybrid connection: echo, print, or answer from standard input.

    Every message is sent back as it came, unless told otherwise. The listener stays registered: it reconnects by
    itself when the relay was away. "listening on" on stderr says that senders reach it.

    \b
    Examples:
      trunkline listen                          echo
      trunkline listen --print --once > file    take one connection into a file
      trunkline listen --stdio                  type the answers
    """
    if print_ and stdio:
        raise usage("--print and --stdio go not together", "--stdio also writes what arrives to standard output")
    who = credentials.read(connection_string, entity, ca, no_tls, proxy)
    # What the SDK has to say about reconnecting.
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trunkline.sdk.listener").addFilter(is_not_the_end)
    mode = "print" if print_ else "stdio" if stdio else "echo"
    run(_listen(who, mode, once or stdio, timeout, quiet))


async def _listen(who: credentials.Credentials, mode: str, once: bool, timeout: float, quiet: bool) -> None:
    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    handler = {"echo": _echo, "print": _printer, "stdio": _stdio}[mode]()

    # Why nothing can be written any more: that ends the command, and not one connection alone.
    output_failed: list[OSError] = []

    async def handle(connection: Connection) -> None:
        sender = connection.request.remote_address[0] if connection.request else ""
        say(f"connected: {sender} TrackingId:{connection.tracking_id}")
        try:
            await handler(connection)
        except OSError as error:
            connection.abort()
            output_failed.append(error)
            await listener.close()

    # One connection only: whoever comes next is told (503), and not left waiting for a listener that ends.
    listener = who.listener(max_connections=1 if once else None)
    with who.reaching():
        await listener.open(timeout)
    try:
        say(f"listening on {who.address} ({mode}); Ctrl-C ends")
        if once:
            async with await listener.accept() as connection:
                await handle(connection)
        else:
            await listener.serve(handle)
        if output_failed:
            raise output_failed[0]
    finally:
        # Ctrl-C or SIGTERM ends the wait for the relay's answer too, if they come again.
        await listener.close()


def is_not_the_end(record: logging.LogRecord) -> bool:
    """Whether a line of the SDK is to be shown: what ends the listener is told once, as the error of the command."""
    return record.levelno < logging.ERROR or record.exc_info is not None


def _echo() -> Handler:
    from trunkline.sdk import ConnectionClosed

    async def echo(connection: Connection) -> None:
        with suppress(ConnectionClosed):
            async for message in connection:
                await connection.send(message)

    return echo


def _printer() -> Handler:
    from trunkline.cli.standard_streams import PIECE, StandardStream

    output = StandardStream(1)

    async def write(connection: Connection) -> None:
        while data := await connection.read(PIECE):
            await output.write(data)

    async def write_for_people(connection: Connection) -> None:
        async for message in connection:
            await output.write(message if isinstance(message, bytes) else f"{message}\n".encode())

    return write_for_people if output.is_terminal else write


def _stdio() -> Handler:
    from trunkline.cli.standard_streams import StandardStream, join

    streams = StandardStream(0), StandardStream(1)

    async def answer(connection: Connection) -> None:
        await join(connection, *streams)

    return answer
