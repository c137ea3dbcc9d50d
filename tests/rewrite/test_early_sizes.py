"""Sizes are read off the first value that has them."""

from __future__ import annotations

import torch

from fxcache.options import Options
from fxcache.rewrite.early_sizes import early_sizes
from fxcache.rewrite.pipeline import Rewritten, rewrite
from tests.graphs import Sketch, aten, printed, text


def reading(where: str) -> Sketch:
    """Three blocks on a value of a dynamic size; the size is read off the second one and used at the end."""
    sketch = Sketch()
    n = sketch.size("n", 6)
    h, w = sketch.input("h", n, 4), sketch.weight("w", 4, 4)
    first = sketch.block(sketch.op(aten.cat.default, [h, h]), w, w, module="blocks.0")
    second = sketch.block(first, w, w, module="blocks.1")
    size = sketch.op(aten.sym_size.int, second if where == "block" else h, 0, module="blocks.1", name="size")
    third = sketch.block(second, w, w, module="blocks.2")
    sketch.finish(sketch.op(aten.slice.Tensor, third, 0, 0, size))
    return sketch


def test_it_is_read_in_front_of_the_blocks() -> None:
    sketch = reading("block")
    values = sketch.values()
    expected = sketch.gm(*values)
    assert early_sizes(sketch.gm) == 1
    sketch.gm.recompile()
    assert (
        printed(sketch.gm).splitlines()[:5]
        == text("""
        n: int
        h: f32[n0, 4]
        w: f32[4, 4]
        cat: f32[2*n0, 4] = cat((h, h))
        size: int = sym_size(cat, 0)
    """).splitlines()
    )
    assert torch.equal(sketch.gm(*values)[0], expected[0])
    assert early_sizes(sketch.gm) == 0


def test_one_that_is_an_input_is_not_read_at_all() -> None:
    sketch = reading("input")
    values = sketch.values(n=7)
    expected = sketch.gm(*values)
    assert early_sizes(sketch.gm) == 1
    sketch.gm.recompile()
    assert "sym_size" not in printed(sketch.gm)
    assert torch.equal(sketch.gm(*values)[0], expected[0])


def test_a_size_that_left_the_middle_no_longer_does() -> None:
    sketch = reading("block")
    assert isinstance(rewrite(sketch.gm, sketch.static, Options(Fn_compute_blocks=1, inner_backend="eager")), Rewritten)
