"""State as inputs of the graph, and the decision in front of the middle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.kernels import Ask, Control
from fxcache.rewrite.thread_state import thread_state
from tests.graphs import Sketch, new_state, printed, text
from tests.rewrite.sketches import SKETCHES, before, dynamic, half, plain, two_users


def after(sketch: Sketch, **options: object) -> str:
    gm, plan = before(sketch, "thread_state", **options)
    thread_state(gm, plan)
    return printed(gm)


def test_inputs_and_decision() -> None:
    gm, plan = before(plain(), "thread_state", Fn_compute_blocks=2)
    assert printed(gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        fxcache_compute: (f32[6, 4]) = fxcache_compute(w, add_1)
        getitem: f32[6, 4] = getitem(fxcache_compute, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[6, 4]
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_2)
    """)
    assert thread_state(gm, plan) == 5
    assert printed(gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        fxcache_control: f64[51]
        fxcache_health: f32[2, 1]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[1, 6, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add_1, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_compute: (f32[6, 4]) = fxcache_compute(w, add_1)
        getitem: f32[6, 4] = getitem(fxcache_compute, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[6, 4]
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_2)
    """)
    decided = (plan.reuse, plan.slot, plan.first, plan.weights)
    assert [str(node) for node in decided] == [f"getitem_{i}" for i in (1, 2, 3, 4)]


def test_one_cache_per_stream() -> None:
    gm, plan = before(two_users(), "thread_state")
    assert thread_state(gm, plan) == 6
    assert list(plan.placeholders) == ["control", "health", "clock", "reference", "cache_0", "cache_1"]
    assert tuple(plan.placeholders["health"].meta["val"].shape) == (3, 1)


def test_dynamic_sizes() -> None:
    gm, plan = before(dynamic(), "thread_state")
    assert thread_state(gm, plan) == 5
    lines = printed(gm).splitlines()
    assert "fxcache_reference: f32[1, n0 + n1, 4]" in lines
    assert "fxcache_cache_0: f32[1, n0, 4]" in lines


def test_the_reference_of_half_precision_is_float32() -> None:
    gm, plan = before(half(), "thread_state")
    thread_state(gm, plan)
    assert [spec.dtype for spec in plan.state] == [torch.float32, torch.bfloat16]


def test_options_reach_the_indicator() -> None:
    gm, plan = before(plain(), "thread_state", downsample_factor=3, important_condition_threshold=0.25)
    thread_state(gm, plan)
    assert "fxcache_reference: f32[1, 6, 2]" in printed(gm)
    assert "fxcache::residual_diff(add, h, select_int, 3, 0.25)" in printed(gm)


def test_downsampling_by_more_than_there_are_channels_keeps_one() -> None:
    gm, plan = before(plain(), "thread_state", downsample_factor=100)
    thread_state(gm, plan)
    assert "fxcache_reference: f32[1, 6, 1]" in printed(gm)


def test_the_state_itself_as_indicator() -> None:
    gm, plan = before(plain(), "thread_state", l1_hidden_states_diff_threshold=0.1)
    thread_state(gm, plan)
    assert "fxcache::residual_diff(add, None, select_int, 1, 0.0)" in printed(gm)


@pytest.mark.parametrize("build", SKETCHES)
def test_numbers_stay(build: Callable[[], Sketch]) -> None:
    sketch = build()
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, "thread_state")
    thread_state(gm, plan)
    gm.recompile()
    control, *state = new_state(plan, values, mode=Ask.DECIDE, threshold=1e9)
    for got, wanted in zip(gm(*values, control, *state), expected, strict=True):
        assert torch.equal(got, wanted)
    # the reference is all zero, the residual is not
    assert not control[Control.MEASURED]
    assert control[Control.DIFFERENCE] == float("inf")


def test_ranks_of_one_model_decide_together() -> None:
    gm, plan = before(plain(), "thread_state")
    plan.groups = ("0", "1")
    thread_state(gm, plan)
    (decision,) = gm.graph.find_nodes(op="call_function", target=torch.ops.fxcache.decide.default)
    assert decision.kwargs == {"groups": ["0", "1"]}
