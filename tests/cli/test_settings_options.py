"""The settings table as options."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.cli import application
from trunkline.cli.failure import Failure
from trunkline.cli.settings_options import flags
from trunkline.protocol.limits import LIMITS
from trunkline.server.config.settings import SETTINGS


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    app: Any = application(command)
    app(args=[command, "--help"], prog_name="trunkline", standalone_mode=False)
    return " ".join(capsys.readouterr().out.split())


def test_every_setting_is_an_option_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("serve", capsys)
    for setting in SETTINGS.values():
        assert f" {setting.flag} " in text
        assert "[default: " in text.partition(f" {setting.flag} ")[2]


def test_unit_of_a_limit_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("emulator", capsys)
    assert "--idle-timeout SECONDS" in text
    assert "--max-senders NUMBER" in text
    assert "--frame-limit BYTES" in text
    assert "--listener-policy active-standby|round-robin|balanced" in text
    assert "--preset default|azure" in text
    assert all(SETTINGS[name].flag in text for name in LIMITS)


def test_options_become_settings() -> None:
    assert flags({"port": "1", "tls": None}) == {"port": "1", "tls": None}
    files = {"certificate": "a.pem", "key": "b.pem"}
    assert flags({"tls": None, "tls_certificate": "a.pem", "tls_key": "b.pem"})["tls"] == files


@pytest.mark.parametrize(
    "used",
    [
        {"tls_certificate": "a"},
        {"tls_key": "b"},
        {"tls": "off", "tls_certificate": "a", "tls_key": "b"},
    ],
)
def test_options_for_tls_that_contradict_each_other(used: dict[str, str]) -> None:
    with pytest.raises(Failure) as caught:
        flags(used)
    assert caught.value.status == 2
