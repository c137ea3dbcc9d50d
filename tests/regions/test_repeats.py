"""Blocks that no module names."""

from __future__ import annotations

import pytest

from fxcache.errors import Refusal
from fxcache.regions.repeats import find_repeats
from fxcache.regions.trunk import Trunk
from tests.graphs import Sketch, aten


def shown(sketch: Sketch) -> dict[str, list[str]]:
    stacks = find_repeats(sketch.flow, 3)
    return {stack.name: [" ".join(node.name for node in block.nodes) for block in stack.blocks] for stack in stacks}


def layers(sketch: Sketch, count: int, paths: tuple[str, ...] = ()) -> None:
    """An embedding, layers and a head; the embedding ends with the operators and sizes that a layer ends with."""
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    h = sketch.op(aten.add.Tensor, sketch.op(aten.mm.default, h, w), h)
    for index in range(count):
        out = sketch.op(aten.neg.default, h)
        out = sketch.op(aten.mm.default, out, w)
        out = sketch.op(aten.relu.default, out)
        out = sketch.op(aten.mm.default, out, w)
        h = sketch.op(aten.add.Tensor, h, out)
        for node in [*sketch.graph.nodes][-5:] if paths else ():
            node.meta["nn_module_stack"] = {str(index): (f"L['self'].{paths[index]}", "Kind")}
    sketch.finish(sketch.op(aten.mm.default, h, w))


def test_the_part_that_is_repeated_is_cut_between_the_sums():
    sketch = Sketch()
    layers(sketch, 3)
    assert shown(sketch) == {
        "repeated": ["neg mm_1 relu mm_2 add_1", "neg_1 mm_3 relu_1 mm_4 add_2", "neg_2 mm_5 relu_2 mm_6 add_3"]
    }
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk)
    assert trunk.label == "repeated[3]"
    assert [(block.start, block.end) for block in trunk.blocks] == [(4, 9), (9, 14), (14, 19)]


def test_the_name_is_that_of_the_modules_around_all_blocks():
    sketch = Sketch()
    layers(sketch, 3, ("model.parts.aa", "model.parts.bb", "model.parts.cc.inner"))
    trunk = sketch.trunk("parts")
    assert isinstance(trunk, Trunk)
    assert trunk.label == "model.parts[3]"
    assert isinstance(sketch.trunk("others"), Refusal)


def test_two_are_no_repetition():
    sketch = Sketch()
    layers(sketch, 2)
    assert shown(sketch) == {}


def test_another_size_ends_the_repetition():
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    v = sketch.weight("v", 4, 8)
    for index in range(4):
        out = sketch.op(aten.mm.default, h, w if index != 2 else v)
        out = sketch.op(aten.mm.default, out, w if index != 2 else sketch.weight("u", 8, 4))
        h = sketch.op(aten.add.Tensor, h, out)
    sketch.finish(h)
    assert shown(sketch) == {}


@pytest.mark.parametrize(("others", "number"), [(6, 1), (7, 0)])
def test_less_than_half_of_the_products_is_no_trunk(others: int, number: int):
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    for _ in range(3):
        out = sketch.op(aten.relu.default, sketch.op(aten.mm.default, h, w))
        h = sketch.op(aten.add.Tensor, h, sketch.op(aten.mm.default, out, w))
    for index in range(others):
        h = sketch.op(aten.mm.default, h, sketch.weight(f"w{index}", 4 + index, 5 + index))
    sketch.finish(h)
    assert len(shown(sketch)) == number


def test_what_is_repeated_side_by_side_is_refused():
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    outs = []
    for _ in range(3):
        out = sketch.op(aten.relu.default, sketch.op(aten.mm.default, h, w))
        outs.append(sketch.op(aten.mm.default, out, w))
    sketch.finish(*outs)
    found = sketch.trunk()
    assert isinstance(found, Refusal)
    assert "(found repeated[3]: repeated.1 does not depend on repeated.0)" in str(found)
