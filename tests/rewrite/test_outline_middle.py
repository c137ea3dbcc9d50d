"""The middle as a submodule with one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.fx import GraphModule, Node

from fxcache.rewrite.outline_middle import COMPUTE, outline_middle
from tests.graphs import Sketch, aten, printed, text
from tests.rewrite.sketches import SKETCHES, before, dynamic, plain, two_users


def after(sketch: Sketch, **options: object) -> str:
    gm, plan = before(sketch, "outline_middle", **options)
    outline_middle(gm, plan)
    return printed(gm)


def test_one_block() -> None:
    gm, plan = before(plain(), "outline_middle", Fn_compute_blocks=2)
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
        mm_4: f32[6, 4] = mm(add_1, w)
        relu_2: f32[6, 4] = relu(mm_4)
        mm_5: f32[6, 4] = mm(relu_2, w)
        add_2: f32[6, 4] = add(add_1, mm_5)
        add_3: f32[6, 4] = add(add_2, h)
        return (add_3)
    """)
    assert outline_middle(gm, plan) == 4
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


def test_two_values_leave() -> None:
    gm, plan = before(two_users(), "outline_middle")
    assert outline_middle(gm, plan) == 8
    assert printed(gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        fxcache_compute: (f32[6, 4], f32[6, 4]) = fxcache_compute(w, add)
        getitem: f32[6, 4] = getitem(fxcache_compute, 0)
        getitem_1: f32[6, 4] = getitem(fxcache_compute, 1)
        mean: f32[6, 1] = mean(getitem_1, (-1), True)
        mul: f32[6, 4] = mul(getitem_1, mean)
        return (mul, getitem)
        fxcache_compute:
            w: f32[4, 4]
            add: f32[6, 4]
            mm_2: f32[6, 4] = mm(add, w)
            relu_1: f32[6, 4] = relu(mm_2)
            mm_3: f32[6, 4] = mm(relu_1, w)
            add_1: f32[6, 4] = add(add, mm_3)
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_1, add_2)
    """)
    assert [node.name for node in plan.outputs] == ["getitem", "getitem_1"]


def test_dynamic_sizes() -> None:
    gm, plan = before(dynamic(), "outline_middle", Fn_compute_blocks=2)
    assert outline_middle(gm, plan) == 5
    assert printed(gm) == text("""
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
        mm_2: f32[n0 + n1, 4] = mm(add, w)
        relu_1: f32[n0 + n1, 4] = relu(mm_2)
        mm_3: f32[n0 + n1, 4] = mm(relu_1, w)
        add_1: f32[n0 + n1, 4] = add(add, mm_3)
        n: int = sym_size(e, 0)
        image_1: f32[n0, 4] = slice(add_1, 0, n, 9223372036854775807)
        fxcache_compute: (f32[n0, 4]) = fxcache_compute(w, add_1, n, length)
        getitem: f32[n0, 4] = getitem(fxcache_compute, 0)
        relu_3: f32[n0, 4] = relu(getitem)
        return (relu_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[n0 + n1, 4]
            n: int
            length: int
            mm_4: f32[n0 + n1, 4] = mm(add_1, w)
            relu_2: f32[n0 + n1, 4] = relu(mm_4)
            mm_5: f32[n0 + n1, 4] = mm(relu_2, w)
            add_2: f32[n0 + n1, 4] = add(add_1, mm_5)
            image: f32[n0, 4] = slice(add_2, 0, n, 9223372036854775807)
            clone: f32[n0, 4] = clone(image, memory_format=torch.contiguous_format)
            return (clone)
    """)


def middle_ending_in(*ending: Callable[[Sketch, Node], Node]) -> GraphModule:
    """The outlined middle whose live-outs are made from the last block by these functions."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    sketch.finish(*(sketch.op(aten.mm.default, end(sketch, out), w) for end in ending))
    gm, plan = before(sketch, "outline_middle", Fn_compute_blocks=2)
    outline_middle(gm, plan)
    child = getattr(gm, COMPUTE)
    assert isinstance(child, GraphModule)
    return child


def whole(sketch: Sketch, out: Node) -> Node:
    return out


def part(sketch: Sketch, out: Node) -> Node:
    return sketch.op(aten.slice.Tensor, out, 0, 2, 6)


def test_a_contiguous_value_of_its_own_is_not_copied() -> None:
    assert "clone" not in printed(middle_ending_in(whole))


def test_a_part_of_a_larger_value_is_copied() -> None:
    child = middle_ending_in(part)
    assert printed(child).splitlines()[-3:] == [
        "slice_1: f32[4, 4] = slice(add_2, 0, 2, 6)",
        "clone: f32[4, 4] = clone(slice_1, memory_format=torch.contiguous_format)",
        "return (clone)",
    ]


def test_a_value_of_another_layout_is_copied() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 4, 6), sketch.weight("w", 4, 4)
    turned = sketch.op(aten.permute.default, h, [1, 0])
    out = sketch.blocks(turned, w, w, stack="blocks", count=3)
    sketch.finish(sketch.op(aten.relu.default, out))
    assert out.meta["val"].stride() == (1, 6)
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, "outline_middle")
    outline_middle(gm, plan)
    gm.recompile()
    assert "clone" in printed(getattr(gm, COMPUTE))
    assert plan.outputs[0].meta["val"].stride() == (4, 1)
    assert torch.equal(gm(*values)[0], expected[0])


