"""The key under which AOTAutograd's cache holds what fxcache has made of a graph, and when it may hold it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcache.artefact import can_keep, key_of
from fxcache.errors import OptionError
from fxcache.option_rules import HOST_ONLY
from fxcache.options import Options

OPTIONS = Options()
X = torch.randn(2, 6, 16)


def traced(module: nn.Module, *args: Tensor, dynamic: bool | None = None) -> tuple[GraphModule, tuple[Any, ...]]:
    """Dynamo's graph of a call and its inputs."""
    found: list[tuple[GraphModule, tuple[Any, ...]]] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append((gm, tuple(inputs)))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)(*args)
    return found[-1]


class Twice(nn.Module):
    """Two calls of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(self.inside(x))


def renamed(gm: GraphModule, rename: Callable[[str], str]) -> GraphModule:
    """Give every call of a module, which Dynamo names after its address, another name."""
    for node in gm.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {rename(call): module for call, module in stack.items()}
    return gm


def test_addresses_are_not_in_the_key_but_which_calls_are_of_one_module() -> None:
    gm, inputs = traced(Twice(), X)
    calls = {call for node in gm.graph.nodes for call in node.meta.get("nn_module_stack") or ()}
    assert any(call.endswith("@1") for call in calls)
    before = key_of(gm, inputs, OPTIONS, is_fragment=False)
    assert key_of(renamed(gm, lambda call: "moved" + call), inputs, OPTIONS, is_fragment=False) == before
    apart = renamed(gm, lambda call: "other" + call if "@1" in call else call)
    assert key_of(apart, inputs, OPTIONS, is_fragment=False) != before
    once = renamed(traced(Twice(), X)[0], lambda call: call.replace("@1", ""))
    assert key_of(once, inputs, OPTIONS, is_fragment=False) != before


def change_path(gm: GraphModule) -> None:
    stack = _some_stack(gm)
    call, (path, kind) = next(iter(stack.items()))
    stack[call] = (path + ".0", kind)


def change_class(gm: GraphModule) -> None:
    stack = _some_stack(gm)
    call, (path, _) = next(iter(stack.items()))
    stack[call] = (path, nn.Sequential)


def forget_modules(gm: GraphModule) -> None:
    _some_stack(gm).clear()


def rename_an_input(gm: GraphModule) -> None:
    names = [node for node in gm.graph.nodes if node.op == "placeholder" and "_modules" not in str(node._dynamo_source)]
    names[0]._dynamo_source = names[-1]._dynamo_source


def _some_stack(gm: GraphModule) -> dict[str, Any]:
    node = next(node for node in gm.graph.nodes if node.meta.get("nn_module_stack"))
    node.meta["nn_module_stack"] = dict(node.meta["nn_module_stack"])
    return node.meta["nn_module_stack"]


@pytest.mark.parametrize("change", [change_path, change_class, forget_modules, rename_an_input])
def test_what_the_passes_read_of_the_graph_is_in_the_key(change: Callable[[GraphModule], None]) -> None:
    gm, inputs = traced(Named(), X, X.clone())
    before = key_of(gm, inputs, OPTIONS, is_fragment=False)
    change(gm)
    assert key_of(gm, inputs, OPTIONS, is_fragment=False) != before


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 16)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inside(x) + y


def test_the_sizes_behind_dynamic_ones_are_in_the_key() -> None:
    small, large = (
        traced(Named(), torch.zeros(2, size, 16), torch.zeros(2, size, 16), dynamic=True) for size in (6, 7)
    )
    assert any(isinstance(value, torch.SymInt) for value in small[1]) and small[0].code == large[0].code
    assert key_of(*small, OPTIONS, is_fragment=False) != key_of(*large, OPTIONS, is_fragment=False)


def test_parameters_options_and_fragments_are_in_the_key() -> None:
    gm, inputs = traced(Named(), X, X.clone())
    weights = tuple(nn.Parameter(value, requires_grad=False) for value in inputs)
    keys = [
        key_of(gm, inputs, OPTIONS, is_fragment=False),
        key_of(gm, inputs, OPTIONS, is_fragment=True),
        key_of(gm, weights, OPTIONS, is_fragment=False),
        key_of(gm, inputs, OPTIONS.replace(Fn_compute_blocks=2), is_fragment=False),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(gm, inputs, OPTIONS.replace(max_contexts=2), is_fragment=False) == keys[0]


def test_options_with_one_fingerprint_shape_one_graph() -> None:
    choices: dict[str, tuple[Any, ...]] = {
        "method": ("dbcache", "dbprune", "interval", "teacache", "magcache", "easycache"),
        "calibrator": (None, "taylorseer", "foca", "dmd", "regression"),
        "indicator": (None, "residual", "forecast"),
        "steps_computation_mask": (None, (1, 0), (1, 1)),
        "steps_computation_policy": ("dynamic", "static"),
        "residual_diff_threshold": (0.0, 0.1),
        "rescale_coefficients": ((), (1.0, 0.0)),
        "magnitude_ratios": ((), (1.0, 1.0)),
    }
    shaping = [name for name in vars(Options) if isinstance(vars(Options)[name], property)]
    shaping = [name for name in shaping if name not in ("effective_threshold", "has_static_mask", "has_schedule")]
    assert {"sums_changes", "estimates_change", "forecasts_indicator", "history", "observes"} <= set(shaping)
    graphs: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*choices.values()):
        try:
            options = Options.from_mapping(dict(zip(choices, values, strict=True)))
        except OptionError:
            continue
        made = {name: getattr(options, name) for name in shaping}
        made.update({name: value for name, value in options.to_dict().items() if name not in HOST_ONLY})
        if options.can_reuse:  # the others are not rewritten
            assert graphs.setdefault(options.fingerprint(), made) == made
    assert len(graphs) > 20


def test_what_may_be_kept(tmp_path: Path) -> None:
    inputs = (X,)
    assert can_keep(inputs, OPTIONS)
    assert not can_keep(inputs, OPTIONS.replace(inner_backend="eager"))
    assert not can_keep(inputs, OPTIONS.replace(inner_backend="aot_eager"))
    assert not can_keep(inputs, OPTIONS.replace(dump_dir=str(tmp_path)))
    with torch._functorch.config.patch(bundled_autograd_cache=True):
        assert not can_keep(inputs, OPTIONS)
    with torch._functorch.config.patch(enable_autograd_cache=False):
        assert not can_keep(inputs, OPTIONS)
    weights = (nn.Parameter(X.clone()),)
    assert not can_keep(weights, OPTIONS)
    with torch.no_grad():
        assert can_keep(weights, OPTIONS)
