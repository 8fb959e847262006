"""Control messages, as every client writes and reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trunkline.protocol import messages
from trunkline.protocol.errors import InvalidMessage
from trunkline.protocol.messages import (
    Accept,
    RemoteEndpoint,
    RenewToken,
    Request,
    Response,
    encode,
    parse_from_listener,
    parse_from_relay,
)

GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
ACCEPT = Accept(
    address=f"wss://h/$hc/a?sb-hc-action=accept&sb-hc-id={GUID}&sb-hc-rendezvous=s3cret",
    id=GUID,
    connect_headers={"Host": "h", "Sec-WebSocket-Key": "k==", "x-Odd~": 'quote" back\\slash [é]'},
    remote_endpoint=RemoteEndpoint("2001:db8::1", 4711),
)
REQUEST = Request(
    address="wss://h/$hc/a?sb-hc-action=request",
    id=GUID + "_G1",
    request_target="/a/b?x=1",
    method="POST",
    request_headers={"Content-Type": "text/plain; charset=utf-8"},
    remote_endpoint=RemoteEndpoint("127.0.0.1", 1),
    body=True,
)


def test_listener_gets_an_accept_as_azure_sends_it() -> None:
    assert json.loads(encode(ACCEPT)) == {
        "accept": {
            "address": ACCEPT.address,
            "id": GUID,
            "connectHeaders": {"Host": "h", "Sec-WebSocket-Key": "k==", "x-Odd~": 'quote" back\\slash [é]'},
            "remoteEndpoint": {"address": "2001:db8::1", "port": 4711},
        }
    }


def test_listener_gets_a_request_as_azure_sends_it() -> None:
    assert json.loads(encode(REQUEST)) == {
        "request": {
            "address": REQUEST.address,
            "id": REQUEST.id,
            "requestTarget": "/a/b?x=1",
            "method": "POST",
            "requestHeaders": {"Content-Type": "text/plain; charset=utf-8"},
            "body": True,
            "remoteEndpoint": {"address": "127.0.0.1", "port": 1},
        }
    }


def test_listener_gets_neither_method_nor_body_when_the_request_waits_at_a_rendezvous() -> None:
    assert json.loads(encode(Request("wss://h/", GUID))) == {"request": {"address": "wss://h/", "id": GUID}}


def test_listener_gets_headers_and_body_flag_even_when_there_are_none() -> None:
    sent = json.loads(encode(Request("wss://h/", GUID, request_target="/a", method="GET")))["request"]
    assert (sent["requestHeaders"], sent["body"]) == ({}, False)
    assert "remoteEndpoint" not in sent


def test_relay_gets_a_response_as_azure_expects_it() -> None:
    response = Response(GUID, 201, "Created", (("X-A", "1"), ("Set-Cookie", "a"), ("x-a", "2"), ("X-A", "3")), True)
    assert json.loads(encode(response)) == {
        "response": {
            "requestId": GUID,
            "statusCode": 201,
            "statusDescription": "Created",
            "responseHeaders": {"X-A": "1, 2, 3", "Set-Cookie": "a"},
            "body": True,
        }
    }
    assert json.loads(encode(Response(GUID, 204))) == {
        "response": {"requestId": GUID, "statusCode": 204, "responseHeaders": {}, "body": False}
    }


def test_relay_gets_a_renewal_as_azure_expects_it() -> None:
    assert encode(RenewToken("SharedAccessSignature sr=x")) == ('{"renewToken":{"token":"SharedAccessSignature sr=x"}}')


@pytest.mark.parametrize("command", [ACCEPT, REQUEST, Response("1", 200), RenewToken("t")])
def test_peer_gets_one_key_in_plain_ascii(command: messages.Command) -> None:
    text = encode(command)
    assert text.isascii()
    assert len(json.loads(text)) == 1


def test_log_shows_neither_the_rendezvous_nor_headers_nor_a_token() -> None:
    shown = repr((ACCEPT, REQUEST, RenewToken("s3cret"), Response("1", 200, headers=(("Set-Cookie", "s3cret"),))))
    assert GUID in shown
    assert "s3cret" not in shown and "Sec-WebSocket-Key" not in shown and "action=request" not in shown


def test_sdk_reads_what_azure_sends() -> None:
    assert parse_from_relay(encode(ACCEPT)) == ACCEPT
    assert parse_from_relay(encode(REQUEST)) == REQUEST
    assert parse_from_relay(encode(Request("wss://h/", GUID))) == Request("wss://h/", GUID)


def test_sdk_takes_a_request_at_a_rendezvous_without_an_address() -> None:
    found = parse_from_relay('{"request":{"id":"i","method":"GET","requestTarget":"/a","body":null}}')
    assert found == Request("", "i", request_target="/a", method="GET")


@pytest.mark.parametrize(
    ("remote", "found"),
    [
        (None, RemoteEndpoint("", 0)),
        ("nonsense", RemoteEndpoint("", 0)),
        ({}, RemoteEndpoint("", 0)),
        ({"address": [5], "port": "80"}, RemoteEndpoint("", 80)),
        ({"address": "::1", "port": 8.5}, RemoteEndpoint("::1", 0)),
        ({"address": "::1", "port": -1}, RemoteEndpoint("::1", 0)),
        ({"address": "::1", "port": 10**50}, RemoteEndpoint("::1", 0)),
        ({"address": "::1", "port": None}, RemoteEndpoint("::1", 0)),
        ({"address": "::1", "port": "٣"}, RemoteEndpoint("::1", 0)),
    ],
)
def test_sdk_needs_no_remote_endpoint(remote: object, found: RemoteEndpoint) -> None:
    text = json.dumps({"accept": {"address": "wss://h/?", "id": "i", "remoteEndpoint": remote}})
    command = parse_from_relay(text)
    assert command == Accept("wss://h/?", "i", {}, found)


def test_sdk_reads_headers_that_are_no_text() -> None:
    headers = '{"a":1.50,"b":true,"c":null,"d":{},"e":"x\\r\\ny","f":1e999,"g":false}'
    command = parse_from_relay('{"accept":{"address":"w","id":"i","connectHeaders":' + headers + "}}")
    assert isinstance(command, Accept)
    assert command.connect_headers == {"a": "1.50", "b": "true", "e": "x  y", "f": "1e999", "g": "false"}


@pytest.mark.parametrize("parse", [parse_from_relay, parse_from_listener])
@pytest.mark.parametrize("text", ['{"injectFault":{"delay":1}}', "{}", '{"Accept":{}}', '{"RESPONSE":{}}'])
def test_peer_may_send_a_command_that_is_not_known(parse: Any, text: str) -> None:
    assert parse(text) is None


NO_COMMAND = [
    "", "s3cret", "null", "5", '"s3cret"', "[]", '[{"accept":{}}]', "{", '{"a":', "{'a':1}", "\ufeff{}", "NaN",
    '{"a":NaN}', '{"a":Infinity}', '{"a":-Infinity}', "[" * 100_000, '{"a":' * 50_000, '{"a":1,"a":2}',
    '{"accept":{"id":"1","id":"2"}}', '{"response":{"x":{"y":1,"y":2}}}', "9" * 5_000, "\ud800", '{"a":"\x00"}',
    '{"accept":1}', '{"accept":null}', '{"accept":[]}', '{"accept":"s3cret"}', '{"accept":{}}',
    '{"accept":{"address":"w"}}', '{"accept":{"id":"i"}}', '{"accept":{"address":5,"id":"i"}}',
    '{"accept":{"address":"","id":"i"}}', '{"accept":{"address":"w","id":null}}',
    '{"accept":{"address":"w","id":"i","connectHeaders":[]}}',
    '{"accept":{"address":"w","id":"i","connectHeaders":"x"}}',
    '{"request":{}}', '{"request":true}', '{"request":{"id":5}}', '{"request":{"id":"i","address":[]}}',
    '{"request":{"id":"i","method":5}}', '{"request":{"id":"i","requestTarget":{}}}',
    '{"request":{"id":"i","body":"yes"}}', '{"request":{"id":"i","body":1}}',
    '{"request":{"id":"i","requestHeaders":5}}',
]  # fmt: skip


@pytest.mark.parametrize("text", NO_COMMAND, ids=range(len(NO_COMMAND)))
def test_sdk_refuses_what_is_no_command_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_from_relay(text)
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__context__ is None  # the error of the JSON library holds the text
    assert caught.value.close_code == 1007


# How each client answers.
@pytest.mark.parametrize(
    ("text", "response"),
    [
        (  # .NET
            '{"response":{"requestId":"i_G1","statusCode":200,"statusDescription":"OK",'
            '"responseHeaders":{"Content-Type":"text/html"},"body":true}}',
            Response("i_G1", 200, "OK", (("Content-Type", "text/html"),), True),
        ),
        (  # Java: body first, and no statusDescription
            '{"response":{"body":false,"requestId":"i","statusCode":"404","responseHeaders":{}}}',
            Response("i", 404),
        ),
        (  # hyco-https: values as the application set them
            '{"response":{"requestId":"i","statusCode":200,"statusDescription":null,"responseHeaders":'
            '{"Content-Length":12,"X-Flag":true,"Set-Cookie":["a=1","b=2",3,null,["x"]],"X-No":null},"body":true}}',
            Response(
                "i",
                200,
                None,
                (
                    ("Content-Length", "12"),
                    ("X-Flag", "true"),
                    ("Set-Cookie", "a=1"),
                    ("Set-Cookie", "b=2"),
                    ("Set-Cookie", "3"),
                ),
                True,
            ),
        ),
        ('{"response":{"requestId":5,"statusCode":450.0}}', Response("5", 450)),
        ('{"response":{"requestId":"i","statusCode":306,"responseHeaders":null,"body":null}}', Response("i", 306)),
        ('{"response":{"requestId":"i","statusCode":999,"responseHeaders":"x","body":"true"}}',
         Response("i", 999, body=True)),
        ('{"response":{"requestId":"i","statusCode":504,"statusDescription":""}}', Response("i", 504)),
        ('{"response":{"requestId":"i","statusCode":504,"statusDescription":7}}', Response("i", 504, "7")),
        ('{"response":{"requestId":"i","statusCode":504,"statusDescription":{},"body":{}}}', Response("i", 504)),
        ('{"response":{"requestId":"i","statusCode":100},"more":{}}', Response("i", 100)),
    ],
)  # fmt: skip
def test_listener_answers_loosely_and_is_understood(text: str, response: Response) -> None:
    assert parse_from_listener(text) == response


def test_listener_cannot_smuggle_a_line_into_the_answer() -> None:
    found = parse_from_listener(
        '{"response":{"requestId":"i","statusCode":200,"statusDescription":"a\\r\\nX: 1\\ud800","responseHeaders":'
        '{"A":"b\\r\\nX: 1\\u0000","B\\r\\nX":"1","C D":"1","":"1","E:":"1","F":"\\ud83d","é":"1"}}}'
    )
    assert found == Response("i", 200, "a  X: 1?", (("A", "b  X: 1 "), ("F", "?")))


@pytest.mark.parametrize(
    "code",
    ["null", "true", '""', '"OK"', "0", "99", "1000", "-200", "2e2", "200.5", '"２００"', '"200 "', "[200]", "1e400"],
)
def test_listener_that_answers_without_a_status_is_refused(code: str) -> None:
    with pytest.raises(InvalidMessage, match="statusCode must be a number of three digits"):
        parse_from_listener('{"response":{"requestId":"i","statusCode":' + code + "}}")


@pytest.mark.parametrize(
    "text",
    ['{"response":{"statusCode":200}}', '{"response":{"requestId":null,"statusCode":200}}',
     '{"response":{"requestId":"","statusCode":200}}', '{"response":{"requestId":[],"statusCode":200}}',
     '{"response":[]}', '{"renewToken":{}}', '{"renewToken":"s3cret"}', '{"renewToken":{"token":5}}',
     '{"renewToken":{"token":null}}', '{"renewToken":{"token":["s3cret"]}}', '{"renewToken":{"token":""}}',
     '{"renewToken":{"token":"s3cret","token":"x"}}', '{"renewToken":{"token":"s3cret"', "[" * 100_000],
    ids=range(14),
)  # fmt: skip
def test_listener_that_sends_no_command_is_refused_and_nothing_of_it_shown(text: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        parse_from_listener(text)
    assert "s3cret" not in repr(caught.value)


def test_listener_renews_its_token_and_java_sends_nonsense() -> None:
    assert parse_from_listener('{"renewToken":{"token":"SharedAccessSignature sr=x"}}') == RenewToken(
        "SharedAccessSignature sr=x"
    )
    java = "com.microsoft.azure.relay.SharedAccessSignatureToken@1f2e3d"
    assert parse_from_listener(json.dumps({"renewToken": {"token": java}})) == RenewToken(java)
    assert parse_from_listener('{"renewToken":{"token":"a\\ud800"}}') == RenewToken("a?")


HEADERS = st.dictionaries(st.text(), st.text().filter(lambda text: not set("\r\n\0") & set(text)), max_size=4)
TEXT = st.text(min_size=1)
ENDPOINT = st.builds(RemoteEndpoint, st.text(), st.integers(0, 65_535))


@given(
    st.one_of(
        st.builds(Accept, TEXT, TEXT, HEADERS, ENDPOINT),
        st.builds(Request, st.text(), TEXT),
        st.builds(Request, st.text(), TEXT, TEXT, TEXT, HEADERS, st.one_of(st.none(), ENDPOINT), st.booleans()),
    )
)
@example(Request("", "an-id"))
def test_sdk_reads_back_every_command_of_a_relay(command: Accept | Request) -> None:
    assert parse_from_relay(encode(command)) == command


RESPONSE_HEADERS = st.dictionaries(
    st.text("abcXYZ019-_~!#", min_size=1), st.text().filter(lambda text: not set("\r\n\0") & set(text)), max_size=4
).filter(lambda headers: len({name.lower() for name in headers}) == len(headers))


@given(
    st.one_of(
        st.builds(RenewToken, TEXT),
        st.builds(
            Response,
            TEXT,
            st.integers(100, 999),
            st.one_of(st.none(), st.text("abcé .,'!", min_size=1).filter(lambda text: text.strip() == text)),
            RESPONSE_HEADERS.map(lambda headers: tuple(headers.items())),
            st.booleans(),
        ),
    )
)
def test_relay_reads_back_every_command_of_our_listener(command: Response | RenewToken) -> None:
    assert parse_from_listener(encode(command)) == command


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(alphabet=st.characters(codec=None, exclude_categories=())),
        st.sampled_from(["200", 200, "true"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["address", "id", "connectHeaders", "remoteEndpoint", "requestTarget", "method", "requestHeaders", "body"]
    + ["requestId", "statusCode", "statusDescription", "responseHeaders", "token", "port"]
)
COMMANDS = st.dictionaries(
    st.sampled_from(["accept", "request", "response", "renewToken", "x"]),
    st.one_of(JSON, st.dictionaries(FIELDS, st.one_of(JSON, st.dictionaries(FIELDS, JSON)))),
    max_size=2,
)


@given(text=st.one_of(st.text(alphabet=st.characters(codec=None, exclude_categories=())), COMMANDS.map(json.dumps)))
@example('{"response":' + "[" * 200_000)
def test_parser_reads_any_text_or_raises_invalid_message(text: str) -> None:
    for parse in (parse_from_relay, parse_from_listener):
        try:
            command = parse(text)
        except InvalidMessage:
            continue
        if command is not None:
            assert type(parse(encode(command))) is type(command)
        if isinstance(command, Response):
            assert 100 <= command.status_code <= 999
            assert (command.status_description or "x").isprintable()
            for name, value in command.headers:
                (name + value).encode()
                assert not set("\r\n\0") & set(name + value)


@pytest.mark.parametrize("text", ['{"a":[' + "0," * 5_000 + "0]}", '{"a":"' + "," * 4_097 + '"}'])
def test_command_of_thousands_of_values_is_refused_unread(text: str) -> None:
    with pytest.raises(InvalidMessage, match="too many values"):
        parse_from_listener(text)


def test_command_may_hold_as_many_values_as_any_request_has_headers() -> None:
    headers = {f"h{n}": "a, b" for n in range(1_000)}
    response = parse_from_listener(
        json.dumps({"response": {"requestId": "x", "statusCode": 200, "responseHeaders": headers}})
    )
    assert isinstance(response, Response) and len(response.headers) == 1_000


@given(
    st.builds(
        Request,
        address=st.text(),
        id=st.text(),
        request_target=st.none() | st.text(),
        method=st.none() | st.text(),
        request_headers=st.dictionaries(st.text(), st.text()),
        remote_endpoint=st.none() | st.builds(RemoteEndpoint, st.text(), st.integers(0, 65_535)),
        body=st.none() | st.booleans(),
    )
)
def test_request_is_the_json_that_the_library_would_make(request: Request) -> None:
    inner: dict[str, object] = {"address": request.address, "id": request.id} if request.address else {"id": request.id}
    if request.method is not None:
        inner |= {
            "requestTarget": request.request_target,
            "method": request.method,
            "requestHeaders": request.request_headers,
            "body": bool(request.body),
        }
        if request.remote_endpoint is not None:
            remote = request.remote_endpoint
            inner["remoteEndpoint"] = {"address": remote.address, "port": remote.port}
    assert encode(request) == json.dumps({"request": inner}, separators=(",", ":"))
