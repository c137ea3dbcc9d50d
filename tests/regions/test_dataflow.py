"""Facts about nodes, and liveness."""

from __future__ import annotations

import pytest
import torch

from fxcache.regions.dataflow import (
    Flow,
    base_of,
    hint,
    is_additive,
    is_heavy,
    is_impure,
    is_norm,
    is_view,
    numel_hint,
    op_name,
    same_kind,
    shape_hint,
)
from tests.graphs import Sketch, aten


@pytest.fixture
def sketch() -> Sketch:
    return Sketch()


def test_kinds_of_operators(sketch: Sketch):
    h, w = sketch.input("h", 4, 4), sketch.weight("w", 4, 4)
    product = sketch.op(aten.mm.default, h, w)
    view = sketch.op(aten.permute.default, h, [1, 0])
    total = sketch.op(aten.add.Tensor, h, h)
    norm = sketch.op(aten.rsqrt.default, h)
    assert [is_heavy(node) for node in (h, product, view, total, norm)] == [False, True, False, False, False]
    assert [is_view(node) for node in (h, product, view, total, norm)] == [False, False, True, False, False]
    assert [is_additive(node) for node in (h, product, view, total, norm)] == [False, False, True, True, False]
    assert [is_norm(node) for node in (h, product, view, total, norm)] == [False, False, False, False, True]
    assert [op_name(node) for node in (product, view)] == ["mm", "permute"]


def test_operators_of_other_packages_are_heavy(sketch: Sketch):
    cache = sketch.input("cache", 4)
    assert is_heavy(sketch.op(torch.ops.fxcache.extrapolate.default, None, cache))
    assert not is_heavy(sketch.op(torch.ops.prims.convert_element_type.default, cache, torch.float16))


def test_attention_draws_only_with_dropout(sketch: Sketch):
    q = sketch.input("q", 1, 2, 8, 4)
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    calls = [(q, q, q), (q, q, q, 0.0), (q, q, q, 0.5)]
    nodes = [sketch.graph.call_function(attention, args) for args in calls]
    nodes.append(sketch.graph.call_function(attention, (q, q, q), {"dropout_p": 0.5}))
    assert [is_impure(node) for node in nodes] == [False, False, True, True]
    assert all(map(is_heavy, nodes))


def test_impure_operators(sketch: Sketch):
    h = sketch.input("h", 4)
    assert is_impure(sketch.op(aten.relu_.default, h))
    assert is_impure(sketch.op(aten.bernoulli.p, h, 0.5))
    assert not is_impure(sketch.op(aten.relu.default, h))
    assert not is_impure(h)


def test_sizes_without_guards(sketch: Sketch):
    rows, other = sketch.size("rows", 6), sketch.size("other", 6)
    a, b, c = (sketch.input(name, size, 4) for name, size in (("a", rows), ("b", other), ("c", 6)))
    assert (hint(rows), shape_hint(a), numel_hint(a)) == (6, (6, 4), 24)
    assert same_kind(a, sketch.op(aten.neg.default, a))
    assert not same_kind(a, b), "equal by chance"
    assert not same_kind(a, c)
    assert not same_kind(a, sketch.op(torch.ops.prims.convert_element_type.default, a, torch.float16))
    assert not sketch.mode.shape_env.guards


def test_sizes_that_are_not_known(sketch: Sketch):
    assert hint(sketch.mode.shape_env.create_unbacked_symint()) == 8191


def test_base_of_views(sketch: Sketch):
    h = sketch.op(aten.neg.default, sketch.input("h", 4, 6))
    view = sketch.op(aten.permute.default, sketch.op(aten.slice.Tensor, h, 1, 0, 3), [1, 0])
    assert base_of(view) is h
    assert base_of(h) is h


def test_liveness(sketch: Sketch):
    h = sketch.input("h", 4)
    a = sketch.op(aten.neg.default, h)
    b = sketch.op(aten.relu.default, a)
    c = sketch.op(aten.add.Tensor, b, a)
    sketch.finish(c)
    flow = Flow(sketch.graph)
    assert [flow.live(cut, lambda node: True) for cut in range(1, 5)] == [[h], [a], [a, b], [c]]
    assert flow.depends_on([b]) == {b, c, flow.nodes[-1]}
    assert list(flow.between(1, 3)) == [a, b]


def test_views_of_one_value_count_once(sketch: Sketch):
    h = sketch.op(aten.neg.default, sketch.input("h", 4, 6))
    parts = [sketch.op(aten.slice.Tensor, h, 0, start, start + 3) for start in (0, 1)]
    wide = sketch.op(aten.expand.default, sketch.op(aten.sum.dim_IntList, h, [1], True), [4, 6])
    sketch.finish(*parts, wide)
    flow = Flow(sketch.graph)
    cut = len(flow.nodes) - 1
    assert flow.live_numel(cut, lambda node: node in parts) == 24
    assert flow.live_numel(cut, lambda node: node is parts[0]) == 18
    assert flow.live_numel(cut, lambda node: node is wide) == 4, "an expanded value occupies what it shows"
