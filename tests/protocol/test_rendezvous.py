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
    ListenersExcluded,
    NoListener,
    QuotaExceeded,
    RelayError,
)
from trunkline.protocol.rendezvous import (
    AnswerListener,
    AnswerSender,
    Command,
    Join,
    PlaceOffer,
    RefuseListener,
    RefuseSender,
    RejectSender,
    Rendezvous,
    State,
)

SECRET = "c2VjcmV0"
NOBODY_EXCLUDED: frozenset[str] = frozenset()


def rendezvous(*subprotocols: str, timeout: float = 30.0) -> Rendezvous:
    return Rendezvous(tracking_id="id-1", secret=SECRET, subprotocols=subprotocols, timeout=timeout, now=0.0)


def offered(*subprotocols: str, to: str = "a") -> Rendezvous:
    machine = rendezvous(*subprotocols)
    machine.start()
    machine.placed(to, 1.0)
    return machine


def arrives(*subprotocols: str, secret: str = SECRET, status: str | None = None, description: str | None = None) -> Any:
    return event.listener_arrived(
        secret=secret, status=status, description=description, subprotocols=subprotocols, now=2.0
    )


class Refusal:
    """Equal to a RefuseSender with an error of this class, about this connection."""

    def __init__(self, error: type[RelayError], tracking_id: str | None = "id-1") -> None:
        self.error = error
        self.tracking_id = tracking_id

    def __repr__(self) -> str:
        return f"RefuseSender({self.error.__name__})"

    def __eq__(self, command: object) -> bool:
        return (
            isinstance(command, RefuseSender)
            and type(command.error) is self.error
            and command.error.tracking_id == self.tracking_id
        )


NOT_FOUND = RefuseListener(403, "The rendezvous does not exist or has expired")


# -- acceptance


def test_listener_that_comes_is_joined_with_the_sender() -> None:
    machine = rendezvous()
    assert (
        Playbook(machine)
        >> event.start()
        << PlaceOffer(NOBODY_EXCLUDED)
        >> event.placed("a", now=1.0)
        >> arrives()
        << AnswerListener(None)
        << AnswerSender(None)
        << Join()
    )
    assert machine.state is State.JOINED
    assert machine.over
    assert machine.listener_id == "a"


def test_listener_chooses_the_subprotocol() -> None:
    assert (
        Playbook(offered("chat", "wamp")) >> arrives("wamp") << AnswerListener("wamp") << AnswerSender("wamp") << Join()
    )


def test_listener_that_requests_several_subprotocols_gets_the_first_that_the_sender_offered() -> None:
    assert (
        Playbook(offered("chat", "wamp"))
        >> arrives("soap", "wamp", "chat")
        << AnswerListener("wamp")
        << AnswerSender("wamp")
        << Join()
    )


def test_listener_need_not_choose_a_subprotocol() -> None:
    assert Playbook(offered("chat")) >> arrives() << AnswerListener(None) << AnswerSender(None) << Join()


@pytest.mark.parametrize("offer", [(), ("chat",)])
def test_listener_cannot_choose_a_subprotocol_that_the_sender_did_not_offer(offer: tuple[str, ...]) -> None:
    machine = offered(*offer)
    assert (
        Playbook(machine)
        >> arrives("wamp")
        << Refusal(BadGateway)
        << RefuseListener(400, "The listener chose a subprotocol that the sender did not offer")
    )
    assert machine.state is State.REFUSED


# -- the secret


@pytest.mark.parametrize("secret", ["", SECRET[:-1], SECRET + "A", SECRET.upper(), "ü", "\udcff"])
def test_stranger_with_a_wrong_secret_is_refused_and_the_listener_still_comes(secret: str) -> None:
    assert (
        Playbook(offered())
        >> arrives(secret=secret)
        << NOT_FOUND
        >> arrives()
        << AnswerListener(None)
        << AnswerSender(None)
        << Join()
    )


def test_stranger_with_a_wrong_secret_cannot_reject_the_sender() -> None:
    machine = offered()
    assert Playbook(machine) >> arrives(secret="guess", status="400") << NOT_FOUND
    assert machine.state is State.OFFERED


