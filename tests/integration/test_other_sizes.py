"""Another size and back, for every pipeline for which the quicker tests leave that out; one more compilation each."""

from __future__ import annotations

import pytest
import torch

from tests.integration.cases import CASES
from tests.integration.examine import Examined, run, seen, words

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not (case.sizes or case.refusal)])
def test_another_size_reads_nothing_of_the_first(name: str) -> None:
    torch._dynamo.reset()
    of = Examined(CASES[name])
    first = of.request
    other = {**first, "prompt_seed": 5, "size": 1}
    used = of.cached()
    run(used, **first)
    for request in (other, first):
        out, decided = of.alone(**request)
        before = seen(used)
        assert torch.equal(run(used, **request), out)
        assert words(used, before) == decided
