"""``trunkline emulator``: a node in one command, for one computer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import json
from pathlib import Path
from typing import Annotated

import typer

from trunkline.cli import guide
from trunkline.cli.data_folder import NAMESPACE, ORIGIN, check_is_for_emulator, emulator_folder
from trunkline.cli.event_loop import run
from trunkline.cli.failure import usage
from trunkline.cli.node_process import NodeProcess, log_to_stderr
from trunkline.cli.settings_options import flags, with_settings
from trunkline.protocol import connection_string
from trunkline.protocol.limits import LIMITS
from trunkline.protocol.sas import Right
from trunkline.server.config.declarative import (
    Declaration,
    DeclaredHybridConnection,
    DeclaredNamespace,
    DeclaredRule,
)
from trunkline.server.config.names import hybrid_connection_name, is_label
from trunkline.server.config.settings import load
from trunkline.server.node import Node

MANAGE_RULE = "RootManageSharedAccessKey"
LISTEN_RULE = "listen"
SEND_RULE = "send"

# In front of the two commands that a newcomer types next, the demonstration has a hybrid connection of its own.
DEMO = "demo"

_HELP_OF_HOST = "loopback address to bind to: the keys are well known"


def well_known_key(rule: str) -> str:
    """The key of a rule of every emulator: the same everywhere, so that it can be written into a test."""
    return base64.b64encode(hashlib.sha256(f"trunkline emulator {rule}".encode()).digest()).decode()


@with_settings(["port", "admin_port", "tls", "preset", "log_format", "log_level", *LIMITS])
def command(
    hybrid_connection: Annotated[
        list[str] | None,
        typer.Option("--hybrid-connection", "-n", metavar="NAME", help="To be there; repeatable. [default: test]"),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help=_HELP_OF_HOST)] = "127.0.0.1",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder for the CA and the entities. [default: in your home]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what clients need as one line of JSON.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Also relay an exchange with a listener of its own.")] = False,
    once: Annotated[bool, typer.Option("--once", help="With --demo: end after the exchange.")] = False,
    **settings: str | None,
) -> None:
    """Run a local relay that is ready to use, for developing and testing.

    It has a namespace, a hybrid connection, well-known keys and, for TLS, an authority of its own that is kept in the
    data folder, so that clients need to trust it only once. Bound to this computer alone.

    \b
    Examples:
      trunkline emulator
      trunkline emulator --preset azure -n orders -n bills
      trunkline emulator --port 0 --json        a free port, for scripts
    """
    if not _is_loopback(host):
        raise usage(
            f"The emulator binds to this computer alone, and {host} is not a loopback address",
            "leave --host out; for a relay that others reach use trunkline serve",
        )
    if once and not demo:
        raise usage("--once goes with --demo", "add --demo")
    if demo and as_json and not once:
        raise usage("--demo and --json go not together: both write to standard output", "leave one of them out")
    names = list(dict.fromkeys(hybrid_connection_name(name.strip("/")) for name in hybrid_connection or ["test"]))
    if demo:
        names = [DEMO, *(name for name in names if name != DEMO)]
    folder = data or emulator_folder()
    # Whatever the environment says of another node: this one is for this computer, under its own name.
    own = {"host": host, "data": str(folder.absolute()), "admin_host": "127.0.0.1", "domain": "localhost"}
    own["admin_socket"] = "admin.sock"
    process_settings = load(None, {**flags(settings), **own}).model_copy(update={"public_url": None})
    declaration = declare(names)
    log_to_stderr(process_settings)

    async def emulate() -> None:
        await check_is_for_emulator(process_settings.data)
        process = NodeProcess(process_settings, declaration)
        done = asyncio.Event()

        async def beside(node: Node) -> None:
            facts = facts_of(node, names)
            if demo:
                from trunkline.cli.demo import exchange

                await exchange(_address(node, LISTEN_RULE, DEMO), _address(node, SEND_RULE, DEMO), facts.ca_file)
                done.set()
            if once:
                process.stop()
            elif as_json:
                print(json.dumps(facts.as_json()), flush=True)
            else:
                print(guide.text(facts), flush=True)

        await process.run(beside)
        if once and not done.is_set() and process.ended_by is not None:
            raise typer.Exit(128 + process.ended_by)

    run(emulate(), loop=process_settings.event_loop)


def declare(names: list[str]) -> Declaration:
    """The emulator's namespace, rules and hybrid connections."""
    rules = tuple(
        DeclaredRule(name, frozenset(rights), well_known_key(name), well_known_key(f"{name} secondary"))
        for name, rights in (
            (MANAGE_RULE, (Right.LISTEN, Right.SEND, Right.MANAGE)),
            (LISTEN_RULE, (Right.LISTEN,)),
            (SEND_RULE, (Right.SEND,)),
        )
    )
    entities = tuple(DeclaredHybridConnection(name) for name in names)
    return Declaration(ORIGIN, (DeclaredNamespace(NAMESPACE, rules=rules, hybrid_connections=entities),))


def facts_of(node: Node, names: list[str]) -> guide.Facts:
    """What clients need to know of a running emulator."""
    return guide.Facts(
        url=node.url,
        admin_url=f"http://127.0.0.1:{node.admin_port}",
        hybrid_connections=names,
        http_urls=[f"{_web(node)}/{name}" for name in names],
        own_http_urls=[
            f"{_scheme(node)}://{name.lower()}.{NAMESPACE.lower()}.localhost:{node.port}/"
            for name in names
            if is_label(name)
        ],
        # The last one: a demonstration has the first for itself.
        listen_connection_string=_address(node, LISTEN_RULE, names[-1]),
        send_connection_string=_address(node, SEND_RULE, names[-1]),
        manage_connection_string=_address(node, MANAGE_RULE, None),
        ca_file=None if node.ca_file is None else str(node.ca_file),
        data=str(node.settings.data),
    )


def _scheme(node: Node) -> str:
    return "http" if node.settings.tls == "off" else "https"


def _web(node: Node) -> str:
    return f"{_scheme(node)}://{_host(node)}:{node.port}"


def _host(node: Node) -> str:
    host = node.settings.host
    # By name where the name leads there: a certificate for localhost is what most clients expect.
    return "localhost" if host in ("localhost", "127.0.0.1", "::1") else host


def _address(node: Node, rule: str, path: str | None) -> str:
    return connection_string.build(
        _host(node), port=node.port, key_name=rule, key=well_known_key(rule), entity_path=path
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
