"""Graphs that several tests of the passes start from."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from fxcache.rewrite.pipeline import PASSES
from fxcache.rewrite.plan import Plan
from tests.graphs import Sketch, aten


def plain() -> Sketch:
    """Three residual blocks, and an output that adds the input again."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    sketch.finish(sketch.op(aten.add.Tensor, out, h))
    return sketch


def two_users() -> Sketch:
    """The last block is used twice, and a block in the midst of the middle once behind it."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    first = sketch.block(h, w, w, module="blocks.0")
    second = sketch.block(first, w, w, module="blocks.1")
    third = sketch.block(second, w, w, module="blocks.2")
    norm = sketch.op(aten.mean.dim, third, [-1], True)
    sketch.finish(sketch.op(aten.mul.Tensor, third, norm), second)
    return sketch


def dynamic() -> Sketch:
    """Text and image tokens of dynamic numbers, joined for the blocks; only the image tokens leave."""
    sketch = Sketch()
    length, words = sketch.size("length", 6), sketch.size("words", 3)
    h, e = sketch.input("h", length, 4), sketch.input("e", words, 4)
    w = sketch.weight("w", 4, 4)
    out = sketch.op(aten.cat.default, [e, h])
    out = sketch.blocks(out, w, w, stack="blocks", count=3)
    size = sketch.op(aten.sym_size.int, e, 0, name="n")
    image = sketch.op(aten.slice.Tensor, out, 0, size, 9223372036854775807, name="image")
    sketch.finish(sketch.op(aten.relu.default, image))
    return sketch


def glue() -> Sketch:
    """Text joined to the image before a second round of the blocks, and a gate computed there but used behind them."""
    sketch = Sketch()
    h, e, w = sketch.input("h", 6, 4), sketch.input("e", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(h, w, w, stack="blocks", count=3)
    scale = sketch.op(aten.sigmoid.default, e)
    out = sketch.op(aten.cat.default, [e, out])
    out = sketch.blocks(out, w, w, stack="blocks", count=3, call=1)
    image = sketch.op(aten.slice.Tensor, out, 0, 6, 12)
    sketch.finish(sketch.op(aten.mul.Tensor, image, scale))
    return sketch


def half() -> Sketch:
    """Half precision."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4, dtype=torch.bfloat16), sketch.weight("w", 4, 4, dtype=torch.bfloat16)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    return sketch


def stream() -> Sketch:
    """Three residual blocks on a value that is computed itself."""
    sketch = Sketch()
    h, w = sketch.input("h", 6, 4), sketch.weight("w", 4, 4)
    out = sketch.blocks(sketch.op(aten.neg.default, h, name="stream"), w, w, stack="blocks", count=3)
    sketch.finish(sketch.op(aten.relu.default, out))
    return sketch


def two_streams() -> Sketch:
    """Image and text, each with a residual path, joined inside of every block."""
    sketch = Sketch()
    h, e, w = sketch.input("h", 6, 4), sketch.input("e", 3, 4), sketch.weight("w", 4, 4)
    image, text = sketch.op(aten.neg.default, h, name="image"), sketch.op(aten.neg.default, e, name="text")
    for index in range(3):
        module = f"blocks.{index}"
        out = sketch.op(aten.cat.default, [text, image], module=module)
        for _ in range(2):
            out = sketch.op(aten.mm.default, out, w, module=module)
        text = sketch.op(
            aten.add.Tensor, text, sketch.op(aten.slice.Tensor, out, 0, 0, 3, module=module), module=module
        )
        rest = sketch.op(aten.slice.Tensor, out, 0, 3, 9, module=module)
        image = sketch.op(aten.add.Tensor, image, rest, module=module)
    sketch.finish(sketch.op(aten.relu.default, image), sketch.op(aten.relu.default, text))
    return sketch


def modulated(residual: bool = True) -> Sketch:
    """Blocks that read their stream times a number made of the time; the first one may have no residual path."""
    sketch = Sketch()
    h, t, w = sketch.input("h", 6, 4), sketch.input("t", 4), sketch.weight("w", 4, 4)
    out = sketch.op(aten.mm.default, h, w, name="stream")
    for index in range(3):
        module = f"blocks.{index}"
        gate = sketch.op(aten.sigmoid.default, t, module=module)
        read = sketch.op(aten.mul.Tensor, out, gate, module=module, name="read")
        made = sketch.op(aten.mm.default, sketch.op(aten.mm.default, read, w, module=module), w, module=module)
        out = sketch.op(aten.add.Tensor, out, made, module=module) if residual or index else made
    sketch.finish(sketch.op(aten.relu.default, out))
    return sketch


SKETCHES = (plain, two_users, dynamic, glue, half)


def before(sketch: Sketch, stop: str, **options: Any) -> tuple[GraphModule, Plan]:
    """The graph and its plan after all passes in front of the one named ``stop``."""
    plan = sketch.plan(**options)
    for one in PASSES:
        if one.__name__ == stop:
            break
        one(sketch.gm, plan)
    sketch.gm.recompile()
    return sketch.gm, plan
