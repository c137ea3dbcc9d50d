"""What Inductor computes anew in every block is made part of the blocks."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Node

from fxcache.options import Options
from fxcache.regions.trunk import Trunk
from fxcache.rewrite.keep_inlined import keep_inlined
from fxcache.rewrite.pipeline import rewrite, share
from tests.graphs import Sketch, aten, printed, text


def turned(angles: Callable[[Sketch, Node], Node], *, readers: int = 3, rows: Any = 6, device: str = "cpu") -> Sketch:
    """Three blocks, of which so many multiply their stream with what is made of the angles."""
    sketch = Sketch()
    h, w, a = sketch.input("h", rows, 4), sketch.weight("w", 4, 4), sketch.input("a", rows, 2)
    b = sketch.input("b", rows, 2)
    if device != "cpu":
        with sketch.mode:
            for node in (h, w, a, b):
                node.meta["val"] = torch.empty(node.meta["val"].shape, device=device)
    factor = angles(sketch, sketch.op(aten.cat.default, [a, b], -1))
    out = h
    for i in range(3):
        module = f"blocks.{i}"
        if i < readers:
            out = sketch.op(aten.mul.Tensor, out, factor, module=module)
        out = sketch.block(out, w, w, module=module)
    sketch.finish(sketch.op(aten.relu.default, out))
    return sketch


def cosine(sketch: Sketch, angle: Node) -> Node:
    return sketch.op(aten.cos.default, angle)


def scaled(sketch: Sketch, angle: Node) -> Node:
    """Something small before the function, and behind it what the first block does for all of them."""
    cos = cosine(sketch, sketch.op(aten.mul.Tensor, angle, 0.5))
    return sketch.op(aten.squeeze.dim, sketch.op(aten.unsqueeze.default, cos, 0), 0, module="blocks.0")


def kept(sketch: Sketch) -> int:
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk), trunk
    return keep_inlined(sketch.gm, trunk)


def test_every_block_takes_the_function_for_itself() -> None:
    sketch = turned(cosine)
    assert kept(sketch) == 3
    assert printed(sketch.gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        a: f32[6, 2]
        b: f32[6, 2]
        cat: f32[6, 4] = cat((a, b), -1)
        cos_1: f32[6, 4] = cos(cat)
        mul: f32[6, 4] = mul(h, cos_1)
        mm: f32[6, 4] = mm(mul, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(mul, mm_1)
        cos_2: f32[6, 4] = cos(cat)
        mul_1: f32[6, 4] = mul(add, cos_2)
        mm_2: f32[6, 4] = mm(mul_1, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(mul_1, mm_3)
        cos_3: f32[6, 4] = cos(cat)
        mul_2: f32[6, 4] = mul(add_1, cos_3)
        mm_4: f32[6, 4] = mm(mul_2, w)
        relu_2: f32[6, 4] = relu(mm_4)
        mm_5: f32[6, 4] = mm(relu_2, w)
        add_2: f32[6, 4] = add(mul_2, mm_5)
        relu_3: f32[6, 4] = relu(add_2)
        return (relu_3)
    """)
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk)
    assert [sum(node.target is aten.cos.default for node in block.nodes) for block in trunk.blocks] == [1, 1, 1]


def concatenated(sketch: Sketch, angle: Node) -> Node:
    both = sketch.op(aten.cat.default, [cosine(sketch, angle), angle], -1)
    return sketch.op(aten.slice.Tensor, both, -1, 0, 4)


STORED: dict[str, Sketch] = {
    "read by one block": turned(cosine, readers=1),
    "exact": turned(lambda sketch, angle: sketch.op(aten.mul.Tensor, angle, 0.5)),
    "concatenated": turned(concatenated),
    "a reduction": turned(lambda sketch, angle: sketch.op(aten.sum.dim_IntList, cosine(sketch, angle), [-1], True)),
    "heavy, and read more than once": turned(lambda sketch, angle: sketch.op(aten.tanh.default, angle)),
    "not on the CPU": turned(cosine, device="cuda"),
}


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_anyhow_stays(name: str) -> None:
    before = printed(STORED[name].gm)
    assert kept(STORED[name]) == 0
    assert printed(STORED[name].gm) == before


