"""Who gets the next sender and who gets a place, without a socket."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.relay.peers import Clock, until
from trunkline.protocol.errors import (
    HeadersTooLarge,
    ListenerQuotaExceeded,
    ListenersExcluded,
    NoListener,
    QuotaExceeded,
    RelayError,
    ServerBusy,
)
from trunkline.protocol.limits import Limits, resolve
from trunkline.protocol.messages import RemoteEndpoint
from trunkline.server.relay import listeners as module
from trunkline.server.relay.listeners import (
    PARKED_PER_CLIENT,
    PASSED_OVER_FOR,
    Client,
    LocalDirectory,
    Offer,
    Placement,
    PlainRequest,
    Registration,
)

ENTITY = "/namespaces/trunk/hybridconnections/orders"
FIRST, SECOND, THIRD = (f"{n}1111111-2222-3333-4444-555555555555" for n in "abc")


class Channel:
    """A listener that takes every offer, until the test says otherwise."""

    def __init__(self, name: str, *, client: Client | None = None, guid: str | None = None) -> None:
        self.id = name
        self.guid = guid
        self.client: Client = client or (name, "rule", guid)
        self.told: list[str] = []
        self.is_open = True
        self.error: RelayError | None = None

    def deliver(self, offer: Offer) -> bool:
        if self.error is not None:
            raise self.error
        if self.is_open:
            self.told.append(offer.ticket)
        return self.is_open


def limits(**values: object) -> Limits:
    return resolve("default", values)


def offer(ticket: str, given: Limits | None = None, **more: Any) -> Offer:
    return Offer(
        ticket=ticket,
        entity=ENTITY,
        limits=given or limits(),
        path="orders",
        suffix="",
        query="",
        tracking_id="t",
        secret="s",
        headers={},
        remote=RemoteEndpoint("192.0.2.1", 1),
        base_url=None,
        **more,
    )


class Directory:
    """A directory of one entity with the same limits for everybody."""

    def __init__(self, **values: object) -> None:
        self.clock = Clock()
        self.limits = limits(**values)
        self.local = LocalDirectory(clock=self.clock, chance=random.Random(7))

    async def add(self, *names: str, **more: Any) -> list[Registration]:
        return [await self.local.register(ENTITY, Channel(name, **more), self.limits) for name in names]

    async def place(self, ticket: str, *exclude: str, **more: Any) -> str:
        placement = await self.local.place(offer(ticket, self.limits, **more), frozenset(exclude))
        assert (placement.entity, placement.ticket) == (ENTITY, ticket)
        return placement.listener

    async def in_vain(self, ticket: str) -> tuple[str, bool]:
        """Place a sender whose listener does not come: which one, and whether another is to be asked."""
        listener = await self.place(ticket)
        return listener, await self.local.did_not_come(Placement(ENTITY, listener, ticket))

    @property
    def is_forgotten(self) -> bool:
        return repr(self.local) == "<LocalDirectory entities=0 listeners=0>"


#: What makes a plain HTTP request of an offer.
REQUEST = PlainRequest("GET", "/orders", b"")


def client_named(name: str) -> Client:
    return (name, "rule", None)


# -- policies


async def test_under_active_standby_the_first_gets_every_sender() -> None:
    directory = Directory()
    await directory.add("a", "b", "c")
    assert [await directory.place(f"t{n}") for n in range(10)] == ["a"] * 10


async def test_when_the_active_one_goes_the_next_in_order_takes_over_and_it_comes_back_last() -> None:
    directory = Directory()
    a, b, _ = await directory.add("a", "b", "c")
    await directory.local.unregister(a)
    assert await directory.place("t1") == "b"
    await directory.add("a")
    await directory.local.unregister(b)
    assert [await directory.place("t2"), await directory.place("t3")] == ["c", "c"]


async def test_round_robin_gives_each_its_turn() -> None:
    directory = Directory(listener_policy="round-robin")
    await directory.add("a", "b", "c")
    assert [await directory.place(f"t{n}") for n in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


async def test_balanced_gives_the_sender_to_the_least_busy() -> None:
    directory = Directory(listener_policy="balanced")
    await directory.add("a", "b", "c")
    placed = {f"t{n}": await directory.place(f"t{n}") for n in range(9)}
    assert Counter(placed.values()) == {"a": 3, "b": 3, "c": 3}
    for ticket, listener in placed.items():
        if listener == "b":
            await directory.local.release(ticket, ENTITY)
    assert {await directory.place("x1"), await directory.place("x2"), await directory.place("x3")} == {"b"}


async def test_balanced_reaches_everybody_when_all_are_idle() -> None:
    directory = Directory(listener_policy="balanced")
    await directory.add("a", "b", "c")
    reached = set()
    for n in range(60):
        reached.add(await directory.place(f"t{n}"))
        await directory.local.release(f"t{n}", ENTITY)
    assert reached == {"a", "b", "c"}


async def test_a_sender_that_is_offered_anew_counts_only_for_the_listener_that_has_it() -> None:
    directory = Directory(listener_policy="balanced")
    registrations = {each.listener.id: each for each in await directory.add("a", "b")}
    first = await directory.place("t")
    second = await directory.place("t", first)
    assert {first, second} == {"a", "b"}
    assert registrations[first].tickets == set()
    assert registrations[second].tickets == {"t"}
    await directory.local.release("t", ENTITY)
    assert registrations[second].tickets == set()


async def test_a_listener_that_cannot_be_told_is_passed_by() -> None:
    directory = Directory()
    a, b = await directory.add("a", "b")
    a.listener.is_open = False  # type: ignore[attr-defined]
    assert await directory.place("t1") == "b"
    b.listener.is_open = False  # type: ignore[attr-defined]
    with pytest.raises(NoListener):
        await directory.place("t2")


async def test_an_offer_that_nobody_can_be_told_costs_no_place() -> None:
    directory = Directory(max_senders=1)
    (a,) = await directory.add("a")
    a.listener.error = HeadersTooLarge()  # type: ignore[attr-defined]
    with pytest.raises(HeadersTooLarge):
        await directory.place("t1")
    a.listener.error = None  # type: ignore[attr-defined]
    assert await directory.place("t2") == "a"


@pytest.mark.parametrize("status", [404, 502, 503, 504])
async def test_without_a_listener_the_status_is_the_one_of_the_entity(status: int) -> None:
    directory = Directory(no_listener_status=status)
    with pytest.raises(NoListener) as caught:
        await directory.place("t")
    assert (caught.value.status, caught.value.message) == (
        status,
        "There are no listeners connected for the endpoint",
    )
    assert directory.is_forgotten


# -- listeners that do not come


async def test_two_in_a_row_depose_the_active_one_and_a_sender_between_saves_it() -> None:
    directory = Directory()
    await directory.add("a", "b")
    assert await directory.in_vain("t1") == ("a", False)
    await directory.local.came(Placement(ENTITY, await directory.place("t2"), "t2"))
    assert await directory.in_vain("t3") == ("a", False)
    assert await directory.in_vain("t4") == ("a", True)
    assert await directory.place("t4", "a") == "b"
    assert [await directory.place(f"u{n}") for n in range(3)] == ["b", "b", "b"]


async def test_a_deposed_listener_stands_last_also_when_its_time_is_over() -> None:
    directory = Directory()
    registrations = await directory.add("a", "b", "c")
    await directory.in_vain("t1")
    await directory.in_vain("t2")
    directory.clock.now += PASSED_OVER_FOR
    assert await directory.place("t3") == "b"
    await directory.local.unregister(registrations[1])
    await directory.local.unregister(registrations[2])
    assert await directory.place("t4") == "a"


async def test_every_sender_that_waited_for_a_deposed_listener_is_offered_to_the_next() -> None:
    directory = Directory()
    await directory.add("a", "b")
    placements = [Placement(ENTITY, await directory.place(f"t{n}"), f"t{n}") for n in range(4)]
    assert [await directory.local.did_not_come(each) for each in placements] == [False, True, True, True]
    assert await directory.place("t3", "a") == "b"


async def test_a_deposed_listener_is_asked_when_there_is_nobody_else() -> None:
    directory = Directory()
    await directory.add("a")
    assert await directory.in_vain("t1") == ("a", False)
    assert await directory.in_vain("t2") == ("a", False)
    assert await directory.place("t3") == "a"
    await directory.add("b")
    assert await directory.place("t4") == "b"
    await directory.local.came(Placement(ENTITY, "a", "t3"))
    assert await directory.place("t5") == "a"


@pytest.mark.parametrize("policy", ["round-robin", "balanced"])
async def test_a_deposed_listener_is_passed_over_under_every_policy(policy: str) -> None:
    directory = Directory(listener_policy=policy)
    await directory.add("a", "b", "c")
    strikes = 0
    while strikes < 2:
        ticket = f"t{strikes}"
        if await directory.place(ticket) == "a":
            strikes += 1
            await directory.local.did_not_come(Placement(ENTITY, "a", ticket))
        await directory.local.release(ticket, ENTITY)
    assert "a" not in {await directory.place(f"u{n}") for n in range(12)}
    directory.clock.now += PASSED_OVER_FOR
    assert "a" in {await directory.place(f"v{n}") for n in range(12)}


async def test_a_listener_that_has_gone_in_the_meantime_leaves_its_sender_to_the_others() -> None:
    directory = Directory()
    (a,) = await directory.add("a")
    listener = await directory.place("t")
    await directory.local.unregister(a)
    assert await directory.local.did_not_come(Placement(ENTITY, listener, "t"))
    await directory.local.came(Placement(ENTITY, listener, "t"))


# -- allowed and disallowed listeners


@pytest.mark.parametrize(
    ("allowed", "disallowed", "expected"),
    [
        ({SECOND}, set(), SECOND),
        ({SECOND, THIRD}, {SECOND}, THIRD),
        (None, {FIRST}, SECOND),
        (None, {FIRST, SECOND, THIRD}, "anonymous"),
        (None, set(), FIRST),
    ],
)
async def test_a_sender_chooses_among_listeners(allowed: set[str] | None, disallowed: set[str], expected: str) -> None:
    directory = Directory()
    for guid in (FIRST, SECOND, THIRD):
        await directory.add(guid, guid=guid)
    await directory.add("anonymous")
    wanted = None if allowed is None else frozenset(allowed)
    assert await directory.place("t", allowed=wanted, disallowed=frozenset(disallowed)) == expected


@pytest.mark.parametrize("lists", [{"allowed": frozenset({THIRD})}, {"disallowed": frozenset({FIRST})}])
async def test_when_the_sender_leaves_nobody_it_is_404_with_the_words_of_azure(lists: dict[str, Any]) -> None:
    directory = Directory()
    await directory.add(FIRST, guid=FIRST)
    with pytest.raises(ListenersExcluded) as caught:
        await directory.place("t", **lists)
    assert caught.value.status == 404
    assert caught.value.message == (
        "None of the connected listeners meet the AllowedListeners/DisallowedListeners criteria"
    )
    with pytest.raises(NoListener) as none:
        await Directory().place("t", **lists)
    assert none.value.status == 504


# -- senders are counted


async def test_max_senders_is_exact_and_a_place_is_free_again_on_release() -> None:
    directory = Directory(max_senders=25)
    await directory.add("a")
    for n in range(25):
        await directory.place(f"t{n}")
    with pytest.raises(QuotaExceeded) as caught:
        await directory.place("one more")
    assert caught.value.status == 429
    assert "25 sender connections" in caught.value.message
    # One that is offered anew has its place already.
    assert await directory.place("t3") == "a"
    await directory.local.release("t3", ENTITY)
    await directory.local.release("t3", ENTITY)
    assert await directory.place("t25") == "a"
    with pytest.raises(QuotaExceeded):
        await directory.place("t26")


async def test_of_many_senders_at_once_exactly_max_senders_are_placed() -> None:
    directory = Directory(max_senders=25)
    await directory.add("a")
    outcomes = await asyncio.gather(*(directory.place(f"t{n}") for n in range(100)), return_exceptions=True)
    assert sum(outcome == "a" for outcome in outcomes) == 25
    assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 75


async def test_the_quota_is_told_before_that_nobody_listens() -> None:
    directory = Directory(max_senders=1)
    (a,) = await directory.add("a")
    await directory.place("t1")
    await directory.local.unregister(a)
    with pytest.raises(QuotaExceeded):
        await directory.place("t2")


async def test_zero_is_no_limit() -> None:
    directory = Directory(max_senders=0, max_listeners=0)
    await directory.add(*(f"l{n}" for n in range(100)))
    for n in range(200):
        await directory.place(f"t{n}")
    assert directory.local.counts() == {
        "listeners": 100,
        "parked_listeners": 0,
        "waiting_listeners": 0,
        "senders": 200,
    }


# -- places for listeners


async def test_one_listener_more_is_refused_to_another_client_and_parked_for_the_same() -> None:
    directory = Directory(max_listeners=2)
    await directory.add("a", "b")
    with pytest.raises(ListenerQuotaExceeded) as caught:
        await directory.add("c")
    assert caught.value.status == 403
    (parked,) = await directory.add("a2", client=client_named("a"))
    assert parked.parked
    assert directory.local.listener_count(ENTITY) == 2
    assert directory.local.counts()["parked_listeners"] == 1
    assert {await directory.place(f"t{n}") for n in range(5)} == {"a"}


@pytest.mark.parametrize("other", [("b", "rule", None), ("a", "other rule", None), ("a", "rule", FIRST)])
async def test_address_rule_and_guid_tell_clients_apart(other: Client) -> None:
    directory = Directory(max_listeners=1)
    await directory.add("a", client=("a", "rule", None))
    with pytest.raises(ListenerQuotaExceeded):
        await directory.add("b", client=other)


async def test_a_client_keeps_its_identity_while_its_channel_changes() -> None:
    directory = Directory(max_listeners=1)
    (a,) = await directory.add("a")
    a.listener.client = ("a", "rule of the renewed token", None)  # type: ignore[misc]
    (second,) = await directory.add("a2", client=client_named("a"))
    assert second.parked


async def test_parked_listeners_take_free_places_in_their_order() -> None:
    directory = Directory(max_listeners=2)
    same = client_named("x")
    a, b, c, d, e = await directory.add("a", "b", "c", "d", "e", client=same)
    assert [each.parked for each in (a, b, c, d, e)] == [False, False, True, True, True]
    await directory.local.unregister(d)
    await directory.local.unregister(a)
    assert [c.parked, e.parked] == [False, True]
    await directory.local.unregister(b)
    assert not e.parked
    assert await directory.place("t") == "c"


async def test_what_is_beyond_the_parked_ones_waits_and_comes_in_its_order() -> None:
    directory = Directory(max_listeners=1)
    same = client_named("x")
    registered, *parked = await directory.add(*(f"l{n}" for n in range(1 + PARKED_PER_CLIENT)), client=same)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(directory.add(f"w{n}", client=same)) for n in range(3)]
        await until(lambda: directory.local.counts()["waiting_listeners"] == 3)
        assert not any(each.done() for each in waiting)
        await directory.local.unregister(parked[10])
        (first,) = await waiting[0]
        assert first.parked and not waiting[1].done()
        await directory.local.unregister(registered)
        (second,) = await waiting[1]
        assert second.parked and not parked[0].parked and not waiting[2].done()
        await directory.local.unregister(parked[0])
        assert (await waiting[2])[0].parked
    assert directory.local.counts()["waiting_listeners"] == 0


async def test_a_free_parking_place_wakes_its_own_client() -> None:
    directory = Directory(max_listeners=2)
    parked: dict[str, list[Registration]] = {}
    for name in ("x", "y"):
        await directory.add(name, client=client_named(name))
    for name in ("x", "y"):
        names = (f"{name}{n}" for n in range(PARKED_PER_CLIENT))
        parked[name] = await directory.add(*names, client=client_named(name))
    async with asyncio.TaskGroup() as tasks:
        x = tasks.create_task(directory.add("x-waits", client=client_named("x")))
        await until(lambda: directory.local.counts()["waiting_listeners"] == 1)
        y = tasks.create_task(directory.add("y-waits", client=client_named("y")))
        await until(lambda: directory.local.counts()["waiting_listeners"] == 2)
        await directory.local.unregister(parked["y"][5])
        assert (await y)[0].parked
        assert not x.done()
        x.cancel()


async def test_cancelled_waiters_leave_nothing_and_take_no_place_with_them() -> None:
    directory = Directory(max_listeners=1)
    same = client_named("x")
    registered, *_ = everybody = await directory.add(*(f"l{n}" for n in range(1 + PARKED_PER_CLIENT)), client=same)
    first, second = [
        asyncio.get_running_loop().create_task(directory.add(name, client=same)) for name in ("first", "second")
    ]
    await until(lambda: directory.local.counts()["waiting_listeners"] == 2)
    # In one turn of the loop the first is given a place and cancelled: the second must get it.
    await directory.local.unregister(registered)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    (got,) = await second
    assert got.parked
    third, fourth = [
        asyncio.get_running_loop().create_task(directory.add(name, client=same)) for name in ("third", "fourth")
    ]
    await until(lambda: directory.local.counts()["waiting_listeners"] == 2)
    # In the other order, the one that has left is passed by.
    third.cancel()
    await directory.local.unregister(everybody.pop())
    everybody += await fourth
    await asyncio.wait([third])
    assert third.cancelled()
    assert directory.local.counts()["waiting_listeners"] == 0
    for each in (*everybody, got):
        await directory.local.unregister(each)
    assert directory.is_forgotten


async def test_nothing_is_lost_when_everybody_leaves_while_one_is_being_woken() -> None:
    directory = Directory(max_listeners=1)
    same = client_named("x")
    everybody = await directory.add(*(f"l{n}" for n in range(1 + PARKED_PER_CLIENT)), client=same)
    waiting = asyncio.get_running_loop().create_task(directory.add("waits", client=same))
    await until(lambda: directory.local.counts()["waiting_listeners"] == 1)
    for each in everybody:
        await directory.local.unregister(each)
    # Before the woken one has run, another one comes.
    (newcomer,) = await directory.add("newcomer", client=same)
    (woken,) = await waiting
    assert (woken.parked, newcomer.parked) == (False, True)
    assert directory.local.counts() == {
        "listeners": 1,
        "parked_listeners": 1,
        "waiting_listeners": 0,
        "senders": 0,
    }


async def test_more_than_may_wait_are_refused_whatever_they_call_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SURPLUS", PARKED_PER_CLIENT + 1)
    directory = Directory(max_listeners=2)
    same, renamed = ("x", "rule", "guid"), ("x", "rule", "other guid")
    await directory.add("l", client=same)
    await directory.add("r", client=renamed)
    await directory.add(*(f"l{n}" for n in range(PARKED_PER_CLIENT)), client=same)
    waiting = asyncio.get_running_loop().create_task(directory.add("w1", client=same))
    await until(lambda: directory.local.counts()["waiting_listeners"] == 1)
    for client in (same, renamed):
        with pytest.raises(ListenerQuotaExceeded, match=f"{PARKED_PER_CLIENT + 1} listeners parked or waiting"):
            await directory.add("w2", client=client)
    # One that gives up makes room, once.
    waiting.cancel()
    await asyncio.wait([waiting])
    await directory.add("p", client=renamed)
    with pytest.raises(ListenerQuotaExceeded):
        await directory.add("w3", client=same)


async def test_a_raised_limit_gives_places_to_who_waits_for_one() -> None:
    directory = Directory(max_listeners=1)
    same = client_named("x")
    _, *parked = await directory.add(*(f"l{n}" for n in range(1 + PARKED_PER_CLIENT)), client=same)
    waiting = [asyncio.get_running_loop().create_task(directory.add(name, client=same)) for name in ("w1", "w2")]
    await until(lambda: directory.local.counts()["waiting_listeners"] == 2)
    directory.limits = limits(max_listeners=3)
    await directory.place("t")
    assert [each.parked for each in parked[:3]] == [False, False, True]
    assert directory.local.counts()["waiting_listeners"] == 0
    for task in waiting:
        assert (await task)[0].parked


async def test_limits_that_are_others_count_at_once_and_take_no_place_away() -> None:
    directory = Directory(max_listeners=2)
    same = client_named("x")
    *_, parked = await directory.add("a", "b", "c", client=same)
    await directory.local.take_limits(ENTITY, limits(max_listeners=3))
    assert not parked.parked and directory.local.listener_count(ENTITY) == 3
    await directory.local.take_limits(ENTITY, limits(max_listeners=1))
    assert directory.local.listener_count(ENTITY) == 3
    directory.limits = limits(max_listeners=1)
    [late] = await directory.add("d", client=same)
    assert late.parked
    await directory.local.take_limits("/of/nobody", limits())


async def test_leaving_twice_is_leaving_once() -> None:
    directory = Directory(max_listeners=1)
    a, b = await directory.add("a", "b", client=client_named("x"))
    await directory.local.unregister(a)
    await directory.local.unregister(a)
    assert directory.local.listener_count(ENTITY) == 1
    await directory.local.unregister(b)
    await directory.local.unregister(b)
    assert directory.local.listener_count(ENTITY) == 0
    assert directory.is_forgotten


async def test_an_entity_that_nobody_uses_is_forgotten() -> None:
    directory = Directory()
    (a,) = await directory.add("a")
    await directory.place("t")
    await directory.local.unregister(a)
    assert not directory.is_forgotten  # the sender is there
    await directory.local.release("t", ENTITY)
    assert directory.is_forgotten
    await directory.local.release("t", ENTITY)
    await directory.local.release("t", "/no/such/entity")
    assert directory.local.listener_count("/no/such/entity") == 0


async def test_entities_do_not_see_each_other() -> None:
    directory = Directory(max_senders=1, max_listeners=1)
    await directory.add("a")
    await directory.place("t")
    other = await directory.local.register("other", Channel("b"), directory.limits)
    assert not other.parked
    assert directory.local.listener_count("other") == 1
    assert repr(directory.local) == "<LocalDirectory entities=2 listeners=2>"


def test_an_offer_shows_neither_secret_nor_headers() -> None:
    shown = repr(offer("hidden"))
    assert "secret" not in shown and "headers" not in shown
    # The ticket of a sender is its secret.
    assert "hidden" not in shown and "hidden" not in repr(Placement(ENTITY, "a", "hidden"))


# -- anything, in any order


class AnyOrder(RuleBasedStateMachine):
    """Whatever listeners and senders do, nobody is counted twice, forgotten or over the limit."""

    @initialize(
        policy=st.sampled_from(["active-standby", "round-robin", "balanced"]),
        most_listeners=st.integers(1, 3),
        most_senders=st.integers(1, 4),
        parked=st.integers(0, 2),
    )
    def begin(self, policy: str, most_listeners: int, most_senders: int, parked: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "PARKED_PER_CLIENT", parked)
        self.parked = parked
        self.loop = asyncio.new_event_loop()
        self.directory = Directory(listener_policy=policy, max_listeners=most_listeners, max_senders=most_senders)
        self.present: dict[str, Registration] = {}
        self.waiting: dict[str, asyncio.Task[Registration]] = {}
        self.senders: dict[str, Placement] = {}
        self.count = 0

    def _next(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def _turn(self) -> None:
        """Let those run who were woken."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
        for name, task in list(self.waiting.items()):
            if task.done():
                del self.waiting[name]
                if not task.cancelled() and task.exception() is None:
                    self.present[name] = task.result()

    @rule(client=st.sampled_from("xyz"), at_once=st.booleans())
    def listener_comes(self, client: str, at_once: bool) -> None:
        name = self._next("l")
        registering = self.directory.local.register(
            ENTITY, Channel(name, client=client_named(client)), self.directory.limits
        )
        self.waiting[name] = self.loop.create_task(registering)
        if at_once:
            self._turn()

    @rule(data=st.data(), at_once=st.booleans())
    def listener_goes(self, data: st.DataObject, at_once: bool) -> None:
        if self.present:
            name = data.draw(st.sampled_from(sorted(self.present)))
            self.loop.run_until_complete(self.directory.local.unregister(self.present.pop(name)))
        if at_once:
            self._turn()

    @rule(data=st.data())
    def waiting_listener_gives_up(self, data: st.DataObject) -> None:
        if self.waiting:
            self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))].cancel()

    @rule(data=st.data(), again=st.booleans())
    def sender_is_placed(self, data: st.DataObject, again: bool) -> None:
        self._turn()
        exclude: frozenset[str] = frozenset()
        if again and self.senders:
            ticket = data.draw(st.sampled_from(sorted(self.senders)))
            exclude = frozenset({self.senders[ticket].listener})
        else:
            ticket = self._next("t")
        before = len(self.senders)
        placing = self.directory.local.place(offer(ticket, self.directory.limits), exclude)
        registered = {name for name, each in self.present.items() if not each.parked}
        try:
            placement = self.loop.run_until_complete(placing)
        except QuotaExceeded:
            assert ticket not in self.senders and before == self.directory.limits.max_senders
        except NoListener:
            assert not registered - exclude
        else:
            assert placement.listener in registered - exclude
            self.senders[ticket] = placement

    @rule(data=st.data(), came=st.booleans())
    def listener_comes_for_a_sender_or_does_not(self, data: st.DataObject, came: bool) -> None:
        if self.senders:
            placement = self.senders[data.draw(st.sampled_from(sorted(self.senders)))]
            if came:
                self.loop.run_until_complete(self.directory.local.came(placement))
            else:
                self.loop.run_until_complete(self.directory.local.did_not_come(placement))

    @rule(data=st.data())
    def sender_ends(self, data: st.DataObject) -> None:
        if self.senders:
            ticket = data.draw(st.sampled_from(sorted(self.senders)))
            del self.senders[ticket]
            self.loop.run_until_complete(self.directory.local.release(ticket, ENTITY))

    @rule(seconds=st.floats(0, 2 * PASSED_OVER_FOR))
    def time_passes(self, seconds: float) -> None:
        self.directory.clock.now += seconds

    @invariant()
    def everybody_is_where_the_counts_say(self) -> None:
        if not hasattr(self, "directory"):
            return
        self._turn()
        counts = self.directory.local.counts()
        parked = [each for each in self.present.values() if each.parked]
        assert counts["listeners"] == len(self.present) - len(parked) == self.directory.local.listener_count(ENTITY)
        assert counts["parked_listeners"] == len(parked)
        assert counts["waiting_listeners"] == len(self.waiting)
        assert sum(self.directory.local._surplus.values()) == len(parked) + len(self.waiting)
        assert counts["senders"] == len(self.senders)
        assert counts["listeners"] <= self.directory.limits.max_listeners
        assert counts["senders"] <= self.directory.limits.max_senders
        assert all(count <= self.parked for count in Counter(each.client for each in parked).values())
        if parked or self.waiting:
            assert counts["listeners"] == self.directory.limits.max_listeners
        held = {ticket for each in self.present.values() for ticket in each.tickets}
        assert held <= set(self.senders)
        for ticket, placement in self.senders.items():
            owner = self.present.get(placement.listener)
            assert owner is None or ticket in owner.tickets
        if not self.present and not self.waiting and not self.senders:
            assert self.directory.is_forgotten

    def teardown(self) -> None:
        if not hasattr(self, "directory"):
            return
        for task in self.waiting.values():
            task.cancel()
        self._turn()
        for registration in self.present.values():
            self.loop.run_until_complete(self.directory.local.unregister(registration))
        for ticket in self.senders:
            self.loop.run_until_complete(self.directory.local.release(ticket, ENTITY))
        assert self.directory.is_forgotten
        self.loop.close()
        self.patch.undo()


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


