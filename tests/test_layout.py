"""Where things are: each source file has its tests, names say what is in a file, and files stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "trunkline"
TESTS = ROOT / "tests"

SOURCES = sorted(SOURCE.rglob("*.py"))
#: Source files that tests/ does not mirror, and where they are tested instead.
TESTED_ELSEWHERE = {
    "__init__.py": "tests/test_exports.py",
    "_version.py": "tests/test_exports.py",
    # Everything else in sdk/ is tested with a clock of the test; the real one shows only over real sockets.
    "sdk/clock.py": "tests/e2e/test_sdk_listener.py",
    # Only what others fill in and read.
    "expose/report.py": "tests/expose/test_forwarder.py",
    # It only carries bytes to the machine of protocol/control_channel and runs its commands; seen through the listener.
    "sdk/control_channel.py": "tests/sdk/test_listener.py",
}
#: Modules that the map of their package leaves out, because one neighbour alone uses them.
NOT_ON_THE_MAP = {
    "cli": {"demo", "event_loop"},
    "entities": {"ownership"},
    "protocol": {"transitions"},
    "sdk": {"clock", "receive_buffer"},
}
#: A name that does not say what is in the file.
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "tools"}
#: Lines of a source file. Readers get lost in longer ones.
LONGEST = 700
#: Lines of the docstring that opens a package.
LONGEST_MAP = 24

#: What Python files and documents are looked through for names.
FOLDERS = [folder for folder in ("src", "tests", "examples", "benchmarks", "docs") if (ROOT / folder).exists()]
PYTHON_FILES = sorted(
    file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "node_modules" not in file.parts
)


def relative(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def mirrors_of(file: Path) -> list[Path]:
    """The files that mirror a source file: test_NAME.py and test_NAME_*.py in the same folder of tests/."""
    stem = file.parent.name if file.name == "__init__.py" else file.stem.strip("_")
    folder = TESTS / file.parent.relative_to(SOURCE)
    return [*folder.glob(f"test_{stem}.py"), *folder.glob(f"test_{stem}_*.py")]


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_source_file_has_its_tests(file: Path) -> None:
    name = relative(file)
    if name in TESTED_ELSEWHERE:
        assert (ROOT / TESTED_ELSEWHERE[name]).exists()
        return
    if file.name == "__init__.py" and not _has_code(file):
        return
    assert mirrors_of(file), f"the tests of {name} are missing"


def test_list_of_exceptions_names_only_files_that_exist() -> None:
    assert [name for name in TESTED_ELSEWHERE if not (SOURCE / name).exists()] == []


def test_exception_goes_when_the_file_has_its_tests() -> None:
    assert [name for name in TESTED_ELSEWHERE if mirrors_of(SOURCE / name)] == []


@pytest.mark.parametrize("file", PYTHON_FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_name_of_a_file_says_what_is_in_it(file: Path) -> None:
    assert not FORBIDDEN_NAMES & set(file.stem.removeprefix("test_").split("_"))


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_source_file_begins_with_its_docstring_and_is_not_too_long(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert ast.get_docstring(ast.parse(text)) or file.name == "_version.py"


@pytest.mark.parametrize("folder", sorted({file.parent for file in SOURCES}), ids=lambda folder: folder.name)
def test_package_opens_with_its_map(folder: Path) -> None:
    """The docstring of a package names its modules, of at most `LONGEST_MAP` lines."""
    document = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert document
    assert len(document.splitlines()) <= LONGEST_MAP
    if folder == SOURCE:  # what users read; ARCHITECTURE.md has the map
        return
    modules = {file.stem for file in folder.glob("*.py")} | {each.name for each in folder.iterdir() if each.is_dir()}
    modules = {name for name in modules if not name.startswith("_")}
    assert {name for name in modules if name not in document.replace("-", "_")} == NOT_ON_THE_MAP.get(
        folder.name, set()
    )


def _has_code(file: Path) -> bool:
    """Whether a module does more than import and document."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for each in body)
