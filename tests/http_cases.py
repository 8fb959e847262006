"""Cases of HTTP over a hybrid connection: one table, which every listener runs.

A listener keeps the contract of `http_echo`. Its test file opens a node and the listener, and runs a group:

    @pytest.mark.parametrize("group", http_cases.GROUPS)
    async def test_sdk_listener_serves_the_cases(group: str) -> None:
        async with relay_node() as node, node.listener(http_handler=...):
            await http_cases.run(group, http_cases.Relay.of(node), lacks={"reason"})

What a listener cannot do by its nature it names in `lacks`; the words are in `LACKS`. Most cases are an `Exchange`:
one request and what must come of it. Where a case needs more (an order of events, several connections, a broken
end) it is a function that takes the `Relay`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import ssl
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from http_echo import content
from http_sender import Answer, Cut, HttpSender
from trunkline.testing import RelayNode

#: What a listener may lack.
LACKS = {
    "reason": "a reason phrase of its own",
    "repeated": "a response header more than once",
    "small pieces": "a first piece that goes out before the body has 64 KiB",
    "request pieces": "to see a request's body before its end",
    "left": "to hear that the sender of a request has gone",
    "raw target": "the target as the relay hands it over: it sees it encoded again",
}

#: What llhttp knows but CONNECT.
METHODS = (
    "ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS "
    "PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK "
    "UNSUBSCRIBE"
).split()

Plan = Mapping[str, Any]
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Relay:
    """Where requests go.

    entity: path of the hybrid connection. headers: what every request needs. seen: a listener's own form of a target,
    as its description shows it, made from the one that the relay hands over ("/ENTITY/...").
    """

    host: str
    port: int
    entity: str
    headers: Headers
    ssl: ssl.SSLContext | None = None
    seen: Callable[[str], str] = field(default=lambda target: target)
    lacks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, node: RelayNode, entity: str | None = None, **more: Any) -> Relay:
        """The first hybrid connection of a node, or another one."""
        headers = [("Host", f"{node.host}:{node.port}"), ("ServiceBusAuthorization", node.token(entity))]
        return cls(node.host, node.port, entity or node.entity, headers, node.client_context() or None, **more)

    def connect(self) -> HttpSender:
        return HttpSender(self.host, self.port, ssl=self.ssl)

    def request_headers(self, plan: Plan | None = None, headers: Headers = ()) -> list[tuple[str, str]]:
        """The headers of one request. plan: what the listener is asked to do."""
        asked = [] if plan is None else [("X-Plan", json.dumps(plan))]
        return [*self.headers, *asked, *headers]

    def ask(self, sender: HttpSender, plan: Plan | None = None, method: str = "GET", **more: Any) -> None:
        """Write one request to the entity's own path."""
        sender.write_request(method, f"/{self.entity}", self.request_headers(plan), **more)

    async def open(self, gate: str) -> None:
        """Open a gate of the listener, over a connection of its own."""
        await self.once({"before": [["open", gate]]})

    async def wait(self, gate: str) -> None:
        """Wait until a gate of the listener is open, over a connection of its own."""
        await self.once({"before": [["wait", gate]]})

    async def once(self, plan: Plan | None = None, method: str = "GET", **more: Any) -> Answer:
        """One request over a connection of its own."""
        async with self.connect() as sender:
            self.ask(sender, plan, method, **more)
            await sender.drain()
            answer = await sender.answer(method)
            assert answer.status == 200, answer
            return answer


