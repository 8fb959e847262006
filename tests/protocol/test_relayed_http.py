from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook import Playbook, event
from trunkline.protocol.errors import (
    BadGateway,
    ConnectionLost,
    ConnectionNotEstablished,
    EndpointNotFound,
    InvalidRequest,
    NoListener,
    QuotaExceeded,
    RelayError,
    RendezvousNotFound,
    RequestTimedOut,
    ResponseTimedOut,
)
from trunkline.protocol.messages import Response
from trunkline.protocol.relayed_http import (
    LEAVER_PATIENCE,
    SMALL_BODY,
    TRANSITIONS,
    Abort,
    Answer,
    AnswerListener,
    AskDirectory,
    Begin,
    CloseRendezvous,
    Command,
    End,
    Event,
    PauseBody,
    Place,
    ReadBody,
    Refuse,
    RefuseListener,
    RelayedRequest,
    ResumeBody,
    SendBody,
    SendRequest,
    State,
    Write,
)

NOBODY: frozenset[str] = frozenset()
LARGE = SMALL_BODY + 1
FAREWELL = CloseRendezvous(1000, "The response is whole")


def request(
    length: int | None = 0, *, method: str = "GET", timeout: float = 60.0, idle: float = 30.0
) -> RelayedRequest:
    return RelayedRequest(
        tracking_id="id-1",
        method=method,
        body_length=length,
        via="1.1 relay.local",
        response_timeout=timeout,
        body_idle_timeout=idle,
        now=0.0,
    )


def told(*, method: str = "GET", **more: Any) -> RelayedRequest:
    """A listener has the whole request."""
    machine = request(method=method, **more)
    machine.start()
    machine.placed("a", 1.0)
    return machine


def redirected(length: int | None = LARGE, **more: Any) -> RelayedRequest:
    """A listener knows the address."""
    machine = request(length, **more)
    machine.start()
    machine.body_is_late()
    machine.placed("a", 1.0)
    return machine


def fetched(length: int | None = LARGE, **more: Any) -> RelayedRequest:
    machine = redirected(length, **more)
    machine.fetched(2.0)
    return machine


def answering(length: int | None = 0, **more: Any) -> RelayedRequest:
    """A part of the response has come by the rendezvous."""
    machine = told(**more) if length == 0 else fetched(length, **more)
    if length == 0:
        machine.fetched(2.0)
    machine.response(response(body=True), 3.0)
    return machine


def response(status: int = 200, *, body: bool = False) -> Response:
    return Response("id-1", status, body=body)


class Refusal:
    """Equal to a command that holds an error of this class, about this request."""

    def __init__(self, error: type[RelayError], kind: type[Refuse] | type[RefuseListener] = Refuse) -> None:
        self.error = error
        self.kind = kind

    def __repr__(self) -> str:
        return f"{self.kind.__name__}({self.error.__name__})"

    def __eq__(self, command: object) -> bool:
        return (
            isinstance(command, self.kind) and type(command.error) is self.error and command.error.tracking_id == "id-1"
        )


