"""``trunkline disconnect``: ends a connection, or the control channel of a listener."""

from __future__ import annotations

from typing import Annotated

import typer

from trunkline.cli import admin_client
from trunkline.cli.failure import Failure
from trunkline.cli.listing import Row, path_of

#: So many are named when what was typed could be any of them.
_NAMED = 5


def command(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of a listener or a connection, or what it begins with.")],
    data: admin_client.DataOption = None,
    config: admin_client.ConfigOption = None,
    admin: admin_client.AdminOption = None,
    token_file: admin_client.TokenFileOption = None,
    verbose: admin_client.VerboseOption = False,
) -> None:
    """Disconnect a listener or a connection, or end an HTTP request.

    Both ends of a connection get a Close with code 1008 that says that an operator did it. A listener gets the same
    on its control channel; the connections that it has go on. Nothing keeps either from coming back, and a listener
    does so at once: to keep one out, remove or change the key of its rule. The sender of an HTTP request gets 403, or
    its connection is cut where the answer has begun. The tracking id that a log or an error names is taken as well.

    \b
    Examples:
      trunkline disconnect 12-4f0c
      trunkline disconnect 12                   when nothing else is 12
      trunkline disconnect --data ./data 12
    """
    node = admin_client.Node(data, config, admin, token_file, verbose=verbose)
    kinds = ("listeners", "connections")
    found = [(kind, row) for kind in kinds for row in node.rows(kind, id=id)]
    kind, row = _choose(found, id)
    node.ask("DELETE", kind, row["id"])
    if kind == "listeners":
        print(f"disconnected the listener {row['id']} on {path_of(row)} from {row['remote']}, rule {row['rule']}")
    elif row["method"] is not None:
        print(f"ended the request {row['id']} on {path_of(row)} from {row['sender']['remote']}")
    else:
        print(f"disconnected the connection {row['id']} on {path_of(row)} from {row['sender']['remote']}")


def _choose(found: list[tuple[str, Row]], id: str) -> tuple[str, Row]:
    """What has that id, that number in front of its id, or that tracking id; else the only one that begins so."""
    exact = [(kind, row) for kind, row in found if id in (row["id"], row["id"].partition("-")[0], row["tracking_id"])]
    chosen = exact or found
    if not chosen:
        raise Failure(
            f"There is no listener and no connection {id}", "see trunkline listeners and trunkline connections"
        )
    if len(chosen) > 1:
        names = [f"{row['id']} ({kind.removesuffix('s')})" for kind, row in chosen[:_NAMED]]
        more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
        raise Failure(f"{id} may be {', '.join(names)}{more}", "type the whole id")
    return chosen[0]
