"""``trunkline doctor``: what is wrong between here and a listener, step by step."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Annotated

import typer

from trunkline.cli import credentials
from trunkline.cli.diagnosis import Check, State, Step, Subject, in_words, run_check, subject_of
from trunkline.cli.doctor_network import check_dns, check_proxy, check_tcp, check_tls
from trunkline.cli.doctor_relay import check_entity, check_listener, check_round_trip, check_token, check_upgrade
from trunkline.cli.event_loop import run

#: The steps in their order. Each stands on those before it: after a failure the rest is not tried.
CHECKS: Mapping[str, Check] = {
    "proxy": check_proxy,
    "dns": check_dns,
    "tcp": check_tcp,
    "tls": check_tls,
    "upgrade": check_upgrade,
    "token": check_token,
    "hybrid connection": check_entity,
    "listener": check_listener,
    "round trip": check_round_trip,
}

_COLOURS: Mapping[State, str] = {"ok": "green", "warned": "yellow", "failed": "red", "skipped": "bright_black"}


def command(
    connection_string: credentials.ConnectionStringOption = None,
    entity: credentials.EntityOption = None,
    ca: credentials.CaOption = None,
    no_tls: credentials.NoTlsOption = False,
    proxy: credentials.ProxyOption = None,
    listen: Annotated[
        bool, typer.Option("--listen", help="Register a listener for a moment although somebody listens.")
    ] = False,
    connect: Annotated[
        bool, typer.Option("--connect", help="Make a connection to the listener that is there, and close it.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="For each step.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the steps as JSON.")] = False,
) -> None:
    """Find out what is wrong between here and a listener.

    Walks proxy, DNS, TCP, TLS, upgrade, token, hybrid connection and listener, and relays a few messages. Prints one
    line for each step, names the one that failed, and what to do. Uses nothing that Azure Relay does not have.

    Nobody is disturbed: a listener that is there sees nothing unless --connect is given. When nobody listens and the
    key may, or it may do nothing else, the doctor listens for a moment, takes its own connection and turns others away
    with 503.

    \b
    Examples:
      trunkline doctor
      trunkline doctor --proxy http://proxy.example.com:3128 --json
    """
    who = credentials.read(connection_string, entity, ca, no_tls, proxy)
    subject = subject_of(who, timeout=timeout, listen=listen, connect=connect)
    # Everything that the SDK has to say is said by the steps.
    logging.getLogger("trunkline.sdk").setLevel(logging.CRITICAL)

    async def show() -> None:
        steps = []
        async for step in examine(subject):
            steps.append(step)
            if not as_json:
                show_step(step)
        failed = next((step for step in steps if step.state == "failed"), None)
        warned = sum(step.state == "warned" for step in steps)
        if as_json:
            found = {"ok": failed is None, "address": who.address, "steps": [step.as_json() for step in steps]}
            print(json.dumps(found, indent=2))
        else:
            print(f"\n{who.address}: {verdict(failed, warned)}")
        if failed is not None:
            raise typer.Exit(1)

    run(show())


async def examine(subject: Subject) -> AsyncIterator[Step]:
    """Yield each step as soon as it is known, up to the first that failed."""
    try:
        for name, check in CHECKS.items():
            step = await run_check(name, check, subject)
            yield step
            if step.state == "failed":
                return
    finally:
        if subject.listener is not None:
            await subject.listener.close()


def show_step(step: Step) -> None:
    """One line, and one more where something is to be done; in colour on a terminal."""
    colours = False if os.environ.get("NO_COLOR") else None
    ms = step.facts.get("ms")
    typer.secho(f"{step.state:<8}", fg=_COLOURS[step.state], nl=False, color=colours)
    typer.echo(f"{step.name:<18}{step.text}{f' [{in_words(ms)}]' if ms is not None else ''}")
    if step.remedy:
        typer.echo(f"{'':26}remedy: {step.remedy}")


def verdict(failed: Step | None, warned: int) -> str:
    """The last line."""
    if failed is not None:
        return f"{failed.name} failed"
    return f"works, with {warned} warning{'s' if warned > 1 else ''}" if warned else "works"