class Close:
    """Equal to a CloseRendezvous with this code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __repr__(self) -> str:
        return f"CloseRendezvous({self.code})"

    def __eq__(self, command: object) -> bool:
        return isinstance(command, CloseRendezvous) and command.code == self.code


# -- by the control channel


def test_a_request_without_a_body_is_told_at_once_and_answered() -> None:
    machine = request()
    assert (
        Playbook(machine)
        >> event.start()
        << Place(NOBODY, b"")
        >> event.placed("a", 1.0)
        >> event.responded(response(201), b"made", 2.0)
        << Answer
    )
    assert machine.state is State.ANSWERED and machine.over


@pytest.mark.parametrize("length", [4, None, SMALL_BODY])
def test_a_small_body_goes_with_its_request(length: int | None) -> None:
    machine = request(length)
    assert (
        Playbook(machine)
        >> event.start()
        << ReadBody()
        >> event.body(b"ab", 0.0)
        >> event.body(b"cd", 0.0)
        >> event.body_ended(0.0)
        << Place(NOBODY, b"abcd")
        >> event.body_is_late()
        >> event.placed("a", 1.0)
    )
    assert machine.state is State.TOLD


def test_a_chunked_body_that_proves_empty_is_none() -> None:
    assert Playbook(request(None)) >> event.start() << ReadBody() >> event.body_ended(0.0) << Place(NOBODY, b"")


def test_a_body_of_65536_bytes_is_small_and_one_more_is_not() -> None:
    small, large = b"x" * SMALL_BODY, b"x" * LARGE
    talk = Playbook(request(None)) >> event.start() << ReadBody() >> event.body(small, 0.0) >> event.body_ended(0.0)
    assert talk << Place(NOBODY, small)
    talk = Playbook(request(None)) >> event.start() << ReadBody() >> event.body(large, 0.0)
    assert talk << PauseBody() << Place(NOBODY, None)


def test_the_answer_to_head_has_no_body_whatever_the_listener_sends() -> None:
    machine = told(method="HEAD")
    (answer,) = machine.responded(response(), b"stray", 2.0)
    assert isinstance(answer, Answer)
    assert answer.body == b"" and answer.head.is_bodyless


def test_only_the_first_response_counts() -> None:
    assert (
        Playbook(told())
        >> event.responded(response(), b"", 2.0)
        << Answer
        >> event.responded(response(500), b"", 3.0)
        >> event.response(response(500), 3.0)
        >> event.response_body(b"x", 3.0, end=True)
        >> event.withdraw(EndpointNotFound())
        >> event.sender_left()
        >> event.tick(1e6)
    )


def test_a_response_before_anybody_was_told_is_none() -> None:
    machine = request()
    machine.start()
    assert Playbook(machine) >> event.responded(response(), b"", 0.5) >> event.placed("a", 1.0)


def test_an_answer_that_is_none_is_a_bad_gateway() -> None:
    assert Playbook(told()) >> event.responded(response(101), b"", 2.0) << Refusal(BadGateway)
    assert Playbook(fetched()) >> event.response(response(100), 3.0) << Refusal(BadGateway) << Close(1011)


# -- by rendezvous


def test_a_large_body_is_not_read_before_the_listener_comes_for_it() -> None:
    machine = request(LARGE)
    assert (
        Playbook(machine)
        >> event.start()
        << Place(NOBODY, None)
        >> event.placed("a", 1.0)
        >> event.fetched(2.0)
        << AnswerListener()
        << SendRequest()
        << ReadBody()
        >> event.body(b"piece", 3.0)
        << SendBody(b"piece", False)
        >> event.body_ended(4.0)
        << SendBody(b"", True)
        >> event.response(response(), 5.0)
        << Answer
        << FAREWELL
    )


def test_a_slow_body_is_fetched_with_what_came_of_it() -> None:
    machine = request(None)
    assert (
        Playbook(machine)
        >> event.start()
        << ReadBody()
        >> event.body(b"ab", 0.0)
        >> event.body_is_late()
        << PauseBody()
        << Place(NOBODY, None)
        >> event.body(b"cd", 0.5)
        >> event.placed("a", 1.0)
        >> event.body(b"ef", 1.5)
        >> event.fetched(2.0)
        << AnswerListener()
        << SendRequest()
        << SendBody(b"ab", False)
        << SendBody(b"cd", False)
        << SendBody(b"ef", False)
        << ResumeBody()
    )


def test_a_body_that_ended_while_the_listener_was_on_its_way_is_sent_whole() -> None:
    machine = redirected(None)
    assert (
        Playbook(machine)
        >> event.body(b"late", 1.5)
        >> event.body_ended(1.5)
        >> event.fetched(2.0)
        << AnswerListener()
        << SendRequest()
        << SendBody(b"late", False)
        << SendBody(b"", True)
    )


def test_a_response_streams_by_the_rendezvous() -> None:
    assert (
        Playbook(told())
        >> event.fetched(2.0)
        << AnswerListener()
        >> event.response(response(body=True), 3.0)
        << Begin
        >> event.response_body(b"one", 4.0, end=False)
        << Write(b"one")
        >> event.response_body(b"two", 5.0, end=True)
        << Write(b"two")
        << End()
        << FAREWELL
    )


def test_a_listener_may_answer_on_the_control_channel_what_it_fetched() -> None:
    assert Playbook(fetched()) >> event.responded(response(413), b"no", 3.0) << Answer << FAREWELL


def test_it_knows_how_much_of_the_body_waits_for_a_listener() -> None:
    machine = request(None)
    machine.start()
    assert machine.held == 0
    machine.body(b"x" * 40_000, 1.0)
    machine.body(b"y" * 40_000, 1.0)
    assert machine.held == 80_000
    machine.placed("one", 1.0)
    machine.fetched(2.0)
    assert machine.held == 0


def test_it_knows_whether_all_of_the_body_has_come() -> None:
    assert told().body_is_whole
    machine = fetched()
    assert not machine.body_is_whole
    machine.body_ended(3.0)
    assert machine.body_is_whole


def test_an_early_answer_goes_on_and_the_upload_with_it_until_the_answer_is_whole() -> None:
    assert (
        Playbook(fetched())
        >> event.body(b"1", 3.0)
        << SendBody(b"1", False)
        >> event.response(response(400, body=True), 4.0)
        << Begin
        >> event.body(b"2", 5.0)
        << SendBody(b"2", False)
        >> event.body_ended(5.0)
        << SendBody(b"", True)
        >> event.response_body(b"", 6.0, end=True)
        << End()
        << FAREWELL
        >> event.body(b"3", 7.0)
        >> event.body_ended(7.0)
        >> event.rendezvous_ended()
    )


def test_an_address_is_good_once_and_only_while_an_answer_is_owed() -> None:
    for machine in (fetched(), answering(), request()):
        assert Playbook(machine) >> event.fetched(4.0) << Refusal(RendezvousNotFound, RefuseListener)
    machine = told()
    machine.responded(response(), b"", 2.0)
    assert not machine.fetchable
    assert Playbook(machine) >> event.fetched(4.0) << Refusal(RendezvousNotFound, RefuseListener)


def test_head_answered_by_rendezvous_has_no_body() -> None:
    machine = told(method="HEAD")
    machine.fetched(2.0)
    assert (
        Playbook(machine)
        >> event.response(response(body=True), 3.0)
        << Answer
        << FAREWELL
        >> event.response_body(b"x", 3.0, end=True)
    )


def test_the_sender_is_read_as_fast_as_the_listener_reads() -> None:
    assert (
        Playbook(fetched())
        >> event.listener_is_slow(True, 3.0)
        << PauseBody()
        >> event.listener_is_slow(False, 4.0)
        << ResumeBody()
        >> event.sender_left()
        << Close(1001)
        >> event.listener_is_slow(True, 5.0)
    )


# -- the search for a listener


def test_nobody_there_is_what_the_sender_is_told() -> None:
    machine = request()
    machine.start()
    assert Playbook(machine) >> event.not_placed(NoListener()) << Refusal(NoListener) >> event.placed("a", 2.0)
    assert machine.state is State.REFUSED


def test_an_address_that_nobody_fetched_is_told_to_another_listener() -> None:
    assert (
        Playbook(redirected())
        >> event.listener_lost("b", 2.0)
        >> event.listener_lost("a", 2.0)
        << Place(frozenset("a"), None)
        >> event.placed("b", 3.0)
        >> event.listener_lost("b", 4.0)
        << Place(frozenset("ab"), None)
        >> event.not_placed(NoListener())
        << Refusal(ConnectionLost)
    )


def test_whole_requests_are_told_to_one_listener_only() -> None:
    assert Playbook(told()) >> event.listener_lost("b", 2.0) >> event.listener_lost("a", 2.0) << Refusal(ConnectionLost)


def test_another_reason_than_nobody_is_told_as_it_is() -> None:
    machine = redirected()
    machine.listener_lost("a", 2.0)
    assert Playbook(machine) >> event.not_placed(QuotaExceeded()) << Refusal(QuotaExceeded)


def test_a_listener_lost_while_it_was_told_may_have_seen_a_whole_request() -> None:
    machine = request()
    machine.start()
    assert Playbook(machine) >> event.listener_lost("a", 0.5) >> event.placed("a", 1.0) << Refusal(ConnectionLost)


def test_a_listener_lost_while_it_was_told_an_address_is_not_waited_for() -> None:
    machine = request(LARGE)
    machine.start()
    assert (
        Playbook(machine)
        >> event.listener_lost("a", 0.5)
        >> event.placed("a", 1.0)
        << Place(frozenset("a"), None)
        >> event.not_placed(NoListener())
        << Refusal(ConnectionLost)
    )


def test_a_listener_that_has_opened_the_address_may_answer_without_its_control_channel() -> None:
    for machine in (fetched(), answering()):
        assert Playbook(machine) >> event.listener_lost("a", 4.0)
    machine = told()
    machine.fetched(2.0)
    assert Playbook(machine) >> event.listener_lost("a", 3.0) >> event.response(response(), 4.0) << Answer << FAREWELL


def test_a_listener_that_has_closed_in_order_may_come_to_answer_what_it_was_told() -> None:
    machine = told()
    assert (
        Playbook(machine)
        >> event.listener_lost("a", 2.0, in_order=True)
        >> event.tick(2.0 + LEAVER_PATIENCE / 2)
        >> event.fetched(4.0)
        << AnswerListener()
        >> event.tick(3.0 + LEAVER_PATIENCE)
        >> event.response(response(), 6.0)
        << Answer
        << FAREWELL
    )


def test_one_that_does_not_come_then_is_waited_for_no_longer() -> None:
    assert (
        Playbook(told())
        >> event.listener_lost("b", 2.0, in_order=True)
        >> event.tick(3.0 + LEAVER_PATIENCE)
        >> event.listener_lost("a", 6.0, in_order=True)
        >> event.tick(5.9 + LEAVER_PATIENCE)
        >> event.tick(6.0 + LEAVER_PATIENCE)
        << Refusal(ConnectionLost)
    )


def test_one_that_closed_in_order_while_it_was_told_may_come_too() -> None:
    machine = request()
    machine.start()
    assert (
        Playbook(machine)
        >> event.listener_lost("a", 0.5, in_order=True)
        >> event.placed("a", 1.0)
        >> event.fetched(2.0)
        << AnswerListener()
    )


def test_one_that_closed_in_order_and_has_only_an_address_is_not_waited_for() -> None:
    assert Playbook(redirected()) >> event.listener_lost("a", 2.0, in_order=True) << Place(frozenset("a"), None)


def test_another_than_the_one_that_closed_in_order_is_lost_at_once() -> None:
    machine = request()
    machine.start()
    assert (
        Playbook(machine)
        >> event.listener_lost("a", 0.4)
        >> event.listener_lost("b", 0.5, in_order=True)
        >> event.placed("a", 1.0)
        << Refusal(ConnectionLost)
    )
    machine = request()
    machine.start()
    assert (
        Playbook(machine)
        >> event.listener_lost("b", 0.5, in_order=True)
        >> event.placed("a", 1.0)
        >> event.tick(2.0 + LEAVER_PATIENCE)
    )


# -- the end before the end


def test_a_rendezvous_that_ends_before_the_answer_is_a_lost_connection() -> None:
    assert Playbook(fetched()) >> event.rendezvous_ended() << Refusal(ConnectionLost)
    machine = told()
    machine.fetched(2.0)
    assert Playbook(machine) >> event.rendezvous_ended() << Refusal(ConnectionLost)


def test_a_rendezvous_that_ends_within_the_answer_cuts_the_sender() -> None:
    machine = answering()
    assert Playbook(machine) >> event.rendezvous_ended() << Abort
    assert machine.state is State.CUT


def test_a_listener_at_the_rendezvous_is_told_that_the_sender_left() -> None:
    for machine in (fetched(), answering(), answering(LARGE)):
        assert Playbook(machine) >> event.sender_left() << CloseRendezvous(1001, "The sender left")
        assert machine.state is State.GONE


def test_a_listener_that_has_the_request_is_not_told_that_the_sender_left() -> None:
    for machine in (told(), redirected(), request()):
        assert Playbook(machine) >> event.sender_left() >> event.responded(response(), b"", 5.0)
        assert machine.state is State.GONE


def test_a_listener_may_come_late_only_to_what_it_was_told_and_has_not_opened() -> None:
    for machine in (told(), redirected()):
        assert not machine.listener_may_come_late
        machine.sender_left()
        assert machine.listener_may_come_late
    for machine in (fetched(), answering(), request()):
        machine.sender_left()
        assert not machine.listener_may_come_late
    machine = told()
    machine.responded(response(), b"", 2.0)
    assert not machine.listener_may_come_late


def test_a_malformed_body_is_refused_and_the_listener_told_that_no_more_comes() -> None:
    machine = request(None)
    machine.start()
    assert Playbook(machine) >> event.body_failed(InvalidRequest()) << Refusal(InvalidRequest)
    assert Playbook(redirected(None)) >> event.body_failed(InvalidRequest()) << Refusal(InvalidRequest)
    assert Playbook(fetched(None)) >> event.body_failed(InvalidRequest()) << Refusal(InvalidRequest) << Close(1001)
    assert Playbook(answering(None)) >> event.body_failed(InvalidRequest()) << Abort << Close(1001)


def test_a_request_ends_with_its_entity() -> None:
    gone = EndpointNotFound
    for machine in (told(), redirected(), request(None)):
        assert Playbook(machine) >> event.withdraw(gone()) << Refusal(gone)
    assert Playbook(fetched()) >> event.withdraw(gone()) << Refusal(gone) << Close(1001)
    assert Playbook(answering()) >> event.withdraw(gone()) << Abort << Close(1001)


# -- time


def test_a_listener_that_does_not_answer_in_time() -> None:
    assert Playbook(told()) >> event.tick(60.9) >> event.tick(61.0) << Refusal(ResponseTimedOut) >> event.tick(99.0)
    machine = told()
    machine.fetched(2.0)
    assert Playbook(machine) >> event.tick(61.0) << Refusal(ResponseTimedOut) << Close(1001)


def test_the_time_for_an_answer_counts_from_the_end_of_the_upload() -> None:
    assert (
        Playbook(fetched())
        >> event.body_ended(50.0)
        << SendBody(b"", True)
        >> event.tick(109.0)
        >> event.tick(110.0)
        << Refusal(ResponseTimedOut)
        << Close(1001)
    )


def test_without_a_limit_everybody_waits() -> None:
    for machine in (told(timeout=0), fetched(idle=0, timeout=0), answering(idle=0)):
        assert Playbook(machine) >> event.tick(1e6)


def test_an_address_that_is_not_fetched_in_time() -> None:
    machine = redirected()
    assert (
        Playbook(machine)
        >> event.tick(60.0)
        >> event.tick(61.0)
        << AskDirectory()
        >> event.tick(62.0)
        >> event.not_fetched(62.0, deposed=False)
        << Refusal(ResponseTimedOut)
        >> event.not_fetched(63.0, deposed=True)
    )


def test_the_next_listener_is_told_when_one_did_not_fetch_once_too_often() -> None:
    assert (
        Playbook(redirected())
        >> event.tick(61.0)
        << AskDirectory()
        >> event.not_fetched(61.0, deposed=True)
        << Place(frozenset("a"), None)
        >> event.placed("b", 62.0)
        >> event.tick(121.0)
        >> event.tick(122.0)
        << AskDirectory()
        >> event.not_fetched(122.0, deposed=True)
        << Place(frozenset("ab"), None)
        >> event.not_placed(NoListener())
        << Refusal(ResponseTimedOut)
    )


def test_a_listener_that_comes_while_the_directory_is_asked_is_in_time() -> None:
    assert (
        Playbook(redirected())
        >> event.tick(61.0)
        << AskDirectory()
        >> event.fetched(61.5)
        << AnswerListener()
        << SendRequest()
        << ReadBody()
        >> event.not_fetched(62.0, deposed=True)
    )


def test_a_listener_lost_while_the_directory_is_asked_is_replaced_once() -> None:
    assert (
        Playbook(redirected())
        >> event.tick(61.0)
        << AskDirectory()
        >> event.listener_lost("a", 61.5)
        << Place(frozenset("a"), None)
        >> event.not_fetched(62.0, deposed=True)
    )


def test_a_search_that_takes_too_long() -> None:
    machine = request()
    machine.start()
    assert Playbook(machine) >> event.tick(60.0) << Refusal(ConnectionNotEstablished)
    machine = redirected()
    machine.listener_lost("a", 2.0)
    assert Playbook(machine) >> event.tick(62.0) << Refusal(ConnectionLost)


def test_a_body_that_stops_coming_is_given_up() -> None:
    assert (
        Playbook(fetched())
        >> event.body(b"x", 20.0)
        << SendBody(b"x", False)
        >> event.tick(49.0)
        >> event.tick(50.0)
        << Refusal(RequestTimedOut)
        << Close(1001)
    )


def test_a_body_that_the_listener_does_not_take_is_its_own_fault() -> None:
    assert (
        Playbook(fetched())
        >> event.listener_is_slow(True, 3.0)
        << PauseBody()
        >> event.tick(33.0)
        >> event.tick(63.0)
        << Refusal(ResponseTimedOut)
        << Close(1001)
    )


def test_a_response_that_stops_coming_is_cut() -> None:
    assert (
        Playbook(answering())
        >> event.response_body(b"x", 20.0, end=False)
        << Write(b"x")
        >> event.tick(49.0)
        >> event.tick(50.0)
        << Abort
        << Close(1001)
    )


def test_a_response_that_the_sender_holds_up_is_not_idle() -> None:
    machine = answering()
    machine.sender_is_slow(True, 4.0)
    assert Playbook(machine) >> event.tick(1e3)
    machine.sender_is_slow(False, 1e3)
    assert Playbook(machine) >> event.tick(1029.0) >> event.tick(1030.0) << Abort << Close(1001)


def test_a_small_body_has_no_limit_of_its_own() -> None:
    """The shell says when it is late."""
    machine = request(None)
    machine.start()
    assert Playbook(machine) >> event.tick(1e6)


# -- what it says of itself


def test_a_request_shows_where_it_stands_and_nothing_of_its_content() -> None:
    machine = request(LARGE)
    assert repr(machine) == "<RelayedRequest 'id-1' GET GATHERING>"
    machine.start()
    machine.placed("a", 1.0)
    assert repr(machine) == "<RelayedRequest 'id-1' GET REDIRECTED listener='a'>"
    assert "secret" not in repr([SendBody(b"secret", True), Write(b"secret"), Place(NOBODY, b"secret")])


# -- any order of events

listeners = st.sampled_from("ab")
times = st.sampled_from([1.0, 40.0, 100.0, 1e4])
statuses = st.sampled_from([100, 200, 204, 500])
errors = st.sampled_from([NoListener, QuotaExceeded, InvalidRequest])
happenings = st.one_of(
    st.builds(lambda data, now: event.body(data, now), st.sampled_from([b"x", b"x" * LARGE]), times),
    st.builds(lambda now: event.body_ended(now), times),
    st.builds(lambda error: event.body_failed(error()), errors),
    st.just(event.body_is_late()),
    st.builds(lambda who, now: event.placed(who, now), listeners, times),
    st.builds(lambda error: event.not_placed(error()), errors),
    st.builds(lambda now, deposed: event.not_fetched(now, deposed=deposed), times, st.booleans()),
    st.builds(
        lambda who, now, in_order: event.listener_lost(who, now, in_order=in_order), listeners, times, st.booleans()
    ),
    st.builds(lambda now: event.fetched(now), times),
    st.just(event.rendezvous_ended()),
    st.builds(lambda slow, now: event.listener_is_slow(slow, now), st.booleans(), times),
    st.builds(lambda status, now: event.responded(response(status), b"x", now), statuses, times),
    st.builds(
        lambda status, body, now: event.response(response(status, body=body), now), statuses, st.booleans(), times
    ),
    st.builds(lambda now, end: event.response_body(b"x", now, end=end), times, st.booleans()),
    st.just(event.sender_left()),
    st.builds(lambda error: event.withdraw(error()), errors),
    st.builds(lambda now: event.tick(now), times),
)


@given(st.sampled_from([0, 1, LARGE, None]), st.sampled_from(["GET", "HEAD"]), st.lists(happenings, max_size=25))
def test_the_sender_is_answered_once_and_no_second_listener_has_the_request(
    length: int | None, method: str, events: list[Any]
) -> None:
    machine = request(length, method=method)
    commands: list[Command] = machine.start()
    for each in events:
        was_over, before = machine.over, machine.state
        following = getattr(machine, each.name)(*each.args, **each.kwargs)
        commands += following
        if was_over:
            assert all(isinstance(command, RefuseListener) for command in following)
        if machine.state is not before:
            assert any(TRANSITIONS.get((before, happened)) is machine.state for happened in Event) or before in (
                State.REDIRECTED,
                State.PLACING,
            )
        assert machine.fetchable <= (machine.listener_id is not None)
    kinds = [type(command) for command in commands]
    heads = [kind for kind in kinds if kind in (Answer, Begin, Refuse)]
    assert len(heads) == (
        machine.state in (State.ANSWERED, State.ANSWERING, State.REFUSED, State.CUT)
        or (machine.state is State.GONE and Begin in kinds)
    )
    assert (Abort in kinds) == (machine.state is State.CUT)
    assert kinds.count(ReadBody) <= 1 and kinds.count(SendRequest) <= 1 and kinds.count(AnswerListener) <= 1
    assert kinds.count(End) == (machine.state is State.ANSWERED and Begin in kinds)
    if Begin in kinds:
        assert kinds.index(Begin) < min((at for at, kind in enumerate(kinds) if kind in (Write, End)), default=999)
    # Whole, to one listener; or by its address, each time to another.
    places = [command for command in commands if isinstance(command, Place)]
    assert len(places) <= 1 or all(place.body is None for place in places)
    assert len({place.exclude for place in places}) == len(places)
    sent = [command for command in commands if isinstance(command, SendBody)]
    assert not any(piece.end for piece in sent[:-1])