def test_listener_that_was_given_up_cannot_come_instead_of_the_next_one() -> None:
    machine = offered()
    machine.listener_lost("a", 2.0)
    machine.change_secret("another")
    machine.placed("b", 2.0)
    assert (
        Playbook(machine)
        >> arrives()
        << NOT_FOUND
        >> arrives(secret="another")
        << AnswerListener(None)
        << AnswerSender(None)
        << Join()
    )
    assert machine.listener_id == "b"


def test_listener_comes_once() -> None:
    playbook = Playbook(offered()) >> arrives() << AnswerListener << AnswerSender << Join
    assert playbook >> arrives() << NOT_FOUND >> arrives(status="500") << NOT_FOUND


def test_listener_that_rejected_cannot_come_after_all() -> None:
    assert Playbook(offered()) >> arrives(status="400") << RejectSender << RefuseListener >> arrives() << NOT_FOUND


def test_listener_that_comes_before_it_was_told_is_refused() -> None:
    assert Playbook(rendezvous()) >> event.start() << PlaceOffer >> arrives() << NOT_FOUND


# -- rejection by the listener


@pytest.mark.parametrize(
    ("status", "description", "answer"),
    [
        ("404", "Rejected by user code", RejectSender(404, "Rejected by user code")),
        ("200", "TestStatusDescription", RejectSender(200, "TestStatusDescription")),
        ("599", "x", RejectSender(599, "x")),
        ("401", None, RejectSender(401, "Unauthorized")),
        ("418", "", RejectSender(418, "I'm a Teapot")),
        ("599", None, RejectSender(599, "Unknown")),
        ("503", " \r\n", RejectSender(503, "Service Unavailable")),
        ("199", "too low", RejectSender(400, "too low")),
        ("600", "too high", RejectSender(400, "too high")),
        ("101", None, RejectSender(400, "Bad Request")),
        ("", None, RejectSender(400, "Bad Request")),
        ("abc", "no number", RejectSender(400, "no number")),
        ("٤٠٤", "no ASCII", RejectSender(400, "no ASCII")),
        ("+404", "a sign", RejectSender(400, "a sign")),
        ("0404", "long", RejectSender(400, "long")),
        ("403", "a\r\nSet-Cookie: b=c", RejectSender(403, "a  Set-Cookie: b=c")),
        ("403", "für €5", RejectSender(403, "für ?5")),
        ("502", "long " * 2000, RejectSender(502, ("long " * 2000).strip())),
    ],
)
def test_listener_rejects_in_its_own_words(status: str, description: str | None, answer: RejectSender) -> None:
    machine = offered()
    assert Playbook(machine) >> arrives(status=status, description=description) << answer << RefuseListener(410, "Gone")
    assert machine.state is State.REJECTED


def test_listener_that_rejects_need_not_agree_on_a_subprotocol() -> None:
    assert Playbook(offered()) >> arrives("wamp", status="403") << RejectSender(403, "Forbidden") << RefuseListener


def test_listener_that_gives_a_description_and_no_status_accepts() -> None:
    assert Playbook(offered()) >> arrives(description="hello") << AnswerListener << AnswerSender << Join


# -- nobody comes


def test_sender_is_refused_when_nobody_can_be_told() -> None:
    machine = rendezvous()
    error = NoListener(status=404)
    assert Playbook(machine) >> event.start() << PlaceOffer >> event.not_placed(error) << RefuseSender(error)
    assert machine.state is State.REFUSED


def test_listener_has_its_whole_time_from_the_moment_it_is_told() -> None:
    machine = rendezvous(timeout=30.0)
    assert machine.deadline == 30.0
    machine.start()
    machine.placed("a", 12.5)
    assert machine.deadline == 42.5


def test_listener_without_a_timeout_has_as_long_as_the_sender_waits() -> None:
    assert rendezvous(timeout=0).deadline == float("inf")


def test_sender_is_refused_when_the_listener_does_not_come_in_time() -> None:
    machine = offered()
    assert Playbook(machine) >> event.expired(31.0, deposed=False) << Refusal(ConnectionNotEstablished)
    assert machine.state is State.REFUSED
    assert Playbook(machine) >> arrives() << NOT_FOUND


