"""Who may use the admin port: the token, the Host header, and the file mode of token and socket."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path

import pytest

from trunkline.protocol.errors import InvalidSetting
from trunkline.server.admin.doors import (
    TOKEN_FILE,
    bears,
    bind_socket,
    is_loopback,
    is_meant_for,
    read_token,
    socket_path,
    token_of,
)
from trunkline.server.config.settings import NodeSettings
from trunkline.server.relay.request_head import RequestHead

TOKEN = "correct-horse-battery"


def settings(**values: object) -> NodeSettings:
    return NodeSettings.model_validate(values)


def head(**headers: str) -> RequestHead:
    return RequestHead("GET", "/", tuple(headers.items()))


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


# -- the token


def test_token_is_made_once_and_kept_for_the_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        token = token_of(settings(data=tmp_path))
    finally:
        os.umask(mask)
    file = tmp_path / TOKEN_FILE
    assert len(token) >= 40 and file.read_text() == token + "\n"
    assert mode(file) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [TOKEN_FILE]
    # A volume whose files the system opens to a group: what is there is used, and closed to others.
    file.chmod(0o664)
    assert token_of(settings(data=tmp_path)) == token
    assert mode(file) == 0o600


def test_setting_is_the_token_and_no_file_is_made(tmp_path: Path) -> None:
    assert token_of(settings(data=tmp_path, admin_token=TOKEN)) == TOKEN
    assert list(tmp_path.iterdir()) == []


def test_node_without_a_data_folder_has_a_token_that_nobody_knows(tmp_path: Path) -> None:
    without = settings(data=tmp_path / "none")
    assert token_of(without) != token_of(without)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"caf\xc3\xa9-caf\xc3\xa9\n"])
def test_file_without_a_token_is_told_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / TOKEN_FILE).write_bytes(content)
    with pytest.raises(InvalidSetting, match="holds no token: remove it") as caught:
        read_token(tmp_path / TOKEN_FILE)
    assert content == b"" or content.decode().strip() not in caught.value.message or not content.strip()


def test_token_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / TOKEN_FILE).mkdir()
    with pytest.raises(InvalidSetting, match="admin-token cannot be used"):
        token_of(settings(data=tmp_path))


@pytest.mark.parametrize(
    ("authorization", "taken"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer   {TOKEN} ", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer", False),
        ("Bearer caf\xe9", False),
        ("", False),
    ],
)
def test_request_bears_the_whole_token_or_none(authorization: str, taken: bool) -> None:
    assert bears(head(Authorization=authorization), TOKEN) is taken


def test_request_without_a_header_bears_no_token() -> None:
    assert not bears(head(), TOKEN)
    assert not bears(RequestHead("GET", "/", (("Authorization", f"Bearer {TOKEN}"),) * 2), TOKEN)


# -- the port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "relay.localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "localhost.example", "127.0.0.1.example"])
def test_anything_else_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("127.0.0.1:8081", True),
        ("[::1]:8081", True),
        ("localhost", True),
        ("192.0.2.7:8081", True),
        ("rebound.example:8081", False),
        ("127.0.0.1.rebound.example", False),
        ("user@localhost", False),
        ("", False),
    ],
)
def test_web_page_cannot_hide_the_name_by_which_it_reaches_the_port(host: str, meant: bool) -> None:
    assert is_meant_for(head(Host=host), "192.0.2.7") is meant


# -- the socket


def test_socket_is_in_the_data_folder_or_where_the_setting_says(tmp_path: Path) -> None:
    assert socket_path(settings(data=tmp_path)) == tmp_path / "admin.sock"
    assert socket_path(settings(data=tmp_path, admin_socket=str(tmp_path / "other"))) == tmp_path / "other"
    assert socket_path(settings(data=tmp_path, admin_socket="off")) is None


def test_socket_is_for_the_owner_alone_before_anybody_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    mask = os.umask(0)
    try:
        bound = bind_socket(path)
    finally:
        os.umask(mask)
    assert bound is not None
    with bound:
        assert mode(path) == 0o600
        with socket.socket(socket.AF_UNIX) as caller, pytest.raises(ConnectionRefusedError):
            caller.connect(str(path))


def test_socket_that_a_dead_node_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = bind_socket(path)
    assert first is not None
    first.close()
    assert path.is_socket()
    second = bind_socket(path)
    assert second is not None
    with second, socket.socket(socket.AF_UNIX) as caller:
        second.listen()
        caller.connect(str(path))


def test_socket_of_a_living_node_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    first = bind_socket(path)
    assert first is not None
    with first:
        first.listen(0)
        with pytest.raises(InvalidSetting, match="Another node answers"):
            bind_socket(path)
        # Also when its queue is full.
        callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(str(path))
        with pytest.raises(InvalidSetting, match="Another node answers"):
            bind_socket(path)
        for caller in callers:
            caller.close()


def test_file_in_the_way_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("mine")
    with pytest.raises(InvalidSetting, match="is no socket"):
        bind_socket(path)
    assert path.read_text() == "mine"


def test_path_that_is_too_long_for_the_system_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ("long" * 40)
    with caplog.at_level(logging.WARNING):
        assert bind_socket(path) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"no admin socket at {path} (AF_UNIX path too long); the admin port is there"
    ]
