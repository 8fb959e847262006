"""The documents are true: what they name exists, what they show runs, and what is generated is up to date."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trunkline.cli import COMMANDS
from trunkline.protocol.errors import ERRORS
from trunkline.protocol.limits import LIMITS
from trunkline.sdk import Connection, HybridConnectionClient
from trunkline.server.config import declarative
from trunkline.server.config.settings import SETTINGS, load
from trunkline.server.logs import FIELDS, OPERATIONS
from trunkline.server.metrics import METRICS
from trunkline.testing import relay_node

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "examples").glob("*.md")))


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = generator()


# --- blocks of code ---


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    #: What the page says that it prints; None when it says nothing.
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page; one that follows a sentence ending in "prints:" is the output of the one before."""
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    for index, match in enumerate(found):
        output = None
        if index + 1 < len(found):
            between = text[match.end() : found[index + 1].start()]
            if between.rstrip().endswith("prints:") and found[index + 1][1] == "text":
                output = found[index + 1][2]
        yield Block(page_name(page), text.count("\n", 0, match.start()) + 1, match[1], match[2], output)


def blocks_of(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def test_every_block_of_code_says_its_language() -> None:
    assert [str(block) for page in PAGES for block in blocks(page) if not block.language] == []


PYTHON = blocks_of("python")
TEST_FILES = [block for block in PYTHON if block.text.startswith("# test_")]
PROGRAMS = [block for block in PYTHON if "asyncio.run(" in block.text]
FRAGMENTS = [block for block in PYTHON if block not in TEST_FILES and block not in PROGRAMS]


async def answer(connection: Connection) -> None:
    """Sends everything back, as a stream."""
    while data := await connection.read(65_536):
        connection.write(data)
        await connection.drain()


async def echo(connection: Connection) -> None:
    """Sends each message back, as `trunkline listen` does."""
    async for message in connection:
        await connection.send(message)


@pytest.mark.parametrize("page", sorted({block.page for block in PROGRAMS}))
@pytest.mark.loop("asyncio")
async def test_programs_of_a_page_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    """Those that are called a listener keep running while the others run; where there is none, an echo stands by."""
    async with relay_node("orders", tls=True) as node, node.listener() as listener, asyncio.TaskGroup() as tasks:
        programs = [block for block in PROGRAMS if block.page == page]
        if any(block.text.startswith("# listener") for block in programs):
            await listener.close()
        else:
            tasks.create_task(listener.serve(echo))
        environment = dict(
            os.environ, TRUNKLINE_CONNECTION_STRING=node.connection_string(), SSL_CERT_FILE=str(node.ca_file)
        )
        listeners = []
        try:
            for number, block in enumerate(programs):
                file = tmp_path / f"program{number}.py"
                file.write_text(block.text)
                process = await asyncio.create_subprocess_exec(
                    sys.executable, str(file), env=environment, stdout=subprocess.PIPE
                )
                assert process.stdout is not None
                if block.text.startswith("# listener"):
                    listeners.append(process)
                    assert await process.stdout.readline() == b"listening on orders\n"
                    continue
                output, _ = await asyncio.wait_for(process.communicate(), 30)
                assert process.returncode == 0
                assert output.decode() == block.output, str(block)
        finally:
            for process in listeners:
                process.kill()
                await process.wait()
            await listener.close()


@pytest.mark.parametrize("page", sorted({block.page for block in FRAGMENTS}))
async def test_fragments_of_a_page_run_in_their_order(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `connection_string` of a namespace, and `client` of a hybrid connection on which somebody answers."""
    names = ["echo", "rooms", "orders", "orders-2", "orders-3"]
    async with relay_node(names, tls=True) as node, asyncio.TaskGroup() as tasks:
        monkeypatch.setenv("SSL_CERT_FILE", str(node.ca_file))
        connection_string = node.connection_string("")
        monkeypatch.setenv("RELAY_CONNECTION_STRING", connection_string)  # as an application setting
        client = HybridConnectionClient(connection_string, entity_path="echo")
        namespace: dict[str, Any] = {"connection_string": connection_string, "client": client}
        listeners = [node.listener(name) for name in ("echo", "orders", "orders-2", "orders-3")]
        for listener in listeners:
            await listener.open()
            tasks.create_task(listener.serve(answer))
        try:
            for block in FRAGMENTS:
                if block.page != page:
                    continue
                code = compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
                result = eval(code, namespace)
                if inspect.iscoroutine(result):
                    await result
                if block.output is not None:
                    assert capsys.readouterr().out == block.output, str(block)
        finally:
            for listener in listeners:
                await listener.close()


@pytest.mark.parametrize("block", TEST_FILES, ids=str)
def test_test_files_of_a_page_pass(block: Block, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(block.text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout
    assert f"{block.text.count('def test_')} passed" in done.stdout


@pytest.mark.parametrize("block", blocks_of("toml"), ids=str)
def test_declarative_files_of_the_pages_are_right(block: Block) -> None:
    declaration = declarative.parse(block.text, "trunkline.toml")
    assert declaration.namespaces or declaration.node
    load(declaration)


# --- generated pages ---


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_page_is_what_the_code_says_now(name: str) -> None:
    """When this fails: `make docs`."""
    assert (DOCS / name).read_text(encoding="utf-8") == generate.PAGES[name]()


def test_generator_tells_which_page_has_drifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "errors.md").write_text("something else")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/errors.md has drifted: run `make docs`\n"


def test_every_setting_error_and_command_is_in_its_page() -> None:
    settings, errors, commands = ((DOCS / name).read_text() for name in ("settings.md", "errors.md", "cli.md"))
    assert [name for name in SETTINGS if f"| `{name}` |" not in settings] == []
    assert [name for name in LIMITS if f"| `{name}` |" not in settings] == []
    assert [kind.__name__ for kind in ERRORS if f"### {kind.__name__}\n" not in errors] == []
    assert [name for name in COMMANDS if f"## trunkline {name}\n" not in commands] == []


def test_every_metric_and_every_field_of_the_log_is_in_its_page() -> None:
    numbers, lines = ((DOCS / name).read_text() for name in ("metrics.md", "logs.md"))
    for metric in METRICS:
        assert f"| `{metric.name}` | {metric.kind} |" in numbers and f"| `{metric.dotted}` |" in numbers
        assert [name for name in (*metric.azure, *metric.label_names) if f"`{name}`" not in numbers] == []
    assert [each.name for each in OPERATIONS if f"| `{each.name}` |" not in lines] == []
    assert [name for name in FIELDS if f"| `{name}` |" not in lines] == []


_SELECTOR = re.compile(r"\b(relay_\w+?)(_bucket|_sum|_count)?(?:\{([^}]*)\})?(?![\w{])")


def test_alerts_ask_for_metrics_and_labels_that_there_are() -> None:
    by_name = {metric.name: metric for metric in METRICS}
    alerts = [block.text for block in blocks(DOCS / "metrics.md") if "alert:" in block.text]
    expressions = re.findall(r"expr: >\n((?: {10}.*\n)+)", "".join(alerts))
    assert len(expressions) == 5
    for expression in expressions:
        selectors = list(_SELECTOR.finditer(expression))
        assert selectors
        for name, suffix, matchers in (selector.groups() for selector in selectors):
            metric = by_name[name]
            assert (suffix is not None) == (metric.kind == "histogram"), name
            known = dict(metric.labels)
            for label, values in re.findall(r'(\w+)!?=~?"([\w|]*)"', matchers or ""):
                assert set(values.split("|")) <= set(known[label]), f"{name}: {label}={values}"
            for grouped in re.findall(r"by \(([^)]*)\)", expression):
                assert set(grouped.split(", ")) <= {*metric.label_names, "le"}, f"{name} by {grouped}"


def test_every_setting_is_a_flag_of_serve() -> None:
    """As the page of settings says."""
    help = generate.help_of("serve")
    assert [setting.flag for setting in SETTINGS.values() if f"{setting.flag} " not in help] == []


def test_something_reads_every_limit() -> None:
    source = ROOT / "src" / "trunkline"
    code = "".join(file.read_text() for file in source.rglob("*.py") if file.name != "limits.py")
    assert [name for name in LIMITS if f".{name}" not in code] == []


# --- nothing is mentioned that does not exist ---

_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


@each_page
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for match in _LINK.finditer(text):
        target = match[1] or match[2]
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT) and file.exists(), f"{page_name(page)}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page_name(page)}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page_name(page) for page in DOCS.glob("*.md") if f"({page_name(page)})" not in text] == []


def invocations(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Commands and their options wherever a page shows them, in a block or within a sentence."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shown = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in ("console", "yaml")]
    shown += re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))
    for code in shown:
        for found in re.finditer(r"(?:^|[\s|(/])trunkline ([a-z][a-z-]*)((?:[^|\n;&]|'[^']*')*)", code):
            words = re.sub(r"'[^']*'|\"[^\"]*\"", "", found[2])
            yield found[1], re.findall(r"(?<!\S)--?[a-zA-Z][a-z-]*", words)


@each_page
def test_commands_and_options_that_a_page_shows_exist(page: Path) -> None:
    for command, options in invocations(page):
        assert command in COMMANDS, f"{page_name(page)}: trunkline {command}"
        known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", generate.help_of(command)))
        assert set(options) <= known, f"{page_name(page)}: trunkline {command}"


@each_page
def test_variables_that_a_page_names_exist(page: Path) -> None:
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    known = {setting.variable for setting in SETTINGS.values()} | {"TRUNKLINE_TLS__CERTIFICATE", "TRUNKLINE_TLS__KEY"}
    for name in re.findall(r"\bTRUNKLINE_[A-Z_]+\b", page.read_text(encoding="utf-8")):
        assert name in known or f'"{name}"' in source, f"{page_name(page)}: {name}"


@each_page
def test_files_targets_and_tests_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    prefixes = "src|tests|docs|examples|benchmarks|deploy"
    for name in re.findall(rf"`((?:{prefixes})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{page_name(page)}: {name}"
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page_name(page)}: make {target}"
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", text) if page.name != "CONTRIBUTING.md" else ():  # has an example
        assert f"def {name}(" in tests, f"{page_name(page)}: {name}"