def gate() -> str:
    """A name for a gate that nobody else uses."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Exchange:
    """One request, and what must come of it.

    The target is written with "/ENTITY" for the path of the hybrid connection; `seen` likewise, what the relay hands
    over for it; None: the same.
    """

    name: str
    method: str = "GET"
    target: str = "/ENTITY"
    headers: Headers = ()
    size: int = 0
    #: Sizes of the pieces of a chunked body; None: Content-Length.
    chunks: Sequence[int] | None = None
    plan: Plan = field(default_factory=dict)
    # --- what must come of it ---
    status: int = 200
    reason: str | None = None
    seen: str | None = None
    #: Headers that the listener must see, exactly once each.
    seen_headers: Headers = ()
    #: Names that it must not see.
    unseen_headers: Sequence[str] = ()
    #: Headers of the answer, in order where a name is there several times.
    answer_headers: Headers = ()
    #: The body of the answer; None: it is the description.
    body: bytes | None = None
    lacks: Collection[str] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def request_body(self) -> bytes:
        return content(self.size, self.name)

    async def run(self, relay: Relay) -> None:
        async with relay.connect() as sender:
            await self.run_on(sender, relay)

    async def run_on(self, sender: HttpSender, relay: Relay) -> None:
        """Over a connection that is open already."""
        plan = dict(self.plan)
        if self.body is not None:
            plan["tell"] = True
        headers = relay.request_headers(plan or None, self.headers)
        target = self.target.replace("/ENTITY", f"/{relay.entity}")
        sender.write_request(self.method, target, headers, self.request_body, chunks=self.chunks)
        self.check(await sender.answer(self.method), relay)

    def check(self, answer: Answer, relay: Relay) -> None:
        """Compare an answer, whoever sent the request."""
        assert answer.status == self.status, answer
        assert answer.get("via"), "an answer of the listener has Via"
        if self.reason is not None and "reason" not in relay.lacks:
            assert answer.reason == self.reason
        for name in dict.fromkeys(name.lower() for name, _ in self.answer_headers):
            expected = [value for key, value in self.answer_headers if key.lower() == name]
            assert answer.all(name) == expected, (name, answer.headers)
        if self.body is not None:
            assert len(answer.body) == len(self.body)
            assert answer.body == self.body
        told = answer.told
        assert told["method"] == self.method
        seen = (self.target if self.seen is None else self.seen).replace("/ENTITY", f"/{relay.entity}")
        assert told["target"] == relay.seen(seen)
        assert told["size"] == self.size
        assert told["sha256"] == hashlib.sha256(self.request_body).hexdigest()
        names = [name.lower() for name, _ in told["headers"]]
        assert "servicebusauthorization" not in names
        values = {name.lower(): value for name, value in told["headers"]}
        for name, value in self.seen_headers:
            assert values.get(name.lower()) == value, (name, told["headers"])
            assert names.count(name.lower()) == 1
        for name in self.unseen_headers:
            assert name.lower() not in names, name


@dataclass(frozen=True)
class Conversation:
    """A case that is more than one exchange."""

    name: str
    function: Callable[[Relay], Awaitable[None]]
    lacks: Collection[str] = ()

    def __str__(self) -> str:
        return self.name

    async def run(self, relay: Relay) -> None:
        await self.function(relay)


Case = Exchange | Conversation
GROUPS: dict[str, list[Case]] = {}
#: Groups that take more than two seconds.
SLOW_GROUPS = ("large bodies",)


def conversation(group: str, *, lacks: Collection[str] = ()) -> Callable[[Callable[[Relay], Awaitable[None]]], None]:
    """Adds a function to a group; its name says what must hold."""

    def add(function: Callable[[Relay], Awaitable[None]]) -> None:
        GROUPS.setdefault(group, []).append(Conversation(function.__name__.replace("_", " "), function, lacks))

    return add


async def run(group: str, relay: Relay) -> None:
    """Run the cases of a group one after the other. What fails says which one it was."""
    for case in GROUPS[group]:
        if relay.lacks.isdisjoint(case.lacks):
            try:
                await case.run(relay)
            except BaseException as error:
                error.add_note(f"in the case: {case}")
                raise


# --- methods ---

#: A body has meaning for these; a listener gets it whatever the method is.
GROUPS["methods"] = [
    *(Exchange(f"{method} without a body", method, body=b"" if method == "HEAD" else None) for method in METHODS),
    *(
        Exchange(f"{method} with a body", method, size=100, body=b"" if method == "HEAD" else None)
        for method in METHODS
    ),
]


# --- bodies ---


def _both_ways(size: int) -> list[Case]:
    words = f"{size} bytes"
    body = content(size, words)
    steps = [["bytes", size, words]] if size else []
    cut = [1, 10, 1000] if size <= 1 << 20 else [size // 2]
    return [
        Exchange(f"{words} up by length", "POST", size=size),
        Exchange(f"{words} up in chunks", "POST", size=size, chunks=cut),
        Exchange(f"{words} down by length", plan={"body": steps, "length": True}, body=body),
        Exchange(f"{words} down in pieces", plan={"body": _halves(size, words)}, body=_joined(size, words)),
        Exchange(f"{words} both ways", "PUT", size=size, chunks=cut, plan={"body": steps}, body=body),
    ]


def _halves(size: int, seed: str) -> list[list[Any]]:
    """Two steps that make a body of that size."""
    return [["bytes", part, f"{seed} {part}"] for part in (size // 2, size - size // 2) if part]


def _joined(size: int, seed: str) -> bytes:
    return b"".join(content(step[1], step[2]) for step in _halves(size, seed))


GROUPS["bodies"] = [case for size in (0, 1, 65_535, 65_536, 65_537, 1 << 20) for case in _both_ways(size)]
GROUPS["large bodies"] = _both_ways(16 << 20)


@conversation("bodies")
async def answer_with_a_length_has_it_as_content_length(relay: Relay) -> None:
    for size in (1, 1000):
        answer = await relay.once({"body": [["bytes", size, "s"]], "length": True})
        assert answer.get("content-length") == str(size)


@conversation("bodies")
async def body_without_a_content_type_gets_one(relay: Relay) -> None:
    answer = await relay.once({"body": [["bytes", 10, "s"]]})
    assert answer.get("content-type")


# --- status codes and reason phrases ---

#: No body goes with these (RFC 9110 6.4.1).
BODILESS = (204, 304)


def _status(status: int) -> Exchange:
    words = f"Words for {status}, (as the listener has them)"
    body = b"" if status in BODILESS else b"body"
    plan: dict[str, Any] = {"status": status, "reason": words}
    plan["body"] = [] if status in BODILESS else [["text", "body"]]
    return Exchange(f"status {status}", plan=plan, status=status, reason=words, body=body)


@conversation("status codes")
async def every_status_code_from_200_to_599_passes_over_one_connection(relay: Relay) -> None:
    async with relay.connect() as sender:
        for status in range(200, 600):
            case = _status(status)
            try:
                await case.run_on(sender, relay)
            except BaseException as error:
                error.add_note(f"in the case: {case}")
                raise


GROUPS["status codes"] += [
    Exchange(
        f"the reason phrase of {status} where the listener has none",
        plan={"status": status},
        status=status,
        reason=HTTPStatus(status).phrase,
    )
    for status in (200, 201, 202, 404, 500, 503)
]
GROUPS["status codes"] += [
    Exchange(
        "a long reason phrase with every mark",
        plan={"reason": 'It\'s "so" (far); <a> [b] {c} 100% @home #1, what/ever\\? = fine! ' * 3 + "."},
        reason='It\'s "so" (far); <a> [b] {c} 100% @home #1, what/ever\\? = fine! ' * 3 + ".",
    )
]


# --- headers ---

_UNSEEN = ("Connection", "Keep-Alive", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "Expect")

GROUPS["headers"] = [
    Exchange(
        "a header that is there several times is joined",
        headers=[("X-Several", "one"), ("X-Other", "o"), ("x-several", "two"), ("X-Several", "three, four")],
        seen_headers=[("X-Several", "one, two, three, four"), ("X-Other", "o")],
    ),
    Exchange(
        "several Cookie headers are one",
        headers=[("Cookie", "a=1"), ("Cookie", "b=2")],
        seen_headers=[("Cookie", "a=1; b=2")],
    ),
    Exchange(
        "headers of the connection stay behind",
        headers=[
            ("Connection", "close-not, X-Named, te"), ("Keep-Alive", "timeout=5"), ("TE", "trailers"), ("X-Named", "n"),
            ("Proxy-Connection", "keep-alive"), ("X-Stays", "s"),
        ],
        seen_headers=[("X-Stays", "s")],
        unseen_headers=[*_UNSEEN, "X-Named"],
    ),
    Exchange(
        "an offered h2c is ignored",
        headers=[("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAARA")],
        unseen_headers=[*_UNSEEN, "HTTP2-Settings"],
    ),
    Exchange(
        "a name of every token character and a value of many marks",
        headers=[("X-!#$%&'*+-.^_`|~09", "\"quoted\" [b] {c} \\back, semi; 100% <t> =?")],
        seen_headers=[("X-!#$%&'*+-.^_`|~09", "\"quoted\" [b] {c} \\back, semi; 100% <t> =?")],
    ),
    Exchange("an empty value", headers=[("X-Empty", "")], seen_headers=[("X-Empty", "")]),
    Exchange(
        "Authorization beside the relay's own goes through",
        headers=[("Authorization", "Basic dTpw")],
        seen_headers=[("Authorization", "Basic dTpw")],
    ),
    Exchange(
        "Content-Type with parameters goes through whole", "POST", size=10,
        headers=[("Content-Type", 'multipart/form-data; boundary="a b"; charset=utf-8')],
        seen_headers=[("Content-Type", 'multipart/form-data; boundary="a b"; charset=utf-8')],
    ),
    Exchange(
        "headers of an answer keep their values",
        plan={"headers": [["X-1", "1"], ["X-Marks", "\"q\" [b] \\ , ; %"], ["ETag", '"abc"'], ["Location", "/a?b=c"]]},
        answer_headers=[("X-1", "1"), ("X-Marks", "\"q\" [b] \\ , ; %"), ("ETag", '"abc"'), ("Location", "/a?b=c")],
    ),
    Exchange(
        "several Set-Cookie stay several",
        plan={"headers": [
            ["Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/"], ["Set-Cookie", "b=2"],
            ["Set-Cookie", "c=3; HttpOnly"],
        ]},
        answer_headers=[
            ("Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/"), ("Set-Cookie", "b=2"),
            ("Set-Cookie", "c=3; HttpOnly"),
        ],
        lacks={"repeated"},
    ),
    Exchange(
        "one Set-Cookie with a date stays one",
        plan={"headers": [["Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/"]]},
        answer_headers=[("Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; Path=/")],
    ),
    Exchange("long headers", headers=[("X-Long", "y" * 24_000)], seen_headers=[("X-Long", "y" * 24_000)]),
    Exchange(
        "many headers",
        headers=[(f"X-Number-{n}", str(n)) for n in range(500)],
        seen_headers=[(f"X-Number-{n}", str(n)) for n in range(500)],
    ),
]  # fmt: skip


@conversation("headers", lacks={"repeated"})
async def response_headers_that_are_there_several_times_arrive_whole(relay: Relay) -> None:
    answer = await relay.once({"headers": [["X-Several", "one"], ["X-Several", "two"]]})
    assert ", ".join(answer.all("x-several")) == "one, two"


@conversation("headers")
async def hop_by_hop_headers_of_a_listener_stay_behind(relay: Relay) -> None:
    headers = [["Keep-Alive", "timeout=5"], ["X-Named", "n"], ["Connection", "X-Named"], ["X-Stays", "s"]]
    answer = await relay.once({"headers": headers})
    assert not answer.all("keep-alive") and not answer.all("x-named")
    assert answer.get("x-stays") == "s"


@conversation("headers")
async def request_that_is_too_long_is_refused_by_the_relay(relay: Relay) -> None:
    for headers in ([("X-Long", "y" * 33_000)], [(f"X-{n}", "y" * 1000) for n in range(40)]):
        async with relay.connect() as sender:
            sender.write_request("GET", f"/{relay.entity}", relay.request_headers(headers=headers))
            answer = await sender.answer()
            assert answer.status == 431, answer
            assert not answer.all("via"), "the relay's own answer has no Via"
            assert "TrackingId:" in json.loads(answer.body)["error"]["message"]
    await relay.once()


# --- targets ---

_TARGETS: tuple[tuple[str, str | None], ...] = (
    # sent, and what the relay hands over; None: the same
    ("/ENTITY", None),
    ("/ENTITY/", None),
    ("/ENTITY/a/b/c", None),
    ("/ENTITY//a//b", None),
    ("//ENTITY/a", "/ENTITY/a"),
    ("/ENTITY/a;p=1/b,c", None),
    ("/ENTITY/~user/:@!$&'()*+=", None),
    ("/ENTITY/a%2Fb", None),
    ("/ENTITY/a%5Cb", None),
    ("/ENTITY/100%25", None),
    ("/ENTITY/a%3Fb%23c", None),
    ("/ENTITY/%41%62", "/ENTITY/Ab"),
    # The query: protocol page, and what the live tests of Microsoft's clients ask for.
    ("/ENTITY?", "/ENTITY"),
    ("/ENTITY?a", None),
    ("/ENTITY?a=", None),
    ("/ENTITY?=a", None),
    ("/ENTITY?a=1&b=2&a=3", None),
    ("/ENTITY?a=1&a=2&", None),
    ("/ENTITY?&&&", None),
    ("/ENTITY??", None),
    ("/ENTITY?a=b=c", None),
    ("/ENTITY?a=b?c=d", None),
    ("/ENTITY?+", None),
    ("/ENTITY?%2B", None),
    ("/ENTITY?%20", None),
    ("/ENTITY?a=%26%3D%23", None),
    ("/ENTITY?K%C3%B6ln=%E2%82%AC", None),
    ("/ENTITY?%C3%b8", "/ENTITY?%C3%B8"),
    ("/ENTITY?url=http://a/b?c", None),
    ("/ENTITY?api-version=abc", None),
    ("/ENTITY/x?foo=bar&", None),
    # Ours are taken out, and nothing else.
    ("/ENTITY?sb-hc-id=1", "/ENTITY"),
    ("/ENTITY?sb-hc-id=1&custom=value", "/ENTITY?custom=value"),
    ("/ENTITY?custom=value&sb-hc-id=1", "/ENTITY?custom=value"),
    ("/ENTITY?a=1&sb-hc-id=1&b=2", "/ENTITY?a=1&b=2"),
    ("/ENTITY?sb-hc-whatever=", "/ENTITY"),
    ("/ENTITY?SB-HC-Whatever=1&b", "/ENTITY?b"),
    ("/ENTITY?sb-hc-undefined", None),
    ("/ENTITY?xsb-hc-id=1", None),
    ("/ENTITY?%73b-hc-id=1&b=2", "/ENTITY?b=2"),
)  # fmt: skip

#: What the relay decodes in a path, as the real one does; a listener that encodes it again sees it as it was sent.
_DECODED: tuple[tuple[str, str], ...] = (
    ("/ENTITY/a%20b", "/ENTITY/a b"),
    ("/ENTITY/K%C3%B6ln", "/ENTITY/Köln"),
    ("/ENTITY/%e2%82%ac", "/ENTITY/€"),
)

GROUPS["targets"] = [
    *(Exchange(f"target {sent}", target=sent, seen=seen) for sent, seen in _TARGETS),
    *(Exchange(f"target {sent}", target=sent, seen=seen, lacks={"raw target"}) for sent, seen in _DECODED),
]

#: Paths that lead out of the entity for whoever decodes them once more, or resolves them.
_CLIMBING = (
    "/ENTITY/..", "/ENTITY/../other", "/ENTITY/a/../../other", "/ENTITY/%2e%2e/other", "/ENTITY/.%2E/other",
    "/ENTITY/..%2fother", "/ENTITY/a%2f..%2f..%2fother", "/ENTITY/..%5cother", "/ENTITY/%2e%2e%5cother",
    "/ENTITY/%252e%252e/other", "/ENTITY/%252e%252e%252fother", "/../ENTITY/../other", "/ENTITY\\..\\other",
)  # fmt: skip


@conversation("targets")
async def target_that_climbs_out_of_its_entity_is_refused(relay: Relay) -> None:
    for target in _CLIMBING:
        async with relay.connect() as sender:
            sender.write_request("GET", target.replace("ENTITY", relay.entity), relay.request_headers())
            answer = await sender.answer()
            assert answer.status in (400, 404) and not answer.all("via"), (target, answer)


# --- framing ---


@conversation("framing")
async def head_and_the_statuses_without_a_body_have_none(relay: Relay) -> None:
    async with relay.connect() as sender:
        relay.ask(sender, {"headers": [["X-Head", "yes"]], "tell": True}, "HEAD")
        answer = await sender.answer("HEAD")
        assert answer.status == 200 and answer.body == b"" and answer.get("x-head") == "yes"
        for status in BODILESS:
            relay.ask(sender, {"status": status, "body": []})
            answer = await sender.answer()
            assert answer.status == status and answer.body == b""
            assert not answer.all("transfer-encoding")
        # What comes behind them is the next answer, not a body.
        relay.ask(sender, {"body": [["text", "next"]]})
        assert (await sender.answer()).body == b"next"


@conversation("framing")
async def sender_that_waits_for_100_continue_gets_it(relay: Relay) -> None:
    for size in (5, 100_000):
        body = content(size, "continue")
        async with relay.connect() as sender:
            headers = [("Expect", "100-continue"), ("Content-Length", str(size))]
            sender.write_head("POST", f"/{relay.entity}", relay.request_headers(headers=headers))
            assert await sender.interim() == 100
            sender.write(body)
            answer = await sender.answer()
            assert answer.told["sha256"] == hashlib.sha256(body).hexdigest()
            assert "expect" not in [name.lower() for name, _ in answer.told["headers"]]


@conversation("framing")
async def connection_is_kept_for_the_next_request(relay: Relay) -> None:
    async with relay.connect() as sender:
        for number in range(20):
            method, body = ("GET", b"") if number % 2 else ("POST", content(number * 5000, str(number)))
            relay.ask(sender, None, method, body=body)
            told = (await sender.answer()).told
            assert (told["method"], told["sha256"]) == (method, hashlib.sha256(body).hexdigest())


@conversation("framing")
async def connection_close_is_obeyed(relay: Relay) -> None:
    async with relay.connect() as sender:
        headers = relay.request_headers(headers=[("Connection", "close")])
        sender.write_request("GET", f"/{relay.entity}", headers)
        answer = await sender.answer()
        assert answer.status == 200 and answer.get("connection") == "close"
        assert await sender.ended()


@conversation("framing")
async def pipelined_requests_are_answered_in_order(relay: Relay) -> None:
    first = gate()
    async with relay.connect() as sender:
        relay.ask(sender, {"before": [["wait", first]], "body": [["text", "0"]]})
        for number in range(1, 10):
            body = content(number * 1000, "pipeline")
            relay.ask(sender, {"body": [["text", str(number)]]}, "POST", body=body, chunks=[7] if number % 2 else None)
        await relay.open(first)
        for number in range(10):
            assert (await sender.answer()).body == str(number).encode()


@conversation("framing")
async def trailers_are_dropped(relay: Relay) -> None:
    async with relay.connect() as sender:
        headers = relay.request_headers(headers=[("Transfer-Encoding", "chunked"), ("Trailer", "X-Trailer")])
        sender.write_head("POST", f"/{relay.entity}", headers)
        sender.write(b"3;ext=1\r\nabc\r\n0\r\nX-Trailer: t\r\nX-Plan: {}\r\n\r\n")
        told = (await sender.answer()).told
        assert told["sha256"] == hashlib.sha256(b"abc").hexdigest()
        assert not {"x-trailer", "trailer", "x-plan"} & {name.lower() for name, _ in told["headers"]}
        relay.ask(sender)
        assert (await sender.answer()).status == 200


@conversation("framing")
async def sender_of_http_1_0_is_served_and_the_connection_closed(relay: Relay) -> None:
    for plan in (None, {"body": [["bytes", 70_000, "a"], ["bytes", 70_000, "b"]], "tell": True}):
        async with relay.connect() as sender:
            relay.ask(sender, plan, "POST", body=b"old", version="1.0")
            answer = await sender.answer()
            assert answer.status == 200 and not answer.all("transfer-encoding")
            assert answer.told["size"] == 3
            if plan:
                assert answer.body == content(70_000, "a") + content(70_000, "b")
            assert await sender.ended()


@conversation("framing")
async def early_answer_reaches_the_sender_before_its_body_is_whole(relay: Relay) -> None:
    async with relay.connect() as sender:
        plan = {"read": "none", "status": 413, "body": [["text", "too much"]]}
        headers = relay.request_headers(plan, [("Content-Length", str(1 << 30))])
        sender.write_head("POST", f"/{relay.entity}", headers)
        sender.write(content(200_000, "early"))
        answer = await sender.answer()
        assert (answer.status, answer.body) == (413, b"too much")
    await relay.once()


# --- streaming ---


async def _events(relay: Relay, first: list[Any]) -> None:
    """Each piece arrives before the listener may make the next one."""
    gates = [gate() for _ in range(5)]
    steps = [first]
    for number, each in enumerate(gates):
        steps += [["wait", each], ["text", f"data: {number}\n\n"]]
    async with relay.connect() as sender:
        relay.ask(sender, {"headers": [["Content-Type", "text/event-stream"]], "body": steps})
        head = await sender.head()
        assert head.status == 200 and head.get("content-type") == "text/event-stream"
        assert not head.all("content-length")
        expected = content(first[1], first[2]) if first[0] == "bytes" else first[1].encode()
        got = b""
        while len(got) < len(expected):
            got += await sender.piece()
        assert got == expected
        for number, each in enumerate(gates):
            await relay.open(each)
            event, whole = b"", f"data: {number}\n\n".encode()
            while len(event) < len(whole):
                event += await sender.piece()
            assert event == whole
        assert await sender.piece() == b""


@conversation("streaming", lacks={"small pieces"})
async def server_sent_events_arrive_as_they_are_sent(relay: Relay) -> None:
    await _events(relay, ["text", ": welcome\n\n"])


@conversation("streaming")
async def pieces_behind_a_first_one_of_100_kb_arrive_as_they_are_sent(relay: Relay) -> None:
    await _events(relay, ["bytes", 100_000, "first"])


@conversation("streaming", lacks={"request pieces"})
async def pieces_of_a_request_come_back_before_the_next_is_sent(relay: Relay) -> None:
    async with relay.connect() as sender:
        headers = relay.request_headers({"read": "echo"}, [("Transfer-Encoding", "chunked")])
        sender.write_head("POST", f"/{relay.entity}", headers)
        for number in range(5):
            piece = f"piece {number}".encode()
            sender.write_chunk(piece)
            if number == 0:
                assert (await sender.head("POST")).status == 200
            got = b""
            while len(got) < len(piece):
                got += await sender.piece()
            assert got == piece
        sender.write_last_chunk()
        assert await sender.piece() == b""


# --- many at once, slow ones ---


@conversation("many at once")
async def a_hundred_requests_are_served_at_the_same_time(relay: Relay) -> None:
    meeting, number = gate(), 100

    async def one(each: int) -> None:
        body = content(each * 700, str(each))
        async with relay.connect() as sender:
            # None is answered before all have come.
            relay.ask(sender, {"before": [["meet", meeting, number]]}, "POST", body=body)
            await sender.drain()
            assert (await sender.answer()).told["sha256"] == hashlib.sha256(body).hexdigest()

    async with asyncio.TaskGroup() as group:
        for each in range(number):
            group.create_task(one(each))


@conversation("many at once")
async def a_hundred_answers_do_not_get_mixed(relay: Relay) -> None:
    meeting, number = gate(), 100

    async def one(each: int) -> None:
        size, seed = each * 1500, f"answer {each}"
        steps = [["meet", meeting, number], ["bytes", size, seed]]
        async with relay.connect() as sender:
            relay.ask(sender, {"before": steps[:1], "body": steps[1:], "headers": [["X-Each", str(each)]]})
            answer = await sender.answer()
            assert answer.get("x-each") == str(each) and answer.body == content(size, seed)

    async with asyncio.TaskGroup() as group:
        for each in range(number):
            group.create_task(one(each))


@conversation("many at once")
async def slow_answer_keeps_nobody_waiting(relay: Relay) -> None:
    slow = gate()
    async with relay.connect() as sender:
        relay.ask(sender, {"before": [["wait", slow]], "body": [["text", "at last"]]})
        for _ in range(5):
            await relay.once()
        await relay.open(slow)
        assert (await sender.answer()).body == b"at last"


# --- broken ends ---


@conversation("broken ends")
async def listener_that_breaks_off_is_no_clean_end(relay: Relay) -> None:
    begun = gate()
    async with relay.connect() as sender:
        relay.ask(sender, {"body": [["bytes", 100_000, "a"], ["wait", begun], ["abort"]]})
        head = await sender.head()
        assert head.status == 200
        await relay.open(begun)
        got = b""
        try:
            while piece := await sender.piece():
                got += piece
        except Cut:
            assert content(100_000, "a").startswith(got)
        else:
            raise AssertionError("it ended as if it were whole")
    await relay.once()


@conversation("broken ends", lacks={"left"})
async def listener_hears_of_a_sender_that_left_during_the_answer(relay: Relay) -> None:
    left, never = gate(), gate()
    async with relay.connect() as sender:
        relay.ask(sender, {"body": [["bytes", 100_000, "a"], ["wait", never]], "left": left})
        assert (await sender.head()).status == 200
        assert await sender.piece()
        sender.abort()
        await relay.wait(left)
    await relay.open(never)


@conversation("broken ends", lacks={"left", "request pieces"})
async def listener_hears_of_a_sender_that_left_during_its_body(relay: Relay) -> None:
    left = gate()
    async with relay.connect() as sender:
        headers = relay.request_headers({"read": "echo", "left": left}, [("Content-Length", str(1 << 20))])
        sender.write_head("POST", f"/{relay.entity}", headers)
        sender.write(content(1000, "half"))
        await sender.drain()
        # Until then a listener may not have heard of the request at all.
        assert (await sender.head()).status == 200
        assert await sender.piece()
        sender.abort()
        await relay.wait(left)


@conversation("broken ends")
async def sender_that_left_before_its_answer_harms_nobody(relay: Relay) -> None:
    waiting, arrived = gate(), gate()
    async with relay.connect() as sender:
        steps = [["open", arrived], ["wait", waiting]]
        relay.ask(sender, {"before": steps, "body": [["bytes", 10, "late"]]})
        await relay.wait(arrived)
        sender.abort()
    await relay.open(waiting)
    for _ in range(3):
        await relay.once()
    # An answer that needs a rendezvous, for a sender that is not there any more.
    waiting, arrived = gate(), gate()
    async with relay.connect() as sender:
        steps = [["open", arrived], ["wait", waiting]]
        relay.ask(sender, {"before": steps, "body": [["bytes", 100_000, "late"]]})
        await relay.wait(arrived)
        sender.abort()
    await relay.open(waiting)
    for _ in range(3):
        await relay.once()


def exchanges(*groups: str) -> Iterable[Exchange]:
    """The exchanges of some groups, for clients that cannot do more than one request and its answer."""
    return (
        case for case in itertools.chain.from_iterable(GROUPS[group] for group in groups) if isinstance(case, Exchange)
    )
