"""What a value that leaves the middle is cached against."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.fx import Node

from fxcache.regions.references import Copy, Reference, leaves
from tests.graphs import Sketch, aten


def shown(reference: Reference | None) -> str:
    if reference is None or isinstance(reference, Node):
        return str(reference)
    inner = ", ".join(f"{old} -> {shown(new)}" for old, new in reference.replaced)
    return f"copy of {reference.node} ({inner})"


def references(sketch: Sketch, **options: int) -> dict[str, str]:
    return {str(stream.live_out): shown(stream.reference) for stream in sketch.region(**options).streams}


def start() -> tuple[Sketch, Node, Node]:
    sketch = Sketch()
    return sketch, sketch.input("h", 6, 4), sketch.weight("w", 4, 4)


def test_the_partner_of_an_exit():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    assert references(sketch) == {"add_2": "add"}
    assert references(sketch, Fn_compute_blocks=2) == {"add_2": "add_1"}


def test_without_a_residual_path_there_is_none():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3, residual=False))
    assert references(sketch) == {"mm_5": "None"}


def test_a_norm_on_the_path_is_too_much():
    sketch, h, w = start()
    for index in range(3):
        module = f"blocks.{index}"
        h = sketch.block(h, w, w, module=module)
        mean = sketch.op(aten.mean.dim, h, [-1], True, module=module)
        h = sketch.op(aten.sub.Tensor, h, mean, module=module)
        square = sketch.op(aten.pow.Tensor_Scalar, h, 2, module=module)
        scale = sketch.op(
            aten.rsqrt.default, sketch.op(aten.mean.dim, square, [-1], True, module=module), module=module
        )
        h = sketch.op(aten.mul.Tensor, h, scale, module=module)
        h = sketch.op(aten.tanh.default, h, module=module)
    sketch.finish(h)
    assert list(references(sketch).values()) == ["None"]


def test_a_matrix_product_is_never_on_the_path():
    sketch, h, w = start()
    for index in range(3):
        inner = sketch.op(aten.mm.default, h, w, module=f"blocks.{index}")
        h = sketch.block(inner, w, w, module=f"blocks.{index}")
    sketch.finish(h)
    assert references(sketch) == {"add_2": "None"}


def test_what_every_block_adds_is_not_the_stream():
    for reverse in (False, True):
        sketch, h, w = start()
        position = sketch.op(aten.sin.default, sketch.input("p", 6, 4))
        for index in range(3):
            summands = (position, h) if reverse else (h, position)
            both = sketch.op(aten.add.Tensor, *summands, module=f"blocks.{index}", name=f"both{index}")
            h = sketch.block(both, w, w, module=f"blocks.{index}")
        sketch.finish(h)
        assert references(sketch) == {"add_2": "add"}
        inp = sketch.region().indicator.inp
        assert str(inp) == "h"


def test_glue_between_blocks_is_copied():
    sketch, h, w = start()
    e = sketch.input("e", 3, 4)
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    h = sketch.op(aten.cat.default, [e, h])
    third = sketch.block(h, w, w, module="blocks.3")
    sketch.finish(third)
    assert references(sketch) == {"add_3": "copy of cat (add_2 -> add)"}


def test_heavy_glue_is_not_copied():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    h = sketch.op(aten.mm.default, h, w)
    sketch.finish(sketch.block(h, w, w, module="blocks.3"))
    assert references(sketch) == {"add_3": "None"}


def test_a_delta_without_identity_path_is_dropped():
    sketch, h, w = start()
    for index in range(4):
        h = sketch.block(h, w, w, module=f"blocks.{index}")
        if index == 2:
            delta = sketch.op(aten.mm.default, h, w, name="delta")
            h = sketch.op(aten.add.Tensor, h, delta, name="with_delta")
    sketch.finish(h)
    assert references(sketch) == {"add_3": "add"}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("split", ["slice", "split_with_sizes", "split"])
def test_text_and_image_of_equal_length_are_told_apart(swapped: bool, split: str):
    sketch, h, w = start()
    e = sketch.input("e", 6, 4)
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        both = sketch.op(aten.cat.default, [e, h], **place)
        both = sketch.block(both, w, w, **place)
        if split == "slice":
            parts = [sketch.op(aten.slice.Tensor, both, 0, at, at + 6, **place) for at in (0, 6)]
        else:
            sizes = 6 if split == "split" else [6, 6]
            target = aten.split.Tensor if split == "split" else aten.split_with_sizes.default
            whole = sketch.op(target, both, sizes, **place)
            parts = [sketch.op(operator.getitem, whole, i, **place) for i in (0, 1)]
        e, h = parts
    sketch.finish(*(sketch.op(aten.mm.default, x, w) for x in ((h, e) if swapped else (e, h))))
    region = sketch.region(Bn_compute_blocks=1)
    pairs = {str(stream.live_out): shown(stream.reference) for stream in region.streams}
    names = {"slice": ["slice_1", "slice_2"]}.get(split, ["getitem", "getitem_1"])
    later = {"slice": ["slice_3", "slice_4"]}.get(split, ["getitem_2", "getitem_3"])
    assert pairs == dict(zip(later, names, strict=True))


def test_parts_that_are_put_together_again():
    sketch, h, w = start()
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        h = sketch.block(h, w, **place)
        whole = sketch.op(aten.split_with_sizes.default, h, [2, 4], **place)
        old, new = (sketch.op(operator.getitem, whole, i, **place) for i in (0, 1))
        new = sketch.block(new, w, **place)
        h = sketch.op(aten.cat.default, [old, new], **place)
    sketch.finish(h)
    assert references(sketch) == {"cat_2": "cat"}


def test_halves_that_change_places_are_no_identity():
    sketch, h, w = start()
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        first, second = (sketch.op(aten.slice.Tensor, h, 0, at, at + 3, **place) for at in (0, 3))
        turned = sketch.op(aten.cat.default, [second, first], **place)
        h = sketch.block(turned, w, w, **place)
    sketch.finish(h)
    assert list(references(sketch).values()) == ["None"]


def test_dynamic_text_and_image():
    sketch = Sketch()
    words, length = sketch.size("words", 6), sketch.size("length", 6)
    e, h, w = sketch.input("e", words, 4), sketch.input("h", length, 4), sketch.weight("w", 4, 4)
    sizes = [sketch.op(aten.sym_size.int, x, 0) for x in (e, h)]
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        both = sketch.block(sketch.op(aten.cat.default, [e, h], **place), w, w, **place)
        whole = sketch.op(aten.split_with_sizes.default, both, sizes, **place)
        e, h = (sketch.op(operator.getitem, whole, i, **place) for i in (0, 1))
    sketch.finish(sketch.op(aten.mm.default, e, w), sketch.op(aten.mm.default, h, w))
    assert references(sketch, Bn_compute_blocks=1) == {"getitem_2": "getitem", "getitem_3": "getitem_1"}


def test_a_view_replayed_inside_the_block():
    sketch, _, w = start()
    packed = sketch.op(aten.neg.default, sketch.input("packed", 9, 4))
    h = None
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        h = sketch.op(aten.slice.Tensor, packed, 0, 0, 6, **place) if h is None else h
        h = sketch.block(h, w, w, **place)
    assert h is not None
    sketch.finish(h)
    region = sketch.region()
    assert references(sketch) == {"add_2": "add"}
    assert shown(region.indicator.inp) == "copy of slice_1 ()"


@pytest.mark.parametrize("normed", [False, True])
def test_a_shard_that_is_taken_in_the_first_block(normed: bool):
    sketch, _, w = start()
    packed = sketch.op(aten.neg.default, sketch.input("packed", 12, 4))
    first = {"module": "blocks.0"}
    whole = sketch.op(aten.relu.default, packed, **first) if normed else packed
    parts = sketch.op(aten.split.Tensor, whole, 6, 0, name="parts", **first)
    h = sketch.op(operator.getitem, parts, 1, name="shard", **first)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    region = sketch.region()
    # the shard of what the block has computed itself is not the stream in front of it
    assert shown(region.indicator.inp) == ("None" if normed else "copy of shard (parts -> copy of parts ())")
    assert references(sketch) == {"add_2": "add"}


def test_leaves():
    sketch, h, _w = start()
    e = sketch.input("e", 3, 4)
    out = sketch.op(aten.cat.default, [e, sketch.op(aten.neg.default, h)])
    sketch.finish(out)
    assert leaves(h) == {h}
    assert leaves(Copy(out, ((out.all_input_nodes[1], h),))) == {e, h}


def test_casts_are_on_the_path():
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4, dtype=torch.bfloat16), sketch.weight("w", 4, 4, dtype=torch.bfloat16)
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        out = sketch.op(aten.mm.default, sketch.op(aten.mm.default, h, w, **place), w, **place)
        wide = [sketch.op(torch.ops.prims.convert_element_type.default, x, torch.float32, **place) for x in (h, out)]
        total = sketch.op(aten.add.Tensor, *wide, **place)
        h = sketch.op(torch.ops.prims.convert_element_type.default, total, torch.bfloat16, **place)
    sketch.finish(h)
    assert references(sketch) == {"convert_element_type_8": "convert_element_type_2"}
