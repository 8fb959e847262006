"""`make bench`: measure, print the report, and write it into a page when asked."""

from __future__ import annotations

import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, http_cases, options, report
from benchmarks.cases import ConnectionCases
from benchmarks.hot_path import profile
from benchmarks.http_cases import HttpCases
from benchmarks.processes import Files, take_load_core
from benchmarks.rounds import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    chosen = options.read(arguments)
    words = cases.WORDS | http_cases.WORDS
    if unknown := chosen.unknown(words):
        sys.exit(f"no case has the word {unknown[0]}; there are {', '.join(sorted(words))}")
    if chosen.write is not None:
        # Before ten minutes of work, not after.
        report.written_into(chosen.write.read_text(), "")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What it started is ended too, and not left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    take_load_core()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.profile:
            print(profile(Files.make(folder), folder, chosen.seconds))
            return
        run, files = Run(chosen), Files.make(folder)
        ConnectionCases(run, files, folder).run()
        HttpCases(run, files, folder).run()
    tables = [*([report.targets_table(run.targets)] if run.targets else []), *run.tables]
    text = report.text_of(tables, _command(arguments), chosen.pairs)
    print(text)
    if chosen.write is not None:
        chosen.write.write_text(report.written_into(chosen.write.read_text(), text))


def _command(arguments: Sequence[str] | None) -> str:
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    return f'make bench ARGS="{given}"' if given else "make bench"


if __name__ == "__main__":
    main()
