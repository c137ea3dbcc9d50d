"""Blocks that draw numbers, cut the graph, or change after they were compiled: outputs are those of eager."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trace_once.same import Seen, trace, watched
from tests.trace_once.stacks import CONFIG, LAYERS, WIDTH, Block, Model, x


class Drawing(Block):
    """Scales by a number that is drawn for every call."""

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        return super().forward(h) * (1.0 + random.random())


def test_a_number_that_every_block_draws() -> None:
    model = Model(Drawing)
    random.seed(3)
    with torch.no_grad():
        wanted = model(x())
    seen, _ = trace(model, [((x(),), {})], once=True)
    assert sum(seen.reused) == 0
    random.seed(3)
    _, (output,) = trace(model, [((x(),), {})], once=True)
    torch.testing.assert_close(output, wanted)


class Breaking(Block):
    """Cuts the graph."""

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        h = super().forward(h)
        torch._dynamo.graph_break()
        return h * 2


def test_a_block_that_cuts_the_graph() -> None:
    model = Model(Breaking)
    with torch.no_grad():
        wanted = model(x())
    seen, (output,) = trace(model, [((x(),), {})], once=True)
    assert torch.equal(output, wanted)
    assert len(seen.graphs) > 1


def later_scale(model: Model) -> None:
    model.blocks[4].scale = 7.0


def later_function(model: Model) -> None:
    model.blocks[4].act = F.silu


def later_forward(model: Model) -> None:
    model.blocks[4].forward = lambda h, more=None: h * 2


def later_part(model: Model) -> None:
    model.blocks[4].up = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH))


def later_weight(model: Model) -> None:
    model.blocks[4].up.weight = nn.Parameter(model.blocks[4].up.weight * 2)


def later_width(model: Model) -> None:
    model.blocks[4].up = nn.Linear(WIDTH, 3 * WIDTH)
    model.blocks[4].down = nn.Linear(3 * WIDTH, WIDTH)


def later_table(model: Model) -> None:
    model.blocks[4].table = torch.ones(WIDTH)


def later_object(model: Model) -> None:
    model.blocks[4].config = CONFIG


def later_eps(model: Model) -> None:
    model.blocks[4].norm.eps = 1.0


def later_block(model: Model) -> None:
    model.blocks[4] = nn.Sequential(nn.Linear(WIDTH, WIDTH))


def fewer_blocks(model: Model) -> None:
    del model.blocks[4]


LATER = [
    later_scale, later_function, later_forward, later_part, later_weight, later_width, later_table,
    later_object, later_eps, later_block, fewer_blocks,
]  # fmt: skip


@pytest.mark.parametrize("change", LATER, ids=[change.__name__ for change in LATER])
def test_a_copied_block_that_changes_later(change: Callable[[Model], None]) -> None:
    model = Model()
    seen = Seen()
    torch._dynamo.reset()
    with watched(seen, once=True) as backend, torch.no_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        before = compiled(x())
        assert seen.reused == [LAYERS - 1]
        change(model)
        wanted = model(x())
        assert not torch.equal(wanted, before)
        assert torch.equal(compiled(x()), wanted)
    torch._dynamo.reset()
