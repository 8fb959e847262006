"""Whose data folder it is: an emulator's keys are known to everybody, so its entities never meet those of a real node.

Without this, one start of the emulator in the folder of a node would leave a namespace there that the node serves from
then on, wherever it listens, to whoever knows the emulator's keys.
"""

from __future__ import annotations

from pathlib import Path

import typer

from trunkline.cli.failure import usage
from trunkline.server.entities.administration import Administration
from trunkline.server.entities.model import Namespace
from trunkline.server.entities.sqlite import SqliteStore

#: The namespace of every emulator, and what its entities remember as the file that made them.
NAMESPACE = "emulator"
ORIGIN = "emulator"


def emulator_folder() -> Path:
    """The data folder of an emulator that was told of no other."""
    return Path(typer.get_app_dir("trunkline")) / "emulator"


async def check_is_for_emulator(folder: Path) -> None:
    """Raises Failure when `folder` holds what an emulator did not make."""
    others = [each.name for each in await _namespaces(folder) if not _is_emulators(each)]
    if others:
        raise usage(
            f"The data folder {folder} belongs to another node: it holds the namespace {', '.join(others[:3])}",
            "name another one with --data: the emulator's keys are well known, and would stay there",
        )


async def check_is_for_node(folder: Path) -> None:
    """Raises Failure when `folder` is that of an emulator."""
    if any(_is_emulators(each) for each in await _namespaces(folder)):
        raise usage(
            f"The data folder {folder} belongs to an emulator, whose keys are well known",
            "name another one with --data, or data in the [node] table",
        )


def _is_emulators(namespace: Namespace) -> bool:
    return namespace.origin == ORIGIN and namespace.name == NAMESPACE


async def _namespaces(folder: Path) -> tuple[Namespace, ...]:
    file = folder / "entities.db"
    if not file.exists():
        return ()
    store = SqliteStore(file, read_only=True)
    try:
        return await Administration(store).namespaces()
    finally:
        await store.close()
