"""The wide collection runs; whether its graphs can be cached is for the tests of discovery."""

from __future__ import annotations

import pytest
import torch

from tests.models.graphs import aot_graphs
from tests.models.tiny import first_tensor
from tests.models.transformers import TRANSFORMERS
from tests.models.wide import WIDE


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_runs_and_repeats(name: str) -> None:
    tiny = WIDE[name](layers=4)
    out = tiny.run(tiny.inputs())
    assert torch.isfinite(out).all()
    assert torch.equal(out, tiny.run(tiny.inputs(fresh=True)))
    moved = tiny.run(tiny.inputs(step=1)) - out
    assert 1e-3 < float(moved.norm() / out.norm()) < 1.0
    for size in (1, 3):
        assert torch.isfinite(tiny.run(tiny.inputs(size=size, batch=2))).all()
    assert [key for key, value in tiny.module.named_parameters() if not bool(value.any())] == []
    assert all(number == 4 for _, number in tiny.stacks)


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_number_of_graphs_is_as_declared(name: str) -> None:
    tiny = WIDE[name](layers=2)
    out = tiny.run(tiny.inputs())
    graphs = aot_graphs(tiny, fullgraph=tiny.fullgraph)
    assert graphs
    if len(graphs) == 1:
        torch.testing.assert_close(first_tensor(graphs[0].outputs), out, rtol=1e-3, atol=1e-4)
    assert tiny.fullgraph <= (len(graphs) == 1)


def test_no_class_twice() -> None:
    classes = [type(build(layers=2).module) for build in {**TRANSFORMERS, **WIDE}.values()]
    assert len(classes) == len(set(classes))
