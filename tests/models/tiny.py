"""The common form of a tiny model: a module, and inputs that change from step to step as in a sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

STEPS = 10
"""Length of the imaginary schedule that `TinyModel.inputs(step=...)` walks down."""

GRIDS: tuple[tuple[int, int], ...] = ((4, 5), (6, 7), (5, 6), (3, 5), (4, 7))
"""Rows and columns of patches for the sizes 0 to 4; no product equals a width or a text length in the tiny configs."""


def fill_zeros(module: nn.Module, seed: int = 0, std: float = 0.05) -> None:
    """Refill parameters that start as all zeros with normal noise, so that gated residuals are not trivial."""
    generator = torch.Generator().manual_seed(seed + 7919)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def seeded(make: Callable[[], nn.Module], seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Build a module under its own seed, without touching the global random state, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
    fill_zeros(module, seed)
    return cast(module, dtype).eval()


def cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast as loading with `torch_dtype` does: what a class keeps in float32 and buffers that are not saved stay."""
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    saved = set(module.state_dict())
    for path, owner in module.named_modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                full = f"{path}.{name}".lstrip(".")
                if tensor is None or not tensor.is_floating_point() or full not in saved or kept & set(full.split(".")):
                    continue
                if table is owner._buffers:  # which may be views of tensors that keep their dtype
                    table[name] = tensor.to(dtype)
                else:
                    tensor.data = tensor.data.to(dtype)
    return module


SQUARES: tuple[tuple[int, int], ...] = ((4, 4), (6, 6), (5, 5), (3, 3), (7, 7))
"""The sizes of models that only accept square pictures."""


