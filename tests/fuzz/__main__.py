"""`make fuzz`: every target for its share of the time, guided by coverage (atheris, which is libFuzzer for Python).

    python -m fuzz --seconds 600                 all targets
    python -m fuzz --seconds 60 token lane       some

What it learns is kept in .cache/fuzz/NAME and is where the next run begins. An input that breaks a rule is written to
tests/fuzz/corpus/NAME, where `make test` finds it from then on; its name and the error are printed, and the end is a
failure. Where atheris cannot be had, hypothesis alone tries the targets.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from fuzz.targets import CORPUS, TARGETS, Target

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache" / "fuzz"

#: Bytes of the longest input. Longer ones find no more and take longer; tests/fuzz/test_targets.py tries a few.
LONGEST = 4096

_EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_EDGES = re.compile(r"\bcov: (\d+)")


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; 1 when an input broke a rule."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in options.targets] or list(TARGETS.values())
    if find_spec("atheris") is None:
        return without_atheris(targets)
    jobs = min(os.cpu_count() or 1, len(targets))
    share = max(1, round(options.seconds * jobs / len(targets)))
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda target: run_apart(target, share), targets))
    return 0 if all(results) else 1


def without_atheris(targets: Sequence[Target]) -> int:
    """Hypothesis alone; a failure where atheris ought to be."""
    has_wheel = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 14)
    if has_wheel and os.environ.get("CI") == "true":
        print("fuzz: atheris is not installed, and this machine could have it: run `make clean test`", file=sys.stderr)
        return 1
    print("fuzz: no atheris here (it needs Linux on x86-64 and Python below 3.14); hypothesis alone tries the targets")
    names = " or ".join(target.name for target in targets)
    folder = ROOT / "tests" / "fuzz"
    command = [sys.executable, "-m", "pytest", "-q", "-k", names, str(folder / "test_targets.py")]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def run_apart(target: Target, seconds: int) -> bool:
    """Fuzz one target in a process of its own and print a line; False when an input broke a rule."""
    learned, found = CACHE / target.name, CACHE / "found" / target.name
    learned.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    words = CACHE / f"{target.name}.dict"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in target.words))
    for number, seed in enumerate((*target.seeds, *(file.read_bytes() for file in target.found))):
        (learned / f"seed-{number}").write_bytes(seed)
    command = (
        *(sys.executable, "-m", "fuzz.guided", target.name),
        *(f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-dict={words}", "-timeout=20", "-rss_limit_mb=2048"),
        *("-print_final_stats=1", f"-artifact_prefix={found}/", str(learned)),
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    executions, edges = _EXECUTIONS.search(said), _EDGES.findall(said)
    summary = f"{executions[1] if executions else 0:>9} inputs, {edges[-1] if edges else 0:>5} paths"
    print(f"{target.name:20}{summary}{'' if done.returncode == 0 else '   BROKEN'}", flush=True)
    if done.returncode:
        print(said[-6000:], file=sys.stderr, flush=True)
    for file in found.iterdir():
        (CORPUS / target.name).mkdir(parents=True, exist_ok=True)
        file.replace(CORPUS / target.name / file.name)
    return done.returncode == 0


def escaped(word: bytes) -> str:
    """A word of a libFuzzer dictionary."""
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
