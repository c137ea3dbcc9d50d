"""Masked diffusion of words: the state that is denoised are numbers of words, and there is no time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcache

VOCABULARY, MASK, LENGTH, STEPS = 40, 39, 12, 6


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.mix(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(x)


class Writer(nn.Module):
    """Reads all words at once, whether written or masked, and says what each could be."""

    def __init__(self, width: int = 24, blocks: int = 5) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places[: words.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def writer() -> Writer:
    torch.manual_seed(0)
    return Writer().eval().requires_grad_(False)


@torch.no_grad()
def write(model: Writer, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Write two words per step, in place, the surest first."""
    words = torch.full((1, LENGTH), MASK)
    words[0, 0] = seed
    scores = []
    for _ in range(STEPS):
        scores.append(model(words))
        sure, best = scores[-1][..., :MASK].softmax(-1).max(-1)
        chosen = sure.masked_fill(words != MASK, -1).topk(2).indices
        words.scatter_(1, chosen, best.gather(1, chosen))
    return words, scores


def enabled(threshold: float) -> Writer:
    config = fxcache.DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=threshold)
    return fxcache.enable_cache(writer(), cache_config=config, inner_backend="eager", on_refusal="raise")


def decisions(model: Writer) -> list[str]:
    return [context.decisions for context in fxcache.summary(model).contexts]


def test_outside_of_a_generation_nothing_is_reused() -> None:
    model = enabled(1e9)
    for seed in (1, 2):
        assert torch.equal(write(model, seed)[0], write(writer(), seed)[0])
    assert decisions(model) == []


def test_the_calls_of_a_generation_are_its_steps() -> None:
    model = enabled(1e9)
    for seed in (1, 2):
        with fxcache.generation(num_inference_steps=STEPS):
            _, scores = write(model, seed)
            wanted = write(writer(), seed)[1]
            torch.testing.assert_close(scores[0], wanted[0])
            assert not torch.allclose(scores[1], wanted[1])
            assert decisions(model)[-1] == "C" + "." * (STEPS - 1)


@pytest.mark.parametrize("threshold", [0.0, 1e-9])
def test_without_reuse_it_writes_what_the_model_writes(threshold: float) -> None:
    model = enabled(threshold)
    with fxcache.generation(num_inference_steps=STEPS):
        words, scores = write(model, 3)
    wanted, plain = write(writer(), 3)
    assert torch.equal(words, wanted)
    torch.testing.assert_close(scores, plain)
