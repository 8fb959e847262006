"""Fuzzes one target in this process until libFuzzer ends it: `python -m fuzz.guided NAME [libFuzzer's options]`.

A program of its own, because atheris watches only what is imported under its eyes.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

#: What is watched for new paths; the rest of the product is not in the way of an input.
WATCHED = [
    "trunkline.protocol",
    "trunkline.sdk.proxy",
    "trunkline.server.config",
    "trunkline.server.entities",
    "trunkline.server.relay",
]

with atheris.instrument_imports(include=WATCHED):
    from fuzz.targets import TARGETS, check


def main() -> None:
    """Does not return."""
    program, name, *options = sys.argv
    target = TARGETS[name]
    atheris.Setup([program, *options], lambda data: check(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
