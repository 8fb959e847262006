"""Every fuzz target, tried with made-up inputs, with those that once broke a rule, and with long repetitions."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.targets import CORPUS, TARGETS, Target, check

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)

#: Bytes of a long input: what a control channel takes as one message.
LONG = 65_536


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Words of the target with noise between them, seeds with a piece replaced, and noise."""
    words = st.lists(st.one_of(st.sampled_from(target.words), st.binary(max_size=4)), max_size=30).map(b"".join)
    changed = st.tuples(st.sampled_from(target.seeds), st.integers(0, 400), st.integers(0, 40), words).map(
        lambda parts: parts[0][: parts[1]] + parts[3] + parts[0][parts[1] + parts[2] :]
    )
    return st.one_of(words, changed, st.binary(max_size=100))


@each_target
def test_target_keeps_its_rules_for_made_up_inputs(target: Target) -> None:
    @settings(max_examples=150)
    @given(data=inputs(target))
    @example(data=b"")
    def try_one(data: bytes) -> None:
        check(target, data)

    try_one()


@each_target
def test_target_keeps_its_rules_for_its_seeds_and_for_what_was_found(target: Target) -> None:
    for data in (*target.seeds, *(file.read_bytes() for file in target.found)):
        check(target, data)


@each_target
def test_target_takes_no_more_time_than_its_length_allows(target: Target) -> None:
    """One word over and over, alone and inside of a proper input: what makes a careless pattern take for ever."""
    for word in target.words:
        check(target, word * (LONG // len(word)))
        seed = target.seeds[0]
        middle = len(seed) // 2
        check(target, seed[:middle] + word * (LONG // len(word)) + seed[middle:])


def test_corpus_belongs_to_the_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= set(TARGETS)
