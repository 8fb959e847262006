"""``trunkline connections``: who talks to whom through a node."""

from __future__ import annotations

from functools import partial

from trunkline.cli import admin_client, listing
from trunkline.cli.figures import duration, rate, size
from trunkline.cli.listeners import EntityOption, NamespaceOption
from trunkline.cli.listing import Column

COLUMNS = (
    Column("ID", "id"),
    Column("ENTITY", "path"),
    Column("STATE", "state", rank=4),
    Column("METHOD", "method", rank=3),
    Column("FOR", "seconds", duration, is_number=True),
    Column("SENDER", "sender.remote"),
    Column("LISTENER", "listener.id", rank=5),
    Column("TO LISTENER", "to_listener.bytes", size, is_number=True),
    Column("RATE", "to_listener.bytes_per_second", rate, is_number=True, rank=1),
    Column("TO SENDER", "to_sender.bytes", size, is_number=True),
    Column("RATE BACK", "to_sender.bytes_per_second", rate, is_number=True, rank=1),
    Column("IDLE", "idle_seconds", duration, is_number=True, rank=2),
    Column("RULE", "sender.rule", rank=3),
    Column("CLIENT", "sender.client", rank=6),
    Column("MESSAGES", "to_listener.messages", is_number=True, rank=7),
    Column("MESSAGES BACK", "to_sender.messages", is_number=True, rank=7),
    Column("LISTENER AT", "listener.remote", rank=8),
    Column("TRACKING ID", "tracking_id", rank=9),
)


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
    """Show the connections through a node that runs, and the HTTP requests in flight.

    Each has a sender and the listener that took it; `trunkline listeners` shows the same id. Bytes are those of
    messages, without the heads of frames; rates are those of the last second. A connection is half-closed when one side
    has sent its Close. RULE is that of the sender; an anonymous one has none.

    What has a METHOD is an HTTP request: it is seeking a listener, was asked, or is answering. Its bytes are those of
    the bodies.

    \b
    Examples:
      trunkline connections
      trunkline connections --entity orders --watch --every 1
      trunkline connections --json | jq 'map(.to_sender.bytes) | add'
      trunkline connections | cut -f 1,6,8        ids, senders and bytes
    """
    node = admin_client.Node(data, config, admin, token_file, verbose=verbose)
    rows = partial(node.rows, "connections", namespace=namespace, entity=entity)
    listing.show(rows, COLUMNS, what="connections", as_json=as_json, watch=watch, every=every)
