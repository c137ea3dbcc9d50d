"""DBPrune: blocks decided for themselves, against an eager count over whole pipelines, and under Inductor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.kernels import decide_blocks
from fxcache.refresh import refresh_context
from fxcache.runtime.interface import Reason
from tests.integration.eager import branches_of
from tests.integration.eager_prune import EagerDBPrune, Rules, spelled
from tests.models.pipelines import PIPELINES, TinyPipeline
from tests.models.transformers import TRANSFORMERS

LAYERS, STEPS = 3, 8
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(autouse=True)
def _new_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def build(name: str) -> TinyPipeline:
    return PIPELINES[name](layers=LAYERS)


def numbers(differences: Iterable[float | None]) -> list[float]:
    return [math.nan if difference is None else difference for difference in differences]


def options_of(rules: Rules) -> dict[str, Any]:
    options: dict[str, Any] = {
        "Fn_compute_blocks": rules.first,
        "Bn_compute_blocks": rules.last,
        "non_prune_block_ids": rules.exempt,
        "prune_group": rules.group,
        "residual_diff_threshold": rules.threshold,
        "max_warmup_steps": rules.warmup,
        "prune_indicator": "previous" if rules.lagging else "input",
    }
    if rules.most < math.inf:
        options["max_cached_steps"] = rules.most
    if rules.in_a_row < math.inf:
        options["max_continuous_cached_steps"] = rules.in_a_row
    if rules.linear:
        options |= {"calibrator": "taylorseer", "taylorseer_order": 1}
    if rules.relax is not None:
        options["enable_dynamic_prune_threshold"] = True
        options["dynamic_prune_threshold_relax_ratio"] = rules.relax
        options["max_dynamic_prune_threshold"] = rules.cap
    return options


def cached(tiny: TinyPipeline, **options: Any) -> TinyPipeline:
    common = {"method": "dbprune", "inner_backend": "eager", "on_refusal": "raise", "fullgraph": True}
    api.enable_cache(tiny.pipe, **{**common, **options})
    return tiny


def split(name: str, rules: Rules) -> tuple[EagerDBPrune, Tensor]:
    """A run of the oracle with a threshold, far from every difference, that prunes units and computes others."""
    tiny = build(name)
    oracle = EagerDBPrune(tiny.transformer, name, Rules(**vars(rules)), branches_of(tiny))
    for threshold in (0.1, 0.07, 0.15, 0.2, 0.05, 0.3, 0.45, 0.6, 0.8, 0.95):
        oracle.rules.threshold = threshold
        oracle.begin()
        out = tiny.run(steps=STEPS, cfg=True)
        measured = [d for memory in oracle.memories for step in memory.differences for d in step]
        clear = all(abs(d - threshold) > 2e-3 * threshold for d in measured)
        words = ["".join(memory.decisions[rules.warmup :]) for memory in oracle.memories]
        if clear and all("." in word and "C" in word for word in words):
            return oracle, out
    raise AssertionError(f"no threshold splits the blocks of {name}")


CASES = {
    "the step before": Rules(),
    "its input": Rules(lagging=False),
    "two at the start and one at the end": Rules(first=2, last=1),
    "no first blocks": Rules(first=0),
    "exempt": Rules(exempt=(2,)),
    "groups of two": Rules(group=2, lagging=False),
    "two steps in a row at most": Rules(in_a_row=2),
    "three steps at most": Rules(most=3, lagging=False),
    "a straight line per block": Rules(linear=True, lagging=False),
    "a straight line per block, a step behind": Rules(linear=True),
    "a growing threshold": Rules(relax=1.5, cap=0.5, lagging=False),
}


def check_decisions(name: str, rules: Rules) -> None:
    oracle, expected = split(name, rules)
    tiny = cached(build(name), **options_of(oracle.rules))
    out = tiny.run(steps=STEPS, cfg=True)
    found = api.summary(tiny.pipe).contexts
    assert [context.decisions for context in found] == [spelled(memory.decisions) for memory in oracle.memories]
    for context, memory in zip(found, oracle.memories, strict=True):
        means = [sum(step) / len(step) if step else math.nan for step in memory.differences]
        assert numbers(context.differences) == pytest.approx(means, rel=2e-3, nan_ok=True)
        per_block = [sum(owner == unit for owner in oracle.unit_of.values()) for unit in sorted(memory.units)]
        pruned = sum(
            size for word in memory.decisions for letter, size in zip(word, per_block, strict=True) if letter == "."
        )
        assert context.pruned_ratio == pytest.approx(pruned / (STEPS * sum(per_block)))
    torch.testing.assert_close(out, expected, **TOLERANCE)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("lagging", [True, False], ids=["previous", "input"])
def test_decisions_and_pictures_are_those_of_the_eager_count(name: str, lagging: bool) -> None:
    check_decisions(name, Rules(lagging=lagging))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("the step before", "its input")])
def test_every_knob_does_what_the_eager_count_does(case: str) -> None:
    check_decisions("flux", CASES[case])


def test_never_pruned_is_plain_bit_for_bit() -> None:
    plain = build("flux").run(steps=4, cfg=True)
    tiny = cached(build("flux"), Fn_compute_blocks=1, max_warmup_steps=10)
    assert torch.equal(tiny.run(steps=4, cfg=True), plain)
    assert all(context.decisions == "CCCC" and context.pruned_ratio == 0 for context in api.summary(tiny.pipe).contexts)


@pytest.mark.parametrize("indicator", ["previous", "input"])
def test_inductor(indicator: str) -> None:
    """Never pruned: bit for bit plain Inductor. Pruned: what the eager backend makes of the same options."""
    options = {
        "Fn_compute_blocks": 1,
        "max_warmup_steps": 2,
        "residual_diff_threshold": 0.12,
        "prune_indicator": indicator,
        "method": "dbprune",
        "on_refusal": "raise",
    }
    runs: dict[str, tuple[list[Tensor], Any]] = {}
    for label, backend, more in (
        ("plain", "inductor", None),
        ("never", "fxcache", {"max_warmup_steps": 99}),
        ("pruned", "fxcache", {}),
        ("eager", "fxcache", {"inner_backend": "eager"}),
    ):
        torch._dynamo.reset()
        tiny = TRANSFORMERS["flux"](1, single_layers=3)
        chosen = {} if more is None else {"options": {**options, **more}}
        tiny.module.compile(backend=backend, fullgraph=True, **chosen)
        with torch.no_grad(), api.generation():
            outs = [tiny.run(tiny.inputs(step=step)) for step in range(8)]
        runs[label] = outs, api.summary(tiny.module)
    for plain, never in zip(runs["plain"][0], runs["never"][0], strict=True):
        assert torch.equal(plain, never)
    (pruned,), (eager,) = runs["pruned"][1].contexts, runs["eager"][1].contexts
    assert pruned.decisions == eager.decisions
    assert numbers(pruned.differences) == pytest.approx(numbers(eager.differences), rel=1e-3, nan_ok=True)
    assert "C" in pruned.decisions[2:] or "m" in pruned.decisions
    for got, wanted in zip(runs["pruned"][0], runs["eager"][0], strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCE)


@pytest.mark.parametrize(("indicator", "waits"), [("previous", 1), ("input", 3)])
def test_how_often_a_step_waits_for_the_device(indicator: str, waits: int) -> None:
    """A decision that reads the device reads it once; with groups there are fewer of them."""
    tiny = build("flux")  # six blocks, of which five may be pruned: three groups of two
    more = {"prune_indicator": indicator, "prune_group": 2, "Fn_compute_blocks": 1}
    cached(tiny, residual_diff_threshold=0.99, max_warmup_steps=2, **more)
    transfers: list[int] = []
    original = decide_blocks._Read.__init__

    def counting(self: Any, *args: Any) -> None:
        original(self, *args)
        transfers.append(self.health is not None)

    with patch.object(decide_blocks._Read, "__init__", counting):
        tiny.run(steps=5, cfg=False)
    calls = 1 if indicator == "previous" else 3
    assert transfers == [0] * (2 * calls) + [1] * (3 * waits)


def test_a_mask_prunes_without_looking() -> None:
    tiny = cached(
        build("flux"), Fn_compute_blocks=1, steps_computation_mask="101001", steps_computation_policy="static"
    )
    tiny.run(steps=6, cfg=False)
    (context,) = api.summary(tiny.pipe).contexts
    assert context.decisions == "C.C..C"
    assert context.differences == (None,) * 6


@pytest.mark.parametrize("indicator", ["previous", pytest.param("input", marks=pytest.mark.slow)])
def test_no_generation_reads_what_another_has_left(indicator: str) -> None:
    options = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, "max_warmup_steps": 2}
    used = cached(build("flux"), **options, prune_indicator=indicator)
    used.run(steps=3, cfg=True)
    for request in (
        {"steps": STEPS, "cfg": True},
        {"steps": STEPS, "cfg": True, "prompt_seed": 5, "latent_seed": 1},
        {"steps": STEPS, "cfg": True, "size": 1},
        {"steps": 3, "cfg": False, "batch": 2},
    ):
        alone = cached(build("flux"), **options, prune_indicator=indicator)
        assert torch.equal(used.run(**request), alone.run(**request))


@pytest.mark.parametrize("indicator", ["previous", "input"])
def test_the_second_branch_of_a_step_skips_the_blocks_that_the_first_one_has(indicator: str) -> None:
    options = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.1, "max_warmup_steps": 2}
    alone = cached(build("flux"), **options, prune_indicator=indicator)
    alone.run(steps=STEPS, cfg=True)
    tiny = cached(build("flux"), **options, prune_indicator=indicator, cfg_diff_compute_separate=False)
    tiny.run(steps=STEPS, cfg=True)
    first, second = api.summary(tiny.pipe).contexts
    assert first.decisions == api.summary(alone.pipe).contexts[0].decisions
    assert second.decisions == first.decisions
    assert second.pruned_ratio == first.pruned_ratio
    assert 0 < (first.pruned_ratio or 0) < 0.75
    assert second.differences == (None,) * STEPS


def test_a_refresh_drops_what_every_block_has_stored() -> None:
    options = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, "max_warmup_steps": 2}
    tiny = cached(build("flux"), **options, force_refresh_step_hint=5)
    tiny.run(steps=STEPS, cfg=False)
    (context,) = api.summary(tiny.pipe).contexts
    assert context.decisions == "CC...CC."


def test_blocks_that_are_exempt_follow_the_options_that_are_in_use() -> None:
    """What may be skipped is asked of every graph anew: nothing remembers the answer for other options."""
    tiny = cached(build("flux"), Fn_compute_blocks=1, residual_diff_threshold=0.99, max_warmup_steps=2)
    shares = []
    for changes in ({}, {"Fn_compute_blocks": 4}, {"Fn_compute_blocks": 1, "non_prune_block_ids": [2, 5]}):
        refresh_context(tiny.pipe, **changes)
        tiny.run(steps=4, cfg=False)
        context = api.summary(tiny.pipe).contexts[-1]
        assert context.decisions == "CC.."
        shares.append(context.estimated_speedup)
    assert shares[0] > shares[2] > shares[1]


def test_a_value_that_is_not_finite_is_computed_anew() -> None:
    tiny = TRANSFORMERS["flux"](layers=3)
    options = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.99, "method": "dbprune"}
    tiny.module.compile(backend="fxcache", options={**options, "inner_backend": "eager", "prune_indicator": "input"})
    plain = TRANSFORMERS["flux"](layers=3)
    with torch.no_grad(), api.generation():
        for step in range(6):
            inputs = tiny.inputs(step=step)
            if step == 2:
                inputs = {**inputs, "hidden_states": torch.full_like(inputs["hidden_states"], math.nan)}
            out = tiny.run(inputs)
            if step == 3:
                assert torch.equal(out, plain.run(inputs))
    (context,) = api.summary(tiny.module).contexts
    assert context.decisions == "C.CC.."
    assert context.outcomes[2:4] == (Reason.NOT_FINITE.value,) * 2


def test_a_graph_is_compiled_once_for_all_steps_and_images() -> None:
    tiny = cached(build("flux"), Fn_compute_blocks=1, residual_diff_threshold=0.12, max_warmup_steps=2)
    counters.clear()
    tiny.run(steps=STEPS, cfg=True)
    tiny.run(steps=3, cfg=True, prompt_seed=3)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
