"""What peers and operators are told when something goes wrong."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.protocol import errors
from trunkline.protocol.errors import ERRORS, ConnectionRejected, RelayError, clean_phrase, error_for_status

NOW = 1_753_977_905.25  # 2025-07-31 16:05:05 UTC
ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()))  # half surrogate pairs too


def every_class() -> list[type[RelayError]]:
    """Those of the tree; other parts derive their own from them."""
    found: list[type[RelayError]] = [RelayError, *subclasses(RelayError)]
    return [kind for kind in found if kind.__module__ == errors.__name__]


def subclasses(kind: type[RelayError]) -> list[type[RelayError]]:
    return [one for child in kind.__subclasses__() for one in (child, *subclasses(child))]


def make(kind: type[RelayError], message: str = "") -> RelayError:
    return ConnectionRejected(kind.status, message) if kind is ConnectionRejected else kind(message)


def test_reader_finds_every_class_in_the_table_once() -> None:
    assert set(ERRORS) == set(every_class())
    assert len(ERRORS) == len(set(ERRORS))


def test_reader_finds_every_class_in_the_drawing_with_its_codes_and_its_parent() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^ {4}([│├└─ ]*)([A-Z]\w+) +(\d{3} \d{4}|as sent)", errors.__doc__, re.MULTILINE)
    assert [name for _, name, _ in drawn] == [kind.__name__ for kind in ERRORS]
    above: list[type[RelayError]] = []
    for (indent, _, codes), kind in zip(drawn, ERRORS, strict=True):
        level = len(indent) // 4
        del above[level:]
        if above:
            assert kind.__bases__[0] is above[-1]
        above.append(kind)
        assert codes == "as sent" or codes == f"{kind.status} {kind.close_code}"


@pytest.mark.parametrize("kind", every_class())
def test_peer_gets_codes_that_every_client_understands(kind: type[RelayError]) -> None:
    assert 400 <= kind.status <= 599
    assert kind.close_code in {1001, 1002, 1007, 1008, 1009, 1011}  # ws 1.x fails on 1012 and above
    assert re.fullmatch(r"[A-Z][A-Za-z]+", kind.code)
    assert kind.default_message and not kind.default_message.endswith(".")
    assert clean_phrase(kind.default_message) == kind.default_message
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "status", "code", "words"),
    [
        (errors.NotAWebSocket, 400, 1008, "This endpoint is only for web-socket requests"),
        (errors.EndpointNotFound, 404, 1001, "Endpoint does not exist"),
        (errors.MissingToken, 401, 1008, "MissingToken: The authorization header is missing"),
        (errors.InvalidSignature, 401, 1008, "InvalidSignature: The token has an invalid signature"),
        (errors.InvalidToken, 401, 1008, "InvalidSignature: The token has an invalid signature"),
        (errors.ExpiredToken, 401, 1008, "ExpiredToken: The token is expired"),
        (
            errors.InvalidAudience,
            401,
            1008,
            "InvalidAudience: The authorization header contains a token with a wrong audience",
        ),
        (errors.NoListener, 504, 1011, "There are no listeners connected for the endpoint"),
        (
            errors.ListenersExcluded,
            404,
            1011,
            "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria",
        ),
        (
            errors.ConnectionNotEstablished,
            504,
            1011,
            "ConnectionNotEstablished: None of the connected listeners accepted the connections within the "
            "allowed timeout",
        ),
        (errors.AccessDenied, 403, 1008, "Unauthorized access."),
        (errors.QuotaExceeded, 429, 1008, "QuotaExceeded:"),
        (errors.ListenerQuotaExceeded, 403, 1008, "QuotaExceeded:"),
        (errors.MessageTooLarge, 413, 1009, "The message is too large"),
        (errors.InvalidFrame, 400, 1002, "The WebSocket frame"),
        (errors.InvalidMessage, 400, 1007, "The control message"),
        (errors.ServerBusy, 503, 1001, "ServerBusy:"),
    ],
)
def test_client_gets_the_words_and_codes_it_knows(kind: type[RelayError], status: int, code: int, words: str) -> None:
    assert (kind.status, kind.close_code) == (status, code)
    assert str(kind()).startswith(words)


def test_client_is_told_to_retry_what_may_pass_and_nothing_else() -> None:
    assert errors.NoListener.transient and errors.ServerBusy.transient and errors.QuotaExceeded.transient
    assert not errors.EndpointNotFound.transient
    assert not errors.InvalidSignature.transient
    assert not errors.EntityQuotaExceeded.transient


def test_sender_gets_azures_reason_phrase() -> None:
    error = errors.EndpointNotFound(entity="a/b")
    assert error.reason_phrase(tracking_id="id-1", address="sb://ns.localhost/a/b", now=NOW) == (
        "Endpoint does not exist. TrackingId:id-1, SystemTracker:sb://ns.localhost/a/b, Timestamp:7/31/2025 4:05:05 PM"
    )


@pytest.mark.parametrize(
    ("now", "stamp"),
    [(0, "1/1/1970 12:00:00 AM"), (43_200, "1/1/1970 12:00:00 PM"), (46_861, "1/1/1970 1:01:01 PM")],
)
def test_sender_gets_the_hour_as_azure_writes_it(now: float, stamp: str) -> None:
    assert errors.ServerBusy().reason_phrase(tracking_id="t", address="sb://h/p", now=now).endswith(stamp)


def test_sender_gets_one_full_stop_and_no_endless_address() -> None:
    phrase = RelayError("Stop. ").reason_phrase(tracking_id="t", address="sb://h/" + "a" * 30_000, now=NOW)
    assert phrase.startswith("Stop. TrackingId:t, SystemTracker:sb://h/aaa")
    assert "..., Timestamp:" in phrase and len(phrase) < 1_200


@given(message=ANY_TEXT, tracking_id=ANY_TEXT, address=ANY_TEXT)
def test_sender_gets_one_line_of_latin_1_whatever_the_texts(message: str, tracking_id: str, address: str) -> None:
    phrase = RelayError(message).reason_phrase(tracking_id=tracking_id, address=address, now=NOW)
    assert phrase.encode("latin-1").decode("latin-1") == phrase
    assert phrase.isprintable()


@pytest.mark.parametrize(
    ("given_text", "phrase"),
    [
        ("TestStatusDescription", "TestStatusDescription"),
        ("a, b; (c) \"d\" 'e' [f] \\g", "a, b; (c) \"d\" 'e' [f] \\g"),
        ("grün", "grün"),
        ("split\r\nX-Evil: 1", "split  X-Evil: 1"),
        ("a\tb\u2028c\x00d\x7f", "a b c?d?"),
        ("\ud800 漢 \x85", "? ?"),
        ("x" * 5_000, "x" * 5_000),
    ],
)
def test_listeners_own_phrase_passes_whole_and_on_one_line(given_text: str, phrase: str) -> None:
    assert clean_phrase(given_text) == phrase


def test_listener_finds_message_and_tracking_id_in_the_close_reason() -> None:
    assert errors.ExpiredToken().close_reason("id-1") == "ExpiredToken: The token is expired. TrackingId:id-1"


@given(message=ANY_TEXT, tracking_id=st.text(alphabet="abc-0", max_size=60))
def test_listener_gets_a_close_reason_that_fits_and_holds_the_id(message: str, tracking_id: str) -> None:
    reason = RelayError(message + "é" * 60).close_reason(tracking_id)
    assert len(reason.encode()) <= errors.CLOSE_REASON_LIMIT
    assert reason.endswith(f". TrackingId:{tracking_id}")
    assert reason.isprintable()


@given(tracking_id=ANY_TEXT)
def test_listener_gets_a_close_reason_that_fits_for_any_id(tracking_id: str) -> None:
    reason = RelayError().close_reason(tracking_id + "é" * 130)
    assert len(reason.encode()) <= errors.CLOSE_REASON_LIMIT
    assert reason.startswith("TrackingId:")


def test_operator_reads_message_entity_and_tracking_id() -> None:
    error = errors.NoListener(entity="orders", tracking_id="id-1")
    text = "There are no listeners connected for the endpoint (entity 'orders'). TrackingId:id-1"
    assert str(error) == text
    assert repr(error) == (
        "<NoListener 504 'There are no listeners connected for the endpoint' entity='orders' tracking_id='id-1'>"
    )
    assert str(RelayError("about orders, id-1", entity="orders", tracking_id="id-1")) == "about orders, id-1"
    assert repr(RelayError("x")) == "<RelayError 500 'x'>"


def test_node_chooses_the_status_of_a_missing_listener() -> None:
    assert errors.NoListener().status == 504
    assert errors.NoListener(status=404).status == 404
    assert errors.NoListener.status == 504
    assert errors.ListenersExcluded().status == 404


def test_caller_may_catch_bad_input_as_value_error() -> None:
    assert issubclass(errors.InvalidSetting, ValueError)
    assert issubclass(errors.InvalidConnectionString, ValueError)


@pytest.mark.parametrize("kind", every_class())
def test_every_error_survives_copy_and_pickle(kind: type[RelayError]) -> None:
    error = make(kind, "words")
    error.entity = "orders"
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is kind
        assert (twin.message, twin.entity, twin.status) == ("words", "orders", error.status)


@pytest.mark.parametrize("kind", [kind for kind in every_class() if kind is not RelayError])
def test_sender_maps_what_the_node_answers_to_a_class_it_can_catch(kind: type[RelayError]) -> None:
    phrase = make(kind).reason_phrase(tracking_id="id-1", address="sb://h/p", now=NOW)
    error = error_for_status(kind.status, phrase)
    assert error.status == kind.status
    assert error.tracking_id == "id-1"
    assert error.message == phrase
    if kind in {
        errors.MissingToken,
        errors.InvalidSignature,
        errors.ExpiredToken,
        errors.InvalidAudience,
        errors.TokenLifetimeExceeded,
        errors.AuthorizationFailed,
        errors.AccessDenied,
        errors.EndpointNotFound,
        errors.EndpointAlreadyExists,
        errors.NotAWebSocket,
        errors.InvalidRequest,
        errors.RequestTimedOut,
        errors.UriTooLong,
        errors.HeadersTooLarge,
        errors.QuotaExceeded,
        errors.ListenerQuotaExceeded,
        errors.NoListener,
        errors.ListenersExcluded,
        errors.ConnectionNotEstablished,
        errors.ConnectionLost,
        errors.ServerBusy,
        errors.InternalError,
    }:
        assert type(error) is kind


@pytest.mark.parametrize(
    ("status", "phrase", "kind"),
    [
        (401, "no idea", errors.AuthorizationFailed),
        (403, "no idea", errors.AccessDenied),
        (404, "There are no listeners connected for the endpoint. TrackingId:x", errors.NoListener),
        (404, "", errors.EndpointNotFound),
        (429, "", errors.QuotaExceeded),
        (400, "Rejected by user code", ConnectionRejected),
        (400, "bad. TrackingId:x", errors.InvalidRequest),
        (418, "I'm a teapot", ConnectionRejected),
        (302, "", ConnectionRejected),
        (599, "", errors.InternalError),
        (600, "", ConnectionRejected),
    ],
)
def test_sender_maps_what_others_answer(status: int, phrase: str, kind: type[RelayError]) -> None:
    error = error_for_status(status, phrase)
    assert type(error) is kind
    assert error.status == status
    assert error.message == (phrase or kind.default_message)


def test_sender_gets_the_listeners_words_unchanged() -> None:
    error = error_for_status(450, "not today, thanks")
    assert isinstance(error, ConnectionRejected)
    assert (error.status, error.description, error.tracking_id) == (450, "not today, thanks", None)


@given(status=st.integers(-1, 1_000), phrase=ANY_TEXT)
def test_sender_maps_any_answer_to_some_error(status: int, phrase: str) -> None:
    error = error_for_status(status, phrase)
    assert error.status == status
    assert str(error).isprintable()
