"""What a hosted application must do, whatever it is made with; four files of this folder keep it.

GET /            "hello", which the lifespan has prepared where the framework has one
GET /links       JSON: `item`, an absolute link to item 7; `here`, the address of the request; `client`
GET /items/7     "item 7"
GET /go          redirects to item 7
GET /slash       redirects to /slash/, which the framework does by itself
GET /cookies     sets two cookies
POST /upload     a file in a form: JSON with its name, size and sha256
POST /echo       the body comes back
GET /events      server-sent events without end
GET /ended       answers once the framework has ended such events, because their reader has gone
GET /fails       an exception
WebSocket /chat  subprotocol: the last one offered; a first message with its own address; then each text in capitals
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from http_echo import content

SIZES = (0, 1, 65_536, 65_537, 3_000_000)


@dataclass(frozen=True)
class Visitor:
    """Somebody who uses the application.

    url: its address, without a slash at the end. context: trusts it.
    """

    url: str
    context: ssl.SSLContext | Literal[False]
    http: httpx.AsyncClient

    @property
    def websocket_url(self) -> str:
        return f"ws{self.url.removeprefix('http')}"


Check = Callable[[Visitor], Awaitable[None]]


async def answers_its_own_address(visitor: Visitor) -> None:
    for address in ("", "/"):
        answer = await visitor.http.get(visitor.url + address)
        assert (answer.status_code, answer.text) == (200, "hello")


async def makes_links_that_lead_back_to_it(visitor: Visitor) -> None:
    told = (await visitor.http.get(f"{visitor.url}/links?a=1&b=2")).json()
    assert told["item"] == f"{visitor.url}/items/7"
    assert told["here"] == f"{visitor.url}/links?a=1&b=2"
    assert told["client"] == "127.0.0.1"
    assert (await visitor.http.get(told["item"])).text == "item 7"


async def redirects_to_itself(visitor: Visitor) -> None:
    for start, end, text in (("/go", "/items/7", "item 7"), ("/slash", "/slash/", "with a slash")):
        answer = await visitor.http.get(visitor.url + start, follow_redirects=True)
        assert (str(answer.url), answer.text) == (visitor.url + end, text)
        assert len(answer.history) == 1


async def sets_two_cookies(visitor: Visitor) -> None:
    answer = await visitor.http.get(f"{visitor.url}/cookies")
    values = answer.headers.get_list("set-cookie")
    assert [value.partition(";")[0] for value in values] == ["a=1", "b=2"]
    assert "Wed, 21 Oct 2026" in values[1]


async def takes_files_of_any_size(visitor: Visitor) -> None:
    for size in SIZES:
        data = content(size, "file")
        answer = await visitor.http.post(f"{visitor.url}/upload", files={"file": ("name.bin", data)})
        assert answer.json() == {"name": "name.bin", "size": size, "sha256": hashlib.sha256(data).hexdigest()}


async def gives_bodies_back(visitor: Visitor) -> None:
    for size in SIZES:
        data = content(size, "body")
        answer = await visitor.http.post(f"{visitor.url}/echo", content=data)
        assert answer.status_code == 200
        assert answer.content == data


async def hears_that_the_reader_of_events_has_gone(visitor: Visitor) -> None:
    async with visitor.http.stream("GET", f"{visitor.url}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        got = [await anext(lines) for _ in range(6)]
        assert got == ["data: 0", "", "data: 1", "", "data: 2", ""]
    assert (await visitor.http.get(f"{visitor.url}/ended")).text == "ended"


async def fails_with_500(visitor: Visitor) -> None:
    answer = await visitor.http.get(f"{visitor.url}/fails")
    assert answer.status_code == 500
    assert answer.headers["via"]  # it is the listener's answer


async def knows_what_it_has_not(visitor: Visitor) -> None:
    assert (await visitor.http.get(f"{visitor.url}/nothing/here")).status_code == 404
    assert (await visitor.http.put(f"{visitor.url}/echo", content=b"x")).status_code in (200, 405)


async def talks_over_a_websocket(visitor: Visitor) -> None:
    async with asyncio.timeout(20):
        offered = [Subprotocol("v1"), Subprotocol("v2")]
        async with connect(
            f"{visitor.websocket_url}/chat?a=1", ssl=visitor.context or None, subprotocols=offered, proxy=None
        ) as socket:
            assert socket.subprotocol == "v2"
            assert await socket.recv() == f"{visitor.websocket_url}/chat?a=1"
            for text in ("hello", "é" * 70_000):
                await socket.send(text)
                assert await socket.recv() == text.upper()


async def denies_a_websocket_that_it_does_not_know(visitor: Visitor) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{visitor.websocket_url}/nothing", ssl=visitor.context or None, proxy=None)
    assert refused.value.response.status_code in (403, 404, 500)


#: By the name of the framework, what it does not do.
LACKS: Mapping[str, tuple[Check, ...]] = {
    "fastapi": (takes_files_of_any_size,),
    "starlette": (takes_files_of_any_size,),
    "django": (talks_over_a_websocket,),
    "quart": (),
}
CHECKS: tuple[Check, ...] = (
    answers_its_own_address,
    makes_links_that_lead_back_to_it,
    redirects_to_itself,
    sets_two_cookies,
    takes_files_of_any_size,
    gives_bodies_back,
    hears_that_the_reader_of_events_has_gone,
    fails_with_500,
    knows_what_it_has_not,
    talks_over_a_websocket,
    denies_a_websocket_that_it_does_not_know,
)
