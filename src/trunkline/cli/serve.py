"""``trunkline serve``: a relay node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli import systemd
from trunkline.cli.data_folder import check_is_for_node
from trunkline.cli.event_loop import run
from trunkline.cli.node_process import NodeProcess, log_to_stderr, tell_ready
from trunkline.cli.settings_options import flags, with_settings
from trunkline.server.config import declarative
from trunkline.server.config.declarative import Declaration
from trunkline.server.config.settings import SETTINGS, NodeSettings, load
from trunkline.server.node import Node
from trunkline.server.relay.sockets import descriptor_limit


@with_settings(SETTINGS)
def command(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Declarative file: settings and entities (trunkline.toml)."
        ),
    ] = None,
    **settings: str | None,
) -> None:
    """Run a relay node.

    Settings come from options, TRUNKLINE_... variables, the [node] table of the file and defaults, the nearest first.
    SIGTERM and Ctrl-C drain the node, a second one stops it at once. SIGHUP takes over the file, with most
    settings of [node], and the certificates as they are then, without a cut. Under systemd the node serves on the
    sockets that it is handed (LISTEN_FDS).

    \b
    Examples:
      trunkline serve --config trunkline.toml
      trunkline serve -c trunkline.toml --host 0.0.0.0 --port 443
      trunkline serve --tls-certificate relay.pem --tls-key relay.key
      TRUNKLINE_MAX_SENDERS=100 trunkline serve -c trunkline.toml
    """

    def read() -> tuple[Declaration | None, NodeSettings]:
        declaration = None if config is None else declarative.read(config)
        return declaration, load(declaration, flags(settings))

    declaration, process_settings = read()
    log_to_stderr(process_settings)

    async def announce(node: Node) -> None:
        limit = descriptor_limit()
        files = "any number of" if limit == sys.maxsize else f"at most {limit}"
        where = f"ready on {node.url}, admin on port {node.admin_port}"
        tell_ready(f"{where}, {files} files and sockets", process_settings)

    async def serve() -> None:
        await check_is_for_node(process_settings.data)
        manager, sockets = systemd.from_environment(), systemd.handed_sockets(os.environ, os.getpid())
        process = NodeProcess(process_settings, declaration, reread=read, sockets=sockets, manager=manager)
        await process.run(announce)

    run(serve(), loop=process_settings.event_loop)