# -- how each stands


async def standings(directory: Directory) -> list[tuple[str, str, int, int]]:
    found = await directory.local.standings()
    assert {each.entity for each in found} <= {ENTITY}
    return [(each.listener.id, each.state, each.connections, each.offers) for each in found]


async def test_under_active_standby_one_is_active_and_the_others_stand_by() -> None:
    directory = Directory(max_listeners=2)
    a, *_ = await directory.add("a", "b", "c", client=client_named("one"))
    await directory.place("t1")
    assert await standings(directory) == [("a", "active", 1, 1), ("b", "standby", 0, 0), ("c", "parked", 0, 0)]
    await directory.local.release("t1", ENTITY)
    assert (await standings(directory))[0] == ("a", "active", 0, 1)
    await directory.local.unregister(a)
    assert await standings(directory) == [("b", "active", 0, 0), ("c", "standby", 0, 0)]


@pytest.mark.parametrize("policy", ["round-robin", "balanced"])
async def test_under_another_policy_all_are_active_but_those_that_are_passed_over(policy: str) -> None:
    directory = Directory(listener_policy=policy)
    a, b = await directory.add("a", "b")
    assert [state for _, state, *_ in await standings(directory)] == ["active", "active"]
    a.passed_over_until = directory.clock() + PASSED_OVER_FOR
    assert [(name, state) for name, state, *_ in await standings(directory)] == [("b", "active"), ("a", "standby")]
    b.passed_over_until = a.passed_over_until
    assert [state for _, state, *_ in await standings(directory)] == ["active", "active"]


