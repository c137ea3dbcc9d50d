"""What the branches need stands in front of the middle afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.rewrite.gather_references import gather_references
from tests.graphs import Sketch, aten, printed, text
from tests.rewrite.sketches import SKETCHES, dynamic, glue, half, plain, two_users


def after(sketch: Sketch, **options: object) -> str:
    gather_references(sketch.gm, sketch.plan(**options))
    return printed(sketch.gm)


def test_glue_is_copied_and_what_is_needed_later_is_moved() -> None:
    sketch = glue()
    assert printed(sketch.gm) == text("""
        h: f32[6, 4]
        e: f32[6, 4]
        w: f32[4, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        mm_4: f32[6, 4] = mm(add_1, w)
        relu_2: f32[6, 4] = relu(mm_4)
        mm_5: f32[6, 4] = mm(relu_2, w)
        add_2: f32[6, 4] = add(add_1, mm_5)
        sigmoid: f32[6, 4] = sigmoid(e)
        cat: f32[12, 4] = cat((e, add_2))
        mm_6: f32[12, 4] = mm(cat, w)
        relu_3: f32[12, 4] = relu(mm_6)
        mm_7: f32[12, 4] = mm(relu_3, w)
        add_3: f32[12, 4] = add(cat, mm_7)
        mm_8: f32[12, 4] = mm(add_3, w)
        relu_4: f32[12, 4] = relu(mm_8)
        mm_9: f32[12, 4] = mm(relu_4, w)
        add_4: f32[12, 4] = add(add_3, mm_9)
        mm_10: f32[12, 4] = mm(add_4, w)
        relu_5: f32[12, 4] = relu(mm_10)
        mm_11: f32[12, 4] = mm(relu_5, w)
        add_5: f32[12, 4] = add(add_4, mm_11)
        slice_1: f32[6, 4] = slice(add_5, 0, 6, 12)
        mul: f32[6, 4] = mul(slice_1, sigmoid)
        return (mul)
    """)
    plan = sketch.plan(Fn_compute_blocks=2)
    assert gather_references(sketch.gm, plan) == 3
    assert printed(sketch.gm) == text("""
        h: f32[6, 4]
        e: f32[6, 4]
        w: f32[4, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        sigmoid: f32[6, 4] = sigmoid(e)
        cat_1: f32[12, 4] = cat((e, add_1))
        slice_2: f32[6, 4] = slice(cat_1, 0, 6, 12)
        mm_4: f32[6, 4] = mm(add_1, w)
        relu_2: f32[6, 4] = relu(mm_4)
        mm_5: f32[6, 4] = mm(relu_2, w)
        add_2: f32[6, 4] = add(add_1, mm_5)
        cat: f32[12, 4] = cat((e, add_2))
        mm_6: f32[12, 4] = mm(cat, w)
        relu_3: f32[12, 4] = relu(mm_6)
        mm_7: f32[12, 4] = mm(relu_3, w)
        add_3: f32[12, 4] = add(cat, mm_7)
        mm_8: f32[12, 4] = mm(add_3, w)
        relu_4: f32[12, 4] = relu(mm_8)
        mm_9: f32[12, 4] = mm(relu_4, w)
        add_4: f32[12, 4] = add(add_3, mm_9)
        mm_10: f32[12, 4] = mm(add_4, w)
        relu_5: f32[12, 4] = relu(mm_10)
        mm_11: f32[12, 4] = mm(relu_5, w)
        add_5: f32[12, 4] = add(add_4, mm_11)
        slice_1: f32[6, 4] = slice(add_5, 0, 6, 12)
        mul: f32[6, 4] = mul(slice_1, sigmoid)
        return (mul)
    """)
    assert [node and node.name for node in plan.references] == ["slice_2"]
    assert plan.indicator_in is not None
    assert plan.indicator_in.name == "h"


@pytest.mark.parametrize("build", [plain, two_users, half])
def test_without_glue_nothing_changes(build: Callable[[], Sketch]) -> None:
    sketch = build()
    old = printed(sketch.gm)
    assert gather_references(sketch.gm, sketch.plan()) == 0
    assert printed(sketch.gm) == old


def test_dynamic_sizes() -> None:
    sketch = dynamic()
    plan = sketch.plan()
    assert gather_references(sketch.gm, plan) == 2
    assert printed(sketch.gm) == text("""
        length: int
        words: int
        h: f32[n0, 4]
        e: f32[n1, 4]
        w: f32[4, 4]
        cat: f32[n0 + n1, 4] = cat((e, h))
        mm: f32[n0 + n1, 4] = mm(cat, w)
        relu: f32[n0 + n1, 4] = relu(mm)
        mm_1: f32[n0 + n1, 4] = mm(relu, w)
        add: f32[n0 + n1, 4] = add(cat, mm_1)
        n: int = sym_size(e, 0)
        image_1: f32[n0, 4] = slice(add, 0, n, 9223372036854775807)
        mm_2: f32[n0 + n1, 4] = mm(add, w)
        relu_1: f32[n0 + n1, 4] = relu(mm_2)
        mm_3: f32[n0 + n1, 4] = mm(relu_1, w)
        add_1: f32[n0 + n1, 4] = add(add, mm_3)
        mm_4: f32[n0 + n1, 4] = mm(add_1, w)
        relu_2: f32[n0 + n1, 4] = relu(mm_4)
        mm_5: f32[n0 + n1, 4] = mm(relu_2, w)
        add_2: f32[n0 + n1, 4] = add(add_1, mm_5)
        image: f32[n0, 4] = slice(add_2, 0, n, 9223372036854775807)
        relu_3: f32[n0, 4] = relu(image)
        return (relu_3)
    """)


def test_two_streams_share_their_copies() -> None:
    sketch = Sketch()
    h, e, w = sketch.input("h", 6, 4), sketch.input("e", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    joined = sketch.op(aten.cat.default, [e, out])
    third = sketch.block(joined, w, w, module="blocks.3")
    sketch.finish(sketch.op(aten.mm.default, third, w), sketch.op(aten.relu.default, joined))
    plan = sketch.plan(Fn_compute_blocks=2)
    assert gather_references(sketch.gm, plan) == 1
    assert [node and node.name for node in plan.references] == ["cat_1", "cat_1"]


def test_the_state_as_indicator_needs_no_input() -> None:
    sketch = plain()
    plan = sketch.plan(l1_hidden_states_diff_threshold=0.1)
    gather_references(sketch.gm, plan)
    assert plan.indicator_in is None


@pytest.mark.parametrize("build", SKETCHES)
def test_numbers_stay(build: Callable[[], Sketch]) -> None:
    sketch = build()
    values = sketch.values()
    expected = sketch.gm(*values)
    gather_references(sketch.gm, sketch.plan())
    sketch.gm.recompile()
    for got, wanted in zip(sketch.gm(*values), expected, strict=True):
        assert torch.equal(got, wanted)
