"""`trunkline token`: what it prints is taken by the node, as a header and in the query."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import quote

import pytest

from cli.program import failure_of, trunkline
from trunkline.cli.failure import Failure
from trunkline.cli.token import seconds
from trunkline.protocol import sas
from trunkline.testing import relay_node_thread


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("12h", 43_200), ("1D", 86_400), (" 3600 ", 3600), ("24h", 86_400)],
)
def test_duration_is_read(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0h", "-1h", "1.5h", "1 h", "h", "25h", "2d", "1w", "9" * 40, "١h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        seconds(text)
    assert caught.value.status == 2 and "--expires" in caught.value.remedy


def printed(connection_string: str, *options: str) -> str:
    done = trunkline("token", *options, env={"TRUNKLINE_CONNECTION_STRING": connection_string})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_token_is_taken_by_the_node_in_a_header_and_in_the_query(host: str) -> None:
    with relay_node_thread(host=host) as relay:
        token = printed(relay.connection_string(rights=["Listen"]), "--expires", "5m")
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        for headers, query in (({"ServiceBusAuthorization": token}, ""), ({}, f"&sb-hc-token={quote(token, safe='')}")):
            connection = http.client.HTTPConnection(relay.host, relay.port, timeout=10)
            connection.request("GET", f"/$hc/test?sb-hc-action=listen{query}", headers={**upgrade, **headers})
            assert connection.getresponse().status == 101
            connection.close()


def test_json_says_what_it_allows_and_until_when() -> None:
    text = "Endpoint=sb://relay.example.com:8443/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0"
    facts = json.loads(printed(text, "--entity", "orders", "--json"))
    assert facts["audience"] == "http://relay.example.com/orders" and facts["rule"] == "all"
    token = sas.parse(facts["token"])
    assert sas.signed_by(token, "c2VjcmV0")
    assert 3500 < token.expires_at - time.time() <= 3600


def test_connection_string_without_a_key_cannot_make_tokens() -> None:
    text = "Endpoint=sb://relay.example.com/;SharedAccessSignature=SharedAccessSignature sr=a&sig=b&se=1&skn=c"
    failure_of("token", "--connection-string", text, status=2)
