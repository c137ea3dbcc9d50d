"""A short denoising run, played on a compiled model: what came out, what was decided."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcache.backend  # noqa: F401  (the operators, before a graph names them)
from fxcache.api import context, summary
from fxcache.runtime.attribution import attribution
from tests.models.tiny import TinyModel

Call = Mapping[str, Any]

OPTIONS: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.5}
"""One block decides about the others from the second step on."""


@dataclass(frozen=True)
class Run:
    """The calls of one context, in order."""

    outputs: tuple[Tensor, ...]
    decisions: str
    """``C`` computed, ``.`` reused."""
    differences: tuple[float | None, ...]
    state_bytes: int

    def computed(self) -> list[Tensor]:
        return self.choose(self.outputs)

    def choose(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Those of the values, one per call, whose call was computed."""
        return [value for value, made in zip(values, self.decisions, strict=True) if made == "C"]


def scene(model: TinyModel) -> list[dict[str, Any]]:
    """The first step, a small one, a jump, and the values of the jump once more, in new tensors."""
    far = model.vary(model.inputs(2), amount=5.0)
    return [model.inputs(0), model.inputs(1), far, model.vary(far, amount=0.0)]


DECISIONS = "C.C."
"""What becomes of a scene under `OPTIONS`, where the threshold lies between the small step and the jump."""


def fxcache_of(module: nn.Module, dynamic: bool | None = None, **options: Any) -> Callable[..., Any]:
    return torch.compile(module, backend="fxcache", fullgraph=True, dynamic=dynamic, options={**OPTIONS, **options})


def play(model: TinyModel, compiled: Callable[..., Any], calls: Sequence[Call], name: str = "branch") -> Run:
    """Make the calls as the steps of one named branch of a model that nothing is known of before."""
    attribution.forget()
    outputs = []
    for step, call in enumerate(calls):
        with context(name, step_index=step):
            outputs.append(model.run(call, compiled).clone())
    contexts = summary(model.module).contexts
    if not contexts:  # the graph was left as it is
        return Run(tuple(outputs), "C" * len(outputs), (None,) * len(outputs), 0)
    (made,) = contexts
    return Run(tuple(outputs), made.decisions, made.differences, made.state_bytes)


def plain(model: TinyModel, calls: Sequence[Call], **arguments: Any) -> list[Tensor]:
    """Outputs of the calls without fxcache, by default through Inductor."""
    compiled = torch.compile(model.module, fullgraph=True, **arguments)
    return [model.run(call, compiled).clone() for call in calls]


def equal(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all are the same to the last bit."""
    return len(values) == len(others) > 0 and all(map(torch.equal, values, others))


def relative(value: Tensor, reference: Tensor) -> float:
    """L2 error relative to the reference."""
    reference = reference.double()
    return float((value.double() - reference).norm() / reference.norm())


def worst(values: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """The largest relative error."""
    return max(relative(value, reference) for value, reference in zip(values, references, strict=True))


def mean_error(values: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """The mean relative error."""
    return sum(map(relative, values, references)) / len(values)


def in_double(model: TinyModel, calls: Sequence[Call]) -> list[Tensor]:
    """Outputs of the uncompiled model in float64, with the rounded weights and inputs it has."""
    module = copy.deepcopy(model.module).double()

    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return [model.run(pytree.tree_map(wide, dict(call)), module) for call in calls]
