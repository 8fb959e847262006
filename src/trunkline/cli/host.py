"""``trunkline host``: an ASGI application behind a hybrid connection."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trunkline.cli import asgi_application, credentials
from trunkline.cli.event_loop import run
from trunkline.cli.failure import Failure, usage
from trunkline.cli.listen import is_not_the_end
from trunkline.cli.reload import end_with_parent, run_again_on_change

if TYPE_CHECKING:
    from trunkline.sdk.asgi import Served

#: Seconds that requests get to end, unless told otherwise; and with --reload, where somebody waits for the new code.
SHUTDOWN_TIMEOUT = 10.0
SHUTDOWN_TIMEOUT_OF_RELOAD = 1.0


def command(
    app: Annotated[str, typer.Argument(metavar="MODULE:ATTRIBUTE", help="The application, as main:app.")],
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    ca: credentials.CaOption = None,
    no_tls: credentials.NoTlsOption = False,
    proxy: credentials.ProxyOption = None,
    factory: Annotated[
        bool, typer.Option("--factory", help="The attribute is a function that makes the application.")
    ] = False,
    app_dir: Annotated[Path, typer.Option("--app-dir", metavar="DIR", help="Look for the module here first.")] = Path(
        "."
    ),
    root_path: Annotated[
        str | None,
        typer.Option(
            "--root-path",
            metavar="PATH",
            help='What links begin with; otherwise /ENTITY, or "" where senders use a host name of its own.',
        ),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="One line on standard output for each request.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a Python file changes, for developing.")
    ] = False,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option("--reload-dir", metavar="DIR", help="Watch this folder instead of --app-dir; repeatable."),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        typer.Option(
            "--shutdown-timeout",
            metavar="SECONDS",
            min=0,
            help=f"What requests get to end by themselves; {SHUTDOWN_TIMEOUT:g} unless told otherwise, "
            f"{SHUTDOWN_TIMEOUT_OF_RELOAD:g} with --reload.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up registering after that long.")
    ] = 60.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
    reloaded: Annotated[bool, typer.Option("--reloaded", hidden=True)] = False,
) -> None:
    """Serve an ASGI application through a hybrid connection.

    FastAPI, Starlette, Django, Quart: what uvicorn serves on a port is served here without one. HTTP requests and
    WebSockets reach it at the address that "serving" on stderr names. It stays registered: it reconnects by itself
    when the relay was away.

    \b
    Examples:
      trunkline host main:app
      trunkline host mysite.asgi:application --hybrid-connection orders
      trunkline host --factory shop:create_app --app-dir src --reload --access-log
    """
    who = credentials.read(connection_string, entity, ca, no_tls, proxy)
    if root_path is not None:
        root_path = f"/{root_path.strip('/')}" if root_path.strip("/") else ""
    if shutdown_timeout is None:
        shutdown_timeout = SHUTDOWN_TIMEOUT_OF_RELOAD if reload else SHUTDOWN_TIMEOUT
    if reload_dir and not reload:
        raise usage("--reload-dir is given without --reload", "add --reload, or leave it out")

    if reload:
        folders = reload_dir or [app_dir]
        for folder in folders:
            if not folder.is_dir():
                raise usage(f"{folder} is no folder", "name folders with --app-dir and --reload-dir")
        flags = {"--factory": factory, "--access-log": access_log, "--quiet": quiet, "--no-tls": no_tls}
        values = {
            "--app-dir": app_dir,
            "--entity": who.entity,
            "--shutdown-timeout": shutdown_timeout,
            "--timeout": timeout,
            "--root-path": root_path,
            "--ca": ca,
            "--proxy": proxy,
        }
        # The key goes by a variable: other users of this computer may see options.
        env = {**os.environ, credentials.CONNECTION_STRING_VARIABLE: who.text}
        run(run_again_on_change(_reloaded(app, flags, values), folders, partial(_say, quiet), env=env))
        return

    def load() -> Callable[..., Any]:
        return asgi_application.load(app, factory=factory, folder=app_dir)

    options = {"root_path": root_path, "shutdown_timeout": shutdown_timeout}
    run(_serve(app, load, who, options, timeout, access_log=access_log, quiet=quiet, reloaded=reloaded))


def _reloaded(app: str, flags: Mapping[str, bool], values: Mapping[str, object]) -> list[str]:
    """The command whose process serves until a file changes: this one, without what watches."""
    arguments = [name for name, wanted in flags.items() if wanted]
    for name, value in values.items():
        arguments += [name, str(value)] if value is not None else []
    return [sys.executable, "-m", "trunkline", "host", app, "--reloaded", *arguments]


async def _serve(
    name: str,
    load: Callable[[], Callable[..., Any]],
    who: credentials.Credentials,
    options: Mapping[str, Any],
    timeout: float,
    *,
    access_log: bool,
    quiet: bool,
    reloaded: bool,
) -> None:
    """Serve until a signal comes.

    Args:
        name: of the application, as the user wrote it.
        load: imports it.
        options: for `AsgiHost`.
        timeout: seconds to register.
        reloaded: another process watches the files, and this one ends with it.

    Raises:
        Failure: the application does not start.
    """
    from trunkline.sdk.asgi import AsgiHost, LifespanFailed

    if reloaded:
        task = asyncio.current_task()
        assert task is not None
        end_with_parent(task.cancel)
    # In the loop, as other servers have it: some applications look for it when they are imported.
    application = load()
    _log_to_stderr(logging.ERROR if quiet else logging.WARNING)
    try:
        with _lines(access_log) as on_served:
            host = AsgiHost(
                application,
                who.text,
                entity_path=who.entity,
                ssl=who.ssl,
                proxy=who.proxy,
                on_served=on_served,
                **options,
            )
            with who.reaching():
                await host.open(timeout)
            try:
                _say(quiet, f"serving {name} on {host.url}; Ctrl-C ends")
                if not quiet and not reloaded:
                    _say(quiet, "\n".join(await _access_lines(who, host.url)))
                await host.wait_closed()
            finally:
                await host.close()
    except LifespanFailed as error:
        raise Failure(str(error), "correct the application; its own output says more") from error


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _log_to_stderr(level: int) -> None:
    """What the SDK says of reconnecting, and of an application that fails; the other logs are the application's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(is_not_the_end)
    logger = logging.getLogger("trunkline")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


async def _access_lines(who: credentials.Credentials, url: str) -> list[str]:
    """How a sender gets in."""
    from trunkline.cli.expose import access_lines
    from trunkline.expose.access import requires_token

    return access_lines(url, await requires_token(who.endpoint()), who.ca)


@contextmanager
def _lines(wanted: bool) -> Iterator[Callable[[Served], None] | None]:
    """Writes the line of each request, as `trunkline expose` does: a slow reader holds nobody up."""
    if not wanted:
        yield None
        return
    from trunkline.cli.request_view import line_view
    from trunkline.expose import Kind, Record

    view = line_view()

    def show(served: Served) -> None:
        kind = Kind.OPENED if served.method == "WEBSOCKET" else Kind.REQUEST
        view.record(
            Record(
                kind,
                served.method,
                served.path,
                served.status,
                served.seconds,
                received=0,
                sent=served.sent,
                remote=served.remote,
                tracking_id=served.tracking_id,
            )
        )

    try:
        yield show
    finally:
        view.close()
