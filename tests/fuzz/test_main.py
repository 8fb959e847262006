from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.program import environment
from fuzz import __main__ as fuzz
from fuzz.targets import TARGETS

TESTS = Path(__file__).parent.parent


def fuzzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=TESTS, env=environment(), capture_output=True, text=True
    )


@pytest.mark.slow
def test_fuzzer_tries_many_inputs_and_is_guided_by_the_paths_that_they_take() -> None:
    done = fuzzed("--seconds", "2", "address")
    assert done.returncode == 0, done.stderr
    if find_spec("atheris") is None:
        assert "hypothesis alone" in done.stdout
    else:
        found = re.search(r"^address +(\d+) inputs, +(\d+) paths$", done.stdout, re.MULTILINE)
        assert found, done.stdout
        assert int(found[1]) > 100
        assert int(found[2]) > 20, "nothing is watched"


def test_fuzzer_refuses_a_target_that_is_not_there() -> None:
    done = fuzzed("nothing")
    assert done.returncode == 2
    assert "there is no target nothing; there are token, " in done.stderr


def test_fuzzer_without_atheris_is_a_failure_where_it_could_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "version_info", (3, 13))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CI", "true")
    assert fuzz.main(["token"]) == 1
    assert capsys.readouterr().err.startswith("fuzz: atheris is not installed")


def test_fuzzer_without_atheris_lets_hypothesis_try_the_targets(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "find_spec", lambda name: None)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setenv("CI", "true")
    assert fuzz.without_atheris([TARGETS["address"]]) == 0
    said = capfd.readouterr().out
    assert "no atheris here" in said and "3 passed" in said


def test_words_of_a_dictionary_are_written_byte_by_byte() -> None:
    assert fuzz.escaped(b'a"\xff') == "\\x61\\x22\\xff"
