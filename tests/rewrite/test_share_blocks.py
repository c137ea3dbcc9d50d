"""Blocks of one structure become one submodule, called once per block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxcache.regions.trunk import Trunk
from fxcache.rewrite.pipeline import rewrite, share
from fxcache.rewrite.share_blocks import mark_blocks, share_blocks
from tests.graphs import Sketch, aten, printed, text
from tests.rewrite.sketches import SKETCHES, half, modulated, plain, stream, two_streams, two_users


def shared(sketch: Sketch) -> int:
    """Share the blocks of the trunk; the number of calls."""
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk), trunk
    mark_blocks(trunk, sketch.parameters)
    return share_blocks(sketch.gm)


def submodules(gm: GraphModule) -> list[str]:
    return [name for name, _ in gm.named_children()]


def test_one_submodule_with_a_call_per_block() -> None:
    sketch = plain()
    assert shared(sketch) == 2
    assert printed(sketch.gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        fxcache_block_0 = fxcache_block_0
        fxcache_settle: f32[6, 4] = fxcache_settle(add)
        invoke_subgraph: (f32[6, 4]) = invoke_subgraph(fxcache_block_0, 'fxcache_block_0', fxcache_settle, w)
        getitem: f32[6, 4] = getitem(invoke_subgraph, 0)
        fxcache_block_1 = fxcache_block_0
        fxcache_conform: f32[6, 4] = fxcache_conform(getitem, fxcache_settle)
        invoke_subgraph_1: (f32[6, 4]) = invoke_subgraph(fxcache_block_1, 'fxcache_block_0', fxcache_conform, w)
        getitem_1: f32[6, 4] = getitem(invoke_subgraph_1, 0)
        add_3: f32[6, 4] = add(getitem_1, h)
        return (add_3)
        fxcache_block_0:
            operand_0: f32[6, 4]
            operand_1: f32[4, 4]
            mm_2: f32[6, 4] = mm(operand_0, operand_1)
            relu_1: f32[6, 4] = relu(mm_2)
            mm_3: f32[6, 4] = mm(relu_1, operand_1)
            add_1: f32[6, 4] = add(operand_0, mm_3)
            fxcache_own: f32[6, 4] = fxcache_own(add_1)
            return (fxcache_own)
    """)


@pytest.mark.parametrize("make", [*SKETCHES, stream, two_streams, modulated])
def test_every_value_stays_as_it_was(make: Callable[[], Sketch]) -> None:
    sketch = make()
    values = sketch.values()
    expected = sketch.gm(*values)
    assert shared(sketch) >= 2
    for got, wanted in zip(sketch.gm(*values), expected, strict=True):
        assert torch.equal(got, wanted)


def test_weights_are_those_of_each_block() -> None:
    sketch = Sketch()
    h, weights = sketch.input("h", 6, 4), [sketch.weight(f"w{i}", 4, 4) for i in range(4)]
    out = h
    for i, weight in enumerate(weights):
        out = sketch.block(out, weight, weight, module=f"blocks.{i}")
    sketch.finish(out)
    values = sketch.values()
    (expected,) = sketch.gm(*values)
    assert shared(sketch) == 3
    assert submodules(sketch.gm) == ["fxcache_block_0"]
    assert torch.equal(sketch.gm(*values)[0], expected)
    values[3] = values[3] + 1
    assert not torch.equal(sketch.gm(*values)[0], expected)


def test_equal_weights_in_some_blocks_only_make_another_structure() -> None:
    sketch = Sketch()
    h, a, b = sketch.input("h", 6, 4), sketch.weight("a", 4, 4), sketch.weight("b", 4, 4)
    out = sketch.blocks(h, a, a, stack="blocks", count=3)
    for i in (3, 4):
        out = sketch.block(out, a, b, module=f"blocks.{i}")
    sketch.finish(out)
    values = sketch.values()
    (expected,) = sketch.gm(*values)
    assert shared(sketch) == 4
    assert submodules(sketch.gm) == ["fxcache_block_0", "fxcache_block_1"]
    assert torch.equal(sketch.gm(*values)[0], expected)


