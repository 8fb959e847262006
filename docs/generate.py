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
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main

from trunkline import cli
from trunkline.cli.failure import explain
from trunkline.protocol import control_channel, relayed_http, rendezvous
from trunkline.protocol.causes import Cause
from trunkline.protocol.errors import ERRORS, ConnectionRejected, RelayError
from trunkline.protocol.limits import LIMITS, Limit, Scope
from trunkline.protocol.transitions import final_states, render
from trunkline.server import metrics
from trunkline.server.config.settings import SETTINGS, Setting
from trunkline.server.logs import FIELDS, INVALID_SAS_TOKEN, OPERATIONS, JsonFormatter, TextFormatter
from trunkline.server.metrics import METRICS, Metric
from trunkline.server.relay.journal import SPAN_ATTRIBUTES

FOLDER = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py from {source}; `make docs` writes it. Do not edit. -->\n\n"

#: Characters in a line of ``--help``.
HELP_WIDTH = 100


# --- docs/settings.md ---


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


# --- docs/metrics.md ---


ALERTS = """
## Alerts

Connections or requests fail, they take long, a web service answers with errors, or nobody listens any more where
somebody did:

```yaml
groups:
  - name: trunkline
    rules:
      - alert: ConnectionsFail
        expr: >
          sum by (namespace, entity) (rate(relay_sender_connections_total{result!="success"}[5m]))
          / sum by (namespace, entity) (rate(relay_sender_connections_total[5m])) > 0.05
        for: 5m
      - alert: ConnectionsAreSlow
        expr: >
          histogram_quantile(0.95,
            sum by (namespace, entity, le) (rate(relay_connect_seconds_bucket[5m]))) > 1
        for: 5m
      - alert: RequestsAreSlow
        expr: >
          histogram_quantile(0.95,
            sum by (namespace, entity, le) (rate(relay_http_request_seconds_bucket[5m]))) > 5
        for: 5m
      - alert: WebServiceFails
        expr: >
          sum by (namespace, entity) (rate(relay_http_requests_total{outcome=~"5xx|cut"}[5m]))
          / sum by (namespace, entity) (rate(relay_http_requests_total[5m])) > 0.05
        for: 5m
      - alert: ListenerLost
        expr: >
          relay_active_listeners == 0 and max_over_time(relay_active_listeners[1h]) > 0
        for: 1m
```

"""


def metrics_page() -> str:
    """Every metric, how Prometheus gets it, and when to be woken."""
    text = NOTE.format(source="METRICS in server/metrics.py")
    text += """\
# Metrics

`GET /metrics` on the admin port answers in the text format of Prometheus. On a loopback address it is open; elsewhere
it needs the [admin token](../SECURITY.md#the-admin-port).

```yaml
scrape_configs:
  - job_name: trunkline
    static_configs:
      - targets: ["127.0.0.1:8081"]
    # Where the admin port is not on loopback:
    # authorization:
    #   credentials_file: /etc/prometheus/trunkline-admin-token
```

## The metrics

"""
    text += table(("name", "type", "labels", "what", "Azure Monitor"), map(_metric_row, METRICS))
    text += """
Each metric with `namespace`, `entity` and `kind` is there for every hybrid connection that has been used since the
node started, with a zero for all that has not happened yet. `relay_active_listeners`, `relay_active_connections`,
`relay_active_http_requests` and `relay_waiting_senders` are there for all others too. What concerns a hybrid
connection that does not exist, or not any more, has an empty `entity` and `kind`: names that somebody makes up become
no labels. The counters of a hybrid connection go when it is deleted.

On Linux there are also `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,
`process_start_time_seconds`, `process_open_fds` and `process_max_fds`: files and sockets that are open, and their
limit.

The names in the last column are those of Azure Monitor. `...-TotalRequests` is the sum over `result`, and
`BytesTransferred` the sum over `direction`.

The `outcome` of a plain HTTP request is the class of the listener's status when all of its answer was passed on;
`client_error` or `server_error` when the relay answered with an error of its own; `left` when the sender did not wait
for the end; `cut` when an answer that had begun could not be finished.

A frame costs nothing for all that: its connection counts it, and the counts are added up when somebody asks. An answer
with 100 hybrid connections and 5,000 connections has 8,000 lines and takes 65 ms of one core. It is written in
pieces, and connections go on between them: on a busy machine of two cores they waited for 42 ms at most, a third of it
while the 5,000 are added up.

## Values of labels

"""
    text += _label_values()
    text += ALERTS
    text += """\
## OpenTelemetry

With the extra (`pip install trunkline[opentelemetry]`) and the setting `opentelemetry = true`, a node sends the same
metrics to a collector, under these names, and a span for each sender that a listener was sought for. Where to is said
by the [variables of OpenTelemetry](https://opentelemetry.io/docs/specs/otel/protocol/exporter/), such as
`OTEL_EXPORTER_OTLP_ENDPOINT`; the protocol is OTLP over HTTP. A counter that is 0 is left out. A node that stops sends
what it has; where the collector does not answer, it gives up after four seconds at most.

"""
    text += table(("name", "instrument", "unit", "is"), map(_instrument_row, METRICS))
    text += """
The span `relay.rendezvous` begins with the sender's request and ends with its answer; that of a plain HTTP request when
the whole answer was passed on. Its attributes:

"""
    text += table(("attribute", "what"), ((code(name), what) for name, what in SPAN_ATTRIBUTES.items()))
    return text


