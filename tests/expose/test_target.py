"""What a person types for a target."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from trunkline.expose.target import Target, parse_target, tls_settings
from trunkline.protocol.errors import InvalidSetting


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://localhost:3000", Target("http", "localhost", 3000)),
        ("http://localhost:3000/", Target("http", "localhost", 3000)),
        (" localhost:3000 ", Target("http", "localhost", 3000)),
        ("3000", Target("http", "localhost", 3000)),
        (":3000", Target("http", "localhost", 3000)),
        ("printer.lan", Target("http", "printer.lan", 80)),
        ("HTTPS://Nas.lan", Target("https", "nas.lan", 443)),
        ("https://nas.lan:8443/app/", Target("https", "nas.lan", 8443, "/app")),
        ("http://nas.lan/a b/ä", Target("http", "nas.lan", 80, "/a%20b/%C3%A4")),
        ("http://nas.lan/a%2Fb", Target("http", "nas.lan", 80, "/a%2Fb")),
        ("http://[::1]:3000", Target("http", "::1", 3000)),
        ("unix:/run/app.sock", Target("http", "localhost", 80, unix_socket="/run/app.sock")),
        ("unix:///run/a%20b.sock", Target("http", "localhost", 80, unix_socket="/run/a b.sock")),
    ],
)
def test_target_is_read_as_a_person_means_it(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://host/",
        "http://",
        "http://host:99999",
        "http://host:0",
        "http://host:port",
        "http://[::1",
        "unix:",
        "http://host/?query",
        "http://host/#part",
        "http://ada:secret@host/",
        "http://ada@host/",
    ],
)
def test_what_is_no_target_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(InvalidSetting) as failure:
        parse_target(text)
    assert "secret" not in failure.value.message


@pytest.mark.parametrize(
    ("text", "authority", "shown"),
    [
        ("http://host:80", "host", "http://host"),
        ("https://host:443/x", "host", "https://host/x"),
        ("http://host:443", "host:443", "http://host:443"),
        ("http://[::1]:8080", "[::1]:8080", "http://[::1]:8080"),
        ("unix:/run/a.sock", "localhost", "unix:/run/a.sock"),
    ],
)
def test_target_knows_its_host_and_how_it_is_shown(text: str, authority: str, shown: str) -> None:
    target = parse_target(text)
    assert target.authority == authority
    assert str(target) == shown


@pytest.mark.parametrize("path", ["/", "/a%2Fb", "/a/../b", "//a", "/%7euser", "/x?a=%20&b=+c&&", "/x?a=1?b"])
def test_path_travels_byte_for_byte(path: str) -> None:
    assert Target("http", "host", 3000, "/app").url(path).raw_path_qs == f"/app{path}"


def test_certificate_is_checked_unless_told_otherwise(tmp_path: Path) -> None:
    assert tls_settings(insecure=False, ca=None) is True
    assert tls_settings(insecure=True, ca=None) is False
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    assert isinstance(tls_settings(insecure=False, ca=str(file)), ssl.SSLContext)
    file.write_text("no certificate")
    with pytest.raises(InvalidSetting, match="PEM"):
        tls_settings(insecure=False, ca=str(file))
    with pytest.raises(InvalidSetting, match="cannot be read"):
        tls_settings(insecure=False, ca=str(tmp_path / "none"))