def blocks_with(number: Callable[[int], float], count: int = 4) -> Sketch:
    """Blocks that scale their stream by a number of their own."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = h
    for i in range(count):
        module = f"blocks.{i}"
        out = sketch.op(aten.mul.Tensor, out, number(i), module=module)
        out = sketch.block(out, w, w, module=module)
    sketch.finish(out)
    return sketch


def test_other_constants_make_another_structure() -> None:
    sketch = blocks_with(float)
    before = printed(sketch.gm)
    assert shared(sketch) == 0
    assert printed(sketch.gm) == before
    sketch = blocks_with(lambda i: 5.0 if i in (1, 3) else float(i))
    values = sketch.values()
    (expected,) = sketch.gm(*values)
    assert shared(sketch) == 2
    assert torch.equal(sketch.gm(*values)[0], expected)


def test_another_layout_of_a_weight_makes_another_structure() -> None:
    sketch = Sketch()
    h = sketch.input("h", 6, 4)
    weights = [sketch.weight(f"w{i}", 4, 4) for i in range(4)]
    with sketch.mode:
        weights[1].meta["val"] = torch.empty(4, 4).t()
    out = h
    for i, weight in enumerate(weights):
        out = sketch.block(out, weight, weight, module=f"blocks.{i}")
    sketch.finish(out)
    assert shared(sketch) == 2


def test_views_of_a_block_are_taken_by_the_next() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    image, words = sketch.op(aten.slice.Tensor, h, 0, 2, 6), sketch.op(aten.slice.Tensor, h, 0, 0, 2)
    for i in range(4):
        module = f"blocks.{i}"
        joint = sketch.op(aten.cat.default, [words, image], module=module)
        joint = sketch.block(joint, w, w, module=module)
        words = sketch.op(aten.slice.Tensor, joint, 0, 0, 2, module=module)
        image = sketch.op(aten.slice.Tensor, joint, 0, 2, 6, module=module)
    sketch.finish(image)
    values = sketch.values()
    (expected,) = sketch.gm(*values)
    assert shared(sketch) == 3  # the first one reads two values, the others one
    (call, *_) = sketch.gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    assert [tuple(value.shape) for value in call.meta["val"]] == [(6, 4)]
    assert torch.equal(sketch.gm(*values)[0], expected)


def test_what_draws_random_numbers_stays() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = h
    for i in range(3):
        module = f"blocks.{i}"
        out = sketch.op(aten.add.Tensor, out, sketch.op(aten.rand_like.default, out, module=module), module=module)
        out = sketch.block(out, w, w, module=module)
    sketch.finish(out)
    assert shared(sketch) == 0


def test_blocks_that_need_each_others_parts_stay() -> None:
    """Two rows of blocks; every block reads, in its midst, what the other row has made of its beginning."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = h
    for i in range(3):
        here, there = f"blocks.{i}", f"others.{i}"
        begun = sketch.op(aten.mm.default, out, w, module=here)
        seen = sketch.op(aten.mm.default, sketch.op(aten.mm.default, begun, w, module=there), w, module=there)
        out = sketch.op(aten.add.Tensor, sketch.op(aten.mm.default, seen, w, module=here), out, module=here)
    sketch.finish(out)
    values = sketch.values()
    (expected,) = sketch.gm(*values)
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk)
    other = {n for n in sketch.graph.nodes if "others" in str(n.meta.get("nn_module_stack"))}
    mark_blocks(trunk, sketch.parameters)
    for node in other:
        number = next(iter(node.meta["nn_module_stack"].values()))[0][-1]
        node.meta["fxcache_block"] = 10 + int(number)
    share_blocks(sketch.gm)
    assert torch.equal(sketch.gm(*values)[0], expected)


def test_the_branch_of_the_middle_shares_its_own() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(sketch.op(aten.neg.default, h), w, w, stack="blocks", count=5)
    gm = sketch.finish(sketch.op(aten.relu.default, out))
    result = rewrite(gm, sketch.static, sketch.plan(inner_backend="inductor").options)
    assert not isinstance(result, str)
    compute = result.gm.fxcache_compute  # type: ignore[union-attr]
    assert submodules(compute) == ["fxcache_block_0"]
    calls = compute.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    assert len(calls) == 4


def test_switched_off_and_for_other_inner_compilers_nothing_is_shared() -> None:
    sketch = plain()
    wanted = {"inner_backend": "inductor", "share_blocks": True}
    for options in ({**wanted, "inner_backend": "eager"}, {**wanted, "share_blocks": False}):
        assert share(sketch.gm, sketch.static, sketch.plan(**options).options) is None
    copy = share(sketch.gm, sketch.static, sketch.plan(**wanted).options)
    assert copy is not None
    assert copy is not sketch.gm
    assert submodules(sketch.gm) == []
    (value,) = sketch.gm(*sketch.values())
    assert isinstance(value, Tensor)


def test_a_graph_without_a_trunk_is_left() -> None:
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    gm = sketch.finish(sketch.op(aten.mm.default, h, w))
    assert share(gm, sketch.static, two_users().plan(inner_backend="inductor", share_blocks=True).options) is None


@pytest.mark.parametrize("make", [plain, half])
def test_a_graph_that_is_not_cached_keeps_its_bits_unless_told_otherwise(make: Callable[[], Sketch]) -> None:
    sketch = make()
    assert share(sketch.gm, sketch.static, sketch.plan(inner_backend="inductor").options) is None
    told = sketch.plan(inner_backend="inductor", share_blocks=True).options
    assert share(sketch.gm, sketch.static, told) is not None


def test_the_wrapper_in_cpp_cannot_call_submodules() -> None:
    sketch = plain()
    told = sketch.plan(inner_backend="inductor", share_blocks=True).options
    with torch._inductor.config.patch(cpp_wrapper=True):
        assert share(sketch.gm, sketch.static, told) is None
