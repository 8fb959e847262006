"""What the admin port answers.

    GET    /healthz                 is the process alive                              open to whoever reaches the port
    GET    /readyz                  should it get work; counts of what it holds       open to whoever reaches the port
    GET    /metrics                 for Prometheus                                    open on a loopback address
    GET    /listeners               ?namespace=&entity=&id=&limit=
    GET    /connections             ?namespace=&entity=&id=&limit=                    and HTTP requests in flight
    DELETE /listeners/ID            closes a control channel
    DELETE /connections/ID          closes a connection, or ends a request in flight
    GET    /log-level
    PUT    /log-level               ?level=DEBUG&logger=trunkline.relay

Answers are JSON, but for metrics; an error is `{"error": LINE}`. What is not open needs the token, or comes by the Unix
socket. A request has no body: nothing here needs one. No answer says to browsers that another site may read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from trunkline.protocol.errors import ClosedByOperator, InvalidSetting, RelayError, clean_phrase
from trunkline.server import logs
from trunkline.server.admin.doors import bears, is_loopback, is_meant_for
from trunkline.server.admin.rows import Row, connection_row, listener_row, request_row
from trunkline.server.relay.broker import Broker
from trunkline.server.relay.control_channel import ControlChannel
from trunkline.server.relay.frontend import Exchange
from trunkline.server.relay.splicing import Splicing
from trunkline.server.status import Answer, Phase, health, json_answer

log = logging.getLogger("trunkline.admin")

# Rows that are made before others get their turn: one to two milliseconds of the loop.
_ROWS_AT_ONCE = 50

# Lines about requests without the token in a second.
REFUSALS_TOLD = 5

Query = Mapping[str, str]


class Admin:
    """Serves the admin port.

    Args:
        token: what callers have to know.
        host: address of the port; decides whether metrics need the token.
        broker: has the control channels and the directory.
        splicing: has the connections.
        phase, counts: of the node.
        metrics: makes the answer of `/metrics`; None: there is none.
        spawn: runs a coroutine to its end, in a task that somebody keeps.
        clock: seconds, monotonic.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        token: str,
        host: str,
        broker: Broker,
        splicing: Splicing,
        phase: Callable[[], Phase],
        counts: Callable[[], Mapping[str, int]],
        metrics: Callable[[], Awaitable[Answer]] | None,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._token = token
        self._host = host
        self._broker = broker
        self._splicing = splicing
        self._phase = phase
        self._counts = counts
        self._metrics = metrics
        self._spawn = spawn
        self._clock = clock
        self._wall_clock = wall_clock
        self._throttle = logs.Throttle(REFUSALS_TOLD, clock)

    def tick(self, now: float) -> None:
        """Say how many refusals were not told; to be called about once a second."""
        seconds, left_out = self._throttle.left_out()
        for count in left_out.values():
            log.info("and %d more requests without the admin token in %.1f s", count, seconds)

    def take_token(self, token: str) -> None:
        """From now on callers have to know this one."""
        self._token = token

    def serve_socket(self, exchange: Exchange) -> None:
        """Answer a request that came by the Unix socket: by the user of the node."""
        _ = self._spawn(self._serve(exchange, self._by_route))

    def serve_port(self, exchange: Exchange) -> None:
        """Answer a request that came by the port."""
        _ = self._spawn(self._serve(exchange, self._by_token))

    async def _serve(self, exchange: Exchange, answer: Callable[[Exchange, str], Awaitable[Answer]]) -> None:
        path = unquote(exchange.head.target.partition("?")[0])
        try:
            reply = health(path, self._phase(), self._counts()) if exchange.head.method in _READING else None
            reply = reply or await answer(exchange, path)
        except RelayError as error:
            reply = _error(error.status, error.message)
        except Exception:
            log.exception("the admin port failed on %r", exchange)
            reply = _error(500, "the node met an unexpected condition: see its log")
        exchange.respond(reply.status, headers=reply.headers, body=reply.body, content_type=reply.content_type)

    async def _by_token(self, exchange: Exchange, path: str) -> Answer:
        head = exchange.head
        is_open = path == "/metrics" and is_loopback(self._host) and is_meant_for(head, self._host)
        if is_open or bears(head, self._token):
            return await self._by_route(exchange, path)
        if self._throttle.lets("refused"):
            log.info("refused %r from %s: it needs the admin token", exchange, exchange.remote[0])
        return json_answer(
            401,
            {
                "error": "this needs the admin token: send Authorization: Bearer TOKEN; it is the setting admin_token,"
                " or in the file admin-token of the node's data folder"
            },
            headers=(("WWW-Authenticate", 'Bearer realm="trunkline admin"'),),
        )

    async def _by_route(self, exchange: Exchange, path: str) -> Answer:
        method = "GET" if exchange.head.method == "HEAD" else exchange.head.method
        name, _, what = path.removeprefix("/").partition("/")
        methods = _ROUTES.get(f"/{name}/ID" if what else f"/{name}", {})
        if not methods:
            return _error(404, f"there is nothing here; there are {', '.join((*_HEALTH, *_ROUTES))}")
        if method not in methods:
            allowed = ", ".join(methods)
            return json_answer(
                405, {"error": f"{method} is not served here; use {allowed}"}, headers=(("Allow", allowed),)
            )
        query = dict(parse_qsl(exchange.head.target.partition("?")[2]))
        return await methods[method](self, query, what)

    # -- who is connected

    async def _get_metrics(self, query: Query, what: str) -> Answer:
        return _error(404, "this node has no metrics") if self._metrics is None else await self._metrics()

    async def _get_listeners(self, query: Query, what: str) -> Answer:
        standings = await self._broker.directory.standings()

        async def rows() -> AsyncIterator[Row]:
            for number, standing in enumerate(standings):
                if number % _ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                yield listener_row(standing, now=self._clock(), wall_now=self._wall_clock())

        return await _listing("listeners", rows(), query)

    async def _get_connections(self, query: Query, what: str) -> Answer:
        channels = {channel.id: channel for channel in self._broker.channels}

        async def rows() -> AsyncIterator[Row]:
            for number, connection in enumerate(self._splicing):
                if number % _ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                yield connection_row(connection, channels.get(connection.facts.listener), now=self._clock())
            journal = self._broker.journal
            for number, request in enumerate(list(journal.requests)):
                if number % _ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                yield request_row(
                    request,
                    channels.get(request.listener or ""),
                    seconds=journal.stopwatch() - request.began,
                    wall_now=self._wall_clock(),
                )

        return await _listing("connections", rows(), query)

    # -- disconnecting

    async def _delete_listener(self, query: Query, what: str) -> Answer:
        for channel in self._broker.channels:
            if channel.id == what:
                self._close_channel(channel)
                return json_answer(200, {"disconnected": what})
        if any(standing.listener.id == what for standing in await self._broker.directory.standings()):
            return _error(409, f"the listener {what} has no control channel yet: it waits for a place")
        return _error(404, f"there is no listener {_short(what)}: see GET /listeners")

    def _close_channel(self, channel: ControlChannel) -> None:
        log.info("listener %s on %s is disconnected by an operator", channel.facts.tracking_id, channel.facts.path)
        # No loss: its connections go on. Whoever wants them ended names them.
        channel.close(ClosedByOperator(tracking_id=channel.facts.tracking_id), loss=False)

    async def _delete_connection(self, query: Query, what: str) -> Answer:
        for connection in self._splicing:
            if connection.facts.id == what:
                facts = connection.facts
                log.info("connection %s on %s is disconnected by an operator", facts.tracking_id, facts.path)
                connection.close(ClosedByOperator(tracking_id=facts.tracking_id))
                return json_answer(200, {"disconnected": what})
        admitted = next((each.admitted for each in self._broker.journal.requests if each.id == what), None)
        if admitted is not None:
            log.info("request %s on %s is ended by an operator", admitted.tracking_id, admitted.path)
            self._broker.http.withdraw(lambda each: each is admitted, ClosedByOperator())
            return json_answer(200, {"disconnected": what})
        return _error(404, f"there is no connection {_short(what)}: see GET /connections")

    # -- levels of the log

    async def _get_log_level(self, query: Query, what: str) -> Answer:
        return json_answer(200, {"levels": logs.levels()})

    async def _put_log_level(self, query: Query, what: str) -> Answer:
        level, name = query.get("level", ""), query.get("logger", logs.ALL)
        try:
            logs.set_level(level, name)
        except InvalidSetting as error:
            return _error(400, error.message)
        log.warning("the log level of %s is %s from now on, by an operator", name, level.upper())
        return json_answer(200, {"levels": logs.levels()})


