"""The folder of an emulator and that of a node are never the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.program import failure_of, trunkline
from trunkline.cli.data_folder import check_is_for_emulator, check_is_for_node
from trunkline.cli.emulator import declare
from trunkline.cli.failure import USAGE, Failure
from trunkline.server.config.declarative import Declaration, DeclaredNamespace
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.declaration import apply
from trunkline.server.entities.sqlite import SqliteStore


async def fill(folder: Path, declaration: Declaration) -> None:
    store = SqliteStore(folder / "entities.db")
    await apply(Administration(store), declaration)
    await store.close()


async def test_new_folder_is_for_anybody(tmp_path: Path) -> None:
    await check_is_for_emulator(tmp_path / "missing")
    await check_is_for_node(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


async def test_folder_of_an_emulator_is_for_emulators_alone(tmp_path: Path) -> None:
    await fill(tmp_path, declare(["orders"]))
    await check_is_for_emulator(tmp_path)
    with pytest.raises(Failure, match="belongs to an emulator") as caught:
        await check_is_for_node(tmp_path)
    assert caught.value.status == USAGE


# The second has the emulator's name, and was made by somebody's file all the same.
@pytest.mark.parametrize("name", ["production", "emulator"])
async def test_folder_of_a_node_is_for_nodes_alone(tmp_path: Path, name: str) -> None:
    await fill(tmp_path, Declaration("trunkline.toml", (DeclaredNamespace(name),)))
    await check_is_for_node(tmp_path)
    with pytest.raises(Failure, match=f"it holds the namespace {name}") as caught:
        await check_is_for_emulator(tmp_path)
    assert caught.value.status == USAGE


async def test_commands_refuse_the_folder_of_the_other_and_leave_it_as_it_was(tmp_path: Path) -> None:
    await fill(tmp_path / "node", Declaration("trunkline.toml", (DeclaredNamespace("production"),)))
    ports = ("--port", "0", "--admin-port", "0")
    said = failure_of("emulator", *ports, "--data", str(tmp_path / "node"), status=USAGE)
    assert "name another one with --data" in said
    await check_is_for_node(tmp_path / "node")

    done = trunkline("emulator", "--demo", "--once", *ports, "--data", str(tmp_path / "emulator"))
    assert done.returncode == 0, done.stderr
    said = failure_of("serve", *ports, "--data", str(tmp_path / "emulator"), status=USAGE)
    assert "whose keys are well known" in said
