"""Find arguments that a module's ``forward`` accepts, by trying candidates on the meta device.

How far a call gets, in operators, says which of two wrong guesses is less wrong; so one argument is improved at a time.
Sizes that an error message asks for become candidates as well.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from fxcache.checks import nearest
from fxcache.errors import OptionError
from fxcache.explain.sample_inputs import ABSENT, Layout, candidates, layouts

_SECONDS = 120.0
"""Time for the whole search."""
_PRODUCT = re.compile(r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")
_PRODUCT_META = re.compile(r"a and b must have same reduction dim, but got \[.*?(\d+)\] X \[(\d+), ?\d+\]")
_CONVOLUTION = re.compile(r"expected input\[(?:[^\]]*)\] to have (\d+) channels, but got (\d+)")
_NORM = re.compile(
    r"normalized_shape=\[(\d+)\], expected input with shape \[.*\],"
    r" but got input of size ?(?:torch.Size\()?\[(?:.*, )?(\d+)\]"
)
_NO_DATA = (
    "meta tensor",
    "Meta tensor",
    "'Meta' backend",
    "device_type 'meta'",
    "aten::_local_scalar_dense",
    "nonzero",
    "no data",
)
"""Complaints that the meta device has no data: the sizes may be right."""


@dataclass(frozen=True)
class _Outcome:
    """One trial: whether the call went through, how far it came, and what stopped it."""

    ok: bool
    progress: int
    error: BaseException | None


def find_inputs(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for ``forward``; ``given`` are those that the user has described.

    Raises OptionError that names the arguments that could not be guessed.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for name in given:
        if name not in parameters:
            raise OptionError(f"inputs: {type(module).__name__} has no argument {name!r}: {nearest(name, parameters)}")
    fixed = {name: read_input(name, value) for name, value in given.items()}
    if "return_dict" in parameters:
        fixed.setdefault("return_dict", False)
    config = _config(module)
    wants_list = any(
        name in ("x", "hidden_states") and "list[" in str(p.annotation).lower() for name, p in parameters.items()
    )
    deadline = time.monotonic() + _SECONDS
    best: tuple[int, Layout, dict[str, Any], _Outcome] | None = None
    for layout in layouts(config, wants_list):
        open_ones = {name: candidates(p, layout, config) for name, p in parameters.items() if name not in fixed}
        unknown = [name for name, found in open_ones.items() if not found]
        if unknown:
            raise OptionError(_unknown(module, unknown))
        chosen, outcome = _climb(module, fixed, open_ones, deadline)
        if outcome.ok:
            return chosen
        if best is None or outcome.progress > best[0]:
            best = (outcome.progress, layout, chosen, outcome)
    assert best is not None
    raise OptionError(_failed(module, best[1], best[2], best[3]))


def read_input(name: str, value: Any) -> Any:
    """Turn the description of an input into a tensor on the meta device, or a plain value."""
    if isinstance(value, list):
        if value and all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value):
            return torch.empty(value, device="meta")
        return [read_input(name, item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"value"}:
        return value["value"]
    if "shape" in value and set(value) <= {"shape", "dtype"}:
        dtype = getattr(torch, str(value.get("dtype", "float32")).removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise OptionError.of(f"inputs: {name}: dtype", value.get("dtype"), "the name of a dtype, such as float32")
        return torch.empty(value["shape"], dtype=dtype, device="meta")
    return {key: read_input(f"{name}.{key}", item) for key, item in value.items()}


class _Count(TorchDispatchMode):
    """Counts operators: how far a call got."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _climb(
    module: nn.Module, fixed: Mapping[str, Any], open_ones: Mapping[str, list[Any]], deadline: float
) -> tuple[dict[str, Any], _Outcome]:
    """Improve one argument at a time until the call goes through or nothing gets further."""
    chosen = {**fixed, **{name: found[0] for name, found in open_ones.items()}}
    outcome = _try(module, chosen)
    while not outcome.ok and time.monotonic() < deadline:
        better: tuple[dict[str, Any], _Outcome] | None = None
        for changed in _neighbours(chosen, open_ones, outcome.error):
            result = _try(module, changed)
            if result.ok:
                return _present(changed), result
            if result.progress > (better[1] if better else outcome).progress:
                better = changed, result
            if time.monotonic() > deadline:
                break
        if better is None:
            break
        chosen, outcome = better
    return _present(chosen), outcome


def _neighbours(
    chosen: Mapping[str, Any], open_ones: Mapping[str, list[Any]], error: BaseException | None
) -> Iterator[dict[str, Any]]:
    wish = _wish(error)
    for name in open_ones:
        if wish is not None:
            repaired = _resized(chosen[name], *wish)
            if repaired is not None:
                yield {**chosen, name: repaired}
    for name, found in open_ones.items():
        for value in found:
            if value is not chosen[name]:
                yield {**chosen, name: value}


def _wish(error: BaseException | None) -> tuple[int, int] | None:
    """Read from an error message which size should have been which: (found, wanted)."""
    text = str(error)
    for pattern, wanted_first in ((_PRODUCT, False), (_PRODUCT_META, False), (_CONVOLUTION, True), (_NORM, True)):
        match = pattern.search(text)
        if match:
            first, second = int(match.group(1)), int(match.group(2))
            return (second, first) if wanted_first else (first, second)
    return None


def _resized(value: Any, found: int, wanted: int) -> Any:
    """The same value with one size exchanged, or None when it has no such size."""
    hits = 0

    def change(item: Any) -> Any:
        nonlocal hits
        if not isinstance(item, torch.Tensor) or found not in item.shape or item.dtype != torch.float32:
            return item
        hits += 1
        shape = list(item.shape)
        place = len(shape) - 1 if shape[-1] == found else shape.index(found)
        shape[place] = wanted
        return torch.empty(shape, dtype=item.dtype, device="meta")

    changed = tree_map(change, value)
    return changed if hits and value is not ABSENT else None


def _try(module: nn.Module, chosen: Mapping[str, Any]) -> _Outcome:
    counter = _Count()
    try:
        with torch.no_grad(), counter:
            module.forward(**_present(chosen))
    except Exception as error:
        # Data decides there: the sizes may be right, and tracing will tell.
        no_data = isinstance(error, (RuntimeError, NotImplementedError)) and any(w in str(error) for w in _NO_DATA)
        return _Outcome(no_data, counter.count, error)
    return _Outcome(True, counter.count, None)


def _present(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value is not ABSENT}


def _config(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    return dict(config) if isinstance(config, Mapping) else {}


def _unknown(module: nn.Module, names: list[str]) -> str:
    return (
        f"{type(module).__name__}: cannot guess the argument{'s' if len(names) > 1 else ''} {', '.join(names)};"
        f' give it with --inputs FILE.json, such as {{"{names[0]}": [1, 4096, 64]}}'
    )


def _failed(module: nn.Module, layout: Layout, chosen: Mapping[str, Any], outcome: _Outcome) -> str:
    shown = ", ".join(f"{name} {_text(value)}" for name, value in chosen.items() if name != "return_dict")
    first = (str(outcome.error).strip() or "no message").splitlines()[0]
    return (
        f"{type(module).__name__}: found no inputs that its forward accepts. The best guess ({layout.name}) was"
        f" {shown}; it failed after {outcome.progress} operators with {type(outcome.error).__name__}: {first}."
        ' Give the wrong ones with --inputs FILE.json, such as {"timestep": {"shape": [1], "dtype": "float32"}}'
    )


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, (list, tuple)) else repr(value)
