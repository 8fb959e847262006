"""A token in a file: written at once and whole, renewed by the wall clock."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sdk.fake_clock import FakeClock
from trunkline.cli.failure import Failure
from trunkline.cli.token_file import LOOK_AT_THE_CLOCK, TRY_AGAIN, TokenFile, keep_fresh, until_next
from trunkline.sdk.tokens import Token


def test_file_holds_the_template_with_the_token_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "token.conf"
    path.write_text("old")
    path.chmod(0o644)
    file = TokenFile(path, template='proxy_set_header X "{token}"; # {other}')
    file.write(Token("SharedAccessSignature sr=a", 1.0))
    assert path.read_text() == 'proxy_set_header X "SharedAccessSignature sr=a"; # {other}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["token.conf"]
    assert "sr=a" not in repr(file)


def test_file_is_replaced_and_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "token"
    file = TokenFile(path)
    file.write(Token("first", 1.0))
    with path.open() as reader:  # opened before the second is written
        file.write(Token("second, and longer", 1.0))
        assert reader.read() == "first\n"
    assert path.read_text() == "second, and longer\n"


def test_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "token")
    TokenFile(link).write(Token("t", 1.0))
    assert link.is_symlink() and (tmp_path / "real" / "token").read_text() == "t\n"


def test_owner_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    # Only root can give files away; everybody else owns what he replaces.
    owner = (12_345, 54_321) if os.geteuid() == 0 else (os.geteuid(), path.stat().st_gid)
    os.chown(path, *owner)
    TokenFile(path).write(Token("t", 1.0))
    assert (path.stat().st_uid, path.stat().st_gid, path.read_text()) == (*owner, "t\n")


def test_what_cannot_be_written_is_refused_or_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no place for the token"):
        TokenFile(tmp_path / "token", template="nothing")
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(Failure, match="is no file"):
            TokenFile(path)
    with pytest.raises(FileNotFoundError):
        TokenFile(tmp_path / "none" / "token").write(Token("t", 1.0))
    path = tmp_path / "token"
    file = TokenFile(path)
    path.mkdir()  # meanwhile
    with pytest.raises(OSError):
        file.write(Token("t", 1.0))
    assert os.listdir(tmp_path) == ["token"]


# --- when ---


@pytest.mark.parametrize(
    ("passed", "every", "lifetime", "left"),
    [
        (0, 600, 3600, 600),
        (599, 600, 3600, 1),
        (600, 600, 3600, 0),
        (90_000, 600, 3600, -89_400),  # the computer slept
        (0, 3000, 3600, 1800),  # half of its life, at the latest
        (-1, 600, 3600, 0),  # the clock was set back
    ],
)
def test_next_write_is_due_by_the_wall_clock(passed: float, every: float, lifetime: float, left: float) -> None:
    assert until_next(1000, 1000 + passed, every=every, lifetime=lifetime) == left


class Tokens:
    """Makes numbered tokens, or fails as it is told."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.made = 0
        self.failure: Exception | None = None

    async def __call__(self) -> Token:
        if self.failure is not None:
            raise self.failure
        self.made += 1
        return Token(f"token {self.made}", self.clock.time() + 3600)


@asynccontextmanager
async def keeping(path: Path, tokens: Tokens, *, every: float = 600, command: str = "") -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        file = TokenFile(path, command=command)
        task = tasks.create_task(keep_fresh(file, tokens, every=every, lifetime=3600, clock=tokens.clock))
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_token_is_written_at_once_and_then_every_interval(tmp_path: Path) -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    path = tmp_path / "token"
    async with keeping(path, tokens):
        for number in (1, 2, 3):
            looks = 0
            while clock.now < 1000 + number * 600:
                assert await clock.wake() == LOOK_AT_THE_CLOCK
                assert path.read_text() == f"token {number}\n"
                clock.advance(LOOK_AT_THE_CLOCK)
                looks += 1
            assert looks == 600 / LOOK_AT_THE_CLOCK


async def test_computer_that_slept_gets_a_new_token_with_the_next_look(tmp_path: Path) -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    async with keeping(tmp_path / "token", tokens):
        await clock.wake()
        clock.epoch += 50_000  # the wall clock went on, timers did not
        await clock.wake()
        await clock.wake()
        assert tokens.made == 2
        clock.epoch -= 20_000  # set back: the token there is one of the future
        await clock.wake()
        await clock.wake()
        assert tokens.made == 3


async def test_failure_is_a_line_on_stderr_and_tried_again_while_the_old_token_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    path = tmp_path / "token"
    async with keeping(path, tokens):
        await clock.wake()
        tokens.failure = OSError(28, "No space left on device")
        clock.advance(600)
        await clock.wake()
        assert await clock.wake() == TRY_AGAIN
        assert path.read_text() == "token 1\n"
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == f"No space left on device; the token in {path} stays, and the next try is in 30 s"
        tokens.failure = None
        clock.advance(TRY_AGAIN)
        await clock.wake()
        await clock.wake()
        assert path.read_text() == "token 2\n"
        assert "wrote " in capsys.readouterr().err


async def test_first_failure_ends_it(tmp_path: Path) -> None:
    tokens = Tokens(FakeClock())
    tokens.failure = Failure("no key")
    with pytest.raises(Failure, match="no key"):
        await keep_fresh(TokenFile(tmp_path / "t"), tokens, every=600, lifetime=3600, clock=tokens.clock)


# --- the command ---


async def test_command_runs_after_each_write_and_its_failure_ends_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = FakeClock()
    tokens = Tokens(clock)
    log = tmp_path / "log"
    command = f'cat "$TRUNKLINE_TOKEN_FILE" >> {log}; exit 3'
    async with keeping(tmp_path / "token", tokens, command=command):
        await clock.wake()
        clock.advance(600)
        await clock.wake()
        await clock.wake()
        assert log.read_text() == "token 1\ntoken 2\n"
    assert capfd.readouterr().err.count("--exec failed: exit status 3; the token in") == 2


async def test_command_that_hangs_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = TokenFile(tmp_path / "token", command="exec sleep 60")
    async with asyncio.timeout(10):
        await file.run_command(0.05)
    assert "--exec failed: no end within 0.05 s" in capfd.readouterr().err
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(file.run_command())
        await asyncio.sleep(0.05)
        task.cancel()