def test_all_that_is_not_stored_goes_along() -> None:
    sketch = turned(scaled)
    before = sketch.gm(*sketch.values())
    kept(sketch)
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk)
    outside = {arg for block in trunk.blocks[1:] for node in block.nodes for arg in node.all_input_nodes}
    outside -= {node for block in trunk.blocks for node in block.nodes}
    assert {node.name for node in outside} == {"w", "cat"}
    assert torch.equal(sketch.gm(*sketch.values())[0], before[0])


def test_parts_are_taken_of_a_tensor_inside_of_the_block() -> None:
    def half(sketch: Sketch, angle: Node) -> Node:
        part = sketch.op(operator.getitem, sketch.op(aten.split.Tensor, angle, 2, -1), 0)
        return cosine(sketch, sketch.op(aten.cat.default, [part, part], -1))

    def first(sketch: Sketch, angle: Node) -> Node:
        return cosine(sketch, sketch.op(operator.getitem, sketch.op(aten.split.Tensor, angle, 4, -1), 0))

    def mean(sketch: Sketch, angle: Node) -> Node:
        both = sketch.op(aten.var_mean.correction, angle, [-1], keepdim=True)
        return cosine(sketch, sketch.op(operator.getitem, both, 1))

    for angles, border in ((half, "cat_1"), (first, "cat"), (mean, "getitem")):
        sketch = turned(angles)
        before = sketch.gm(*sketch.values())
        assert kept(sketch) >= 3
        trunk = sketch.trunk()
        assert isinstance(trunk, Trunk)
        nodes = {node for block in trunk.blocks for node in block.nodes}
        outside = {arg.name for node in nodes for arg in node.all_input_nodes if arg not in nodes}
        assert outside == {"h", "w", border}
        assert torch.equal(sketch.gm(*sketch.values())[0], before[0])


def test_of_a_heavy_function_read_once_the_reader_is_computed_anew() -> None:
    def small(sketch: Sketch, angle: Node) -> Node:
        return cosine(sketch, sketch.op(aten.exp.default, angle))

    assert kept(turned(small)) == 6


def test_dynamic_sizes() -> None:
    sketch = Sketch()
    rows = sketch.size("rows", 6)
    h, w, a = sketch.input("h", rows, 4), sketch.weight("w", 4, 4), sketch.input("a", rows, 4)
    cos, out = cosine(sketch, a), h
    for i in range(3):
        out = sketch.block(sketch.op(aten.mul.Tensor, out, cos, module=f"blocks.{i}"), w, w, module=f"blocks.{i}")
    sketch.finish(out)
    values = sketch.values()
    (before,) = sketch.gm(*values)
    assert kept(sketch) == 3
    assert torch.equal(sketch.gm(*values)[0], before)


def cosines(gm: torch.fx.GraphModule) -> int:
    return len(gm.graph.find_nodes(op="call_function", target=aten.cos.default))


def test_the_middle_gets_the_angles_and_not_their_cosines() -> None:
    sketch = turned(cosine)
    for inner, expected in (("inductor", (1, 0, 1)), ("eager", (1, 0, 0))):
        result = rewrite(sketch.gm, sketch.static, sketch.plan(inner_backend=inner).options)
        compute = result.gm.fxcache_compute  # type: ignore[union-attr]
        bodies = [child for _, child in compute.named_children()]
        found = (cosines(result.gm), cosines(compute), sum(map(cosines, bodies)))  # type: ignore[union-attr, arg-type]
        assert found == expected, (inner, found)
    assert cosines(sketch.gm) == 1


def test_shared_blocks_get_the_angles_and_not_their_cosines() -> None:
    sketch = turned(cosine)
    copy = share(sketch.gm, sketch.static, sketch.plan(inner_backend="inductor", share_blocks=True).options)
    assert copy is not None
    ((_, body),) = copy.named_children()
    assert cosines(body) == 1  # type: ignore[arg-type]


def test_units_that_are_decided_for_themselves_get_the_angles_too() -> None:
    sketch = turned(cosine)
    for inner, inside in (("inductor", [1, 1]), ("eager", [0, 0])):
        options = Options(method="dbprune", inner_backend=inner)  # type: ignore[arg-type]
        result = rewrite(sketch.gm, sketch.static, options)
        branches = [branch for name, branch in result.gm.named_children() if "compute" in name]  # type: ignore[union-attr]
        assert sorted(map(cosines, branches))[-2:] == inside, inner  # type: ignore[arg-type]
