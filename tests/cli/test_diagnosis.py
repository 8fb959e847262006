"""What a step is, and the way on which its connections go."""

from __future__ import annotations

import asyncio

import pytest

from trunkline.cli import credentials
from trunkline.cli.diagnosis import Step, Subject, connect_to, in_words, run_check, subject_of
from trunkline.protocol.errors import InvalidSetting, NoListener

TEXT = "Endpoint=sb://relay.example:8443/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0;EntityPath=a"


def subject(text: str = TEXT, *, proxy: str | None = None, timeout: float = 5) -> Subject:
    return subject_of(credentials.read(text, None, None, True, proxy), timeout=timeout)


def test_step_shows_no_secret_and_is_one_line() -> None:
    step = Step("token", "failed", "it\nsays SharedAccessSignature sr=a&sig=hush&se=1&skn=b", "try again", {"ms": 1.5})
    assert step.text == "it says SharedAccessSignature=***"
    assert step.as_json() == {
        "step": "token",
        "state": "failed",
        "text": step.text,
        "remedy": "try again",
        "ms": 1.5,
    }


def test_subject_is_what_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = subject()
    assert (found.host, found.port, found.endpoint.path, found.proxy) == ("relay.example", 8443, "a", None)
    assert subject(TEXT.replace(":8443", "")).port == 80
    monkeypatch.setenv("HTTP_PROXY", "http://ada:hush@p:1")
    assert str(subject().proxy) == "http://p:1" and "hush" not in repr(subject()) and "c2VjcmV0" not in repr(subject())
    assert subject(proxy="").proxy is None
    with pytest.raises(InvalidSetting):
        subject(proxy="ftp://p")


async def test_what_a_check_does_not_explain_becomes_its_failure() -> None:
    async def refused(_: Subject) -> Step:
        raise ConnectionRefusedError(111, "Connect call failed")

    async def nobody(_: Subject) -> Step:
        raise NoListener

    async def waits(_: Subject) -> Step:
        await asyncio.Event().wait()
        raise AssertionError

    async def skips(_: Subject) -> Step:
        return Step("dns", "skipped", "nothing to do")

    step = await run_check("tcp", refused, subject())
    assert (step.name, step.state, step.text) == ("tcp", "failed", "Connection refused")
    assert step.remedy
    assert (await run_check("listener", nobody, subject())).remedy == "start a listener first: trunkline listen"
    assert (await run_check("tls", waits, subject(timeout=0.01))).text == "no answer within 0.01 s"
    assert "ms" not in (await run_check("dns", skips, subject())).facts


async def test_answer_is_read_to_its_end_and_not_for_ever() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1_000_000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = subject(TEXT.replace("relay.example:8443", f"127.0.0.1:{port}"))
    found.address = "127.0.0.1"
    answer = await found.get(None)
    assert answer.startswith(b"HTTP/1.1 200 OK") and 60_000 < len(answer) < 200_000
    assert asked[0].startswith(b"GET /$hc/a?sb-hc-action=connect HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)
    assert b"c2VjcmV0" not in asked[0] and b"sig" not in asked[0]
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await connect_to("127.0.0.1", port)


def test_milliseconds_are_told_with_two_digits_that_count() -> None:
    assert [in_words(ms) for ms in (0.254, 1.26, 12.34, 1234.56)] == ["0.25 ms", "1.3 ms", "12.3 ms", "1234.6 ms"]
