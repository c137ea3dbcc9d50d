"""What the decision measures becomes a submodule of ATen operators, and gives the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxcache.options import Options
from fxcache.rewrite.fuse_measures import fuse_measures
from fxcache.rewrite.pipeline import Rewritten, rewrite
from tests.graphs import Sketch, printed, text
from tests.rewrite.sketches import plain

residual_diff = torch.ops.fxcache.residual_diff.default
residual_products = torch.ops.fxcache.residual_products.default
ANY: Any = None
"""A plan, which the pass does not look at."""


def measured(target: Any, *told: Any, history: tuple[int, ...], shape: tuple[int, ...] = (6, 4)) -> Sketch:
    """Two values and a history of their difference, measured once."""
    sketch = Sketch()
    out, inp, stored = sketch.input("out", *shape), sketch.input("inp", *shape), sketch.input("stored", *history)
    sketch.finish(sketch.op(target, out, inp, stored, *told))
    return sketch


def test_a_submodule_takes_the_place_of_the_operator() -> None:
    sketch = measured(residual_diff, history=(6, 4))
    assert fuse_measures(sketch.gm, ANY) == 1
    assert printed(sketch.gm) == text("""
        out: f32[6, 4]
        inp: f32[6, 4]
        stored: f32[6, 4]
        fxcache_settle: f32[6, 4] = fxcache_settle(out)
        fxcache_settle_1: f32[6, 4] = fxcache_settle(inp)
        fxcache_settle_2: f32[6, 4] = fxcache_settle(stored)
        fxcache_measure_0 = fxcache_measure_0
        invoke_subgraph: (f32[2]) = invoke_subgraph(fxcache_measure_0, 'fxcache_measure_0', \
            fxcache_settle, fxcache_settle_1, fxcache_settle_2)
        getitem: f32[2] = getitem(invoke_subgraph, 0)
        return (getitem)
        fxcache_measure_0:
            arg0_1: f32[6, 4]
            arg1_1: f32[6, 4]
            arg2_1: f32[6, 4]
            sub: f32[6, 4] = sub(arg0_1, arg1_1)
            sub_1: f32[6, 4] = sub(sub, arg2_1)
            abs_1: f32[6, 4] = abs(sub_1)
            abs_2: f32[6, 4] = abs(arg2_1)
            sum_1: f32[] = sum(abs_1)
            sum_2: f32[] = sum(abs_2)
            unsqueeze: f32[1] = unsqueeze(sum_1, 0)
            unsqueeze_1: f32[1] = unsqueeze(sum_2, 0)
            cat: f32[2] = cat((unsqueeze, unsqueeze_1))
            fxcache_own: f32[2] = fxcache_own(cat)
            return (fxcache_own)
    """)


@pytest.mark.parametrize(
    "target, told, history",
    [
        (residual_diff, (), (6, 4)),
        (residual_diff, (3, 0.0), (6, 2)),
        (residual_diff, (1, 0.5), (6, 4)),
        (residual_products, (), (3, 6, 4)),
        (residual_products, (2,), (2, 6, 2)),
    ],
)
@pytest.mark.parametrize("strange", [None, torch.nan, torch.inf])
def test_the_numbers_stay(target: Any, told: tuple[Any, ...], history: tuple[int, ...], strange: float | None) -> None:
    sketch = measured(target, *told, history=history)
    values = sketch.values()
    if strange is not None:
        values[0].view(-1)[0] = strange
    (expected,) = sketch.gm(*values)
    assert fuse_measures(sketch.gm, ANY) == 1
    torch.testing.assert_close(sketch.gm(*values)[0], expected, equal_nan=True)


def test_measures_of_one_form_share_a_submodule() -> None:
    sketch = Sketch()
    out, inp = sketch.input("out", 6, 4), sketch.input("inp", 6, 4)
    stored, other = sketch.input("stored", 6, 4), sketch.input("other", 6, 4, dtype=torch.float64)
    forms = [(out, inp, stored), (inp, out, stored), (out, None, stored), (out, out, stored), (out, inp, other)]
    sketch.finish(
        *(sketch.op(residual_diff, *form) for form in forms), sketch.op(residual_diff, out, inp, stored, 1, 0.5)
    )
    values = sketch.values()
    expected = sketch.gm(*values)
    assert fuse_measures(sketch.gm, ANY) == 6
    assert len(dict(sketch.gm.named_children())) == 5
    for got, wanted in zip(sketch.gm(*values), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_sizes_that_change_keep_the_operator() -> None:
    sketch = Sketch()
    size = sketch.size("s", 6)
    out, inp, stored = (sketch.input(name, size, 4) for name in ("out", "inp", "stored"))
    sketch.finish(sketch.op(residual_diff, out, inp, stored))
    before = printed(sketch.gm)
    assert fuse_measures(sketch.gm, ANY) == 0
    assert printed(sketch.gm) == before


def test_a_place_that_is_not_known_keeps_the_operator() -> None:
    sketch = Sketch()
    length = sketch.size("s", 3)
    whole, inp, stored = sketch.input("whole", length + 6, 4), sketch.input("inp", 6, 4), sketch.input("stored", 6, 4)
    part = sketch.op(torch.ops.aten.slice.Tensor, whole, 0, next(iter(sketch.graph.nodes)))
    assert part.meta["val"].shape == (6, 4)
    sketch.finish(sketch.op(residual_diff, part, inp, stored))
    assert fuse_measures(sketch.gm, ANY) == 0


@pytest.mark.parametrize("calibrator", [None, "regression"])
@pytest.mark.parametrize("inner", ["inductor", "eager", "aot_eager"])
def test_only_for_inductor(inner: str, calibrator: str | None) -> None:
    sketch = plain()
    options = Options(Fn_compute_blocks=1, calibrator=calibrator, inner_backend=inner)
    made = rewrite(sketch.gm, sketch.static, options)
    assert isinstance(made, Rewritten)
    operators = [node.target for node in made.gm.graph.nodes if node.target in (residual_diff, residual_products)]
    names = [name for name, _ in made.gm.named_children() if name.startswith("fxcache_measure")]
    assert (len(operators), len(names)) == ((0, 1) if inner == "inductor" else (1, 0))
