"""The browser of these tests."""

from __future__ import annotations

import pytest

from browser.chromium import Program, find_chromium
from required_program import required


@pytest.fixture(scope="session")
def chromium() -> Program:
    """The browser. In CI it must be there; elsewhere these tests are skipped."""
    return required(
        find_chromium(), "the browser tests need Chromium, or Linux on x86-64 with Node 18 or newer and npm"
    )
