"""``trunkline connection-string``: what an application needs to get in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli import credentials, rules
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage
from trunkline.protocol import connection_string as strings


def command(
    config: rules.ConfigOption = None,
    data: rules.DataOption = None,
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    namespace: rules.NamespaceOption = None,
    rule: rules.RuleOption = None,
    rights: rules.RightsOption = None,
    endpoint: rules.EndpointOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print its parts as JSON.")] = False,
) -> None:
    """Print a connection string.

    The key comes from a declarative file (with the store of its node, for keys that the node made), from a data folder,
    or from another connection string, to which --entity is added.

    \b
    Examples:
      trunkline connection-string -c my.toml --entity orders --rights Send
      trunkline connection-string --data ./data --rule RootManageSharedAccessKey
      trunkline connection-string --entity orders --json
    """

    async def show() -> None:
        found = await find(config, data, connection_string, entity, namespace, rule, rights, endpoint)
        if as_json:
            parts = {
                "connection_string": str(found),
                "endpoint": found.endpoint,
                "entity_path": found.entity_path,
                "rule": found.key_name,
            }
            print(json.dumps(parts))
        else:
            print(found)

    run(show())


async def find(
    config: Path | None,
    data: Path | None,
    connection_string: str | None,
    entity: str | None,
    namespace: str | None,
    rule: str | None,
    rights: str | None,
    endpoint: str | None,
) -> strings.ConnectionString:
    """The connection string that the options mean; a file or folder comes before the environment."""
    if config is not None or data is not None:
        return await rules.find(
            config=config,
            data=data,
            namespace=namespace,
            entity=entity,
            rule=rule,
            rights=rights,
            endpoint=endpoint,
        )
    if rule is not None or rights is not None or namespace is not None or endpoint is not None:
        raise usage(
            "--rule, --rights, --namespace and --endpoint choose from a file or folder",
            "add --config FILE or --data DIR",
        )
    given = strings.parse(credentials.required(connection_string))
    if entity and given.entity_path and given.entity_path.lower() != entity.strip("/").lower():
        raise usage(
            f"--entity is {entity}, and the connection string is for {given.entity_path}",
            "leave one of them out, or use a connection string of the namespace",
        )
    return dataclasses.replace(given, entity_path=(entity or "").strip("/") or given.entity_path)