async def test_the_one_that_gets_the_next_sender_is_the_active_one_when_it_was_passed_over() -> None:
    directory = Directory()
    await directory.add("a", "b")
    for number in range(2):
        await directory.in_vain(f"t{number}")
    active = [name for name, state, *_ in await standings(directory) if state == "active"]
    assert active == [await directory.place("t3")] == ["b"]


async def test_one_that_waits_is_listed_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARKED_PER_CLIENT", 0)
    directory = Directory(max_listeners=1)
    await directory.add("a", client=client_named("one"))
    waiting = asyncio.get_running_loop().create_task(directory.add("b", client=client_named("one")))
    await until(lambda: directory.local.counts()["waiting_listeners"])
    assert [(name, state) for name, state, *_ in await standings(directory)] == [("a", "active"), ("b", "waiting")]
    waiting.cancel()


async def test_entities_are_listed_by_their_names() -> None:
    directory = Directory()
    for entity in ("b", "a"):
        await directory.local.register(entity, Channel(f"on {entity}"), directory.limits)
    assert [each.entity for each in await directory.local.standings()] == ["a", "b"]


# -- plain HTTP requests


async def test_requests_have_a_limit_of_their_own_and_take_no_sender_place() -> None:
    directory = Directory(max_senders=1, max_requests=2)
    await directory.add("a")
    assert await directory.place("sender") == "a"
    for ticket in ("r1", "r2"):
        assert await directory.place(ticket, request=REQUEST) == "a"
    with pytest.raises(QuotaExceeded, match="2 requests in flight, which is its maximum .max_requests."):
        await directory.place("r3", request=REQUEST)
    with pytest.raises(QuotaExceeded, match="max_senders"):
        await directory.place("another")
    await directory.local.release("r1", ENTITY)
    assert await directory.place("r3", request=REQUEST) == "a"


