"""Every error as one line and a remedy."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from trunkline.cli.failure import Failure, explain, harmless
from trunkline.protocol import errors


@pytest.mark.parametrize("kind", [kind for kind in errors.ERRORS if kind.status], ids=lambda kind: kind.__name__)
def test_every_error_of_the_relay_is_one_line_with_a_status(kind: type[errors.RelayError]) -> None:
    failure = explain(kind("first line\nsecond line", tracking_id="7c9e6679"))
    assert "first line second line" in failure.what and "\n" not in failure.what
    wrong_input = issubclass(kind, errors.InvalidSetting | errors.InvalidConnectionString | errors.InvalidUrl)
    assert failure.status == (2 if wrong_input else 1)
    assert wrong_input or "7c9e6679" in failure.what


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (errors.NoListener(), "no listeners", "trunkline listen"),
        (errors.AccessDenied(), "Unauthorized", "--rights"),
        (errors.ExpiredToken(), "ExpiredToken", "clock"),
        (errors.QuotaExceeded(), "", "max_senders"),
        (errors.EndpointNotFound(), "does not exist", "EntityPath"),
        (errors.InvalidConnectionString("no Endpoint"), "no Endpoint", "single quotes"),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 1)"),
            "Connection refused",
            "emulator",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "file"), "file: No space left", "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "file"), "file: Permission denied", "who owns it"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe", "read the output"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known", ""),
        (ssl.SSLError(1, "[SSL] wrong version number"), "wrong version", "--no-tls"),
        (TimeoutError("no answer within 1 s"), "no answer within 1 s", ""),
        (Failure("what", "remedy", status=7), "what", "remedy"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_names_its_remedy(error: Exception, what: str, remedy: str) -> None:
    failure = explain(error)
    assert what in failure.what and remedy in failure.remedy
    assert bool(remedy) == bool(failure.remedy)


def test_rejection_is_in_the_words_of_the_listener() -> None:
    failure = explain(errors.ConnectionRejected(418, "I am\x1b[31m a teapot"))
    assert failure.what == "The listener rejected the connection: 418 I am?[31m a teapot"


def test_timeout_takes_the_remedy_of_its_cause() -> None:
    error = TimeoutError("not online within 1 s")
    error.__cause__ = errors.NoListener()
    assert "trunkline listen" in explain(error).remedy


def test_first_of_several_errors_counts() -> None:
    group = ExceptionGroup("two", [ExceptionGroup("one", [errors.NoListener()]), ValueError()])
    assert "no listeners" in explain(group).what


@pytest.mark.parametrize(
    "text",
    [
        "unexpected (Endpoint=sb://a/;SharedAccessKeyName=b;SharedAccessKey=hunter2+/=;EntityPath=c)",
        "SharedAccessSignature sr=hunter2&sig=hunter2%3D&se=1&skn=b",
        "Endpoint=sb://a/;SharedAccessSignature=SharedAccessSignature sr=http&sig=hunter2&se=1",
        "wss://a/$hc/b?sb-hc-token=hunter2&sb-hc-id=c",
    ],
)
def test_keys_and_signatures_are_not_shown(text: str) -> None:
    shown = harmless(text)
    assert "hunter2" not in shown and "***" in shown


def test_colour_only_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Failure("what", "remedy").show()
    assert capsys.readouterr().err == "error: what\nremedy: remedy\n"