@pytest.mark.parametrize("deposed", [False, True])
def test_sender_is_refused_when_telling_a_listener_takes_too_long(deposed: bool) -> None:
    assert (
        Playbook(rendezvous())
        >> event.start()
        << PlaceOffer
        >> event.expired(30.0, deposed=deposed)
        << Refusal(ConnectionNotEstablished)
        >> event.placed("a", 31.0)
        >> arrives()
        << NOT_FOUND
    )


def test_sender_is_offered_to_another_listener_when_a_wedged_one_is_deposed() -> None:
    machine = offered(to="a")
    playbook = Playbook(machine) >> event.expired(31.0, deposed=True) << PlaceOffer(frozenset({"a"}))
    assert machine.listener_id is None
    assert machine.deadline == 61.0
    assert playbook >> event.placed("b", 32.0) >> arrives() << AnswerListener << AnswerSender << Join
    assert machine.listener_id == "b"


def test_deadline_of_a_lost_listener_is_not_held_against_the_next() -> None:
    machine = offered(to="a")
    assert (
        Playbook(machine)
        >> event.listener_lost("a", 30.9)
        << PlaceOffer
        >> event.placed("b", 31.0)
        >> event.expired(31.1, deposed=True)
        >> event.expired(60.9, deposed=False)
    )
    assert machine.state is State.OFFERED
    assert Playbook(machine) >> event.expired(61.0, deposed=False) << Refusal(ConnectionNotEstablished)


def test_sender_gets_504_when_the_only_listener_was_wedged() -> None:
    assert (
        Playbook(offered(to="a"))
        >> event.expired(31.0, deposed=True)
        << PlaceOffer
        >> event.not_placed(NoListener())
        << Refusal(ConnectionNotEstablished)
    )


def test_sender_is_offered_to_another_listener_when_one_is_lost() -> None:
    assert (
        Playbook(offered(to="a"))
        >> event.listener_lost("a", 5.0)
        << PlaceOffer(frozenset({"a"}))
        >> event.placed("b", 6.0)
        >> event.listener_lost("b", 7.0)
        << PlaceOffer(frozenset({"a", "b"}))
        >> event.placed("c", 8.0)
        >> arrives()
        << AnswerListener
        << AnswerSender
        << Join
    )


@pytest.mark.parametrize("error", [NoListener(), ListenersExcluded()])
def test_sender_gets_502_when_the_only_listener_was_lost(error: NoListener) -> None:
    assert (
        Playbook(offered(to="a"))
        >> event.listener_lost("a", 5.0)
        << PlaceOffer
        >> event.not_placed(error)
        << Refusal(ConnectionLost)
    )


def test_sender_is_told_of_a_trouble_of_the_relay_rather_than_of_the_listener_before() -> None:
    error = QuotaExceeded()
    assert (
        Playbook(offered(to="a"))
        >> event.listener_lost("a", 5.0)
        << PlaceOffer
        >> event.not_placed(error)
        << RefuseSender(error)
    )


def test_listener_lost_while_it_is_being_told_is_passed_over() -> None:
    assert (
        Playbook(rendezvous())
        >> event.start()
        << PlaceOffer(NOBODY_EXCLUDED)
        >> event.listener_lost("a", 0.5)
        >> event.placed("a", 1.0)
        << PlaceOffer(frozenset({"a"}))
        >> event.not_placed(NoListener())
        << Refusal(ConnectionLost)
    )


def test_listener_lost_that_was_never_asked_says_nothing_to_the_sender() -> None:
    error = NoListener()
    assert (
        Playbook(rendezvous())
        >> event.start()
        << PlaceOffer
        >> event.listener_lost("z", 0.5)
        >> event.not_placed(error)
        << RefuseSender(error)
    )


def test_loss_of_another_listener_changes_nothing() -> None:
    machine = offered(to="a")
    assert Playbook(machine) >> event.listener_lost("b", 5.0)
    assert machine.state is State.OFFERED


