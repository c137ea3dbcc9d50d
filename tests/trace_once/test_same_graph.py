"""Whether blocks were traced once cannot be seen in Dynamo's graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.every import BUILDERS
from tests.models.foreign import FOREIGN
from tests.models.foreign_calls import CALLS
from tests.models.foreign_image import IMAGE
from tests.models.foreign_latents import LATENTS
from tests.models.foreign_mixers import MIXERS
from tests.models.tiny import TinyModel, first_tensor
from tests.trace_once.same import assert_same, trace

FEW = ("flux", "wan", "u_shaped", "containers", "experts")
ONE_SIZE = ("window_dit",)
"""Models of which Dynamo itself traces dynamic sizes for many minutes."""
EVERY = {**BUILDERS, **FOREIGN, **CALLS, **IMAGE, **LATENTS, **MIXERS}


def call(tiny: TinyModel, **which: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = tiny.inputs(**which)
    return (tuple(given.values()), {}) if tiny.positional else ((), given)


def check(name: str) -> list[int]:
    found = []
    for once in (True, False):
        tiny = EVERY[name](layers=6)
        calls = [call(tiny, step=0), call(tiny, step=1)]
        if name not in ONE_SIZE:
            calls.append(call(tiny, step=0, size=1))
        with torch.no_grad():  # some models keep what they have computed in their first call
            tiny.module(*calls[0][0], **calls[0][1])
        found.append(trace(tiny.module, calls, once=once))
    (once_seen, outputs), (whole, wanted) = found
    assert_same(once_seen, whole)
    for output, other in zip(map(first_tensor, outputs), map(first_tensor, wanted), strict=True):
        assert torch.equal(output.nan_to_num(), other.nan_to_num())
    return once_seen.reused


@pytest.mark.parametrize("name", FEW)
def test_the_graph_is_the_one_that_dynamo_traces(name: str) -> None:
    assert sum(check(name)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(EVERY) - set(FEW)))
def test_the_graph_of_every_model_is_the_one_that_dynamo_traces(name: str) -> None:
    check(name)
