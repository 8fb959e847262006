"""``trunkline log-level``: what a node that runs writes into its log."""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.cli import admin_client
from trunkline.server.logs import ALL, LEVELS


def command(
    level: Annotated[
        str | None,
        typer.Argument(metavar="LEVEL", help=f"{', '.join(LEVELS).lower()}; none: show them.", show_default=False),
    ] = None,
    logger: Annotated[
        str, typer.Option("--logger", metavar="NAME", help="A part of the node, such as trunkline.relay.")
    ] = ALL,
    data: admin_client.DataOption = None,
    config: admin_client.ConfigOption = None,
    admin: admin_client.AdminOption = None,
    token_file: admin_client.TokenFileOption = None,
    verbose: admin_client.VerboseOption = False,
) -> None:
    """Show or change the levels of the log of a node that runs.

    A change holds until the node is started again.

    \b
    Examples:
      trunkline log-level
      trunkline log-level debug --logger trunkline.relay
      trunkline log-level info
    """
    node = admin_client.Node(data, config, admin, token_file, verbose=verbose)
    if level is None:
        content = node.ask("GET", "log-level")
    else:
        content = node.ask("PUT", "log-level", query={"level": level, "logger": logger})
    for name, own in content["levels"].items():
        print(f"{name}\t{own}")