_READING = ("GET", "HEAD")
_HEALTH = ("/healthz", "/readyz")

_Handler = Callable[[Admin, Query, str], Awaitable[Answer]]
_ROUTES: Mapping[str, Mapping[str, _Handler]] = {
    "/metrics": {"GET": Admin._get_metrics},
    "/listeners": {"GET": Admin._get_listeners},
    "/listeners/ID": {"DELETE": Admin._delete_listener},
    "/connections": {"GET": Admin._get_connections},
    "/connections/ID": {"DELETE": Admin._delete_connection},
    "/log-level": {"GET": Admin._get_log_level, "PUT": Admin._put_log_level},
}


async def _listing(name: str, rows: AsyncIterator[Row], query: Query) -> Answer:
    """The rows that the query asks for, and how many there are of them beyond `limit`."""
    limit = query.get("limit", "")
    if limit and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        return _error(400, f"limit {_short(limit)!r} is no number")
    total, shown = 0, []
    async for row in rows:
        if not _is_wanted(row, query):
            continue
        total += 1
        if not limit or total <= int(limit):
            # One by one: to write thousands at once would keep everybody else waiting.
            shown.append(json.dumps(row))
    return Answer(200, f'{{"{name}": [{", ".join(shown)}], "total": {total}}}\n'.encode())


def _is_wanted(row: Row, query: Query) -> bool:
    for name in ("namespace", "entity"):
        if name in query and query[name].strip("/").lower() != str(row[name]).lower():
            return False
    return "id" not in query or str(row["id"]).startswith(query["id"]) or row["tracking_id"] == query["id"]


def _error(status: int, line: str) -> Answer:
    return json_answer(status, {"error": line})


def _short(text: str) -> str:
    """What a caller wrote, for a message."""
    text = clean_phrase(text)
    return text if len(text) <= 40 else text[:37] + "..."
