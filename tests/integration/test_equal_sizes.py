"""Dynamic sizes of two inputs that turn out to be equal, through Inductor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from tests.integration.test_share_blocks import ON, Residual, functions


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


class Joined(nn.Module):
    """Joins two inputs of one length to patches of two; no value in the middle has that length itself."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv1d(4, width, 2, 2)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(4))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        h = self.patches(torch.cat([x, given], dim=-1).transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.head(h)
        return out


def test_patches_of_two_inputs_of_one_length() -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, options=ON)
    with torch.no_grad():
        for length in (12, 20):
            x, given = torch.randn(1, length, 2), torch.randn(1, length, 2)
            for value in (x, given):
                torch._dynamo.mark_dynamic(value, 1)
            if length == 12:
                _, (code,) = run_and_get_code(compiled, x, given)
                assert functions(code) == ["fxcache_compute_fxcache_block_0"]
            for _ in range(2):  # computed, then reused
                torch.testing.assert_close(compiled(x, given), model(x, given), rtol=1e-4, atol=1e-4)
