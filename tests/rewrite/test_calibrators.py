"""Graphs with a forecast: what is stored, what is observed, and what the cheap branch adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.fx import GraphModule

from fxcache.errors import Refusal
from fxcache.rewrite.insert_cond import REUSE
from fxcache.rewrite.plan import Plan
from tests.graphs import Sketch, printed, text
from tests.rewrite.sketches import before, modulated, stream, two_streams

ALL = "no pass has this name"
TAYLOR, DMD = {"calibrator": "taylorseer"}, {"calibrator": "dmd", "dmd_history": 4}
REGRESSION = {"calibrator": "regression", "regression_history": 2}
STATIC = {"steps_computation_mask": "1100", "steps_computation_policy": "static"}


def rewritten(build: Callable[[], Sketch], **options: object) -> tuple[GraphModule, Plan]:
    return before(build(), ALL, **{"Fn_compute_blocks": 2, **options})


def part(gm: GraphModule, first: str, last: str) -> str:
    """The lines of the printed graph from the first that begins with a text to the last that begins with another."""
    lines = printed(gm).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(first)]
    ends = [number for number, line in enumerate(lines) if line.startswith(last)]
    return "\n".join(lines[starts[0] : ends[-1] + 1])


def branch(gm: GraphModule) -> str:
    return printed(getattr(gm, REUSE))


def test_taylorseer_keeps_two_steps_of_the_stream_and_one_of_the_indicator() -> None:
    gm, _ = rewritten(stream, **TAYLOR)
    assert part(gm, "fxcache_control", "fxcache_cache") == text("""
        fxcache_control: f64[51]
        fxcache_health: f32[2, 2]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[2, 6, 4]
    """)
    assert part(gm, "select_int", "return") == text("""
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add_1, stream, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[1, 2]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, 'taylorseer 1 3.0', (0))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[1, 2] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add_1, fxcache_cache_0, getitem_4))
        getitem: f32[6, 4] = getitem(cond, 0)
        commit_1: NoneType = fxcache::commit(getitem_3, add_1, stream, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_2, getitem, add_1, fxcache_cache_0, fxcache_health, 1, 1)
        relu_3: f32[6, 4] = relu(getitem)
        return (relu_3)
    """)
    assert branch(gm) == text("""
        w: f32[4, 4]
        add_1: f32[6, 4]
        fxcache_cache_0: f32[2, 6, 4]
        getitem_4: f32[1, 2]
        select_int: f32[2] = select(getitem_4, 0, 0)
        extrapolate: f32[6, 4] = fxcache::extrapolate(add_1, fxcache_cache_0, select_int)
        return (extrapolate)
    """)


def test_regression_keeps_the_indicator_of_every_step_and_observes_products() -> None:
    gm, _ = rewritten(stream, **REGRESSION)
    assert part(gm, "fxcache_reference", "fxcache_cache") == text("""
        fxcache_reference: f32[2, 6, 4]
        fxcache_cache_0: f32[2, 6, 4]
    """)
    assert part(gm, "residual", "decide") == text("""
        residual_products: f64[3, 3] = fxcache::residual_products(add_1, stream, fxcache_reference, 1)
        decide: (b8[], i64[], i64[], f32[1, 2]) = fxcache::decide(residual_products, (), \
            fxcache_health, fxcache_clock, fxcache_control, 'regression 0.03 3.0', ())
    """)
    assert part(gm, "commit", "commit") == text("""
        commit_1: NoneType = fxcache::commit(getitem_2, add_1, stream, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_2, getitem, add_1, fxcache_cache_0, fxcache_health, 1, 1)
    """)


def test_any_calibrator_may_forecast_the_indicator() -> None:
    gm, _ = rewritten(stream, **TAYLOR, taylorseer_order=3, indicator="forecast", downsample_factor=2)
    assert part(gm, "fxcache_health", "fxcache_cache") == text("""
        fxcache_health: f32[2, 4]
        fxcache_clock: f32[3]
        fxcache_reference: f32[4, 6, 2]
        fxcache_cache_0: f32[4, 6, 4]
    """)
    assert part(gm, "residual", "residual") == text("""
        residual_products: f64[5, 5] = fxcache::residual_products(add_1, stream, fxcache_reference, 2)
    """)


def test_dmd_keeps_the_products_of_every_predicted_stream() -> None:
    gm, _ = rewritten(two_streams, **DMD)
    assert part(gm, "fxcache_reference", "fxcache_gram") == text("""
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[4, 3, 4]
        fxcache_cache_1: f32[4, 6, 4]
        fxcache_gram_0: f64[4, 4]
        fxcache_gram_1: f64[4, 4]
    """)
    assert part(gm, "decide", "decide") == text("""
        decide: (b8[], i64[], i64[], f32[2, 4]) = fxcache::decide(residual_diff, (fxcache_gram_1, fxcache_gram_0), \
            fxcache_health, fxcache_clock, fxcache_control, 'dmd 0 1e-08 3.0', (0))
    """)
    assert part(gm, "commit", "window_products") == text("""
        commit_2: NoneType = fxcache::commit(getitem_4, add_3, image, fxcache_reference, fxcache_health, 0, 1)
        commit_1: NoneType = fxcache::commit(getitem_3, getitem, add_2, fxcache_cache_0, fxcache_health, 1, 1)
        window_products_1: NoneType = fxcache::window_products(getitem_3, fxcache_cache_0, fxcache_gram_0)
        commit: NoneType = fxcache::commit(getitem_3, getitem_1, add_3, fxcache_cache_1, fxcache_health, 2, 1)
        window_products: NoneType = fxcache::window_products(getitem_3, fxcache_cache_1, fxcache_gram_1)
    """)
    assert branch(gm) == text("""
        w: f32[4, 4]
        add_2: f32[3, 4]
        add_3: f32[6, 4]
        fxcache_cache_0: f32[4, 3, 4]
        fxcache_cache_1: f32[4, 6, 4]
        getitem_5: f32[2, 4]
        select_int: f32[4] = select(getitem_5, 0, 1)
        extrapolate: f32[3, 4] = fxcache::extrapolate(add_2, fxcache_cache_0, select_int)
        select_int_1: f32[4] = select(getitem_5, 0, 0)
        extrapolate_1: f32[6, 4] = fxcache::extrapolate(add_3, fxcache_cache_1, select_int_1)
        return (extrapolate, extrapolate_1)
    """)


def test_a_stream_that_is_not_predicted_has_one_entry_beside_one_of_several() -> None:
    gm, _ = rewritten(two_streams, **TAYLOR, enable_encoder_calibrator=False)
    assert part(gm, "fxcache_health", "fxcache_cache") == text("""
        fxcache_health: f32[3, 2]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[1, 3, 4]
        fxcache_cache_1: f32[2, 6, 4]
    """)
    assert "'taylorseer 1 3.0', (0, 1))" in part(gm, "decide", "decide")
    assert part(gm, "commit", "commit") == text("""
        commit_2: NoneType = fxcache::commit(getitem_4, add_3, image, fxcache_reference, fxcache_health, 0, 1)
        commit_1: NoneType = fxcache::commit(getitem_4, getitem, add_2, fxcache_cache_0, fxcache_health, 1, 1)
        commit: NoneType = fxcache::commit(getitem_3, getitem_1, add_3, fxcache_cache_1, fxcache_health, 2, 1)
    """)
    assert branch(gm) == text("""
        w: f32[4, 4]
        add_2: f32[3, 4]
        add_3: f32[6, 4]
        fxcache_cache_0: f32[1, 3, 4]
        fxcache_cache_1: f32[2, 6, 4]
        getitem_5: f32[1, 2]
        extrapolate: f32[3, 4] = fxcache::extrapolate(add_2, fxcache_cache_0)
        select_int: f32[2] = select(getitem_5, 0, 0)
        extrapolate_1: f32[6, 4] = fxcache::extrapolate(add_3, fxcache_cache_1, select_int)
        return (extrapolate, extrapolate_1)
    """)


def test_the_other_stream_alone_may_be_predicted() -> None:
    gm, plan = rewritten(two_streams, **DMD, enable_calibrator=False)
    assert [(history.spec.shape[0], history.predicted) for history in plan.caches] == [(4, True), (1, False)]
    assert [spec.name for spec in plan.state] == ["reference", "cache_0", "cache_1", "gram_0"]
    assert "fxcache::extrapolate(add_3, fxcache_cache_1)" in branch(gm)


def test_without_a_predicted_stream_there_is_no_forecaster() -> None:
    gm, plan = rewritten(stream, **TAYLOR, enable_calibrator=False)
    assert "fxcache_control, '', (0, 1))" in part(gm, "decide", "decide")
    assert [history.spec.shape[0] for history in plan.histories] == [1, 1]
    assert branch(gm) == branch(rewritten(stream)[0])


def test_hidden_states_are_stored_and_predicted_whole() -> None:
    gm, _ = rewritten(stream, **TAYLOR, calibrator_cache_type="hidden_states")
    assert part(gm, "commit:", "commit:") == text("""
        commit: NoneType = fxcache::commit(getitem_2, getitem, None, fxcache_cache_0, fxcache_health, 1, 1)
    """)
    assert "fxcache::extrapolate(None, fxcache_cache_0, select_int)" in branch(gm)


def test_a_dtype_of_its_own_is_that_of_the_history_only() -> None:
    gm, plan = rewritten(two_streams, **TAYLOR, calibrator_dtype="bfloat16", enable_encoder_calibrator=False)
    assert [str(history.spec.dtype) for history in plan.histories] == ["torch.float32"] * 2 + ["torch.bfloat16"]
    assert "extrapolate: f32[3, 4] = fxcache::extrapolate(add_2, fxcache_cache_0)" in branch(gm)
    assert "fxcache::extrapolate(add_3, fxcache_cache_1, select_int, dtype=torch.float32)" in branch(gm)


def test_a_static_mask_needs_neither_indicator_nor_reference() -> None:
    gm, plan = rewritten(stream, **STATIC)
    assert plan.reference is None
    assert part(gm, "fxcache_control", "fxcache_cache") == text("""
        fxcache_control: f64[51]
        fxcache_health: f32[1, 1]
        fxcache_clock: f32[3]
        fxcache_cache_0: f32[1, 6, 4]
    """)
    assert part(gm, "decide", "decide") == text("""
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(None, (), fxcache_health, fxcache_clock, fxcache_control, '', (0))
    """)
    assert part(gm, "commit", "commit") == text("""
        commit: NoneType = fxcache::commit(getitem_3, getitem, add_1, fxcache_cache_0, fxcache_health, 0, 1)
    """)


def test_regression_observes_under_a_static_mask_too() -> None:
    gm, _ = rewritten(stream, **STATIC, **REGRESSION)
    assert "fxcache::residual_products(add_1, stream, fxcache_reference, 1)" in printed(gm)


def test_without_first_blocks_the_indicator_is_what_the_first_block_reads() -> None:
    gm, plan = rewritten(modulated, Fn_compute_blocks=0)
    assert part(gm, "stream", "return") == text("""
        stream: f32[6, 4] = mm(h, w)
        sigmoid: f32[4] = sigmoid(t)
        read_3: f32[6, 4] = mul(stream, sigmoid)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(read_3, None, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = \
            cond(getitem_1, fxcache_reuse, fxcache_compute_1, (t, w, stream, sigmoid, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        commit_1: NoneType = fxcache::commit(getitem_3, read_3, None, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_3, getitem, stream, fxcache_cache_0, fxcache_health, 1, 1)
        relu: f32[6, 4] = relu(getitem)
        return (relu)
    """)
    compute = printed(gm.fxcache_compute)
    assert [compute.count(f" = {name}(") for name in ("mm", "add", "sigmoid", "mul")] == [6, 3, 2, 3]
    assert "fxcache::extrapolate(stream, fxcache_cache_0)" in branch(gm)
    assert [block.label for block in plan.region.trunk.blocks] == ["blocks.0", "blocks.1", "blocks.2"]


def test_without_first_blocks_two_streams_enter() -> None:
    gm, plan = rewritten(two_streams, Fn_compute_blocks=0)
    assert [node and node.name for node in plan.references] == ["text", "image"]
    assert not any(node.target is torch.ops.aten.mm.default for node in gm.graph.nodes)


def test_a_first_block_without_a_residual_path_is_refused_without_first_blocks() -> None:
    sketch = modulated(residual=False)
    refusal = sketch.discover(Fn_compute_blocks=0)
    assert isinstance(refusal, Refusal)
    assert str(refusal) == (
        "the first block adds to no value that is computed in front of it: Fn_compute_blocks=0 leaves nothing to "
        "cache against (at blocks.0)"
    )
    assert not isinstance(sketch.discover(Fn_compute_blocks=1), Refusal)


OBSERVERS = ("residual_diff", "residual_products")


@pytest.mark.parametrize("build", [stream, two_streams, modulated])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("options", "observer"),
    [
        ({}, "residual_diff"),
        (TAYLOR, "residual_diff"),
        ({**TAYLOR, "indicator": "forecast"}, "residual_products"),
        (DMD, "residual_diff"),
        ({**DMD, "enable_encoder_calibrator": False}, "residual_diff"),
        (REGRESSION, "residual_products"),
        ({"calibrator": "foca", "calibrator_cache_type": "hidden_states"}, "residual_diff"),
        (STATIC, None),
        ({**STATIC, **TAYLOR}, None),
        ({**STATIC, **REGRESSION}, "residual_products"),
    ],
)
def test_one_operator_each(
    build: Callable[[], Sketch], first: int, options: dict[str, object], observer: str | None
) -> None:
    gm, plan = rewritten(build, Fn_compute_blocks=first, **options)
    nodes = [node for module in gm.modules() if isinstance(module, GraphModule) for node in module.graph.nodes]
    found = Counter(str(node.target).split(".")[1] for node in nodes if "fxcache." in str(node.target))
    streams = len(plan.region.streams)
    assert streams == (2 if build is two_streams else 1)
    expected = {"decide": 1, "extrapolate": streams, "commit": streams + (observer is not None)}
    if observer is not None:
        expected[observer] = 1
    if options.get("calibrator") == "dmd":
        expected["window_products"] = streams if options.get("enable_encoder_calibrator", True) else 1
    assert found == expected
    assert sum(node.target is torch.ops.higher_order.cond for node in nodes) == 1
