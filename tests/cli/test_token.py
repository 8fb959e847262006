"""`trunkline token`: what it prints is taken by the node, as a header and in the query."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from cli.program import Program, failure_of, trunkline, wrong_usage_of
from nginx_server import PASSES_UPGRADES, nginx
from trunkline.cli import run
from trunkline.cli.failure import Failure
from trunkline.cli.token import seconds
from trunkline.protocol import sas
from trunkline.testing import relay_node_thread

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30m", 1800), ("12h", 43_200), ("1D", 86_400), (" 3600 ", 3600), ("24h", 86_400)],
)
def test_duration_is_read(text: str, expected: int) -> None:
    assert seconds(text, "--expires") == expected


@pytest.mark.parametrize("text", ["", "0", "0h", "-1h", "1.5h", "1 h", "h", "25h", "2d", "1w", "9" * 40, "١h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(Failure) as caught:
        seconds(text, "--expires")
    assert caught.value.status == 2 and "--expires" in caught.value.remedy


def printed(connection_string: str, *options: str) -> str:
    done = trunkline("token", *options, env={"TRUNKLINE_CONNECTION_STRING": connection_string})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_token_is_taken_by_the_node_in_a_header_and_in_the_query(host: str) -> None:
    with relay_node_thread(host=host) as relay:
        token = printed(relay.connection_string(rights=["Listen"]), "--expires", "5m")
        for headers, query in (({"ServiceBusAuthorization": token}, ""), ({}, f"&sb-hc-token={quote(token, safe='')}")):
            connection = http.client.HTTPConnection(relay.host, relay.port, timeout=10)
            connection.request("GET", f"/$hc/test?sb-hc-action=listen{query}", headers={**UPGRADE, **headers})
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


TEXT = "Endpoint=sb://relay.example.com:8443/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0;EntityPath=orders"
ENVIRONMENT = {"TRUNKLINE_CONNECTION_STRING": TEXT}


# --- explaining ---


Explain = Callable[..., tuple[int, str]]


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Runs `--explain` in this process; gives exit status and output."""

    def explain(*options: str, input: str = "", connection_string: str = "") -> tuple[int, str]:
        monkeypatch.setenv("TRUNKLINE_CONNECTION_STRING", connection_string)
        monkeypatch.setattr("sys.stdin", io.StringIO(input))
        status = run(("token", "--explain", *options))
        output, errors = capsys.readouterr()
        assert errors == ""
        return status, output

    return explain


def signed(key: str = "c2VjcmV0", rule: str = "all") -> str:
    return sas.sign("http://relay.example.com/orders", rule, key, expires_at=int(time.time()) + 3600)


def test_token_is_explained_with_the_key_that_made_it(explain: Explain) -> None:
    token = signed()
    signature = sas.parse(token).signature
    for options, input in (((token,), ""), (("-",), f"{token}\n")):
        status, said = explain(*options, input=input, connection_string=TEXT)
        assert status == 0
        assert "audience    http://relay.example.com/orders\n" in said and "rule        all\n" in said
        assert "signature   fits the key of the rule all (connection string)\n" in said
        assert said.endswith("\nnothing is wrong with it\n") and signature not in said and quote(signature) not in said
    _, said = explain("-", input=token)
    assert "signature   not checked: no key was given" in said and "was not checked\n" in said


def test_wrong_token_is_explained_with_exit_status_1(explain: Explain) -> None:
    status, said = explain(f"Bearer {signed()}", connection_string=TEXT)
    assert status == 1
    assert "wrong       the word Bearer is in front" in said and "remedy: leave Bearer out" in said
    assert said.endswith("\na relay refuses it\n")
    status, said = explain(signed(), "--entity", "Orders", "--json")
    assert status == 0 and json.loads(said)["ok"] is True
    other = TEXT.replace("EntityPath=orders", "EntityPath=other")
    status, said = explain(signed(), "--json", connection_string=other)
    found = json.loads(said)
    assert status == 1 and found["ok"] is False
    assert "it is not for relay.example.com/other" in found["problems"][0]["what"]


def test_token_is_checked_with_the_keys_of_a_file(tmp_path: Path, explain: Explain) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(
        f"[node]\ndata = '{tmp_path}'\n"
        '[[namespace]]\nname = "first-one"\n[[namespace.hybrid_connection]]\nname = "orders"\n'
        '[[namespace.hybrid_connection.rule]]\nname = "send"\nrights = ["Send"]\n'
        'primary_key = "key-one"\nsecondary_key = "key-two"\n'
    )
    for key, which in (("key-one", "primary"), ("key-two", "secondary")):
        status, said = explain("-", "-c", str(file), input=signed(key, "send"))
        assert status == 0 and f"fits the key of the rule send of orders ({which})" in said
        assert key not in said


