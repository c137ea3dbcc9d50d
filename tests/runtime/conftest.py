from __future__ import annotations

import pytest
import torch

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
