"""Writes the reference pages of this folder from the tables in the code; `make docs` runs it.

    python docs/generate.py           writes the pages that changed
    python docs/generate.py --check   writes nothing; says which pages have drifted, and fails if one has

Each page is a function below. A page is never edited by hand: change the table, its help or its docstring.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import io
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main

from trunkline import cli
from trunkline.cli.failure import explain
from trunkline.protocol import control_channel, rendezvous
from trunkline.protocol.errors import ERRORS, ConnectionRejected, RelayError
from trunkline.protocol.limits import LIMITS, Limit, Scope
from trunkline.protocol.transitions import final_states, render
from trunkline.server.config.settings import SETTINGS, Setting

FOLDER = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py from {source}; `make docs` writes it. Do not edit. -->\n\n"

#: Characters in a line of ``--help``.
HELP_WIDTH = 100


# --- docs/settings.md ---

#: Kept for HTTP relaying, which is not served yet; nothing reads them. tests/test_docs.py holds the list to the code.
NOT_IN_EFFECT = ("max_requests", "response_timeout", "body_idle_timeout")


def settings() -> str:
    """Every setting of a node and every limit."""
    rows = [setting for name, setting in SETTINGS.items() if name not in LIMITS]
    text = NOTE.format(source="NodeSettings in server/config/settings.py and LIMITS in protocol/limits.py")
    text += """\
# Settings

A setting is given in four places. The nearest wins:

1. a flag of `trunkline serve`, `--max-senders 50`;
2. an environment variable, `TRUNKLINE_MAX_SENDERS=50`;
3. the [declarative file](declarative-file.md), `max_senders = 50`;
4. the default; for the limits, `preset` chooses which.

An unknown name or a wrong value ends the start with one line. It names the flag, the variable or the line of the
file, and what is allowed. An empty variable counts as not set.

