"""Operands of the conditional keep the layout that Inductor chooses for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.rewrite.instruments import Pass
from fxcache.rewrite.pin_layouts import pin_layouts, pin_reads
from tests.graphs import Sketch, aten, new_state, printed, text
from tests.rewrite.sketches import SKETCHES, before, dynamic, plain


def after(sketch: Sketch, **options: object) -> str:
    gm, plan = before(sketch, "pin_layouts", inner_backend="inductor", **options)
    pin_layouts(gm, plan)
    return printed(gm)


def lines(graph: str) -> str:
    """The part of a printed graph between the first block and the submodules."""
    return graph[graph.index("add: ") : graph.index("\nfxcache_compute:")]


def test_every_computed_operand() -> None:
    gm, plan = before(plain(), "pin_layouts", inner_backend="inductor")
    assert lines(printed(gm)) == text("""
        add: f32[6, 4] = add(h, mm_1)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
    """)
    assert pin_layouts(gm, plan) == 1
    assert lines(printed(gm)) == text("""
        add: f32[6, 4] = add(h, mm_1)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        fxcache_settle: f32[6, 4] = fxcache_settle(add)
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, fxcache_settle, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
    """)


def test_a_view_is_settled_as_a_view() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 4, 6), sketch.weight("w", 4, 4)
    turned = sketch.op(aten.permute.default, sketch.op(aten.neg.default, h), [1, 0])
    sketch.finish(sketch.blocks(turned, w, w, stack="blocks", count=3))
    assert "fxcache_settle(add)" in after(sketch)


def test_dynamic_sizes() -> None:
    gm, plan = before(dynamic(), "pin_layouts", inner_backend="inductor")
    assert pin_layouts(gm, plan) == 2
    assert "fxcache_settle(add)" in printed(gm)


def test_inputs_of_the_graph_and_other_inner_compilers_need_nothing() -> None:
    gm, plan = before(plain(), "pin_layouts", inner_backend="aot_eager")
    old = printed(gm)
    assert pin_layouts(gm, plan) == 0
    assert printed(gm) == old


@pytest.mark.parametrize(("stop", "last"), [("pin_layouts", pin_layouts), ("the end", pin_reads)])
@pytest.mark.parametrize("build", SKETCHES)
def test_numbers_stay(build: Callable[[], Sketch], stop: str, last: Pass) -> None:
    sketch = build()
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, stop, inner_backend="inductor")
    last(gm, plan)
    gm.recompile()
    for got, wanted in zip(gm(*values, *new_state(plan)), expected, strict=True):
        assert torch.equal(got, wanted)


def test_every_computed_value_that_our_operators_read() -> None:
    sketch = Sketch()
    p, w = sketch.input("p", 6, 4), sketch.weight("w", 4, 4)
    h = sketch.op(aten.neg.default, p)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    gm, plan = before(sketch, "the end", inner_backend="inductor")
    assert text("""
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add, neg, select_int, 1, 0.0)
    """) in printed(gm)
    assert pin_reads(gm, plan) == 5
    graph = printed(gm)
    measured = text("""
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        fxcache_settle_1: f32[6, 4] = fxcache_settle(add)
        fxcache_settle_2: f32[6, 4] = fxcache_settle(neg)
        residual_diff: f32[2] = fxcache::residual_diff(fxcache_settle_1, fxcache_settle_2, select_int, 1, 0.0)
    """)
    stored = text("""
        getitem: f32[6, 4] = getitem(cond, 0)
        fxcache_settle_3: f32[6, 4] = fxcache_settle(add)
        fxcache_settle_4: f32[6, 4] = fxcache_settle(neg)
        commit_1: NoneType = \
            fxcache::commit(getitem_3, fxcache_settle_3, fxcache_settle_4, fxcache_reference, fxcache_health, 0, 1)
        fxcache_settle_5: f32[6, 4] = fxcache_settle(add)
        commit: NoneType = fxcache::commit(getitem_3, getitem, fxcache_settle_5, fxcache_cache_0, fxcache_health, 1, 1)
        return (getitem)
    """)
    assert measured in graph and stored in graph