class Draw:
    """Source of the tensors of one call: deterministic in (seed, order of the requests), moved only by `step`."""

    def __init__(
        self, step: int, batch: int, grid: tuple[int, int], seed: int, dtype: torch.dtype, drift: float
    ) -> None:
        self.step, self.batch, self.dtype, self.drift = step, batch, dtype, drift
        self.rows, self.cols = grid
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def tokens(self) -> int:
        """Number of image tokens of one frame."""
        return self.rows * self.cols

    def content(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Random tensor that stays the same through all steps."""
        return torch.randn(shape, generator=self.generator).to(dtype or self.dtype)

    def latents(self, *shape: int) -> Tensor:
        """Random tensor that drifts a little from step to step."""
        base = torch.randn(shape, generator=self.generator)
        direction = torch.randn(shape, generator=self.generator)
        return (base + self.drift * self.step * direction).to(self.dtype)

    def time(self, scale: float = 1000.0, *, ascending: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """Time of this step as `[batch]`, falling from `scale` in `STEPS` equal parts (rising if `ascending`)."""
        part = self.step / STEPS
        value = scale * (part if ascending else 1.0 - part)
        return torch.full((self.batch,), value, dtype=dtype or torch.float32)

    def labels(self, classes: int) -> Tensor:
        """One class label per batch row."""
        return torch.randint(0, classes, (self.batch,), generator=self.generator)

    def mask(self, length: int, keep: int, dtype: torch.dtype | None = None) -> Tensor:
        """`[batch, length]` mask whose first `keep` entries are one."""
        return (torch.arange(length) < keep).to(dtype or torch.int64).repeat(self.batch, 1)


@dataclass
class TinyModel:
    """A small module together with the calls that a sampling loop would make.

    `stacks` names the repeated blocks by module path and number, in the order of execution; empty when the model has
    none that may be cached. `changing` names the arguments that are new in every step; all others keep their identity
    for a given (seed, batch, size), as they do in a pipeline. `fullgraph` tells whether Dynamo makes one graph with its
    default settings; where it does not, `dynamo` may name the settings that help.
    """

    module: nn.Module
    make: Callable[[Draw], dict[str, Any]]
    stacks: tuple[tuple[str, int], ...] = ()
    changing: tuple[str, ...] = ("hidden_states", "timestep")
    dtype: torch.dtype = torch.float32
    positional: bool = False
    fullgraph: bool = True
    grids: tuple[tuple[int, int], ...] = GRIDS
    dynamo: Mapping[str, bool] = field(default_factory=dict)
    _kept: dict[Any, dict[str, Any]] = field(default_factory=dict, repr=False)

    def inputs(
        self,
        step: int = 0,
        batch: int = 1,
        size: int | tuple[int, int] = 0,
        seed: int = 0,
        *,
        drift: float = 0.05,
        fresh: bool = False,
    ) -> dict[str, Any]:
        """Keyword arguments of the call at `step`; `fresh` makes new conditioning objects with the same values."""
        grid = self.grids[size] if isinstance(size, int) else size
        made = self.make(Draw(step, batch, grid, seed, self.dtype, drift))
        key = (batch, grid, seed)
        if fresh or key not in self._kept:
            if not fresh:
                self._kept[key] = made
            return dict(made)
        return self._merge(made, self._kept[key])

    def vary(self, kwargs: Mapping[str, Any], *names: str, amount: float = 0.05, seed: int = 1) -> dict[str, Any]:
        """Copy of `kwargs` with noise added to the float tensors under `names`, by default the latents."""
        generator = torch.Generator().manual_seed(seed)

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return value + amount * torch.randn(value.shape, generator=generator).to(value.dtype)

        chosen = names or tuple(name for name in self.changing if "time" not in name and name != "t")

        def walk(value: Any, name: str) -> Any:
            if name in chosen:
                return pytree.tree_map(move, value)
            return {k: walk(v, k) for k, v in value.items()} if isinstance(value, dict) else value

        return {name: walk(value, name) for name, value in kwargs.items()}

    def call(self, kwargs: Mapping[str, Any], module: Callable[..., Any] | None = None) -> Any:
        """Call the module (or a compiled form of it) the way its users do."""
        args, rest = self.split(kwargs)
        return (self.module if module is None else module)(*args, **rest)

    def split(self, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of a call."""
        return (tuple(kwargs.values()), {}) if self.positional else ((), dict(kwargs))

    def run(self, kwargs: Mapping[str, Any], module: Callable[..., Any] | None = None) -> Tensor:
        """Call without gradients and return the first tensor of the result."""
        with torch.no_grad():
            return first_tensor(self.call(kwargs, module))

    def _merge(self, made: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for name, value in made.items():
            if name in self.changing:
                merged[name] = value
            elif isinstance(value, dict):
                merged[name] = self._merge(value, kept[name])
            else:
                merged[name] = kept[name]
        return merged


def first_tensor(value: Any) -> Tensor:
    """The first tensor leaf of a nested result; the attributes of a plain dataclass count as nested."""
    if is_dataclass(value) and not isinstance(value, Mapping):
        value = vars(value)
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            return leaf
    raise TypeError(f"no tensor in a result of type {type(value).__name__}")


def case(
    build: Callable[[int], nn.Module],
    make: Callable[[Draw, int], dict[str, Any]],
    *stacks: str,
    changing: tuple[str, ...] = ("hidden_states", "timestep"),
    fullgraph: bool = True,
    dynamo: Mapping[str, bool] | None = None,
    grids: tuple[tuple[int, int], ...] = GRIDS,
) -> Callable[..., TinyModel]:
    """Builder `(layers=4, seed=0, dtype=float32)` from a constructor and an input function that take the layers."""

    def builder(layers: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyModel:
        module = seeded(lambda: build(layers), seed, dtype)
        found = tuple((path, len(list(module.get_submodule(path).children()))) for path in stacks)
        return TinyModel(
            module,
            lambda draw: make(draw, layers),
            found,
            changing,
            dtype,
            fullgraph=fullgraph,
            grids=grids,
            dynamo=dynamo or {},
        )

    return builder
