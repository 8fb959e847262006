"""`trunkline doctor` as a command: its lines, its exit status, and ways through proxies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from cli.program import Program, trunkline
from proxy_servers import http_proxy, socks_proxy
from trunkline.cli.diagnosis import Step
from trunkline.cli.doctor import CHECKS, show_step, verdict
from trunkline.testing import RelayNodeThread

Access = Callable[[str], dict[str, str]]


def test_healthy_way_is_one_line_for_each_step_and_exit_status_0(access: Access) -> None:
    with Program("listen", env=access("Listen")) as listener:
        listener.wait_for("listening on")
        done = trunkline("doctor", "--connect", env=access("Send"))
        assert done.returncode == 0 and done.stderr == b""
        assert listener.wait_for("connected: ")
    lines = done.stdout.decode().splitlines()
    assert lines[-1].startswith("sb://") and lines[-1].endswith(": works")
    assert [line[8:26].strip() for line in lines[:-2]] == list(CHECKS)
    assert {line[:8].strip() for line in lines[:-2]} == {"ok", "skipped"}
    assert re.search(r"^ok +tls +TLSv1.3; .* \[[0-9.]+ ms\]$", done.stdout.decode(), re.MULTILINE)


def test_failed_step_is_named_with_its_remedy_and_exit_status_1(access: Access) -> None:
    done = trunkline("doctor", env=access("Send"))
    assert done.returncode == 1 and done.stderr == b""
    *_, failed, remedy, empty, last = done.stdout.decode().splitlines()
    assert failed.startswith("failed  listener          nobody listens") and empty == ""
    assert remedy.strip() == "remedy: start a listener: trunkline listen"
    assert last.endswith(": listener failed")


def test_steps_as_json_hold_figures_and_no_key(access: Access) -> None:
    both = access("Listen")
    done = trunkline("doctor", "--json", env=both)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["ok"] is True and found["address"].startswith("sb://127.0.0.1:")
    assert [step["step"] for step in found["steps"]] == list(CHECKS)
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["tls"]["version"] == "TLSv1.3" and steps["tcp"]["ms"] > 0
    assert steps["token"]["rule"] == "listen" and steps["token"]["send"] is False
    key = both["TRUNKLINE_CONNECTION_STRING"].partition("SharedAccessKey=")[2].partition(";")[0]
    assert key.encode() not in done.stdout and b"sig" not in done.stdout
    done = trunkline("doctor", "--json", env={**both, "TRUNKLINE_CA_FILE": ""})
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["ok"] is False
    assert found["steps"][-1]["step"] == "tls" and found["steps"][-1]["state"] == "failed"


def test_warnings_leave_exit_status_0(relay: RelayNodeThread, entity: str) -> None:
    env = {"TRUNKLINE_CONNECTION_STRING": relay.connection_string(entity), "TRUNKLINE_CA_FILE": str(relay.ca_file)}
    done = trunkline("doctor", env=env)
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "warned  token " in text and "warned  listener " in text and "ok      round trip " in text
    assert text.endswith(": works, with 2 warnings\n")


def test_way_through_a_proxy_of_the_option_or_the_environment(relay: RelayNodeThread, access: Access) -> None:
    with socks_proxy("ada:s3cret") as proxy:
        for options, env in ((("--proxy", proxy.url), {}), ((), {"HTTPS_PROXY": proxy.url})):
            done = trunkline("doctor", *options, env={**access("Listen"), **env})
            assert done.returncode == 0, done.stdout
            assert (
                f"ok      proxy             {proxy.address} connects to 127.0.0.1:{relay.port}" in done.stdout.decode()
            )
            assert b"s3cret" not in done.stdout
        assert proxy.connections_to(relay.port) > 6
    with http_proxy("ada:s3cret") as proxy:
        done = trunkline("doctor", "--proxy", proxy.with_credentials("ada:hush"), env=access("Listen"))
        assert done.returncode == 1 and b": proxy failed" in done.stdout and b"407" in done.stdout
        assert b"hush" not in done.stdout
        env = {**access("Listen"), "HTTPS_PROXY": proxy.with_credentials("ada:hush"), "NO_PROXY": "127.0.0.0/8"}
        done = trunkline("doctor", env=env)
        assert done.returncode == 0 and b"skipped proxy             none" in done.stdout


def test_wrong_usage_is_said_before_anything_is_looked_at(access: Access) -> None:
    for options, env in (
        (("--timeout", "0"), access("Send")),
        (("--proxy", "ftp://p"), access("Send")),
        ((), {"TRUNKLINE_CONNECTION_STRING": "nonsense"}),
    ):
        done = trunkline("doctor", *options, env=env)
        assert done.returncode == 2 and done.stdout == b"" and done.stderr.startswith(b"error: ")


def test_last_line_counts_warnings_and_names_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(None, 0) == "works"
    assert verdict(None, 1) == "works, with 1 warning"
    assert verdict(Step("tls", "failed", "x"), 2) == "tls failed"
    show_step(Step("dns", "ok", "found", facts={"ms": 2.0}))
    assert capsys.readouterr().out == "ok      dns               found [2 ms]\n"
