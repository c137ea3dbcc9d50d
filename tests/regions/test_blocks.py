"""Stacks of blocks from the module paths of the nodes."""

from __future__ import annotations

import pytest

from fxcache.regions.blocks import Stack, find_repeated_calls, find_stacks, module_path, place_of
from tests.graphs import Sketch, aten, module_stack


def shown(stacks: list[Stack]) -> dict[str, list[str]]:
    return {stack.name: [f"{b.index}: {' '.join(n.name for n in b.nodes)}" for b in stack.blocks] for stack in stacks}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("L['self'].blocks.3.attn", ("blocks", "3", "attn")),
        ("L['self']._modules['blocks']._modules['3']", ("blocks", "3")),
        ("L['self'].__dict__['_modules']['blocks'][3]", ("blocks", "3")),
        ("G['model']._orig_mod.layers.10", ("layers", "10")),
        ("L['args'][0].blocks.0._checkpoint_wrapped_module.mlp", ("0", "blocks", "0", "mlp")),
        ("L['self']", ()),
    ],
)
def test_paths(path, expected):
    assert module_path(path) == expected


def test_elements_that_are_called_and_their_parts():
    sketch = Sketch()
    h = sketch.input("h", 4)
    for index in (0, 1):
        h = sketch.op(aten.neg.default, h, module=f"blocks.{index}.norm")
        h = sketch.op(aten.relu.default, h, module=f"blocks.{index}")
    sketch.finish(sketch.op(aten.neg.default, h, module="head"))
    (stack,) = find_stacks(sketch.flow.nodes)
    assert shown([stack]) == {"blocks": ["0: neg relu", "1: neg_1 relu_1"]}
    assert [block.label for block in stack.blocks] == ["blocks.0", "blocks.1"]
    assert {block.kind for block in stack.blocks} == {"test.blocks.N"}
    assert (stack.start, stack.end) == (1, 5)


def test_a_class_may_be_a_class_or_its_name():
    sketch = Sketch()
    node = sketch.op(aten.neg.default, sketch.input("h", 4))
    node.meta["nn_module_stack"] = {"1": ("L['self'].blocks.0", Sketch)}
    place = place_of(node, 0)
    assert place is not None
    assert place.kind == "tests.graphs.Sketch"


def test_deeper_levels():
    sketch = Sketch()
    h = sketch.input("h", 4)
    for outer in (0, 1):
        for inner in (0, 1):
            h = sketch.op(aten.neg.default, h, module=f"stages.{outer}.layers.{inner}.norm")
    sketch.finish(h)
    nodes = sketch.flow.nodes
    assert shown(find_stacks(nodes)) == {"stages": ["0: neg neg_1", "1: neg_2 neg_3"]}
    assert shown(find_stacks(nodes, 1)) == {
        "stages.0.layers": ["0: neg", "1: neg_1"],
        "stages.1.layers": ["0: neg_2", "1: neg_3"],
    }
    assert find_stacks(nodes, 2) == []


def test_a_second_call_is_a_second_block():
    heavy = Sketch()
    h, w = heavy.input("h", 4, 4), heavy.weight("w", 4, 4)
    for call in (0, 1):
        h = heavy.blocks(h, w, stack="blocks", count=2, call=call)
    heavy.finish(h)
    assert shown(find_stacks(heavy.flow.nodes)) == {
        "blocks": ["0: mm add", "1: mm_1 add_1", "0: mm_2 add_2", "1: mm_3 add_3"]
    }


def test_cheap_nodes_of_a_block_that_ran_elsewhere_are_strays():
    sketch = Sketch()
    h, w = sketch.input("h", 4, 4), sketch.weight("w", 4, 4)
    h = sketch.block(h, w, module="blocks.0")
    again = sketch.op(aten.permute.default, w, [1, 0], module="blocks.2")
    h = sketch.block(h, again, module="blocks.1")
    sketch.finish(sketch.block(h, w, module="blocks.2"))
    assert shown(find_stacks(sketch.flow.nodes)) == {"blocks": ["0: mm add", "1: mm_1 add_1", "2: mm_2 add_2"]}


