"""``trunkline listeners``: who listens on a node."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from trunkline.cli import admin_client, listing
from trunkline.cli.figures import duration
from trunkline.cli.listing import Column

COLUMNS = (
    Column("ID", "id"),
    Column("ENTITY", "path"),
    Column("STATE", "state"),
    Column("FOR", "seconds", duration, is_number=True),
    Column("FROM", "remote"),
    Column("TOKEN", "token_seconds", duration, is_number=True, rank=1),
    Column("CONNECTIONS", "connections", is_number=True, rank=2),
    Column("HEARD", "last_heard_seconds", duration, is_number=True, rank=4),
    Column("RULE", "rule", rank=3),
    Column("CLIENT", "client", rank=5),
    Column("OFFERS", "offers", is_number=True, rank=6),
    Column("SINCE", "since", rank=7),
)

NamespaceOption = Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="Only those of this one.")]
EntityOption = Annotated[str | None, typer.Option("--entity", metavar="PATH", help="Only those of this one.")]


def command(
    data: admin_client.DataOption = None,
    config: admin_client.ConfigOption = None,
    admin: admin_client.AdminOption = None,
    token_file: admin_client.TokenFileOption = None,
    namespace: NamespaceOption = None,
    entity: EntityOption = None,
    as_json: listing.JsonOption = False,
    watch: listing.WatchOption = False,
    every: listing.EveryOption = None,
    verbose: admin_client.VerboseOption = False,
) -> None:
    """Show who listens on a node that runs.

    A listener is active (the next sender is offered to it), standby (it takes over), parked (it is connected, and over
    max_listeners) or waiting (its handshake is held until there is room). FOR says how long it has been there, TOKEN
    how long its token lasts, HEARD when something last came from it, OFFERS how many senders it was told of.

    \b
    Examples:
      trunkline listeners
      trunkline listeners --config trunkline.toml --entity orders --watch
      trunkline listeners --json | jq -r '.[].remote'
      trunkline listeners --admin http://localhost:8081 --admin-token-file token
    """
    node = admin_client.Node(data, config, admin, token_file, verbose=verbose)
    rows = partial(node.rows, "listeners", namespace=namespace, entity=entity)
    listing.show(rows, COLUMNS, what="listeners", as_json=as_json, watch=watch, every=every)
