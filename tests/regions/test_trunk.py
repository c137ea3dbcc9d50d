"""Which stack is the trunk, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.fx import Node

from fxcache.errors import Refusal
from fxcache.regions.trunk import Trunk
from tests.graphs import Sketch, aten


def trunk_of(sketch: Sketch, *names: str) -> Trunk:
    found = sketch.trunk(*names)
    assert isinstance(found, Trunk), found
    return found


def refusal_of(sketch: Sketch, *names: str) -> str:
    found = sketch.trunk(*names)
    assert isinstance(found, Refusal), found.label
    return str(found)


def start() -> tuple[Sketch, Node, Node]:
    sketch = Sketch()
    return sketch, sketch.input("h", 6, 4), sketch.weight("w", 4, 4)


def test_one_stack():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="model.blocks", count=3))
    trunk = trunk_of(sketch)
    assert trunk.label == "model.blocks[3]"
    assert trunk.side_blocks == []


def test_a_stack_inside_the_elements_of_a_short_one():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="stages.0.blocks", count=4))
    assert trunk_of(sketch).label == "stages.0.blocks[4]"


def few(sketch: Sketch, h: Node, w: Node) -> Node:
    return sketch.blocks(h, w, w, stack="blocks", count=2)


def light(sketch: Sketch, h: Node, w: Node) -> Node:
    return sketch.blocks(h, w, stack="blocks", count=3)


def unlike(sketch: Sketch, h: Node, w: Node) -> Node:
    for index in range(4):
        h = sketch.block(h, *[w] * (2 + index % 2), module=f"blocks.{index}", kind=f"Kind{index % 2}")
    return h


def parallel(sketch: Sketch, h: Node, w: Node) -> Node:
    outs = [sketch.block(h, w, w, module=f"blocks.{index}") for index in range(3)]
    return sketch.op(aten.cat.default, outs)


def unnamed(sketch: Sketch, h: Node, w: Node) -> Node:
    return sketch.op(aten.mm.default, h, w)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (few, "(found blocks[2]: fewer than 3 blocks)"),
        (light, "(found blocks[3]: fewer than 2 matrix products, convolutions or attentions in a block)"),
        (unlike, "(found blocks[4]: blocks of different kinds)"),
        (parallel, "(found blocks[3]: blocks.1 does not depend on blocks.0)"),
        (unnamed, "(the graph names no modules)"),
    ],
)
def test_refusals(build: Callable[[Sketch, Node, Node], Node], reason: str):
    sketch, h, w = start()
    sketch.finish(build(sketch, h, w))
    assert refusal_of(sketch) == f"no chained stack of repeated blocks {reason}"


def test_many_reasons_are_cut_short():
    sketch, h, w = start()
    for number in range(8):
        h = sketch.blocks(h, w, stack=f"s.{'abcdefgh'[number]}", count=2)
    sketch.finish(h)
    reason = refusal_of(sketch)
    assert reason.count("fewer than") == 6
    assert reason.endswith("; ...)")


def test_a_refiner_of_another_size_stays_outside():
    sketch, h, w = start()
    e = sketch.blocks(sketch.input("e", 3, 4), w, w, stack="refiner", count=3)
    h = sketch.op(aten.add.Tensor, h, sketch.op(aten.mean.dim, e, [0], True))
    v = sketch.weight("v", 4, 4)
    sketch.finish(sketch.blocks(h, v, v, w, stack="blocks", count=3))
    assert trunk_of(sketch).label == "blocks[3]"


def test_stacks_that_carry_on_the_same_values_are_joined():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="double", count=3)
    h = sketch.blocks(h, w, w, stack="single", count=4)
    sketch.finish(h)
    trunk = trunk_of(sketch)
    assert trunk.label == "double[3] + single[4]"
    assert len(trunk.blocks) == 7


def test_a_short_stack_does_not_join():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="double", count=2)
    sketch.finish(sketch.blocks(h, w, w, stack="single", count=4))
    assert trunk_of(sketch).label == "single[4]"


def test_text_and_image_are_joined_with_their_sum():
    sketch, h, w = start()
    e = sketch.input("e", 3, 4)
    for index in range(3):
        place = {"module": f"double.{index}"}
        both = sketch.op(aten.cat.default, [e, h], **place)
        both = sketch.op(aten.mm.default, sketch.op(aten.mm.default, both, w, **place), w, **place)
        parts = [sketch.op(aten.slice.Tensor, both, 0, *ends, **place) for ends in ((0, 3), (3, 9))]
        e, h = (sketch.op(aten.add.Tensor, a, b, **place) for a, b in zip((e, h), parts, strict=True))
    sketch.finish(sketch.blocks(sketch.op(aten.cat.default, [e, h]), w, w, stack="single", count=3))
    assert trunk_of(sketch).label == "double[3] + single[3]"


def test_a_stack_that_does_not_depend_on_the_trunk_is_not_joined():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    other = sketch.blocks(sketch.input("e", 6, 4), w, w, stack="other", count=3)
    sketch.finish(sketch.op(aten.add.Tensor, h, other))
    assert trunk_of(sketch).label == "blocks[3]"


def test_blocks_that_run_in_between_are_side_blocks():
    sketch, h, w = start()
    v = sketch.weight("v", 4, 4)
    for index in range(4):
        h = sketch.block(h, w, v, v, module=f"blocks.{index}")
        if index < 2:
            h = sketch.op(aten.add.Tensor, h, sketch.block(h, w, module=f"control.{index}", residual=False))
    sketch.finish(h)
    trunk = trunk_of(sketch)
    assert trunk.label == "blocks[4]"
    assert [block.label for block in trunk.side_blocks] == ["control.0", "control.1"]


def test_the_stack_with_most_parameters_is_the_trunk():
    sketch, h, w = start()
    large = sketch.weight("large", 4, 32), sketch.weight("back", 32, 4)
    e = sketch.blocks(sketch.input("e", 3, 4), w, w, stack="many", count=9)
    out = sketch.blocks(h, *large, stack="few", count=3)
    sketch.finish(out, e)
    assert trunk_of(sketch).label == "few[3]"
    assert trunk_of(sketch, "many").label == "many[9]"


def test_names_restrict_the_search():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="model.double", count=3)
    sketch.finish(sketch.blocks(h, w, w, stack="model.single", count=3))
    assert trunk_of(sketch, "double").label == "model.double[3]"
    assert trunk_of(sketch, "model.single").label == "model.single[3]"
    assert trunk_of(sketch, "double", "single").label == "model.double[3] + model.single[3]"
    assert refusal_of(sketch, "gle", "x") == "no stack of repeated blocks named gle, x"


def numbered(count: int = 3, **more: object) -> Sketch:
    sketch, h, w = start()
    for number in range(1, count + 1):
        h = sketch.block(h, w, w, module=f"unit.block{number}", **more)  # type: ignore[arg-type]
    sketch.finish(h)
    return sketch


def repeated(count: int = 3, **more: object) -> Sketch:
    sketch, h, w = start()
    for call in range(count):
        h = sketch.block(h, w, w, module="unit", call=call, **more)  # type: ignore[arg-type]
    sketch.finish(h)
    return sketch


@pytest.mark.parametrize(("build", "label"), [(numbered, "unit.block[3]"), (repeated, "unit[3]")])
def test_last_resorts(build: Callable[..., Sketch], label: str):
    assert trunk_of(build()).label == label
    assert refusal_of(build(2)).startswith("no chained stack of repeated blocks")


def test_a_list_goes_before_the_last_resorts():
    sketch, h, w = start()
    for number in range(1, 4):
        h = sketch.block(h, w, w, w, w, module=f"block{number}")
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    assert trunk_of(sketch).label == "blocks[3]"


def test_numbered_parts_of_a_block_that_is_called_again_and_again():
    sketch, h, w = start()
    v = sketch.weight("v", 4, 4)
    for call in range(3):
        h = sketch.op(aten.mm.default, h, v, module="unit", call=call)
        for number in (1, 2):
            h = sketch.block(h, w, w, module=f"unit.attn{number}", call=call)
    sketch.finish(h)
    assert trunk_of(sketch).label == "unit[3]"


def pyramid(place: Callable[[int], dict[str, object]]) -> Sketch:
    """Stages whose values become smaller."""
    sketch, h, _ = start()
    width = 4
    for number in range(3):
        weights = sketch.weight(f"a{number}", width, width), sketch.weight(f"b{number}", width, width // 2 or 1)
        for weight in weights:
            h = sketch.op(aten.mm.default, h, weight, **place(number))
        width = width // 2 or 1
    sketch.finish(h)
    return sketch


@pytest.mark.parametrize(
    "place",
    [lambda n: {"module": f"stage{n + 1}"}, lambda n: {"module": "stage", "call": n}],
    ids=["numbered", "repeated"],
)
def test_a_pyramid_is_no_trunk(place: Callable[[int], dict[str, object]]):
    sketch = pyramid(place)
    assert "not a list of modules, and the values between the blocks change their size" in refusal_of(sketch)
    assert trunk_of(sketch, "stage").label == "stage[3]", "a name that the user gives is trusted"


def test_numbered_blocks_of_different_kinds_are_no_trunk():
    sketch, h, w = start()
    for number in (1, 2, 3, 4):
        weights = [w] * (2 if number < 3 else 3)
        h = sketch.block(h, *weights, module=f"block{number}", kind="Other" if number == 4 else "Block")
    sketch.finish(h)
    assert "block[4]: not a list of modules, and blocks of different kinds" in refusal_of(sketch)


def test_calls_that_do_not_follow_from_each_other_are_no_trunk():
    sketch, h, w = start()
    outs = [sketch.block(h, w, w, module="encoder", call=call) for call in range(3)]
    sketch.finish(sketch.op(aten.cat.default, outs))
    assert "encoder[3]: encoder.1 does not depend on encoder.0" in refusal_of(sketch)


def test_dynamic_sizes():
    sketch = Sketch()
    length = sketch.size("length", 6)
    h, w = sketch.input("h", length, 4), sketch.weight("w", 4, 4)
    h = sketch.blocks(h, w, w, stack="double", count=3)
    sketch.finish(sketch.blocks(h, w, w, stack="single", count=3))
    assert trunk_of(sketch).label == "double[3] + single[3]"
    assert not sketch.mode.shape_env.guards, "comparing sizes would pin them"


def test_integers_are_not_what_is_carried():
    sketch, h, w = start()
    counts = sketch.input("counts", 6, dtype=torch.int64)
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    sketch.finish(out, counts)
    assert trunk_of(sketch).label == "blocks[3]"


def test_ends_of_a_container_that_are_no_blocks_are_left_out():
    sketch, h, w = start()
    h = sketch.block(h, w, module="net.0", kind="Embedding", residual=False)
    for index in (1, 2, 3, 4):
        h = sketch.block(h, w, w, module=f"net.{index}")
    h = sketch.op(aten.neg.default, h, module="net.5", kind="Norm")
    sketch.finish(sketch.block(h, w, module="net.6", kind="Head", residual=False))
    trunk = trunk_of(sketch)
    assert [block.label for block in trunk.blocks] == ["net.1", "net.2", "net.3", "net.4"]
    assert trunk.side_blocks == []


def test_another_kind_at_the_end_that_works_is_a_block():
    sketch, h, w = start()
    for index in (0, 1, 2, 3):
        h = sketch.block(h, w, w, module=f"net.{index}", kind="Last" if index == 3 else "Block")
    sketch.finish(h)
    assert trunk_of(sketch).label == "net[4]"