def test_a_part_that_is_called_from_elsewhere_is_no_block():
    sketch = Sketch()
    h, w = sketch.input("h", 4, 4), sketch.weight("w", 4, 4)
    h = sketch.blocks(h, w, stack="blocks", count=2)
    sketch.finish(sketch.op(aten.mm.default, h, w, module="blocks.0.norm", whole=False, call=1))
    assert shown(find_stacks(sketch.flow.nodes)) == {"blocks": ["0: mm add", "1: mm_1 add_1"]}


def test_parts_alone_are_blocks_when_no_element_is_called():
    sketch = Sketch()
    h = sketch.input("h", 4)
    for index in (0, 1):
        h = sketch.op(aten.neg.default, h, module=f"blocks.{index}.norm", whole=False)
        h = sketch.op(aten.relu.default, h, module=f"blocks.{index}.act", whole=False)
    sketch.finish(h)
    (stack,) = find_stacks(sketch.flow.nodes)
    assert shown([stack]) == {"blocks": ["0: neg relu", "1: neg_1 relu_1"]}
    assert {block.kind for block in stack.blocks} == {""}


def test_a_node_that_lost_its_modules_belongs_to_its_neighbours():
    sketch = Sketch()
    h = sketch.input("h", 4)
    h = sketch.op(aten.neg.default, h, module="blocks.0")
    h = sketch.op(aten.relu.default, h)
    h = sketch.op(aten.neg.default, h, module="blocks.0")
    h = sketch.op(aten.relu.default, h)
    h = sketch.op(aten.neg.default, h, module="blocks.1")
    h = sketch.op(aten.relu.default, h)
    h = sketch.op(aten.neg.default, h, module="head")
    sketch.finish(sketch.op(aten.neg.default, h, module="blocks.1"))
    assert shown(find_stacks(sketch.flow.nodes))["blocks"][0] == "0: neg relu neg_1"
    assert "relu_1" not in str(shown(find_stacks(sketch.flow.nodes)))
    assert "relu_2" not in str(shown(find_stacks(sketch.flow.nodes)))


def test_numbered_attributes():
    sketch = Sketch()
    h = sketch.input("h", 4)
    for module in ("block1.norm", "block2.norm", "out2d"):
        h = sketch.op(aten.neg.default, h, module=module)
    sketch.finish(h)
    assert find_stacks(sketch.flow.nodes) == []
    stacks = find_stacks(sketch.flow.nodes, numbered=True)
    assert shown(stacks) == {"block": ["1: neg", "2: neg_1"]}
    assert stacks[0].blocks[0].kind == "test.blockN"


def test_repeated_calls_of_the_outermost_module_that_has_enough():
    sketch = Sketch()
    h = sketch.op(aten.neg.default, sketch.input("h", 4), module="core.norm")
    for call in range(3):
        h = sketch.op(aten.neg.default, h, module="core.cell.norm", call=call)
        h = sketch.op(aten.relu.default, h, module="core.cell", call=call)
    sketch.finish(sketch.op(aten.relu.default, h, module="head"))
    for node in sketch.graph.nodes:
        if "nn_module_stack" in node.meta:  # the outer module runs once
            inner = {k: v for k, v in node.meta["nn_module_stack"].items() if not k.startswith("<core>")}
            node.meta["nn_module_stack"] = {**module_stack("core", kind=None, call=0, whole=True), **inner}
    expected = {"core.cell": ["0: neg_1 relu", "1: neg_2 relu_1", "2: neg_3 relu_2"]}
    assert shown(find_repeated_calls(sketch.flow.nodes, 3)) == expected
    assert find_repeated_calls(sketch.flow.nodes, 4) == []


def test_one_module_under_two_names_is_one_module():
    sketch = Sketch()
    h = sketch.input("h", 4)
    for number, name in enumerate(("one", "two", "one")):
        h = sketch.op(aten.neg.default, h, module=name)
        key = "77" + (f"@{number}" if number else "")
        h.meta["nn_module_stack"] = {key: (f"L['self'].{name}", "test.Block")}
    sketch.finish(h)
    assert shown(find_repeated_calls(sketch.flow.nodes, 3)) == {"one": ["0: neg", "1: neg_1", "2: neg_2"]}
