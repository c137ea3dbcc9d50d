"""A model spread over two processes, and what each of them has seen: what `test_ranks` starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fxcache
from tests.models import transformers

RANKS = 2
STEPS = 10
Call = Callable[[int, float], Tensor]
"""(step, how far the latents have moved) -> what the model makes of them."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A run: which model is spread in which way, with which options, and what befalls one of the ranks."""

    spread: str
    options: dict[str, Any]
    accident: str = ""


@dataclasses.dataclass
class Seen:
    """What one process has to show."""

    decisions: list[str]
    reasons: list[str]
    differences: list[float | None]
    outputs: list[Tensor]
    plain: list[Tensor]
    """The same model without a cache."""


class Mixer(nn.Module):
    """A block whose hidden layer can be split over ranks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.shift = nn.Linear(width, width)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        hidden = self.up(self.norm(tokens) + self.shift(time))
        return tokens + self.down(nn.functional.gelu(hidden))


class Mixed(nn.Module):
    """Six of them, with a time in front and a projection behind."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.clock = nn.Linear(4, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Mixer(width) for _ in range(6))
        self.head = nn.Linear(width, 4)

    def forward(self, latents: Tensor, timestep: Tensor) -> Tensor:
        tokens, time = self.embed(latents), self.clock(timestep.view(-1, 1, 1))
        for block in self.blocks:
            tokens = block(tokens, time)
        return torch.as_tensor(self.head(tokens))


def flux() -> tuple[nn.Module, Call]:
    model = transformers.flux(2, single_layers=4).module
    torch.manual_seed(0)
    # numbers of tokens that two ranks can share
    latents, words, pooled = torch.randn(1, 16, 4), torch.randn(1, 8, 24), torch.randn(1, 40)
    given = {"encoder_hidden_states": words, "pooled_projections": pooled, "guidance": torch.tensor([3.5])}
    given |= {"img_ids": transformers.ids(4, 4, torch.float32), "txt_ids": torch.zeros(8, 3)}
    # one half of the picture changes more than the other: the ranks do not see the same difference
    moving = torch.linspace(0.0, 1.0, 16).view(1, 16, 1)

    def call(step: int, moved: float) -> Tensor:
        time = torch.tensor([0.9 - 0.05 * step])
        return torch.as_tensor(model(latents + moved * moving, timestep=time, **given, return_dict=False)[0])

    return model, call


def wan() -> tuple[nn.Module, Call]:
    model = transformers.wan(6).module
    torch.manual_seed(0)
    latents, words = torch.randn(1, 16, 2, 8, 8), torch.randn(1, 8, 40)
    moving = torch.linspace(0.0, 1.0, 8).view(1, 1, 1, 8, 1)

    def call(step: int, moved: float) -> Tensor:
        given = {"encoder_hidden_states": words, "timestep": torch.tensor([900 - 50 * step])}
        return torch.as_tensor(model(hidden_states=latents + moved * moving, **given, return_dict=False)[0])

    return model, call


def mixed() -> tuple[nn.Module, Call]:
    torch.manual_seed(0)
    model, latents = Mixed().eval(), torch.randn(1, 12, 4)

    def call(step: int, moved: float) -> Tensor:
        return torch.as_tensor(model(latents + moved, timestep=torch.tensor([0.9 - 0.05 * step])))

    return model, call


def by_tokens(model: nn.Module) -> None:
    from diffusers import ContextParallelConfig

    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))  # type: ignore[operator]


def by_weights(model: nn.Module) -> None:
    plan = {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (RANKS,)), plan)


SPREADS: dict[str, tuple[Callable[[], tuple[nn.Module, Call]], Callable[[nn.Module], None]]] = {
    "flux, ulysses": (flux, by_tokens),
    "wan, ulysses": (wan, by_tokens),
    "mixed, tensors": (mixed, by_weights),
}


CALLED_BEFORE = ("wan, ulysses",)
"""The hooks on their blocks read signatures in the first call, which Dynamo cannot trace."""


def moves(step: int) -> float:
    """Little, and at one step much."""
    return 0.01 * step + (0.8 if step >= 6 else 0.0)


def generate(case: Case, spread: bool, rank: int = 0) -> Seen:
    """Ten steps of one image with a cache, and without one."""
    build, divide = SPREADS[case.spread]
    (cached, call), (model, plain) = build(), build()
    if spread:
        for each in (cached, model):
            divide(each)
    if case.spread in CALLED_BEFORE:
        with torch.no_grad():
            call(0, 0.0)
    fxcache.enable_cache(cached, **{"on_refusal": "raise", **case.options})
    outputs, wanted = [], []
    with torch.no_grad(), fxcache.generation():
        for step in range(STEPS):
            if step == 5 and rank == 1 and case.accident == "reset":
                fxcache.reset(cached)
            moved = moves(step)
            if step == 5 and rank == 1 and case.accident == "not a number":
                moved = float("nan")
            outputs.append(call(step, moved).clone())
            wanted.append(plain(step, moves(step)).clone())
    contexts = fxcache.summary(cached).contexts
    return Seen(
        [context.decisions for context in contexts],
        [reason for context in contexts for reason in context.outcomes],
        [difference for context in contexts for difference in context.differences],
        outputs,
        wanted,
    )


def work(rank: int, cases: list[Case]) -> list[Seen]:
    """What one process of two does."""
    # diffusers numbers the devices of a machine, of which this one has none but the CPU
    torch.accelerator.device_count = lambda: 1
    found = []
    for case in cases:
        torch._dynamo.reset()
        found.append(generate(case, True, rank))
    return found
