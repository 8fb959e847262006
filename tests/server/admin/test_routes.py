"""What the admin port answers, by each of its doors, to whom."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from server.relay.peers import Answer as Head
from server.relay.peers import Peer, Relay, Serving, hybrid_connection, namespace, until
from trunkline.protocol.errors import ServerBusy
from trunkline.protocol.frames import Opcode
from trunkline.server.admin import routes
from trunkline.server.admin.routes import REFUSALS_TOLD, Admin
from trunkline.server.entities.model import Entity
from trunkline.server.relay.frontend import Frontend
from trunkline.server.status import Answer, Phase

TOKEN = "correct-horse-battery"
BEARER = f"Authorization: Bearer {TOKEN}\r\n"


@dataclass
class Doors:
    """A relay with an admin port, and a second port that stands for its Unix socket."""

    relay: Relay
    admin: Admin
    port: int
    socket: int

    async def ask(
        self, path: str, method: str = "GET", *, port: int | None = None, headers: str = "", host: str = "localhost"
    ) -> tuple[Head, Any]:
        """A request, by the socket unless a port is given; head and body of the answer."""
        async with await Peer.dial(port or self.socket) as peer:
            peer.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
            head = await peer.answer()
            body = await peer.to_end()
        is_json = head.all("Content-Type") == ["application/json"]
        return head, json.loads(body) if is_json and body else body

    async def rows(self, path: str) -> list[Any]:
        head, body = await self.ask(path)
        assert head.status == 200, body
        rows = body[path.strip("/").partition("?")[0]]
        assert isinstance(rows, list)
        return rows


async def _metrics() -> Answer:
    return Answer(200, b"up 1\n", "text/plain")


@asynccontextmanager
async def doors(
    relay: Relay | None = None, *, host: str = "127.0.0.1", metrics: bool = True, phase: Phase = Phase.READY
) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(relay or Relay())
        admin = Admin(
            token=TOKEN,
            host=host,
            broker=relay.broker,
            splicing=relay.splicing,
            phase=lambda: phase,
            counts=relay.directory.counts,
            metrics=_metrics if metrics else None,
            spawn=relay._spawn,
            clock=relay.clock,
            wall_clock=relay.wall_clock,
        )
        ports = []
        for serve in (admin.serve_port, admin.serve_socket):
            serving = await stack.enter_async_context(Serving(Frontend(serve, relay.clock)))
            ports.append(serving.port)
        yield Doors(relay, admin, *ports)


@contextmanager
def levels_restored() -> Iterator[None]:
    names = [name for name in logging.Logger.manager.loggerDict if name.partition(".")[0] == "trunkline"]
    before = {name: logging.getLogger(name).level for name in ("trunkline", *names)}
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


# -- who may


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_health_is_open_to_whoever_reaches_the_port(host: str) -> None:
    async with doors(host=host) as admin:
        for path, status in (("/healthz", 200), ("/readyz?verbose", 200)):
            head, body = await admin.ask(path, port=admin.port, host="10.0.0.7:8081")
            assert head.status == status and body["status"] in ("alive", "ready")
        head, body = await admin.ask("/readyz", "HEAD", port=admin.port)
        assert (head.status, body) == (200, b"")
    async with doors(phase=Phase.DRAINING) as admin:
        head, body = await admin.ask("/readyz", port=admin.port)
        assert (head.status, body["status"]) == (503, "draining")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/listeners"),
        ("GET", "/connections"),
        ("GET", "/log-level"),
        ("PUT", "/log-level?level=DEBUG"),
        ("DELETE", "/listeners/1"),
        ("DELETE", "/connections/1"),
        ("POST", "/healthz"),
        ("GET", "/nothing"),
        ("GET", "/%6Cisteners"),
    ],
)
async def test_port_asks_for_the_token_and_the_socket_does_not(method: str, path: str) -> None:
    async with doors() as admin:
        for wrong in ("", "Authorization: Bearer wrong\r\n", f"Authorization: Basic {TOKEN}\r\n"):
            head, body = await admin.ask(path, method, port=admin.port, headers=wrong)
            assert head.status == 401
            assert head.all("WWW-Authenticate") == ['Bearer realm="trunkline admin"']
            assert "admin-token" in body["error"] and TOKEN not in body["error"]
        with levels_restored():
            with_token, _ = await admin.ask(path, method, port=admin.port, headers=BEARER)
            by_socket, _ = await admin.ask(path, method)
        assert with_token.status == by_socket.status != 401


async def test_token_is_asked_for_whatever_the_host_header_says() -> None:
    async with doors() as admin:
        head, _ = await admin.ask("/listeners", port=admin.port, host="rebound.example", headers=BEARER)
        assert head.status == 200


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8081", 200),
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "rebound.example", 401),
        ("0.0.0.0", "localhost", 401),
        ("192.0.2.1", "192.0.2.1", 401),
    ],
)
async def test_metrics_are_open_to_this_computer_and_to_no_page_in_its_browser(
    address: str, host: str, status: int
) -> None:
    async with doors(host=address) as admin:
        head, _ = await admin.ask("/metrics", port=admin.port, host=host)
        assert head.status == status
        head, body = await admin.ask("/metrics", port=admin.port, host=host, headers=BEARER)
        assert (head.status, body) == (200, b"up 1\n")


async def test_no_answer_lets_another_site_read_it() -> None:
    async with doors() as admin:
        for path in ("/healthz", "/metrics", "/listeners"):
            head, _ = await admin.ask(path, port=admin.port, headers="Origin: https://elsewhere.example\r\n")
            assert not [name for name, _ in head.headers if name.lower().startswith("access-control")]
        head, _ = await admin.ask("/listeners/1", "OPTIONS", port=admin.port)
        assert head.status == 401


async def test_refusal_is_logged_without_what_was_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with doors() as admin:
            await admin.ask("/listeners?token=tried", port=admin.port, headers="Authorization: Bearer tried-this\r\n")
    assert "it needs the admin token" in caplog.text
    assert "tried" not in caplog.text and TOKEN not in caplog.text


async def test_flood_of_refusals_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trunkline.admin"):
        async with doors() as admin:
            for _ in range(REFUSALS_TOLD + 3):
                assert (await admin.ask("/listeners", port=admin.port))[0].status == 401
            admin.relay.clock.now += 1
            admin.admin.tick(admin.relay.clock.now)
            admin.admin.tick(admin.relay.clock.now)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == REFUSALS_TOLD + 1
    assert said[-1] == "and 3 more requests without the admin token in 1.0 s"


# -- what there is


async def test_what_is_not_there_says_what_is() -> None:
    async with doors(metrics=False) as admin:
        for path in ("/", "/nothing", "/listeners/a/b/c/", "/healthz/x"):
            head, body = await admin.ask(path)
            assert head.status in (404, 405), path
        head, body = await admin.ask("/nothing")
        assert "/healthz, /readyz, /metrics, /listeners" in body["error"]
        head, body = await admin.ask("/metrics")
        assert (head.status, body) == (404, {"error": "this node has no metrics"})
        head, body = await admin.ask("/listeners", "DELETE")
        assert (head.status, head.all("Allow")) == (405, ["GET"])
        head, body = await admin.ask("/log-level", "POST")
        assert (head.status, head.all("Allow")) == (405, ["GET, PUT"])
        assert body == {"error": "POST is not served here; use GET, PUT"}


async def test_fault_of_the_port_is_answered_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(error: Exception) -> Callable[[], Awaitable[None]]:
        async def fail() -> None:
            raise error

        return fail

    async with doors() as admin:
        monkeypatch.setattr(admin.relay.directory, "standings", failing(ValueError("broken")))
        head, body = await admin.ask("/listeners")
        assert head.status == 500 and "see its log" in body["error"]
        assert "broken" in caplog.text
        # What is nobody's fault says what it is.
        monkeypatch.setattr(admin.relay.directory, "standings", failing(ServerBusy("try again")))
        head, body = await admin.ask("/listeners")
        assert (head.status, body) == (503, {"error": "try again"})


async def test_listings_are_filtered_and_cut() -> None:
    entities: list[Entity] = [namespace(), *(hybrid_connection(name) for name in ("orders", "bills"))]
    async with doors(Relay(entities)) as admin:
        relay = admin.relay
        for name in ("orders", "orders", "bills"):
            await relay.listener(name)
        rows = await admin.rows("/listeners")
        assert [(row["entity"], row["state"]) for row in rows] == [
            ("bills", "active"),
            ("orders", "active"),
            ("orders", "standby"),
        ]
        assert [row["entity"] for row in await admin.rows("/listeners?entity=BILLS&namespace=myrelayns")] == ["bills"]
        assert await admin.rows("/listeners?namespace=another") == []
        _, body = await admin.ask("/listeners?limit=1&entity=orders")
        assert (len(body["listeners"]), body["total"]) == (1, 2)
        _, body = await admin.ask("/listeners?limit=0")
        assert body == {"listeners": [], "total": 3}
        first = rows[0]
        assert await admin.rows(f"/listeners?id={first['id']}") == [first]
        assert await admin.rows(f"/listeners?id={first['tracking_id']}") == [first]
        head, body = await admin.ask("/listeners?limit=-1")
        assert (head.status, body) == (400, {"error": "limit '-1' is no number"})


async def test_thousands_of_rows_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_ROWS_AT_ONCE", 2)
    async with doors(Relay(max_listeners=0)) as admin:
        listeners = [await admin.relay.listener() for _ in range(7)]
        for _ in range(5):
            await admin.relay.pair(listeners[0])
        ids = {row["id"] for row in await admin.rows("/listeners")}
        assert ids == {channel.id for channel in admin.relay.broker.channels}
        ids = {row["id"] for row in await admin.rows("/connections")}
        assert ids == {connection.facts.id for connection in admin.relay.splicing} and len(ids) == 5


# -- disconnecting


async def test_operator_closes_a_connection_and_both_ends_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async with doors() as admin:
        listener = await admin.relay.listener()
        first, second = await admin.relay.pair(listener), await admin.relay.pair(listener)
        [row, _] = await admin.rows("/connections")
        with caplog.at_level(logging.INFO):
            assert (await admin.ask(f"/connections/{row['id']}", "DELETE"))[1] == {"disconnected": row["id"]}
        for end in first:
            close = (await end.frame()).close
            assert close.code == 1008
            assert close.reason.startswith("ClosedByOperator: An operator of the relay closed this")
        assert f"connection {row['tracking_id']} on myRelayNS/orders is disconnected by an operator" in caplog.text
        # The other one is untouched.
        second[0].send_frame(Opcode.TEXT, b"still here")
        assert await second[1].message() == b"still here"
        assert len(await admin.rows("/connections")) == 1


async def test_operator_sees_a_request_in_flight_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async with doors() as admin:
        listener = await admin.relay.listener()
        sender = await admin.relay.ask("/orders/secret?a=secret", method="POST", body=b"hello")
        await listener.asked()
        [row] = await admin.rows("/connections?entity=orders")
        assert (row["method"], row["state"], row["to_listener"]["bytes"]) == ("POST", "asked", 5)
        assert "secret" not in json.dumps(row)
        assert await admin.rows(f"/connections?id={row['tracking_id']}") == [{**row, "seconds": row["seconds"]}]
        with caplog.at_level(logging.INFO):
            assert (await admin.ask(f"/connections/{row['id']}", "DELETE"))[1] == {"disconnected": row["id"]}
        answer, body = await sender.response()
        assert answer.status == 403 and b"ClosedByOperator: An operator of the relay closed this" in body
        assert f"request {row['tracking_id']} on myRelayNS/orders is ended by an operator" in caplog.text
        assert await admin.rows("/connections") == []
        assert (await admin.ask(f"/connections/{row['id']}", "DELETE"))[0].status == 404


async def test_operator_closes_a_control_channel_and_its_connections_go_on() -> None:
    async with doors() as admin:
        listener = await admin.relay.listener()
        sender, leg = await admin.relay.pair(listener)
        [row] = await admin.rows("/listeners")
        assert (await admin.ask(f"/listeners/{row['id']}", "DELETE"))[0].status == 200
        assert (await listener.frame()).close.code == 1008
        await until(lambda: not admin.relay.directory.counts()["listeners"])
        assert await admin.rows("/listeners") == []
        sender.send_frame(Opcode.TEXT, b"still here")
        assert await leg.message() == b"still here"
        # It may come back at once.
        await admin.relay.listener()
        assert len(await admin.rows("/listeners")) == 1


async def test_what_is_not_there_cannot_be_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trunkline.server.relay.listeners.PARKED_PER_CLIENT", 0)
    async with doors(Relay(max_listeners=1)) as admin:
        for name in ("listeners", "connections"):
            head, body = await admin.ask(f"/{name}/none", "DELETE")
            assert head.status == 404
            assert body == {"error": f"there is no {name[:-1]} none: see GET /{name}"}
        await admin.relay.listener()
        await admin.relay.dial_listener()
        await until(lambda: admin.relay.directory.counts()["waiting_listeners"])
        waiting = (await admin.rows("/listeners"))[1]
        head, body = await admin.ask(f"/listeners/{waiting['id']}", "DELETE")
        assert head.status == 409 and "it waits for a place" in body["error"]


# -- levels of the log


async def test_level_of_the_log_is_shown_and_changed(caplog: pytest.LogCaptureFixture) -> None:
    with levels_restored():
        async with doors() as admin:
            logging.getLogger("trunkline").setLevel("WARNING")
            _, body = await admin.ask("/log-level")
            assert body["levels"]["trunkline"] == "WARNING"
            _, body = await admin.ask("/log-level?level=debug&logger=trunkline.relay", "PUT")
            assert body["levels"]["trunkline"] == "WARNING" and body["levels"]["trunkline.relay"] == "DEBUG"
            assert logging.getLogger("trunkline.relay").isEnabledFor(logging.DEBUG)
            await admin.ask("/log-level?level=ERROR", "PUT")
            assert not logging.getLogger("trunkline.node").isEnabledFor(logging.WARNING)
    assert "the log level of trunkline.relay is DEBUG from now on" in caplog.text


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "level '' is none: use one of DEBUG, INFO, WARNING, ERROR"),
        ("?level=LOUD", "level 'LOUD' is none"),
        ("?level=INFO&logger=asyncio", "the logger 'asyncio' is not the node's"),
        ("?level=INFO&logger=trunklines", "use trunkline or one below it"),
    ],
)
async def test_wrong_level_changes_nothing(query: str, said: str) -> None:
    async with doors() as admin:
        head, body = await admin.ask(f"/log-level{query}", "PUT")
        assert head.status == 400 and said in body["error"]