def test_two_views_of_one_value_become_two_tensors() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    first = sketch.blocks(h, w, w, stack="blocks", count=2)
    third = sketch.block(first, w, w, module="blocks.2")
    turned = sketch.op(aten.view.default, third, [24], module="blocks.2")
    again = sketch.op(aten.view.default, third, [4, 6], module="blocks.2")
    sketch.finish(sketch.op(aten.relu.default, turned), sketch.op(aten.relu.default, again))
    gm, plan = before(sketch, "outline_middle")
    assert [stream.live_out.name for stream in plan.region.streams] == ["view", "view_1"]
    outline_middle(gm, plan)
    assert printed(getattr(sketch.gm, COMPUTE)).count("clone(") == 2


def with_attribute(name: str, attribute: torch.nn.Module | torch.Tensor, use: object) -> tuple[Sketch, Node]:
    """A graph whose last block applies ``use`` to an attribute, which tracing puts into the block as well."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    relu = next(node for node in sketch.graph.nodes if node.name == "relu_2")
    if isinstance(attribute, torch.nn.Module):
        sketch.gm.add_submodule(name, attribute)
    else:
        sketch.gm.register_buffer(name, attribute)
    with sketch.graph.inserting_before(relu):
        inner = sketch.graph.get_attr(name)
        inner.meta["nn_module_stack"] = relu.meta["nn_module_stack"]
    relu.target, relu.args = use, (inner, relu.args[0])
    sketch.gm.recompile()
    return sketch, inner


def outlined(sketch: Sketch, **options: object) -> tuple[GraphModule, list[Node]]:
    """The graph after the pass, and the operands of the middle; its numbers are those of the graph before."""
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, "outline_middle", **options)
    outline_middle(gm, plan)
    gm.recompile()
    for got, wanted in zip(gm(*values), expected, strict=True):
        assert torch.equal(got, wanted)
    assert plan.compute is not None
    return gm, plan.compute.all_input_nodes


def apply(module: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
    return module(value)


def test_submodules_of_higher_order_operators_move_along() -> None:
    sketch, inner = with_attribute("score.inner", torch.nn.Tanh(), apply)
    gm, operands = outlined(sketch, Fn_compute_blocks=2)
    assert inner not in gm.graph.nodes
    assert [str(operand) for operand in operands] == ["w", "add_1"]


def test_constants_become_operands() -> None:
    sketch, inner = with_attribute("constant", torch.randn(6, 4), aten.mul.Tensor)
    gm, operands = outlined(sketch, Fn_compute_blocks=2)
    (copied,) = inner.users
    assert copied in operands
    assert "constant: f32[6, 4]" in printed(getattr(gm, COMPUTE))


def test_the_parts_of_a_size_that_depends_on_data_become_operands() -> None:
    """A branch can read `u0` off a shape, but not `u0` and `u1` off their sum."""
    sketch = Sketch()
    h, w, words = sketch.input("h", 6, 4), sketch.weight("w", 4, 4), sketch.input("words", 5, 4)
    found = [sketch.op(aten.nonzero.default, sketch.op(aten.gt.Scalar, words, bound)) for bound in (0.0, 0.5)]
    joined = sketch.op(aten._to_copy.default, sketch.op(aten.cat.default, found), dtype=torch.float32)
    out = h
    for i in range(4):
        mean = sketch.op(aten.mean.dim, joined, [0, 1], module=f"blocks.{i}")
        out = sketch.block(sketch.op(aten.mul.Tensor, out, mean, module=f"blocks.{i}"), w, w, module=f"blocks.{i}")
    sketch.finish(out)
    _, operands = outlined(sketch, Fn_compute_blocks=2)
    given = [operand.meta["val"] for operand in operands]
    assert sorted(str(value) for value in given if isinstance(value, torch.SymInt)) == ["u0", "u1"]


@pytest.mark.parametrize("build", SKETCHES)
@pytest.mark.parametrize("options", [{}, {"Fn_compute_blocks": 2}, {"Bn_compute_blocks": 1}])
def test_numbers_stay(build: Callable[[], Sketch], options: dict[str, int]) -> None:
    outlined(build(), **options)
