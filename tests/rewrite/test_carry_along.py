"""A carry that is summed up of transposed values, in the branch as in front of it."""

from __future__ import annotations

import operator

import pytest
import torch
import torch._inductor.config

from fxcache.rewrite.carry_along import carry_along
from fxcache.rewrite.outline_middle import COMPUTE, outline_middle
from tests.graphs import Sketch, aten, printed
from tests.rewrite.sketches import before, plain


def patches(*, dtype: torch.dtype = torch.float32, device: str = "cpu", sums: int = 0, channels: int = 6) -> Sketch:
    """Three blocks on what lies channels first, as behind a convolution."""
    sketch = Sketch()
    p, w = sketch.input("p", channels, 4, dtype=dtype), sketch.weight("w", channels, channels, dtype=dtype)
    if device != "cpu":
        with sketch.mode:
            for node in (p, w):
                node.meta["val"] = torch.empty(node.meta["val"].shape, device=device)
    h = sketch.op(aten.permute.default, p, [1, 0])
    for _ in range(sums):
        h = sketch.op(aten.add.Tensor, h, 0.5)
    sketch.finish(sketch.blocks(h, w, w, stack="blocks", count=3))
    return sketch


def test_the_sum_is_made_in_the_branch_too() -> None:
    sketch = patches()
    values = sketch.values()
    wanted = sketch.gm(*values)
    gm, plan = before(sketch, "carry_along", inner_backend="inductor")
    assert carry_along(gm, plan) == 2
    outline_middle(gm, plan)
    gm.recompile()
    assert plan.compute is not None
    assert [str(arg) for arg in plan.compute.args] == ["p", "w", "mm_1"]
    inside = getattr(gm, COMPUTE).graph
    assert [str(node.target) for node in inside.nodes if node.op == "call_function"][:3] == [
        "aten.permute.default",
        "aten.add.Tensor",
        "aten.mm.default",
    ]
    assert any(str(node) == "add" for node in gm.graph.nodes), "what is compared and added to stays in front"
    assert torch.equal(gm(*values)[0], wanted[0])


def test_what_moves_into_the_branch_reads_the_copy() -> None:
    """A value in front of the cut that only the middle reads."""
    sketch = Sketch()
    p, w = sketch.input("p", 6, 4), sketch.weight("w", 6, 6)
    h = sketch.block(sketch.op(aten.permute.default, p, [1, 0]), w, w, module="blocks.0")
    early = sketch.op(aten.mean.dim, h, [-1], True, module="blocks.0")
    h = sketch.op(aten.add.Tensor, h, early, module="blocks.1")
    h = sketch.block(h, w, w, module="blocks.1")
    sketch.finish(sketch.block(h, w, w, module="blocks.2"))
    values = sketch.values()
    wanted = sketch.gm(*values)
    gm, plan = before(sketch, "carry_along", inner_backend="inductor")
    assert early in plan.region.middle
    carry_along(gm, plan)
    outline_middle(gm, plan)
    gm.graph.lint()
    gm.recompile()
    assert torch.equal(gm(*values)[0], wanted[0])


@pytest.mark.parametrize(
    ("sketch", "options"),
    [
        pytest.param(plain(), {}, id="nothing is transposed"),
        pytest.param(patches(dtype=torch.bfloat16), {}, id="half precision"),
        pytest.param(patches(device="cuda"), {}, id="not on the CPU"),
        pytest.param(patches(channels=1), {}, id="one axis only"),
        pytest.param(patches(sums=70), {}, id="a long sum"),
        pytest.param(patches(), {"inner_backend": "eager"}, id="another compiler"),
    ],
)
def test_other_carries_stay_operands(sketch: Sketch, options: dict[str, object]) -> None:
    gm, plan = before(sketch, "carry_along", **{"inner_backend": "inductor", **options})
    earlier = printed(gm)
    assert carry_along(gm, plan) == 0
    assert printed(gm) == earlier


@pytest.mark.parametrize(("threshold", "copies"), [(4, 3), (1, 0)])
def test_what_inductor_stores_is_read_and_not_made_anew(threshold: int, copies: int) -> None:
    """Behind two blocks: the sum of the first one has two parts and two readers."""
    gm, plan = before(patches(), "carry_along", inner_backend="inductor", Fn_compute_blocks=2)
    with torch._inductor.config.patch(realize_reads_threshold=threshold):
        assert carry_along(gm, plan) == copies


@pytest.mark.parametrize("added", [False, True])
def test_a_part_of_a_sum_is_read_as_two_values(added: bool) -> None:
    """With gates that are parts of a sum, the second sum of the block reads five values, and Inductor stores it."""
    sketch = Sketch()
    p, w, table = sketch.input("p", 6, 4), sketch.weight("w", 6, 6), sketch.input("table", 1, 12)
    gates = sketch.op(aten.add.Tensor, table, sketch.input("time", 1, 12)) if added else table
    parts = sketch.op(aten.split.Tensor, gates, 6, -1)
    place = {"module": "blocks.0"}
    h = sketch.op(aten.permute.default, p, [1, 0])
    for part in (0, None, 1):
        change = sketch.op(aten.mm.default, sketch.op(aten.relu.default, h, **place), w, **place)
        if part is not None:
            change = sketch.op(aten.mul.Tensor, change, sketch.op(operator.getitem, parts, part, **place), **place)
        h = sketch.op(aten.add.Tensor, h, change, **place)
    h = sketch.block(h, w, w, module="blocks.1")
    sketch.finish(sketch.block(h, w, w, module="blocks.2"))
    gm, plan = before(sketch, "carry_along", inner_backend="inductor")
    assert (carry_along(gm, plan) == 0) is added
