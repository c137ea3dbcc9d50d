"""Half-precision values cross the conditional in float32, and only they do."""

from __future__ import annotations

import pytest
import torch

from fxcache.kernels import Ask
from fxcache.options import Options
from fxcache.rewrite.pipeline import Rewritten, rewrite
from tests.graphs import new_state, tell
from tests.models.graphs import aot_graph
from tests.models.transformers import TRANSFORMERS

NAME = "keep_precision"


def rewritten(dtype: torch.dtype, inner_backend: str) -> tuple[object, Rewritten]:
    graph = aot_graph(TRANSFORMERS["sequential_dit"](layers=3, dtype=dtype))
    options = Options(Fn_compute_blocks=1, inner_backend=inner_backend)
    result = rewrite(graph.gm, graph.static_input_idxs, options)
    assert isinstance(result, Rewritten)
    return graph, result


def changes(result: Rewritten) -> int:
    (record,) = [record for record in result.records if record.name == NAME]
    return record.changes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_operands_and_outputs_are_wide_and_nothing_is_lost(dtype):
    graph, result = rewritten(dtype, "inductor")
    assert changes(result) > 1
    (cond,) = [node for node in result.gm.graph.nodes if node.target is torch.ops.higher_order.cond]
    assert {value.dtype for value in cond.meta["val"]} == {torch.float32}
    computed = [node for node in cond.args[3] if node.op == "call_function" and node.meta["val"].dim() >= 2]
    assert computed
    assert {node.meta["val"].dtype for node in computed} == {torch.float32}
    assert {spec.dtype for spec in result.state[1:]} == {dtype}

    # Operator by operator every value is rounded where it arises, so widening must not change a bit.
    control, *state = new_state(result.plan, store=1)
    expected = graph.gm(*graph.real_inputs)
    got = result.gm(*graph.real_inputs, control, *state)
    assert all(map(torch.equal, got, expected))
    tell(control, mode=Ask.DECIDE, threshold=1e-6)
    again = result.gm(*graph.real_inputs, control, *state)
    assert float((again[0] - expected[0]).float().norm() / expected[0].float().norm()) < 0.02


@pytest.mark.parametrize(("dtype", "inner_backend"), [(torch.float32, "inductor"), (torch.bfloat16, "eager")])
def test_graphs_that_must_not_change(dtype, inner_backend):
    _, result = rewritten(dtype, inner_backend)
    assert changes(result) == 0