On SIGHUP a node reads the file again and takes over [what can change while it runs](operations.md#reload): every limit,
and each setting whose column *takes effect* says so.

## The node

In a file these are keys of the table `[node]`.

"""
    text += table(("key", "default", "meaning", "takes effect", "variable and flag"), map(_setting_row, rows))
    text += """
With files, `tls` is `{ certificate = "FILE", key = "FILE" }` in the declarative file. In the environment it is
`TRUNKLINE_TLS__CERTIFICATE` with `TRUNKLINE_TLS__KEY`, and among the flags `--tls-certificate` with `--tls-key`.

## Limits

A limit is set on the node, on a namespace or on a hybrid connection; the nearest of these three wins. On the node, a
flag comes before a variable, and that before the file. The column *azure* is the default under `preset = "azure"`:
what the real service was seen to do.

Seconds may have a fraction. Where 0 is allowed, the word beside it may be written instead. `unlimited` and `off` end
the rule; for `token_grace` and `drain_timeout` that means no time at all.

"""
    text += table(("key", "default", "azure", "allowed", "set on", "meaning"), map(_limit_row, LIMITS.values()))
    text += "\n" + ", ".join(map(code, NOT_IN_EFFECT[:-1])) + f" and {code(NOT_IN_EFFECT[-1])} have no effect yet:\n"
    text += "plain HTTP requests are [not relayed yet](out-of-scope.md).\n"
    text += "\nOn the node, each limit has a variable and a flag too:\n\n"
    text += table(
        ("key", "variable", "flag"),
        ((code(name), code(SETTINGS[name].variable), code(SETTINGS[name].flag)) for name in LIMITS),
    )
    return text


def _setting_row(setting: Setting) -> tuple[str, ...]:
    default = "" if setting.default is None else toml(setting.default)
    names = f"{code(setting.variable)}<br>{code(setting.flag)}"
    return code(setting.name), default, plain(setting.help), setting.effect, names


def _limit_row(limit: Limit) -> tuple[str, ...]:
    names: dict[Scope, str] = {
        "node": "node",
        "namespace": "namespace",
        "hybrid_connection": "hybrid connection",
    }
    scopes = ", ".join(word for scope, word in names.items() if scope in limit.scopes)
    return (
        code(limit.name),
        _value(limit, limit.default),
        _value(limit, limit.azure),
        limit.allowed,
        scopes,
        plain(limit.help),
    )


def _value(limit: Limit, value: object) -> str:
    if value == 0 and limit.zero is not None:
        return limit.zero
    return f"{value:g} s" if limit.kind == "seconds" else toml(value)


def toml(value: object) -> str:
    """A value as a file has it."""
    if isinstance(value, bool):
        return code(str(value).lower())
    if value == ():
        return code("[]")
    return code(str(value)) if isinstance(value, int) else code(f'"{value}"')


# --- docs/errors.md ---


def errors() -> str:
    """Every error, with what it means and what to do."""
    text = NOTE.format(source="ERRORS in protocol/errors.py")
    text += """\
# Errors

One tree of errors serves the node, the SDK and the command line; the classes are in `trunkline.protocol.errors`. A
refused handshake carries the status and, as its reason phrase, one line:

    MESSAGE. TrackingId:ID, SystemTracker:sb://HOST/PATH, Timestamp:M/D/YYYY H:MM:SS AM

The same TrackingId is in the log of the node. A channel that is open already is closed with the close code, the
message and the TrackingId. *Transient* means that the same call may succeed later without anybody changing anything;
the SDK tries only those again.

## The tree

The first number is the HTTP status, the second the WebSocket close code.

```text
"""
    tree = (inspect.getdoc(sys.modules[RelayError.__module__]) or "").split("\n\n")[1]
    text += inspect.cleandoc(tree) + "\n```\n\n"
    text += table(("error", "status", "close code", "transient", "Azure's name"), map(_error_row, ERRORS))
    text += "\n## Each of them\n\nThe quoted line is what is said when there is nothing more exact to say.\n"
    for kind in ERRORS:
        meaning = paragraphs(inspect.getdoc(kind) or "")
        text += f"\n### {kind.__name__}\n\n{meaning}\n\n> {kind.default_message}\n"
        if remedy := explain(_example(kind)).remedy:
            text += f"\nWhat to do: {plain(remedy)}.\n"
    return text


def _error_row(kind: type[RelayError]) -> tuple[str, ...]:
    link = f"[{kind.__name__}](#{kind.__name__.lower()})"
    status = "the listener's" if kind is ConnectionRejected else str(kind.status)
    return link, status, str(kind.close_code), "yes" if kind.transient else "no", code(kind.code)


def _example(kind: type[RelayError]) -> RelayError:
    return ConnectionRejected(400) if kind is ConnectionRejected else kind()


def paragraphs(docstring: str) -> str:
    """A docstring as Markdown, without the list of its parameters."""
    text, _, _ = docstring.partition("\nParameters\n")
    return text.strip().replace("``", "`")


# --- docs/state-machines.md ---


def state_machines() -> str:
    """The state machines of the protocol core."""
    text = NOTE.format(source="the tables TRANSITIONS of protocol/")
    text += (
        "# State machines\n\n"
        "Each machine changes its state by its table and by nothing else. An event that has no line for the present"
        " state came too late, and changes nothing.\n"
    )
    for title, machine in (("Control channel", control_channel), ("Rendezvous", rendezvous)):
        text += f"\n## {title}\n\n{_machine(machine)}"
    return text


def _machine(machine: ModuleType) -> str:
    """A diagram, the states in words, and the table."""
    transitions: Mapping[tuple[enum.Enum, enum.Enum], enum.Enum] = machine.TRANSITIONS
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {next(iter(transitions))[0].name}"]
    lines += [f"    {before.name} --> {after.name}: {event.value}" for (before, event), after in transitions.items()]
    final = final_states(transitions)
    lines += [f"    {state.name} --> [*]" for state in machine.State if state in final]
    states = table(("state", "meaning"), ((state.name, str(state.value)) for state in machine.State))
    return "\n".join(lines) + f"\n```\n\n{states}\n{render(transitions)}"


# --- docs/cli.md ---


def command_line() -> str:
    """``--help`` of every command."""
    text = NOTE.format(source="the commands of cli/")
    text += "# The command line\n\n```text\n" + help_of() + "```\n"
    for name in cli.COMMANDS:
        text += f"\n## trunkline {name}\n\n```text\n{help_of(name)}```\n"
    return text


def help_of(*path: str) -> str:
    """What ``trunkline PATH --help`` prints, the same on every terminal."""
    # Not a terminal: no colours and no frames.
    with contextlib.redirect_stdout(io.StringIO()):
        command: Any = typer.main.get_command(cli.application())
    context = command.make_context("trunkline", [], resilient_parsing=True, **_WIDTH)
    for name in path:
        command = command.get_command(context, name)
        context = command.make_context(name, [], parent=context, resilient_parsing=True, **_WIDTH)
    text: str = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


_WIDTH = {"terminal_width": HELP_WIDTH, "max_content_width": HELP_WIDTH}


# --- all of them ---

PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings,
    "errors.md": errors,
    "state-machines.md": state_machines,
    "cli.md": command_line,
}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def plain(text: str) -> str:
    """Text without what Markdown would take for a tag."""
    return text.replace("<", "&lt;")


def code(text: str) -> str:
    """Text in the type of code."""
    return f"`{text}`"


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    drifted = [name for name, page in PAGES.items() if _text(name) != page()]
    if "--check" in arguments:
        for name in drifted:
            print(f"docs/{name} has drifted: run `make docs`", file=sys.stderr)
        return 1 if drifted else 0
    for name in drifted:
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def _text(name: str) -> str | None:
    file = FOLDER / name
    return file.read_text(encoding="utf-8") if file.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
