"""Whether blocks were dispatched once cannot be seen in the ATen graph."""

from __future__ import annotations

import pytest
import torch

from tests.dispatch_once.same import Seen, assert_same, trace
from tests.models.tiny import first_tensor
from tests.trace_once.test_same_graph import EVERY, call

FEW = ("flux", "wan", "auraflow", "cogvideox", "ace_step", "containers")
"""Two kinds of blocks; patches of another layout; loops; writes within blocks; products of such patches; nesting."""


def check(name: str) -> Seen:
    found = []
    for once in (True, False):
        tiny = EVERY[name](layers=6)
        args, kwargs = call(tiny, step=0)
        with torch.no_grad():  # some models keep what they have computed in their first call
            tiny.module(*args, **kwargs)
        found.append(trace(tiny.module, args, kwargs, once=once))
    once_seen, whole = found
    assert_same(once_seen, whole)
    output, wanted = first_tensor(once_seen.outputs), first_tensor(whole.outputs)
    assert torch.equal(output.nan_to_num(), wanted.nan_to_num())
    return once_seen


@pytest.mark.parametrize("name", FEW)
def test_the_graph_is_the_one_that_comes_of_all_blocks(name: str) -> None:
    assert check(name).calls >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EVERY) - set(FEW)))
def test_the_graph_of_every_model_is_the_one_that_comes_of_all_blocks(name: str) -> None:
    check(name)