def _label_values() -> str:
    """What each label of the metrics can be, and what the reasons mean."""
    labels = (label for metric in METRICS for label in metric.labels)
    lists = {label: values for label, values in labels if label != "reason" and values}
    text = table(("label", "values"), ((code(label), ", ".join(map(code, values))) for label, values in lists.items()))
    text += "\n`kind` is `hybrid_connection`. `reason` has other values in each metric:\n\n"
    text += table(
        ("metric", "values of `reason`"),
        (
            (code(metric.name), ", ".join(map(code, values)))
            for metric in METRICS
            for label, values in metric.labels
            if label == "reason" and metric is not metrics.REFUSALS
        ),
    )
    text += """
`relay_refusals_total` has the name of each [error](errors.md) in this spelling. Why something ended:

"""
    text += table(("reason", "what it means"), ((code(cause.label), cause.value) for cause in Cause))
    return text


def _metric_row(metric: Metric) -> tuple[str, ...]:
    labels = ", ".join(map(code, metric.label_names))
    return code(metric.name), metric.kind, labels, plain(metric.help), "<br>".join(map(code, metric.azure))


def _instrument_row(metric: Metric) -> tuple[str, ...]:
    instrument = {"counter": "observable counter", "gauge": "observable gauge", "histogram": "histogram"}[metric.kind]
    return code(metric.dotted), instrument, code(metric.unit), code(metric.name)


# --- docs/logs.md ---


def _example_line() -> logging.LogRecord:
    """A refusal, as `relay.journal` tells it."""
    fields = {
        "activityId": "23f1678b-0a9d-4d7c-8e80-0a05c220048a",
        "endpoint": "sb://myRelayNS/orders",
        "remote": "10.0.0.9",
        "client": "unknown",
        "status": 401,
        "error": "invalid_signature",
        "reason": "InvalidSignature: The token has an invalid signature",
    }
    message = "refused sender at {endpoint} from {remote}: {status} {reason}. TrackingId:{activityId}".format(**fields)
    record = logging.LogRecord("trunkline.relay", logging.INFO, "", 0, message, None, None)
    # 2026-11-25 10:04:33.671 UTC
    record.created, record.msecs = 1_795_601_073.671, 671.0
    record.__dict__.update(operation=INVALID_SAS_TOKEN, fields=fields)
    return record


def _example_lines() -> str:
    people = TextFormatter()
    people.converter = time.gmtime
    lines = (("text", people.format(_example_line())), ("json", JsonFormatter().format(_example_line())))
    return "\n".join(f"```{language}\n{line}\n```\n" for language, line in lines)


def logs_page() -> str:
    """What a node logs, for people and for machines."""
    text = NOTE.format(source="OPERATIONS and FIELDS in server/logs.py")
    text += """\
# The log

A node writes one line for each event to stderr: on a terminal as text for people, elsewhere as JSON for machines. The
setting `log_format` chooses one of them for both. No line holds a key, a token, or the secret of a rendezvous, and no
peer can end a line or send codes to a terminal, whatever it writes.

{examples}
Every control channel and every connection has a line when it begins and one when it ends. The last one has all numbers:
how long it was there, messages and bytes each way, and why it ended.

A terminal that was stopped (Ctrl-S), or a pipe that nobody reads, stops no connection: lines wait for it, and when too
many wait, they are lost and counted in a line of their own.

## How much

The setting `log_level` is `debug`, `info` (the default), `warning` or `error`. SIGHUP takes another one over, and
`PUT /log-level?level=debug` on the admin port changes it until the node ends; with `&logger=trunkline.relay`, for one
part alone.

Refusals of one kind are told ten times in a second at most. What comes beyond is counted, and told as a number: `and
4,312 more were refused with invalid_signature in 1.0 s`.

## Operations

The names are those of the real service's diagnostic log (category HybridConnectionsEvent). Lines about a plain HTTP
request that goes well are at level debug: there may be thousands in a second. Its path and query are in no line.

"""
    text = text.replace("{examples}\n", _example_lines())
    rows = ((code(each.name), logging.getLevelName(each.level).lower(), each.when) for each in OPERATIONS)
    text += table(("operation", "level", "when"), rows)
    text += "\n## Fields of a line of JSON\n\nA field that says nothing about an event is not there.\n\n"
    text += table(("field", "what"), ((code(name), what) for name, what in FIELDS.items()))
    return text


# --- docs/state-machines.md ---


def state_machines() -> str:
    """The state machines of the protocol core."""
    text = NOTE.format(source="the tables TRANSITIONS of protocol/")
    text += (
        "# State machines\n\n"
        "Each machine changes its state by its table and by nothing else. An event that has no line for the present"
        " state came too late, and changes nothing.\n"
    )
    for title, machine in (
        ("Control channel", control_channel),
        ("Rendezvous", rendezvous),
        ("Plain HTTP request", relayed_http),
    ):
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
    "metrics.md": metrics_page,
    "logs.md": logs_page,
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
