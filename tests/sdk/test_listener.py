"""The listener against a relay that does what the test says; time is the test's too."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import trustme

from sdk.fake_clock import FakeClock
from sdk.listening import RULE, listener_at, online
from sdk.relay_stub import Peer, RelayStub, until
from trunkline.protocol import sas
from trunkline.protocol.errors import (
    AuthorizationFailed,
    ConnectionLost,
    EndpointNotFound,
    InvalidSetting,
    ServerBusy,
)
from trunkline.protocol.frames import Opcode
from trunkline.protocol.urls import Action
from trunkline.sdk import (
    Connection,
    ConnectionClosed,
    HybridConnectionListener,
    IncomingConnection,
    ListenerState,
    Token,
)


class CountedTokens:
    """A token provider whose tokens are numbered and last as long as the test says."""

    def __init__(self, clock: FakeClock, lifetime: float) -> None:
        self.clock = clock
        self.lifetime = lifetime
        self.given = 0
        self.failures: list[Exception] = []

    async def get_token(self, audience: str) -> Token:
        if self.failures:
            raise self.failures.pop(0)
        self.given += 1
        return Token(f"token-{self.given}", self.clock.time() + self.lifetime)


async def accepted(relay: RelayStub, listener: HybridConnectionListener, control: Peer) -> tuple[Connection, Peer]:
    """One connection through an offer."""
    control.offer(relay.rendezvous())
    leg = await relay.next()
    await leg.upgrade()
    return await listener.accept(), leg


# --- registering ----------------------------------------------------------------------------------------------


async def test_listener_registers_and_leaves_in_order() -> None:
    async with RelayStub() as relay:
        states: list[str] = []

        async def on_offline(listener: HybridConnectionListener) -> None:
            await asyncio.sleep(0)
            states.append(f"async {listener.state}")

        listener = listener_at(
            relay,
            on_connecting=lambda listener: states.append(listener.state),
            on_online=lambda listener: states.append(listener.state),
            on_offline=on_offline,
        )
        assert listener.state == "offline"
        assert repr(listener) == f"<HybridConnectionListener {relay.address} offline connections=0>"
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(listener.open())
            control = await relay.next()
            assert listener.state is ListenerState.CONNECTING
            assert control.target.action is Action.LISTEN
            assert control.target.segments == ("orders",)
            assert control.target.id == listener.tracking_id
            token = sas.parse(control.headers["servicebusauthorization"])
            assert sas.signed_by(token, "secret") and token.covers(["localhost"], "orders")
            assert "trunkline/" in control.headers["relay-user-agent"]
            await control.upgrade()
            await opening
            assert listener.state is ListenerState.ONLINE  # type: ignore[comparison-overlap]
            accepting = tasks.create_task(anext(listener, "the end"))
            closing = tasks.create_task(listener.close())
            assert (await control.close_frame()).code == 1000
            control.send_close()
            control.close()
            await closing
        assert accepting.result() == "the end"
        assert states == ["connecting", "online", "async offline"]
        assert listener.last_error is None
        with pytest.raises(ConnectionClosed):
            await listener.accept()
        with pytest.raises(RuntimeError, match="once"):
            await listener.open()
        await listener.close()


@pytest.mark.parametrize(
    ("status", "phrase", "error"),
    [
        (404, "Endpoint does not exist. TrackingId:x", EndpointNotFound),
        (401, "ExpiredToken: The token is expired. TrackingId:x", AuthorizationFailed),
    ],
)
async def test_refusal_that_will_not_pass_raises_from_open_at_once(
    status: int, phrase: str, error: type[Exception]
) -> None:
    async with RelayStub() as relay, asyncio.TaskGroup() as tasks:
        offline: list[HybridConnectionListener] = []
        listener = listener_at(relay, on_offline=offline.append)

        async def refuse() -> None:
            await (await relay.next()).refuse(status, phrase)

        tasks.create_task(refuse())
        with pytest.raises(error) as raised:
            await listener.open()
        assert listener.last_error is raised.value
        assert (listener.state, offline) == ("offline", [listener])
        with pytest.raises(error):
            await listener.accept()


async def test_open_tries_again_while_the_relay_is_busy() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, asyncio.TaskGroup() as tasks:
        listener = listener_at(relay, _clock=clock)
        opening = tasks.create_task(listener.open())
        await (await relay.next()).refuse(503, "ServerBusy")
        await clock.wake()
        assert isinstance(listener.last_error, ServerBusy)
        (await relay.next()).abort()
        await clock.wake()
        control = await relay.next()
        await control.upgrade()
        await opening
        control.abort()
        await listener.close()


async def test_open_gives_up_in_time_and_says_why() -> None:
    async with RelayStub() as relay:
        address = relay.address
    listener = HybridConnectionListener(address, **RULE)
    with pytest.raises(TimeoutError, match="not online within 0.2 s") as raised:
        await listener.open(timeout=0.2)
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)
    assert listener.state == "offline"


async def test_open_that_is_cancelled_leaves_nothing_behind() -> None:
    async with RelayStub() as relay:
        listener = listener_at(relay)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await listener.open()
        peer = await relay.next()
        with pytest.raises((ConnectionResetError, AssertionError)):
            await peer.piece()
        assert listener.state == "offline"


async def test_close_ends_an_open_that_is_under_way() -> None:
    async with RelayStub() as relay, asyncio.TaskGroup() as tasks:
        listener = listener_at(relay)

        async def close_when_asked() -> None:
            await relay.next()
            await listener.close()

        tasks.create_task(close_when_asked())
        with pytest.raises(ConnectionClosed):
            await listener.open()
    assert listener.state == "offline"


async def test_untrusted_certificate_raises_at_once() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with RelayStub(ssl=context) as relay:
        with pytest.raises(ssl.SSLCertVerificationError):
            await listener_at(relay).open()


def test_settings_that_make_no_sense_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"key_name": "listen"},
        {**RULE, "max_connections": 0},
        {**RULE, "backlog": 0},
        {**RULE, "heartbeat": -1},
        {**RULE, "entity_path": "other"},
    ]
    for settings in wrong:
        with pytest.raises(InvalidSetting):
            HybridConnectionListener("sb://localhost/orders", **settings)
    with pytest.raises(InvalidSetting, match="entity_path"):
        HybridConnectionListener("sb://localhost", key_name="listen", key="secret")


async def test_accept_before_open_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await HybridConnectionListener("sb://localhost/orders", **RULE).accept()


# --- staying registered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.0, 0.999999])
async def test_listener_comes_back_after_0_1_2_5_10_30_seconds_and_never_later(chance: float) -> None:
    clock = FakeClock(chance=chance)
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        clock.advance(1)
        delays = []
        control.abort()
        for _ in range(8):
            delays.append(await clock.wake())
            await (await relay.next()).refuse(401, "InvalidSignature: the key was changed")
        assert listener.state == "connecting"
        assert isinstance(listener.last_error, AuthorizationFailed)
        steps = [0, 1, 2, 5, 10, 30, 30, 30]
        assert all(step / 2 <= delay <= step for delay, step in zip(delays, steps, strict=True))
        await clock.wake()
        control = await relay.next()
        assert control.target.id == listener.tracking_id
        await control.upgrade()
        await until(lambda: listener.state == "online")
        clock.advance(1)  # online long enough to begin anew
        control.abort()
        assert await clock.wake() == 0
        await relay.next()


async def test_registration_that_never_lasts_is_not_repeated_without_a_pause() -> None:
    clock = FakeClock(chance=0.5)
    async with RelayStub() as relay, online(relay, _clock=clock) as (_, control):
        control.abort()
        delays = []
        for _ in range(4):
            delays.append(await clock.wake())
            control = await relay.next()
            await control.upgrade()
            control.send_close(1011, "not today")
            control.writer.write_eof()
        assert delays == [0, 0.75, 1.5, 3.75]


@pytest.mark.parametrize("code", [None, 1000, 1001, 1008, 1011])
async def test_listener_comes_back_whatever_the_relay_closed_with(code: int | None) -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        control.send_close(code, "because" if code else "")
        await control.close_frame()
        control.close()
        await clock.wake()
        assert isinstance(listener.last_error, ConnectionLost)
        again = await relay.next()
        await again.upgrade()
        await until(lambda: listener.state == "online")


async def test_listener_whose_hybrid_connection_is_deleted_goes_offline_for_good() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        connection, leg = await accepted(relay, listener, control)
        control.send_close(1001, "deleted")
        control.writer.write_eof()
        await clock.wake()
        await (await relay.next()).refuse(404, "Endpoint does not exist. TrackingId:x")
        with pytest.raises(EndpointNotFound):
            await listener.accept()
        with pytest.raises(EndpointNotFound):
            async for _ in listener:
                pass
        with pytest.raises(EndpointNotFound):
            await listener.serve(lambda connection: connection.close())
        assert listener.state == "offline"
        leg.send(Opcode.TEXT, b"what was accepted lives on")
        assert await connection.recv() == "what was accepted lives on"


async def test_close_ends_the_wait_between_two_attempts() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        control.abort()
        await until(lambda: listener.state == "connecting")
        await listener.close()
        assert listener.state == "offline"


async def test_dead_link_is_found_within_two_heartbeats() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock, heartbeat=30) as (listener, control):
        clock.advance(30)
        assert await control.control(Opcode.PING) == b""
        control.send(Opcode.PONG)
        control.send(Opcode.PING, b"seen")
        assert await control.control(Opcode.PONG) == b"seen"
        clock.advance(59)
        assert listener.state == "online"
        clock.advance(1)
        await clock.wake()
        assert "60 seconds" in str(listener.last_error)
        await (await relay.next()).upgrade()
        await until(lambda: listener.state == "online")


async def test_garbage_on_the_control_channel_ends_it_and_not_the_listener() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        control.send(Opcode.TEXT, b'{"unknown": {}}')
        control.send(Opcode.BINARY, b"stray")
        control.writer.write(b"\x83\x00")
        assert (await control.close_frame()).code == 1002
        await clock.wake()
        await (await relay.next()).upgrade()
        await until(lambda: listener.state == "online")


async def test_callback_may_close_the_listener() -> None:
    clock = FakeClock()
    async with (
        RelayStub() as relay,
        online(
            relay, _clock=clock, on_connecting=lambda listener: listener.close() if listener.last_error else None
        ) as (listener, control),
    ):
        control.abort()
        with pytest.raises(ConnectionClosed):
            await listener.accept()
        assert listener.state == "offline"


async def test_callback_that_fails_does_no_harm() -> None:
    def fail(listener: HybridConnectionListener) -> None:
        raise ZeroDivisionError

    async def fail_later(listener: HybridConnectionListener) -> None:
        raise ZeroDivisionError

    async with RelayStub() as relay, online(relay, on_connecting=fail, on_online=fail_later) as (listener, _):
        assert listener.state == "online"


# --- the token ------------------------------------------------------------------------------------------------


async def test_token_is_renewed_on_the_open_channel_before_it_expires() -> None:
    clock = FakeClock()
    tokens = CountedTokens(clock, 3600)
    async with (
        RelayStub() as relay,
        online(relay, _clock=clock, token_provider=tokens, heartbeat=0) as (
            listener,
            control,
        ),
    ):
        assert control.headers["servicebusauthorization"] == "token-1"
        for number in (2, 3, 4):
            clock.advance(3599)
            assert await control.command() == {"renewToken": {"token": f"token-{number}"}}
        assert listener.state == "online" and relay.idle()


async def test_renewal_that_fails_is_tried_again_before_the_token_expires() -> None:
    clock = FakeClock()
    tokens = CountedTokens(clock, 100)
    async with (
        RelayStub() as relay,
        online(relay, _clock=clock, token_provider=tokens, heartbeat=0) as (
            listener,
            control,
        ),
    ):
        tokens.failures = [OSError("no network"), ValueError("nonsense")]
        for _ in range(50):
            clock.advance(1)
            await asyncio.sleep(0)
        await until(lambda: len(tokens.failures) < 2)
        for _ in range(40):
            clock.advance(1)
            await asyncio.sleep(0)
        assert await control.command() == {"renewToken": {"token": "token-2"}}
        assert isinstance(listener.last_error, OSError | ValueError)


async def test_fresh_token_is_presented_at_each_reconnect() -> None:
    clock = FakeClock()
    tokens = CountedTokens(clock, 3600)
    async with RelayStub() as relay, online(relay, _clock=clock, token_provider=tokens) as (_, control):
        control.send_close(1008, "ExpiredToken")
        control.writer.write_eof()
        await clock.wake()
        assert (await relay.next()).headers["servicebusauthorization"] == "token-2"


# --- offers ---------------------------------------------------------------------------------------------------


async def test_offer_becomes_a_connection_that_knows_what_the_sender_asked_for() -> None:
    async with RelayStub() as relay, online(relay) as (listener, control):
        control.offer(
            relay.rendezvous("/v1/It%20em", "a=1&b=%C3%B8"),
            id="guid_G1_G2",
            X_Custom="value",
            Sec_WebSocket_Protocol="chat, mqtt",
        )
        leg = await relay.next()
        assert leg.target.action is Action.ACCEPT and leg.target.secret == "secret"
        assert "servicebusauthorization" not in leg.headers
        assert leg.headers["sec-websocket-protocol"] == "chat"
        await leg.upgrade(subprotocol="chat")
        connection = await listener.accept()
        request = connection.request
        assert request is not None
        assert connection.tracking_id == request.tracking_id == "guid_G1_G2"
        assert connection.subprotocol == "chat" and connection.entity_path == "orders"
        assert (request.suffix, request.query) == ("v1/It%20em", "a=1&b=%C3%B8")
        assert request.headers["x-CUSTOM"] == "value" and "X-Custom" in list(request.headers)
        assert request.remote_address == ("192.0.2.7", 4711)
        assert request.subprotocols == ("chat", "mqtt")
        assert listener.connections == {connection}
        leg.send(Opcode.TEXT, b"hello")
        assert await connection.recv() == "hello"
        leg.close()
        await connection.wait_closed()
        await until(lambda: not listener.connections)


async def test_handler_chooses_the_subprotocol() -> None:
    async def choose(request: IncomingConnection) -> None:
        with pytest.raises(InvalidSetting, match="amqp"):
            request.subprotocol = "amqp"
        request.subprotocol = "mqtt" if request.query == "m" else None

    async with RelayStub() as relay, online(relay, accept_handler=choose) as (listener, control):
        control.offer(relay.rendezvous(query="m"), Sec_WebSocket_Protocol="chat,mqtt")
        leg = await relay.next()
        assert leg.headers["sec-websocket-protocol"] == "mqtt"
        await leg.upgrade(subprotocol="mqtt")
        assert (await listener.accept()).subprotocol == "mqtt"
        control.offer(relay.rendezvous(), Sec_WebSocket_Protocol="chat,mqtt")
        leg = await relay.next()
        assert "sec-websocket-protocol" not in leg.headers
        await leg.upgrade()
        assert (await listener.accept()).subprotocol is None


def _refuse(request: IncomingConnection) -> bool:
    return False


def _reject(request: IncomingConnection) -> None:
    with pytest.raises(InvalidSetting):
        request.reject(101)
    request.reject(418, "I am a teapot & more: 100% = é")


async def _fail(request: IncomingConnection) -> None:
    raise ZeroDivisionError("a secret of the application")


@pytest.mark.parametrize(
    ("handler", "status", "reason"),
    [
        (_refuse, "400", "Rejected by user code"),
        (_reject, "418", "I am a teapot & more: 100% = é"),
        (
            _fail,
            "502",
            "The Listener's custom AcceptHandler threw an exception. See Listener logs for details.",
        ),
    ],
)
async def test_handler_rejects(handler: Any, status: str, reason: str) -> None:
    async with RelayStub() as relay, online(relay, accept_handler=handler) as (listener, control):
        control.offer(relay.rendezvous())
        leg = await relay.next()
        assert (leg.target.status_code, leg.target.status_description) == (status, reason)
        assert leg.target.secret == "secret"
        await leg.refuse(410, "Gone")
        assert listener.state == "online" and not listener.connections


async def test_overloaded_listener_rejects_with_503_and_takes_the_next_when_it_has_room() -> None:
    async with RelayStub() as relay, online(relay, max_connections=2) as (listener, control):
        _, first = await accepted(relay, listener, control)
        control.offer(relay.rendezvous("/2"))
        second = await relay.next()
        for _ in range(2):
            control.offer(relay.rendezvous("/3"))
            third = await relay.next()
            assert third.target.status_code == "503"
            await third.refuse(410, "Gone")
        await second.upgrade()
        await listener.accept()
        first.close()
        await until(lambda: len(listener.connections) == 1)
        control.offer(relay.rendezvous("/4"))
        fourth = await relay.next()
        assert fourth.target.status_code is None
        await fourth.upgrade()
        await listener.accept()


async def test_backlog_bounds_what_nobody_takes() -> None:
    async with RelayStub() as relay, online(relay, backlog=1) as (listener, control):
        control.offer(relay.rendezvous())
        await (await relay.next()).upgrade()
        await until(lambda: len(listener.connections) == 1)
        control.offer(relay.rendezvous())
        second = await relay.next()
        assert second.target.status_code == "503"
        await second.refuse(500, "the relay's own trouble does no harm")
        await listener.accept()
        control.offer(relay.rendezvous())
        assert (await relay.next()).target.status_code is None


async def test_rendezvous_that_fails_does_no_harm() -> None:
    async with RelayStub() as relay, online(relay) as (listener, control):
        control.offer(relay.rendezvous())
        await (await relay.next()).refuse(403, "The rendezvous does not exist or has expired")
        control.offer(relay.rendezvous())
        (await relay.next()).abort()
        control.offer("ws://127.0.0.1:1/$hc/orders?x")
        control.offer("not even an address")
        connection, _ = await accepted(relay, listener, control)
        assert not connection.is_closing()


async def test_slow_handler_holds_up_nobody_else() -> None:
    never = asyncio.Event()

    async def wait_for_ever(request: IncomingConnection) -> None:
        if request.suffix == "slow":
            await never.wait()

    async with RelayStub() as relay, online(relay, accept_handler=wait_for_ever) as (listener, control):
        control.offer(relay.rendezvous("/slow"))
        connection, _ = await accepted(relay, listener, control)
        assert connection.request is not None and connection.request.suffix == ""
        control.abort()
        await listener.close()


async def test_offers_survive_the_loss_of_the_control_channel() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        control.offer(relay.rendezvous())
        leg = await relay.next()
        control.abort()
        await until(lambda: listener.state == "connecting")
        await leg.upgrade()
        assert isinstance(await listener.accept(), Connection)


async def test_closing_listener_drops_what_nobody_took_and_leaves_the_rest() -> None:
    async with RelayStub() as relay, online(relay) as (listener, control):
        taken, taken_leg = await accepted(relay, listener, control)
        control.offer(relay.rendezvous())
        waiting_leg = await relay.next()
        await waiting_leg.upgrade()
        await until(lambda: len(listener.connections) == 2)
        control.offer(relay.rendezvous())
        await relay.next()  # not answered yet
        async with asyncio.TaskGroup() as tasks:
            closing = tasks.create_task(listener.close(wait=5))
            await control.close_frame()
            control.offer(relay.rendezvous())
            control.send_close()
            control.close()
            assert (await waiting_leg.close_frame()).code == 1011
            waiting_leg.close()
            await until(lambda: listener.state == "offline")
            assert not closing.done()
            await taken.send("still here")
            assert await taken_leg.message() == (Opcode.TEXT, b"still here")
            taken_leg.abort()
        assert relay.idle()


async def test_listener_leaves_although_the_relay_does_not_answer() -> None:
    clock = FakeClock()
    async with RelayStub() as relay, online(relay, _clock=clock) as (listener, control):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listener.close())
            await control.close_frame()
            clock.advance(6)
            clock.advance(6)


async def test_serve_gives_each_connection_a_task_and_survives_their_failures() -> None:
    async def handler(connection: Connection) -> None:
        message = await connection.recv()
        if message == "fail":
            raise ZeroDivisionError
        while True:
            await connection.send(message)
            message = await connection.recv()

    async with RelayStub() as relay, online(relay) as (listener, control), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(listener.serve(handler))
        legs = []
        for _ in range(3):
            control.offer(relay.rendezvous())
            leg = await relay.next()
            await leg.upgrade()
            legs.append(leg)
        legs[0].send(Opcode.TEXT, b"fail")
        with pytest.raises((ConnectionResetError, AssertionError)):
            await legs[0].piece()
        legs[1].abort()
        legs[2].send(Opcode.TEXT, b"echo")
        assert await legs[2].message() == (Opcode.TEXT, b"echo")
        legs[2].send_close()
        assert (await legs[2].close_frame()).code == 1000
        legs[2].close()
        await until(lambda: not listener.connections)
        assert not serving.done()
        control.abort()
        await listener.close()
