"""Calibrators through ``torch.compile``: every output and every decision is that of the eager oracle."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from tests.integration.walks import (
    BLOCKS,
    CALIBRATORS,
    DECIDED,
    STREAMS,
    check,
    interleaved,
    mixed,
    options_of,
    steps_of,
)
from tests.models.tiny_trunk import tiny_trunk


def cases() -> list[Any]:
    """All combinations; slow are those that are not needed to have every pair of settings once."""
    rest = [case for case in product(CALIBRATORS, DECIDED, STREAMS, BLOCKS) if case[:2] != ("regression", "residual")]
    seen: set[Any] = set()
    made = []

    def new(case: tuple[str, ...]) -> set[Any]:
        return set(combinations(enumerate(case), 2)) - seen

    while rest:
        best = max(rest, key=lambda case: len(new(case)))
        rest.remove(best)
        made.append(pytest.param(*best, marks=() if new(best) else pytest.mark.slow))
        seen |= new(best)
    return made


@pytest.mark.parametrize(("calibrator", "decided", "streams", "blocks"), cases())
def test_outputs_and_decisions_are_those_of_the_oracle(calibrator, decided, streams, blocks):
    two, more = STREAMS[streams]
    model = tiny_trunk(two)
    calls = interleaved(steps_of("first", 1), steps_of("second", 2))
    options = mixed(model, options_of(calibrator, decided, blocks, **more), calls)
    oracle = check(model, options, calls)
    for memory in oracle.memories.values():
        assert "." in memory.decisions and "C" in memory.decisions.lstrip("C")