# -- the sender leaves


def test_listener_that_comes_for_a_sender_who_left_is_refused() -> None:
    machine = offered()
    assert Playbook(machine) >> event.sender_left(1.5) >> arrives() << NOT_FOUND
    assert machine.state is State.GONE


def test_sender_who_left_while_a_listener_was_chosen_is_forgotten() -> None:
    machine = rendezvous()
    assert (
        Playbook(machine)
        >> event.start()
        << PlaceOffer
        >> event.sender_left(0.5)
        >> event.placed("a", 1.0)
        >> event.not_placed(NoListener())
        >> event.expired(31.0, deposed=True)
        >> event.expired(31.0, deposed=False)
        >> event.listener_lost("a", 32.0)
    )
    assert machine.state is State.GONE


def test_sender_who_leaves_after_the_join_is_not_the_business_of_the_rendezvous() -> None:
    machine = offered()
    assert Playbook(machine) >> arrives() << AnswerListener << AnswerSender << Join >> event.sender_left(9.0)
    assert machine.state is State.JOINED
    assert Playbook(machine) >> event.expired(31.0, deposed=False) >> event.listener_lost("a", 32.0)
    assert machine.state is State.JOINED


# -- what it says of itself


def test_rendezvous_shows_where_it_stands_and_not_its_secret() -> None:
    machine = rendezvous()
    assert repr(machine) == "<Rendezvous 'id-1' PLACING>"
    machine.placed("a", 1.0)
    assert repr(machine) == "<Rendezvous 'id-1' OFFERED listener='a'>"
    machine.listener_lost("a", 2.0)
    machine.placed("b", 3.0)
    assert repr(machine) == "<Rendezvous 'id-1' OFFERED listener='b' excluded=1>"
    assert not machine.over


# -- any order of events

listeners = st.sampled_from("abc")
errors = st.sampled_from([NoListener(), ListenersExcluded(), QuotaExceeded()])
happenings = st.one_of(
    st.builds(lambda who: event.placed(who, 1.0), listeners),
    st.builds(lambda error: event.not_placed(error), errors),
    st.builds(
        lambda now, deposed: event.expired(now, deposed=deposed), st.sampled_from([2.0, 50.0, 1e3]), st.booleans()
    ),
    st.builds(lambda who: event.listener_lost(who, 3.0), listeners),
    st.just(event.sender_left(4.0)),
    st.builds(
        lambda secret, status, description, subprotocols: arrives(
            *subprotocols, secret=secret, status=status, description=description
        ),
        st.sampled_from([SECRET, "wrong"]) | st.text(max_size=3),
        st.none() | st.sampled_from(["200", "404", "999"]) | st.text(max_size=4),
        st.none() | st.text(max_size=8),
        st.lists(st.sampled_from(["chat", "wamp"]), max_size=2).map(tuple),
    ),
)


@given(st.lists(happenings, max_size=20))
def test_sender_is_answered_once_and_joined_only_with_a_listener_that_was_answered(events: list[Any]) -> None:
    machine = rendezvous("chat")
    commands: list[Command] = machine.start()
    for each in events:
        was_over, excluded = machine.over, machine._excluded
        following = getattr(machine, each.name)(*each.args, **each.kwargs)
        commands += following
        if was_over:
            assert following in ([], [NOT_FOUND])
        for command in following:
            if isinstance(command, PlaceOffer):
                assert command.exclude >= excluded
                assert command.exclude, "the same listener could be asked again"
            if isinstance(command, RejectSender):
                assert 200 <= command.status <= 599
                assert command.description.isprintable()
                assert command.description.encode("latin-1")
    kinds = [type(command) for command in commands]
    answers = [kind for kind in kinds if kind in (AnswerSender, RejectSender, RefuseSender)]
    decided = machine.state in (State.JOINED, State.REJECTED, State.REFUSED)
    assert len(answers) == decided
    assert (Join in kinds) == (machine.state is State.JOINED)
    if Join in kinds:
        at = kinds.index(Join)
        assert kinds[at - 2 : at] == [AnswerListener, AnswerSender]
