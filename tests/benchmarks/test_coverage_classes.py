"""Every transformer class of diffusers under `inner_backend="eager"`: no split and no other size reuses wrongly.

Graphs of most classes are rewritten and run in `tests/rewrite/test_models.py`; here the classes that only stand here go
through the public interface, a few of them and of the others two that are unlike the rest. All of them are slow in sum.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks.coverage_checks import examine
from benchmarks.coverage_page import SPLITS, faults
from tests.models.every import ENTRIES
from tests.models.wide_packed import WIDE_PACKED
from tests.models.wide_parts import WIDE_PARTS

SPECIAL = {
    "omnigen": "a graph break, and a picture in the middle of the text",
    "prior": "one token of many is returned",
}
QUICK = {*SPECIAL, *list(WIDE_PACKED)[:1], *list(WIDE_PARTS)[:1]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if ENTRIES[name].builder in QUICK else pytest.mark.slow) for name in ENTRIES]
)
def test_class(name: str) -> None:
    quick = ENTRIES[name].builder in QUICK
    outcome = examine(ENTRIES[name], "eager", {"F2B1": SPLITS["F2B1"]} if quick else SPLITS)
    assert outcome.ok, faults({**asdict(outcome), "ok": False})


@pytest.mark.slow
def test_a_value_that_inductor_makes_a_part_of_a_buffer_of_unknown_size() -> None:
    outcome = examine(ENTRIES["HunyuanVideoFramepackTransformer3DModel"], "inductor", {"F1B0": SPLITS["F1B0"]})
    assert outcome.ok, outcome


@pytest.mark.slow
def test_tokens_that_inductor_computes_again_in_the_loops_that_read_them() -> None:
    outcome = examine(ENTRIES["WanAnimateTransformer3DModel"], "inductor", {"F1B0": SPLITS["F1B0"]})
    assert outcome.ok, outcome
