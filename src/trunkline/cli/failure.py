"""Every error as one line, what to do about it, and an exit status. No traceback, and never a key."""

from __future__ import annotations

import errno
import os
import re
import ssl
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

import typer

from trunkline.protocol import errors

#: The exit status of commands that were used wrongly (as shells and Typer have it).
USAGE = 2
#: Set to anything, it shows the traceback of an error that Trunkline did not expect.
DEBUG_VARIABLE = "TRUNKLINE_DEBUG"


class Failure(Exception):
    """What is shown to the user.

    Args:
        what: what went wrong, in one line.
        remedy: what to do about it; empty when there is nothing to say.
        status: exit status of the program.
    """

    def __init__(self, what: str, remedy: str = "", *, status: int = 1) -> None:
        self.what = harmless(what)
        self.remedy = remedy
        super().__init__(self.what)
        self.status = status

    def show(self) -> None:
        """Write it to stderr, in colour on a terminal (unless NO_COLOR is set)."""
        colours = False if os.environ.get("NO_COLOR") else None
        with suppress(OSError):  # stderr may be gone too
            for word, text, colour in (("error", self.what, "red"), ("remedy", self.remedy, "green")):
                if text:
                    typer.secho(f"{word}: ", fg=colour, bold=True, nl=False, err=True, color=colours)
                    typer.echo(text, err=True)


# A token as a whole, and what stands behind the name of a secret.
_SECRETS = re.compile(
    r"\b(SharedAccessSignature)\s+sr=[^;\s'\")]+|\b(SharedAccessKey|SharedAccessSignature|sig|token)=[^;&\s'\")]+",
    re.IGNORECASE,
)


def harmless(text: str) -> str:
    """`text` in one line, without keys and signatures, and without what a terminal takes for a command."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return _SECRETS.sub(lambda secret: f"{secret[1] or secret[2]}=***", line)


def usage(what: str, remedy: str = "") -> Failure:
    """A failure that is the caller's: wrong option, setting or file."""
    return Failure(what, remedy, status=USAGE)


_TRUST = (
    "trust the relay's authority with --ca FILE or TRUNKLINE_CA_FILE (a node's own is ca.pem in its data folder), or"
    " use --no-tls where the relay speaks none"
)
#: For a relay that does not answer.
UNREACHABLE = (
    "check host and port, and that the relay runs there: trunkline emulator starts one, and trunkline doctor looks at"
    " the whole way"
)
# The first class that fits decides, so the special ones come first. InvalidSetting says itself what to write instead.
_REMEDIES: Mapping[type[BaseException], str] = {
    errors.InvalidConnectionString: "copy it whole, in single quotes: the shell takes a ; for the end of the command",
    errors.ExpiredToken: "get a new token, and check the clock of this computer",
    errors.InvalidAudience: "get a token for this hybrid connection: trunkline token --entity NAME",
    errors.TokenLifetimeExceeded: "get a token that ends sooner: trunkline token --expires 1h",
    errors.AuthorizationFailed: "check that the connection string is one of this relay and that its key is still valid",
    errors.AccessDenied: "use one with that right: trunkline connection-string --rights Listen, or Send",
    errors.EndpointNotFound: "check EntityPath in the connection string, or --entity, against what the relay has",
    errors.EndpointDisabled: "enable the hybrid connection on the relay",
    errors.NoListener: "start a listener first: trunkline listen",
    errors.ConnectionNotEstablished: "check the listener: it is registered, and did not take the connection",
    errors.QuotaExceeded: "wait until another connection ends, or raise the limit on the relay (max_senders)",
    errors.ServerBusy: "try again in a moment",
    ssl.SSLCertVerificationError: _TRUST,
    ssl.SSLError: "check that the relay speaks TLS on this port; where it does not, use --no-tls",
    ConnectionRefusedError: UNREACHABLE,
    BrokenPipeError: "nothing was wrong here: the program that read the output has ended",
}
_REMEDIES_BY_NUMBER: Mapping[int, str] = {
    errno.ENOSPC: "make room on the disk, or write somewhere else",
    errno.EACCES: "check who owns it and who may use it",
    errno.EBADF: "leave standard output open, or send it to /dev/null",
}


def explain(error: BaseException) -> Failure:
    """Any error as a failure."""
    if isinstance(error, BaseExceptionGroup):  # of two tasks that failed, the first is the cause
        return explain(error.exceptions[0])
    if isinstance(error, Failure):
        return error
    if isinstance(error, TimeoutError) and error.__cause__ is not None:
        cause = explain(error.__cause__)
        return Failure(str(error), cause.remedy)
    for convert in (_usage_error, _relay_error, _system_error):
        failure = convert(error)
        if failure is not None:
            return failure
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error, file=sys.stderr)
    return Failure(
        f"something that must not happen: {type(error).__name__}: {error}",
        f"please report it, with what {DEBUG_VARIABLE}=1 shows",
    )


def _usage_error(error: BaseException) -> Failure | None:
    """What Typer says about options and arguments; its classes have `format_message` and `exit_code` in common."""
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if format_message is None:
        return None
    path = getattr(getattr(error, "ctx", None), "command_path", "trunkline")
    if "Endpoint=" in format_message():
        return usage(format_message(), "a connection string goes behind --connection-string, in single quotes")
    return usage(format_message(), f"see {path} --help")


def _relay_error(error: BaseException) -> Failure | None:
    if not isinstance(error, errors.RelayError):
        return None
    wrong_input = isinstance(error, errors.InvalidSetting | errors.InvalidConnectionString | errors.InvalidUrl)
    what = error.message
    if isinstance(error, errors.ConnectionRejected):
        what = f"The listener rejected the connection: {error.status} {what}"
    if error.tracking_id and error.tracking_id not in what and not wrong_input:
        what += f" (TrackingId:{error.tracking_id})"
    return Failure(what, _remedy(error), status=USAGE if wrong_input else 1)


def _system_error(error: BaseException) -> Failure | None:
    if not isinstance(error, OSError):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure(f"The certificate of the relay is not trusted: {error.verify_message}", _remedy(error))
    what = str(error.strerror or error) or type(error).__name__
    if error.errno is not None and what.startswith("Connect call failed"):  # asyncio's words, which say less
        what = os.strerror(error.errno)
    if error.filename is not None:
        what = f"{error.filename}: {what}"
    return Failure(what, _remedy(error))


def _remedy(error: BaseException) -> str:
    own = getattr(error, "remedy", "")  # of a proxy; the SDK is not imported for it
    if own:
        return str(own)
    fitting = next((remedy for kind, remedy in _REMEDIES.items() if isinstance(error, kind)), "")
    return fitting or _REMEDIES_BY_NUMBER.get(getattr(error, "errno", None) or 0, "")
