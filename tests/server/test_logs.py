"""Lines of the log: for people, for machines, and what no peer can do to them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.protocol.errors import InvalidSetting
from trunkline.server import logs
from trunkline.server.logs import JsonFormatter, TextFormatter, Throttle

FORMATTERS = [TextFormatter(), JsonFormatter()]

each_formatter = pytest.mark.parametrize("formatter", FORMATTERS, ids=["text", "json"])


def record(message: str, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        "trunkline.relay", logging.INFO, __file__, 1, "%s", (message,), (type(error), error, None) if error else None
    )
    made.created, made.msecs = 1_700_000_000.123, 123.0
    made.__dict__.update(extra)
    return made


@pytest.fixture
def levels() -> Iterator[None]:
    """Puts the levels back."""
    loggers = [logging.getLogger(name) for name in ("trunkline", "trunkline.relay", "trunkline.node")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def test_line_for_people_has_time_level_and_message() -> None:
    line = TextFormatter().format(record("listener 1 on ns/orders"))
    date, time, *rest = line.split(" ")
    assert (len(date), len(time)) == (10, 12)
    assert " ".join(rest) == "INFO    listener 1 on ns/orders"


def test_line_for_machines_is_json_with_the_fields_that_say_something() -> None:
    fields = {"activityId": "t-1", "rule": None, "duration": 0.5, "bytesToSender": 0}
    made = record("it ended", operation=logs.SENDER_CONNECTION_CLOSED, fields=fields)
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "info",
        "logger": "trunkline.relay",
        "operation": "Microsoft.Relay/HybridConnections/SenderConnectionClosed",
        "message": "it ended",
        "activityId": "t-1",
        "duration": 0.5,
        "bytesToSender": 0,
    }


def test_line_without_an_operation_has_none() -> None:
    assert json.loads(JsonFormatter().format(record("reloaded"))).keys() == {"time", "level", "logger", "message"}


@each_formatter
@given(text=st.text() | st.text(st.sampled_from("\r\n\x0b\x0c\x1b\x85\u2028\u2029\u202e\x9b[0m\ud800 ab")))
@example(text="a\r\n2026-01-01 00:00:00,000 INFO    forged\x1b[2J\u2028x\u2029y\x85z\u202e")
def test_no_peer_ends_a_line_or_moves_a_cursor(formatter: logging.Formatter, text: str) -> None:
    made = record(f"refused {text}", fields={"client": text, "reason": text})
    line = formatter.format(made)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()
    if isinstance(formatter, JsonFormatter):
        assert line.isascii()
        assert json.loads(line)["client"] == text or "..." in line


@each_formatter
@given(text=st.text(min_size=1))
@example(text="x\n2026-01-01 00:00:00,000 INFO    forged")
def test_no_peer_forges_a_line_in_a_traceback(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record("the relay failed", ValueError(text)))
    first, *below = line.split("\n")
    assert "the relay failed" in first
    assert all(each.startswith("    | ") and each.isprintable() for each in below)


@each_formatter
@pytest.mark.parametrize(
    "token",
    [
        "sr=http%3a%2f%2fh%2forders&sig=c2VjcmV0&se=1&skn=Root",
        "/orders%3Fsb-hc-token=SharedAccessSignature%20sr%3Dx%26sig%3Dc2VjcmV0%253D",
        "sig%253Dc2VjcmV0%25253D",
        "Bearer eyJhbGciOiJub25lIn0.c2VjcmV0.c2VjcmV0",
        "SIG=c2VjcmV0",
    ],
)
def test_signature_that_found_its_way_into_a_message_is_left_out(formatter: logging.Formatter, token: str) -> None:
    made = record(f"refused {token} from 127.0.0.1", ValueError(token), fields={"endpoint": token})
    line = formatter.format(made)
    assert "c2VjcmV0" not in line
    assert "from 127.0.0.1" in line
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["message"].endswith("from 127.0.0.1")


def test_format_is_chosen_by_who_reads() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def chosen(name: str, stream: io.StringIO) -> type[logging.Formatter]:
        return type(logs.formatter(name, stream))

    assert [chosen(name, Terminal()) for name in logs.FORMATS] == [TextFormatter, TextFormatter, JsonFormatter]
    assert [chosen(name, io.StringIO()) for name in logs.FORMATS] == [JsonFormatter, TextFormatter, JsonFormatter]


def test_operations_are_told_at_their_level_with_their_fields(caplog: pytest.LogCaptureFixture, levels: None) -> None:
    log = logging.getLogger("trunkline.relay")
    logs.set_level("info")
    logs.write(log, logs.NEW_SENDER_REGISTERING, "not told at this level")
    logs.write(log, logs.LISTENER_UNRESPONSIVE, "100 % silent", id="1-ab")
    (told,) = caplog.records
    assert (told.levelname, told.getMessage()) == ("WARNING", "100 % silent")
    assert told.__dict__["fields"] == {"id": "1-ab"}


def test_level_of_one_logger_and_of_all_can_be_changed(levels: None) -> None:
    logs.set_level("warning")
    logs.set_level("debug", "trunkline.relay")
    told = logs.levels()
    assert (told["trunkline"], told["trunkline.relay"]) == ("WARNING", "DEBUG")
    assert "trunkline.node" not in told
    assert logging.getLogger("trunkline.node").getEffectiveLevel() == logging.WARNING


def test_wrong_logger_or_level_is_named_with_what_there_is(levels: None) -> None:
    with pytest.raises(InvalidSetting, match="the logger 'asyncio' is not the node's: use trunkline or one below it"):
        logs.set_level("info", "asyncio")
    with pytest.raises(InvalidSetting, match="level 'loud' is none: use one of DEBUG, INFO, WARNING, ERROR"):
        logs.set_level("loud")
    with pytest.raises(InvalidSetting, match=r"level 'x{37}\.\.\.' is none"):
        logs.set_level("x" * 100)


def test_operations_are_named_once_and_as_the_real_service_does() -> None:
    names = [operation.name for operation in logs.OPERATIONS]
    assert len(set(names)) == len(names)
    assert logs.INVALID_SAS_TOKEN.full_name == "Microsoft.Relay/HybridConnections/InvalidSasToken"
    declared = [value for value in vars(logs).values() if isinstance(value, logs.Operation)]
    assert set(declared) == set(logs.OPERATIONS)


def test_flood_is_told_in_part_and_counted_in_whole() -> None:
    now = [100.0]
    throttle = Throttle(10, lambda: now[0])
    assert [throttle.lets("bad token") for _ in range(12)] == [True] * 10 + [False] * 2
    assert throttle.lets("no entity")
    assert repr(throttle) == "<Throttle {'bad token': 12, 'no entity': 1}>"
    now[0] = 100.9
    assert throttle.left_out()[1] == {}
    now[0] = 101.5
    assert throttle.left_out() == (1.5, {"bad token": 2})
    assert throttle.lets("bad token")
    now[0] = 103.0
    assert throttle.left_out() == (1.5, {})
