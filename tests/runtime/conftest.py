from __future__ import annotations

import contextvars
from collections.abc import Iterator

import pytest
import torch

from fxcache.runtime import generation, signals
from fxcache.runtime.attribution import Attribution
from tests.runtime.loop import Model


@pytest.fixture
def attribution() -> Attribution:
    return Attribution()


@pytest.fixture
def model(attribution: Attribution) -> Model:
    return Model(attribution)


@pytest.fixture
def cond() -> torch.Tensor:
    return torch.ones(1, 3)


@pytest.fixture
def uncond() -> torch.Tensor:
    return torch.zeros(1, 3)


@pytest.fixture(autouse=True)
def _nobody_is_denoising() -> Iterator[None]:
    """Undo what a test left in the context variables."""
    variables: list[contextvars.ContextVar] = [
        generation._entered,
        generation._loop,
        generation._ambient,
        generation._branches,
        signals._cache_context,
    ]
    tokens = [variable.set(variable.get()) for variable in variables]
    yield
    for variable, token in zip(variables, tokens, strict=True):
        variable.reset(token)
