"""One rule for credentials in every command."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

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
