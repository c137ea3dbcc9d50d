"""Every way in which pipelines of diffusers call their transformers; see `cases` for the pipelines and `examine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.integration.cases import CASES
from tests.integration.examine import Examined, checks_of


@pytest.fixture(autouse=True)
def _dynamo_forgets() -> Iterator[None]:
    """In place of the one for all tests: here the checks of a family share their compiled code."""
    yield


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[[str], Examined]]:
    """The case of a name, and what its checks share; the last family's compiled code is forgotten with it."""
    kept: dict[str, Examined] = {}
    families: list[str] = []

    def of(name: str) -> Examined:
        family = CASES[name].family or name
        if families[-1:] != [family]:
            kept.clear()
            torch._dynamo.reset()
            families.append(family)
        return kept.setdefault(name, Examined(CASES[name]))

    yield of
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}", marks=[pytest.mark.slow] if case.slow else [])
        for name, case in CASES.items()
        for check in checks_of(case)
    ],
)
def test_pipeline(shared, name, check):
    check(shared(name))
