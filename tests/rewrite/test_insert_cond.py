"""The call of the middle as a conditional."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.kernels import Ask, Control
from fxcache.rewrite.insert_cond import REUSE, insert_cond
from fxcache.rewrite.outline_middle import COMPUTE
from tests.graphs import Sketch, aten, new_state, printed, tell, text
from tests.rewrite.sketches import SKETCHES, before, dynamic, plain


def after(sketch: Sketch, **options: object) -> str:
    gm, plan = before(sketch, "insert_cond", **options)
    insert_cond(gm, plan)
    return printed(gm)


def test_cheap_branch() -> None:
    gm, plan = before(plain(), "insert_cond", Fn_compute_blocks=2)
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
    assert insert_cond(gm, plan) == 1
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
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add_1, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_2)
        fxcache_reuse:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            extrapolate: f32[6, 4] = fxcache::extrapolate(add_1, fxcache_cache_0)
            return (extrapolate)
    """)


def test_dynamic_sizes() -> None:
    gm, plan = before(dynamic(), "insert_cond", Fn_compute_blocks=2)
    assert insert_cond(gm, plan) == 1
    assert printed(gm) == text("""
        length: int
        words: int
        h: f32[n0, 4]
        e: f32[n1, 4]
        w: f32[4, 4]
        fxcache_control: f64[51]
        fxcache_health: f32[2, 1]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, n0 + n1, 4]
        fxcache_cache_0: f32[1, n0, 4]
        cat: f32[n0 + n1, 4] = cat((e, h))
        mm: f32[n0 + n1, 4] = mm(cat, w)
        relu: f32[n0 + n1, 4] = relu(mm)
        mm_1: f32[n0 + n1, 4] = mm(relu, w)
        add: f32[n0 + n1, 4] = add(cat, mm_1)
        mm_2: f32[n0 + n1, 4] = mm(add, w)
        relu_1: f32[n0 + n1, 4] = relu(mm_2)
        mm_3: f32[n0 + n1, 4] = mm(relu_1, w)
        add_1: f32[n0 + n1, 4] = add(add, mm_3)
        n: int = sym_size(e, 0)
        image_1: f32[n0, 4] = slice(add_1, 0, n, 9223372036854775807)
        select_int: f32[n0 + n1, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add_1, cat, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[n0, 4]) = \
            cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add_1, n, length, image_1, fxcache_cache_0))
        getitem: f32[n0, 4] = getitem(cond, 0)
        relu_3: f32[n0, 4] = relu(getitem)
        return (relu_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[n0 + n1, 4]
            n: int
            length: int
            image_1: f32[n0, 4]
            fxcache_cache_0: f32[1, n0, 4]
            mm_4: f32[n0 + n1, 4] = mm(add_1, w)
            relu_2: f32[n0 + n1, 4] = relu(mm_4)
            mm_5: f32[n0 + n1, 4] = mm(relu_2, w)
            add_2: f32[n0 + n1, 4] = add(add_1, mm_5)
            image: f32[n0, 4] = slice(add_2, 0, n, 9223372036854775807)
            clone: f32[n0, 4] = clone(image, memory_format=torch.contiguous_format)
            return (clone)
        fxcache_reuse:
            w: f32[4, 4]
            add_1: f32[n0 + n1, 4]
            n: int
            length: int
            image_1: f32[n0, 4]
            fxcache_cache_0: f32[1, n0, 4]
            extrapolate: f32[n0, 4] = fxcache::extrapolate(image_1, fxcache_cache_0)
            return (extrapolate)
    """)


@pytest.mark.parametrize("build", SKETCHES)
def test_without_a_calibrator_no_weights_enter_the_branches(build: Callable[[], Sketch]) -> None:
    gm, plan = before(build(), "insert_cond")
    insert_cond(gm, plan)
    assert plan.compute is not None and plan.weights is not None
    assert plan.weights not in plan.compute.args[3]
    assert not plan.weights.users


@pytest.mark.parametrize("build", SKETCHES)
def test_both_branches_take_and_give_the_same(build: Callable[[], Sketch]) -> None:
    gm, plan = before(build(), "insert_cond")
    insert_cond(gm, plan)
    sides = [getattr(gm, name).graph for name in (COMPUTE, REUSE)]
    inputs = [[node.name for node in side.find_nodes(op="placeholder")] for side in sides]
    assert inputs[0] == inputs[1]
    values = [[node.meta["val"] for node in next(iter(reversed(side.nodes))).all_input_nodes] for side in sides]
    for computed, reused in zip(*values, strict=True):
        assert (computed.shape, computed.stride(), computed.dtype) == (reused.shape, reused.stride(), reused.dtype)


def test_a_stream_without_a_reference_is_taken_from_the_cache() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(h, w, w, stack="blocks", count=3, residual=False)
    sketch.finish(sketch.op(aten.relu.default, out))
    gm, plan = before(sketch, "insert_cond")
    insert_cond(gm, plan)
    assert "fxcache::extrapolate(None, fxcache_cache_0)" in printed(getattr(gm, REUSE))


@pytest.mark.parametrize("build", SKETCHES)
def test_numbers_of_both_branches(build: Callable[[], Sketch]) -> None:
    sketch = build()
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, "insert_cond")
    insert_cond(gm, plan)
    gm.recompile()
    control, health, clock, reference, *caches = new_state(plan, values)
    for got, wanted in zip(gm(*values, control, health, clock, reference, *caches), expected, strict=True):
        assert torch.equal(got, wanted)
    assert not control[Control.REUSED]
    reference.fill_(1.0)
    tell(control, mode=Ask.DECIDE, threshold=1e9)
    reused = gm(*values, control, health, clock, reference, *caches)
    assert control[Control.REUSED]
    assert any(not torch.equal(got, wanted) for got, wanted in zip(reused, expected, strict=True))
