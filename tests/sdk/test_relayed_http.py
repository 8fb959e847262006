"""What applications hold of a request and its answer, without a network."""

from __future__ import annotations

import pytest

from trunkline.protocol.errors import HeadersTooLarge, InvalidSetting
from trunkline.protocol.messages import Request
from trunkline.sdk.relayed_http import HttpRequest, HttpResponse


def request(target: str | None = "/Orders/eu/1/a?b=c", entity: str = "orders/EU", method: str = "GET") -> HttpRequest:
    command = Request("ws://relay/?sb-hc-id=1", "id-1", target, method, {"Accept": "a"}, None, False)
    return HttpRequest(command, b"", None, channel=None, entity=entity, way=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "suffix", "query"),
    [
        ("/Orders/eu/1/a?b=c", "1/a", "b=c"),
        ("/orders/EU", "", ""),
        ("/orders/EU/?", "", ""),
        ("/orders/EU?a?b", "", "a?b"),
        ("/somewhere/else", "somewhere/else", ""),
        (None, "", ""),
    ],
)
def test_suffix_is_the_path_behind_that_of_the_hybrid_connection(target: str | None, suffix: str, query: str) -> None:
    assert (request(target).suffix, request(target).query) == (suffix, query)


def test_sender_of_whom_the_relay_says_nothing_has_no_address() -> None:
    assert request().remote_address == ("", 0)


@pytest.mark.parametrize("status", [199, 100, 1000, 0])
async def test_status_that_no_answer_can_have_is_refused(status: int) -> None:
    with pytest.raises(InvalidSetting, match="200 to 999"):
        HttpResponse(status)
    with pytest.raises(InvalidSetting, match="200 to 999"):
        await request().respond(status)


@pytest.mark.parametrize("header", [("a b", "c"), ("", "c"), ("a", "b\r\nc: d"), ("a", "€"), ("a", "\0")])
async def test_header_that_cannot_be_sent_is_refused(header: tuple[str, str]) -> None:
    with pytest.raises(InvalidSetting, match="header"):
        HttpResponse(headers=[header])
    with pytest.raises(InvalidSetting, match="header"):
        await request().respond(headers=[header])


async def test_head_that_no_command_can_hold_is_refused() -> None:
    with pytest.raises(HeadersTooLarge, match="65536 is the limit"):
        await request().respond(headers={"A": "b" * 65_536})


def test_text_is_utf_8_and_says_so_unless_the_application_does() -> None:
    assert HttpResponse(200, "é").body == "é".encode()
    assert HttpResponse(200, "é").headers == (("Content-Type", "text/plain; charset=utf-8"),)
    assert HttpResponse(200, "{}", headers={"content-type": "application/json"}).headers == (
        ("content-type", "application/json"),
    )


def test_response_shows_no_content() -> None:
    assert repr(HttpResponse(404, b"secret")) == "<HttpResponse 404 6 bytes>"

    class Pieces:
        def __aiter__(self) -> Pieces:
            return self

        async def __anext__(self) -> bytes:
            return b""

    assert repr(HttpResponse(200, Pieces())) == "<HttpResponse 200 streamed>"


@pytest.mark.parametrize("body", [None, {"a": 1}, [b"a"], bytearray(b"a")])
def test_body_that_cannot_be_sent_is_refused(body: object) -> None:
    with pytest.raises(InvalidSetting, match=f"body is {type(body).__name__}"):
        HttpResponse(200, body)  # type: ignore[arg-type]
