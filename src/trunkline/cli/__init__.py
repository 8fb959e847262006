"""The command line: ``trunkline COMMAND``.

Each command is a module whose function `command` has the options as its parameters. Only the module of the command
that was asked for is imported, so that ``trunkline --help`` is fast.

    serve, emulator             a node in this process                    node_process, settings_options, guide
                                in a folder that is not the other's       data_folder
                                under a service manager                   systemd
                                whose log never holds it up               log_stream
    listen, connect             the two sides of a connection             credentials, standard_streams
    host                        a web application as the listener         asgi_application, reload
    expose                      a web server behind a listener            request_view
    connection-string, token    what others need to get in                credentials, rules
                                explained, or kept in a file              token_explanation, token_file
    doctor                      what is wrong on the way                  diagnosis, doctor_network, doctor_relay
    listeners, connections      who is connected                          admin_client, listing, figures
    disconnect, log-level       what an operator does about it            admin_client
    failure                     every error as one line and its remedy
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn

import typer

from trunkline._version import __version__
from trunkline.cli.failure import explain

#: Every command: its module in this package, and the line that says what it does.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("serve", "Run a relay node."),
    "emulator": ("emulator", "Run a local relay that is ready to use, for developing and testing."),
    "listen": ("listen", "Listen on a hybrid connection: echo, print, or answer from standard input."),
    "host": ("host", "Serve an ASGI application, such as one of FastAPI or Django, with no open port."),
    "expose": ("expose", "Expose a web server: HTTP requests and WebSockets to the hybrid connection go there."),
    "connect": ("connect", "Connect to a listener: standard input there, what it sends to standard output."),
    "connection-string": ("connection_string", "Print a connection string."),
    "token": ("token", "Print a token, keep one fresh in a file, or explain one."),
    "doctor": ("doctor", "Find out what is wrong between here and a listener."),
    "listeners": ("listeners", "Show who listens on a node that runs."),
    "connections": ("connections", "Show the connections through a node that runs."),
    "disconnect": ("disconnect", "Disconnect a listener or a connection."),
    "log-level": ("log_level", "Show or change the levels of the log of a node that runs."),
}

_EXIT_STATUS = """\b
Exit status:
  0    {worked}
  1    it failed{failed}
  2    wrong usage: an option, a setting, a file or a connection string
  130  ended by Ctrl-C{early}
  143  ended by SIGTERM{early}"""

#: What the numbers mean, where that differs from command to command.
_EXIT_STATUS_WORDS: Mapping[str, tuple[str, str, str]] = {
    "serve": ("it was stopped by a signal, after draining", "", " before it was ready"),
    "emulator": ("it was stopped by a signal, or the exchange of --once worked", "", " during the exchange of --once"),
    "listen": ("it worked", ", or the connection of --once or --stdio ended abnormally", ""),
    "connect": ("it worked", ", or the connection ended abnormally", ""),
    "host": ("it worked", ", or the application did", ""),
    "token": ("it worked, or a signal ended --every", ", or a relay refuses the token of --explain", ""),
    "doctor": ("it works, perhaps with warnings", ": a step did", ""),
}


def exit_status(command: str = "") -> str:
    """The exit status of a command, as its ``--help`` explains it."""
    worked, failed, early = _EXIT_STATUS_WORDS.get(command, ("it worked", "", ""))
    return _EXIT_STATUS.format(worked=worked, failed=failed, early=early)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status; an error is one line on stderr and what to do about it."""
    _open_closed_streams()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status."""
    # Completion of the shell says on its own what it wants to know of which command.
    wanted = None if "_TRUNKLINE_COMPLETE" in os.environ else _first_word(arguments)
    try:
        status = application(wanted)(args=list(arguments), prog_name="trunkline", standalone_mode=False)
        # Here and not when Python ends: nobody would say what was wrong.
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as exit:
        return exit.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        failure = explain(error)
        failure.show()
        _forget_output()
        return failure.status
    return status if isinstance(status, int) else 0


def application(wanted: str | None = None) -> typer.Typer:
    """The command tree.

    Args:
        wanted: the command to import; of the others only name and summary are known then. None: import all.
    """
    app = typer.Typer(
        help=f"Trunkline: a self-hosted relay that speaks the Azure Relay protocols.\n\n{_EXAMPLES}\n\n{exit_status()}",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        # Typer's markup takes [node] and [default: 60] for styles, and leaves them out.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, (module, summary) in COMMANDS.items():
        if wanted in (None, name):
            command = importlib.import_module(f"trunkline.cli.{module}").command
            text = f"{inspect.cleandoc(command.__doc__)}\n\n{exit_status(name)}"
            app.command(name, help=text, short_help=summary, no_args_is_help=False)(command)
        else:
            app.command(name, short_help=summary)(_not_imported)
    return app


_EXAMPLES = """\b
Examples:
  trunkline emulator            a relay on this machine, ready to use
  trunkline listen --help       what a command does, with examples"""


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"trunkline {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _not_imported() -> None:
    """Stands for a command that is only listed."""
    raise AssertionError("a command was run that had not been asked for")


def _first_word(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _open_closed_streams() -> None:
    """Open standard streams that the caller has closed (``<&-``), before a socket gets their number.

    Input is empty then, and what is written to output fails instead of vanishing.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _forget_output() -> None:
    """What could not be written is not written: Python would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
