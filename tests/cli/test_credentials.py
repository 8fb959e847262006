"""One rule for credentials in every command."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.program import Program, failure_of
from proxy_servers import http_proxy, socks_proxy
from trunkline.cli.credentials import read
from trunkline.cli.failure import Failure
from trunkline.protocol.errors import InvalidConnectionString

TEXT = "Endpoint=sb://relay.example.com/;SharedAccessKeyName=all;SharedAccessKey=c2VjcmV0"


def test_hybrid_connection_from_the_option_or_the_text() -> None:
    assert read(TEXT, "/a/b/", None, True).entity == "a/b"
    assert read(f"{TEXT};EntityPath=c", None, None, True).address == "sb://relay.example.com/c"
    assert "c2VjcmV0" not in repr(read(TEXT, "a", None, True))


@pytest.mark.parametrize(("text", "entity"), [(None, "a"), ("", "a"), (TEXT, None), (f"{TEXT};EntityPath=c", "d")])
def test_what_is_missing_or_contradicts_itself_is_a_usage_error(text: str | None, entity: str | None) -> None:
    with pytest.raises(Failure) as caught:
        read(text, entity, None, False)
    assert caught.value.status == 2 and caught.value.remedy


def test_text_that_is_no_connection_string() -> None:
    with pytest.raises(InvalidConnectionString):
        read("c2VjcmV0", "a", None, False)


def test_authority_is_loaded_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("none.pem", "empty.pem", "."):
        with pytest.raises(Failure, match=str(tmp_path)):
            read(TEXT, "a", tmp_path / name, False)
    assert read(TEXT, "a", tmp_path / "none.pem", True).ssl is False


def test_error_of_the_network_names_the_relay() -> None:
    for error, remedy in ((OSError(113, "No route to host"), "host and port"), (ssl.SSLError(1, "x"), "speaks TLS")):
        with pytest.raises(Failure, match="sb://relay.example.com/a cannot be reached") as caught:
            with read(TEXT, "a", None, True).reaching():
                raise error
        assert remedy in caught.value.remedy


def test_commands_go_through_a_proxy_of_the_option_or_of_the_environment(
    access: Callable[[str], dict[str, str]],
) -> None:
    with socks_proxy("ada:s3cret") as socks, http_proxy("ada:s3cret") as http:
        with Program("listen", "--once", env={**access("Listen"), "HTTPS_PROXY": socks.url}) as listener:
            listener.wait_for("listening on")
            with Program("connect", "--proxy", http.url, env=access("Send")) as sender:
                assert sender.finish(b"hello") == b"hello"
            assert listener.end() == 0
        assert socks.log().count("socks5 ") == 2 and "CONNECT" in http.log()
        said = failure_of("connect", "--proxy", http.with_credentials("ada:hush"), env=access("Send"), status=1)
        assert f"The proxy {http.address} refuses the user name and password (407)" in said
        assert "remedy: give the user name and password within the address" in said and "hush" not in said
    assert f"The proxy {http.address} cannot be reached: Connection refused" in failure_of(
        "connect", "--proxy", http.url, env=access("Send"), status=1
    )
    assert "socks4://" in failure_of("connect", "--proxy", "socks4://ada:hush@p", env=access("Send"), status=2)


def test_proxy_is_not_shown() -> None:
    assert "hush" not in repr(read(TEXT, "a", None, True, "http://ada:hush@p"))
