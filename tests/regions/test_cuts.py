"""Where the trunk is cut, and what may stay in front of the middle or behind it."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Node

from fxcache.errors import OptionError, Refusal
from fxcache.regions.discover import signature
from fxcache.regions.region import Region, cut_region
from fxcache.regions.trunk import Trunk
from tests.graphs import Sketch, aten


def start() -> tuple[Sketch, Node, Node]:
    sketch = Sketch()
    return sketch, sketch.input("h", 6, 4), sketch.weight("w", 4, 4)


def names(nodes: list[Node]) -> str:
    return " ".join(node.name for node in nodes)


def refusal_of(sketch: Sketch, **options: int) -> str:
    found = sketch.discover(**options)
    assert isinstance(found, Refusal), found
    return str(found)


def test_a_slice_that_drops_the_text_falls_inside_the_middle():
    sketch, h, w = start()
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    out = sketch.op(aten.slice.Tensor, out, 0, 2, 6)
    sketch.finish(sketch.op(aten.neg.default, out))
    region = sketch.region()
    assert names([stream.live_out for stream in region.streams]) == "slice_1"
    assert names(region.middle).endswith("add_2 slice_1")


def test_on_ties_the_middle_is_small():
    sketch, h, w = start()
    for index in range(4):
        h = sketch.block(h, w, w, module=f"blocks.{index}")
        h = sketch.op(aten.neg.default, h)
    sketch.finish(h)
    region = sketch.region(Bn_compute_blocks=1)
    assert names(region.carry) == "neg"
    assert names([stream.live_out for stream in region.streams]) == "add_2"


def test_behind_the_trunk_too():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    sketch.finish(sketch.op(aten.neg.default, sketch.op(aten.relu.default, h, name="glue")))
    assert names([stream.live_out for stream in sketch.region().streams]) == "add_2"


@pytest.mark.parametrize("stops", [True, False])
def test_a_norm_stops_the_back_cut(stops: bool):
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    if stops:
        h = sketch.op(aten.mul.Tensor, h, sketch.op(aten.mean.dim, h, [-1], True))
    sketch.finish(sketch.op(aten.slice.Tensor, h, 0, 4, 6))
    live_outs = names([stream.live_out for stream in sketch.region().streams])
    assert live_outs == ("add_2" if stops else "slice_1")


def test_a_tuple_is_not_cut_apart():
    sketch, h, w = start()
    for index in range(4):
        h = sketch.block(h, w, w, module=f"blocks.{index}")
        if index == 0:
            halves = sketch.op(aten.split.Tensor, h, 3, name="halves")
            parts = [sketch.op(_getitem, halves, i) for i in (0, 1)]
            h = sketch.op(aten.cat.default, parts, name="again")
    sketch.finish(h)
    assert names(sketch.region().carry) == "again"


def _getitem(values: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
    return values[index]


_getitem.__name__ = "getitem"


def test_refused_when_every_place_splits_a_tuple():
    sketch, h, w = start()
    halves = None
    for index in range(4):
        place = {"module": f"blocks.{index}"}
        if halves is not None:
            parts = [sketch.op(_getitem, halves, i, **place) for i in (0, 1)]
            h = sketch.op(aten.cat.default, parts, **place)
        h = sketch.block(h, w, w, **place)
        halves = sketch.op(aten.split.Tensor, h, 3, **place)
    sketch.finish(sketch.op(_getitem, halves, 0))
    assert refusal_of(sketch) == "no place to cut the trunk: a tuple of tensors is alive between its blocks"


def test_refused_when_the_middle_is_empty():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    trunk = sketch.trunk()
    assert isinstance(trunk, Trunk)
    found = cut_region(sketch.graph, sketch.flow, trunk, 2, 1, sketch.parameters)
    assert str(found) == "the middle of the trunk is empty"


def test_refused_when_nothing_floating_point_is_carried():
    sketch, h, w = start()
    table = sketch.weight("table", 7, 4)
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        h = sketch.op(aten.mm.default, sketch.op(aten.mm.default, h, w, **place), w, **place)
        ids = sketch.op(aten.argmax.default, h, -1, **place)
        if index < 2:
            h = sketch.op(aten.embedding.default, table, ids, module=f"blocks.{index + 1}")
    sketch.finish(ids)
    assert refusal_of(sketch) == "no floating-point tensor passes from block to block (at blocks.1)"


def test_refused_when_a_number_leaves_the_middle():
    sketch, h, w = start()
    h = sketch.block(h, w, w, module="blocks.0")
    h = sketch.block(h, w, w, module="blocks.1")
    number = sketch.op(_rows, h, module="blocks.1", name="rows")
    h = sketch.block(h, w, w, module="blocks.2")
    sketch.finish(sketch.op(aten.add.Tensor, h, number))
    assert refusal_of(sketch) == "a value that is no tensor leaves the middle (at rows)"


def _rows(value: torch.Tensor) -> int:
    return value.shape[0]


def test_refused_when_nothing_leaves_the_middle():
    sketch, h, w = start()
    h = sketch.blocks(h, w, w, stack="blocks", count=3)
    sketch.finish(sketch.op(aten.neg.default, sketch.graph.find_nodes(op="placeholder")[0]))
    assert refusal_of(sketch) == "nothing that the middle computes is used behind it"


def dropping(sketch: Sketch, h: Node, index: int) -> Node:
    return sketch.op(aten.bernoulli.p, h, 0.5, module=f"blocks.{index}")


def mutating(sketch: Sketch, h: Node, index: int) -> Node:
    return sketch.op(aten.relu_.default, h, module=f"blocks.{index}")


@pytest.mark.parametrize("add", [dropping, mutating])
def test_refused_when_the_middle_is_not_pure(add):
    sketch, h, w = start()
    for index in range(3):
        h = sketch.block(h, w, w, module=f"blocks.{index}")
        if index == 1:
            h = add(sketch, h, index)
    sketch.finish(h)
    reason = "the middle mutates memory or draws random numbers (is the model in eval mode?) (at "
    assert refusal_of(sketch).startswith(reason)
    assert isinstance(sketch.discover(Fn_compute_blocks=2), Region), "in front of the middle it does no harm"


def test_too_many_blocks_to_keep():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    with pytest.raises(OptionError, match="expected a sum below 3"):
        sketch.discover(Fn_compute_blocks=2, Bn_compute_blocks=1)


def modulated(later: bool) -> Sketch:
    """Each block is modulated by its own projection of the time; the projection of block 1 may be used at the end."""
    sketch, h, w = start()
    time = sketch.input("time", 6, 4)
    shifts = []
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        shifts.append(sketch.op(aten.mm.default, time, w, name=f"shift{index}", **place))
        h = sketch.block(sketch.op(aten.mul.Tensor, h, shifts[-1], **place), w, w, **place)
    sketch.finish(sketch.op(aten.add.Tensor, h, shifts[1] if later else time))
    return sketch


def test_what_only_the_middle_needs_moves_into_it():
    region = modulated(later=False).region()
    assert {"shift1", "shift2"} <= set(names(region.middle).split())
    assert region.hoisted == []


def test_what_is_used_later_stays_in_front():
    region = modulated(later=True).region()
    assert names(region.hoisted) == "shift1"
    assert "shift1" in names(region.operands).split()
    assert "shift2" in names(region.middle).split()


def test_the_indicator_is_the_larger_stream():
    sketch, h, w = start()
    e = sketch.input("e", 3, 4)
    for index in range(3):
        place = {"module": f"blocks.{index}"}
        e = sketch.block(e, w, w, **place)
        h = sketch.op(
            aten.add.Tensor, sketch.block(h, w, w, **place), sketch.op(aten.sum.dim_IntList, e, [0], **place), **place
        )
    sketch.finish(h, e)
    region = sketch.region()
    assert len(region.carry) == 2
    assert tuple(region.indicator.out.meta["val"].shape) == (6, 4)
    assert str(region.indicator.inp) == "h"


def test_without_residual_the_indicator_has_no_input():
    sketch, h, w = start()
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3, residual=False))
    assert sketch.region().indicator.inp is None


def test_signature():
    def made(*, dynamic: bool = False, count: int = 3, residual: bool = True) -> Sketch:
        sketch = Sketch()
        length = sketch.size("length", 6) if dynamic else 6
        h, w = sketch.input("h", length, 4), sketch.weight("w", 4, 4)
        sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=count, residual=residual))
        return sketch

    plain = signature([made().region()])
    assert plain == signature([made(dynamic=True).region()])
    others = [made(count=4).region(), made(residual=False).region(), made().region(Fn_compute_blocks=2)]
    assert len({plain, *(signature([region]) for region in others)}) == 4
