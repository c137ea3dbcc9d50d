"""An image that is a part of the joined sequence, behind a text of any length: known in size, not in its place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcache

WIDTH, IMAGE = 16, 12


class JoinedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([text, image], dim=1)
        normed = self.mix(self.norm(joined))
        weights = torch.softmax(normed @ normed.transpose(1, 2), dim=-1)
        joined = joined + self.project(weights @ normed)
        return joined[:, text.shape[1] :], joined[:, : text.shape[1]]


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(JoinedBlock() for _ in range(4))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            image, text = block(image, text)
        return self.out(image)


@pytest.mark.parametrize("calibrator", [None, "regression"])
def test_texts_of_any_length(calibrator: str | None) -> None:
    torch.manual_seed(0)
    model = Joined().eval()
    first = torch.randn(1, IMAGE, WIDTH)
    second = first + 0.01 * torch.randn_like(first)
    torch._dynamo.reset()
    options = {"Fn_compute_blocks": 1, "max_warmup_steps": 0, "residual_diff_threshold": 0.5, "calibrator": calibrator}
    cached = torch.compile(model, backend="fxcache", fullgraph=True, options=options)  # type: ignore[call-overload]
    with torch.no_grad():
        for length in (5, 7, 9):
            text = torch.randn(1, length, WIDTH)
            torch._dynamo.mark_dynamic(text, 1)
            plain = model(first, text), model(second, text)
            with fxcache.generation():
                outputs = [cached(image, text) for image in (first, second)]
            torch.testing.assert_close(outputs[0], plain[0])
            assert not torch.equal(outputs[1], plain[1])
            torch.testing.assert_close(outputs[1], plain[1], rtol=0, atol=0.05)
    assert [(one.computed, one.reused) for one in fxcache.summary(model).contexts] == [(1, 1)] * 3
