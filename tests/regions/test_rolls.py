"""Cyclic shifts: which they are, and whether they cancel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from fxcache.regions.rolls import cancel, shifts_of
from tests.models.graphs import aot_graph


class Rolled(torch.nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def path_of(body: Callable[[Tensor], Tensor], decompose: bool) -> list[Node]:
    """The nodes that the value passes."""
    graph = aot_graph(Rolled(body), {"x": torch.randn(4, 6, 3)}, decompose=decompose)
    (start,) = graph.gm.graph.find_nodes(op="placeholder")
    path, reached = [], {start}
    for node in graph.gm.graph.nodes:
        if node.op == "call_function" and reached.intersection(node.all_input_nodes):
            path.append(node)
            reached.add(node)
    return path


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    ("body", "cancels"),
    [
        (lambda x: x.roll((-1, 2), (0, 1)).neg().roll((1, -2), (0, 1)), True),
        (lambda x: x.roll((-1, 2), (0, 1)).neg().roll((3, 4), (0, 1)).roll((2, 0), (0, 1)), True),
        (lambda x: x.roll(1, 0).neg().roll(3, 0), True),
        (lambda x: x.roll(1, 0).neg(), False),
        (lambda x: x.roll(1, 0).neg().roll(1, 0), False),
        (lambda x: x.roll(1, 0).neg().roll(-1, 1), False),
        (lambda x: x.neg(), True),
        (lambda x: x.roll(1), False),
    ],
)
def test_shifts_that_cancel(body: Callable[[Tensor], Tensor], cancels: bool, decompose: bool) -> None:
    assert cancel(path_of(body, decompose)) is cancels
    x = torch.randn(4, 6, 3)
    assert torch.equal(body(x), -x) is cancels


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        lambda x: x[torch.tensor([1, 0, 2, 3])],
        lambda x: x[(torch.arange(4) * 3 + 1).fmod(4)],
        lambda x: x[(torch.arange(4) + 1).fmod(3)],
        lambda x: x[torch.arange(3).fmod(4)],
        lambda x: x.neg(),
    ],
)
def test_other_nodes_are_no_shifts(body: Callable[[Tensor], Tensor], decompose: bool) -> None:
    assert [shifts_of(node) for node in path_of(body, decompose) if shifts_of(node)] == []
