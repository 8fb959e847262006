from __future__ import annotations

import os
from pathlib import Path

import pytest

from trunkline.server.entities.ownership import Ownership
from trunkline.server.entities.store import StoreError, StoreLocked


def test_file_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first = Ownership(tmp_path / "a.db")
    with pytest.raises(StoreLocked, match=f"a.db is in use by process {os.getpid()}"):
        Ownership(tmp_path / "a.db")
    other = Ownership(tmp_path / "b.db")
    first.release()
    first.release()
    again = Ownership(tmp_path / "a.db")
    again.release()
    other.release()


def test_lock_that_a_dead_process_left_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.db.lock").write_text("999999999 and more")
    owner = Ownership(tmp_path / "a.db")
    assert (tmp_path / "a.db.lock").read_text() == str(os.getpid())
    owner.release()


def test_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a.db.lock cannot be made: No such file"):
        Ownership(tmp_path / "none" / "a.db")