# --- kept in a file ---


def test_token_is_written_once_without_an_interval(tmp_path: Path) -> None:
    file = tmp_path / "token"
    done = trunkline("token", "--write", str(file), "--exec", f"cp {file} {file}.seen", env=ENVIRONMENT)
    assert done.returncode == 0 and done.stdout == b""
    assert sas.signed_by(sas.parse(file.read_text()), "c2VjcmV0")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (tmp_path / "token.seen").read_text() == file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_token_is_renewed_until_a_signal(tmp_path: Path, number: int) -> None:
    file = tmp_path / "token.conf"
    options = ("--every", "1s", "--expires", "10s", "--template", 'header "{token}";', "--exec", "echo again; false")
    with Program("token", "--write", str(file), *options, env=ENVIRONMENT) as program:
        said = program.wait_for("--exec failed: exit status 1", times=3)
        assert said.count(f"wrote {file}: good until ") >= 3
        assert program.read_line() == b"again\n"
        assert program.interrupt(number) == 0
    assert "Traceback" not in program.stderr
    text = file.read_text()
    assert text.startswith('header "SharedAccessSignature sr=') and text.endswith('";\n')
    assert sas.parse(text.split('"')[1]).expires_at > time.time()
    assert os.listdir(tmp_path) == ["token.conf"]


def test_data_folder_is_read_anew_for_each_token(tmp_path: Path) -> None:
    config = tmp_path / "trunkline.toml"

    def declare(key: str) -> None:
        text = (
            '[[namespace]]\nname = "tokens"\n[[namespace.rule]]\nname = "all"\nrights = ["Manage", "Listen", "Send"]\n'
        )
        (tmp_path / "new").write_text(f'[node]\ndata = "data"\n{text}primary_key = "{key}"\n')
        (tmp_path / "new").replace(config)

    file = tmp_path / "token"
    declare("key-one")
    with Program("token", "-c", str(config), "--write", str(file), "--every", "1s") as program:
        program.wait_for("wrote ")
        assert sas.signed_by(sas.parse(file.read_text()), "key-one")
        declare("key-two")
        program.wait_for("wrote ", times=3)
        assert sas.signed_by(sas.parse(file.read_text()), "key-two")
        config.write_text("nonsense")
        program.wait_for("stays, and the next try is in")
        assert sas.signed_by(sas.parse(file.read_text()), "key-two")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--every", "30m"), "--every means nothing without --write"),
        (("--exec", "true"), "--exec means nothing without --write"),
        (("--template", "{token}"), "--template means nothing without --write"),
        (("--write", "f", "--every", "1h"), "no shorter than the life of a token"),
        (("--write", "f", "--every", "2h", "--expires", "30m"), "no shorter than the life of a token"),
        (("--write", "f", "--every", "soon"), "--every soon is no duration"),
        (("--write", "f", "--template", "x"), "no place for the token"),
        (("--write", "f", "--json"), "go not together"),
        (("--write", "."), "is no file"),
        (("--explain", "x", "--write", "f"), "--write means nothing with --explain"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_CONNECTION_STRING", TEXT)
    assert said in wrong_usage_of("token", *options, capsys=capsys)


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    said = failure_of("token", "--write", str(tmp_path / "none" / "token"), env=ENVIRONMENT, status=1)
    assert str(tmp_path / "none") in said


def test_nginx_with_the_file_lets_senders_in_that_have_no_token(tmp_path: Path) -> None:
    file = tmp_path / "token.conf"
    with relay_node_thread() as relay:
        text = relay.connection_string(rights=["Send"])
        header = 'proxy_set_header ServiceBusAuthorization "{token}";'
        done = trunkline("token", "--write", str(file), "--template", header, env={"TRUNKLINE_CONNECTION_STRING": text})
        assert done.returncode == 0, done.stderr
        with nginx(relay.port, f"{PASSES_UPGRADES} include {file};") as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/$hc/test?sb-hc-action=connect", headers=UPGRADE)
            answer = connection.getresponse()
            assert (answer.status, answer.reason.partition(".")[0]) == (
                504,
                "There are no listeners connected for the endpoint",
            )
            connection.close()
