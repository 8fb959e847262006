"""The rule about programs that others wrote and tests need.

Where one is missing, its tests are skipped with one line that says so. In CI it has to be there, and they fail with it.
"""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

T = TypeVar("T")


def required(found: T | None, missing: str) -> T:
    """`found`, unless it is None: then the test ends here.

    Args:
        found: the program, or whatever stands for it.
        missing: what the tests need, and where it comes from.
    """
    if found is not None:
        return found
    if os.environ.get("CI"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)