async def test_no_limit_of_requests_is_none() -> None:
    directory = Directory(max_requests=0)
    await directory.add("a")
    for n in range(50):
        await directory.place(f"r{n}", request=REQUEST)


async def test_balanced_counts_requests_as_load() -> None:
    directory = Directory(listener_policy="balanced")
    a, b = await directory.add("a", "b")
    first = await directory.place("r1", request=REQUEST)
    assert await directory.place("sender") != first
    await directory.place("r2", request=REQUEST)
    await directory.place("r3", request=REQUEST)
    assert (a.load, b.load) == (2, 2)
    assert "requests=" in repr(a)
    standings = await directory.local.standings()
    assert sum(each.requests for each in standings) == 3 and sum(each.connections for each in standings) == 1


async def test_a_request_that_another_listener_gets_is_the_load_of_that_one() -> None:
    directory = Directory()
    a, b = await directory.add("a", "b")
    assert await directory.place("r1", request=REQUEST) == "a"
    assert await directory.place("r1", "a", request=REQUEST) == "b"
    assert (a.load, b.load) == (0, 1)
    await directory.local.release("r1", ENTITY)
    assert (a.load, b.load) == (0, 0)


async def test_listeners_that_do_not_read_are_busy_for_a_request_and_nobody_for_a_sender() -> None:
    directory = Directory()
    (a,) = await directory.add("a")
    assert isinstance(a.listener, Channel)
    a.listener.is_open = False
    with pytest.raises(ServerBusy):
        await directory.place("r1", request=REQUEST)
    with pytest.raises(NoListener):
        await directory.place("sender")
    await directory.local.unregister(a)
    with pytest.raises(NoListener):
        await directory.place("r1", request=REQUEST)
    assert directory.is_forgotten


async def test_an_entity_with_a_request_in_flight_is_remembered() -> None:
    directory = Directory()
    (a,) = await directory.add("a")
    await directory.place("r1", request=REQUEST)
    await directory.local.unregister(a)
    assert not directory.is_forgotten
    await directory.local.release("r1", ENTITY)
    assert directory.is_forgotten
