"""Rewritten graphs with histories, run step by step against the untouched graph and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

import fxcache.calibrators  # noqa: F401  (the graphs name their forecaster)
from fxcache.kernels import Ask, Control
from fxcache.rewrite.plan import Plan
from tests.graphs import Sketch, new_state, tell
from tests.rewrite.sketches import before, dynamic, modulated, stream, two_streams

STEPS = 5
TIMES = (9.0, 8.0, 7.0, 6.0, 5.0)
NOW = 3.5
STATIC = {"steps_computation_mask": "11111010", "steps_computation_policy": "static"}
HIDDEN = {"calibrator_cache_type": "hidden_states"}
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "forecast of nothing": {"indicator": "forecast"},
    "taylorseer": {"calibrator": "taylorseer"},
    "taylorseer, second order": {"calibrator": "taylorseer", "taylorseer_order": 2, "indicator": "forecast"},
    "foca": {"calibrator": "foca"},
    "dmd": {"calibrator": "dmd", "dmd_history": 4},
    "dmd, text as it is": {"calibrator": "dmd", "dmd_history": 4, "enable_encoder_calibrator": False},
    "regression": {"calibrator": "regression"},
    "regression of the text only": {"calibrator": "regression", "enable_calibrator": False},
    "nothing predicted": {
        "calibrator": "taylorseer",
        "indicator": "forecast",
        "enable_calibrator": False,
        "enable_encoder_calibrator": False,
    },
    "hidden states": {"calibrator": "taylorseer", **HIDDEN},
    "hidden states, dmd": {"calibrator": "dmd", "dmd_history": 5, **HIDDEN},
    "bfloat16": {"calibrator": "taylorseer", "calibrator_dtype": "bfloat16"},
    "static": STATIC,
    "static, taylorseer": {"calibrator": "taylorseer", **STATIC},
    "static, regression": {"calibrator": "regression", **STATIC},
}


class Recorder(Interpreter):
    """Runs a graph and keeps what its nodes gave."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.kept: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.kept[n.name] = value.clone() if isinstance(value, Tensor) else value
        return value


def run(gm: GraphModule, inputs: list[Any]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    recorder = Recorder(gm)
    return recorder.run(*inputs), recorder.kept


class Case:
    """A rewritten graph beside an untouched one, with inputs that move from step to step but for the weights."""

    def __init__(self, build: Callable[[], Sketch], **options: Any) -> None:
        self.original, sketch = build(), build()
        self.gm, self.plan = before(sketch, "no pass has this name", calibrator_max_gain=None, **options)
        self.names = [value.live_out.name for value in self.plan.region.streams]
        self.state = new_state(self.plan)
        self.streams: list[list[Tensor]] = []
        self.live_ins: list[list[Tensor | None]] = []

    def inputs(self, step: int) -> list[Any]:
        first, other = self.original.values(seed=0), self.original.values(seed=1 + step)
        return [
            value if place in self.original.static or not isinstance(value, Tensor) else value + 0.2 * moved
            for place, (value, moved) in enumerate(zip(first, other, strict=True))
        ]

    def compute(self, step: int, slot: int) -> None:
        """Compute and store a step; the outputs must be those of the untouched graph, bit by bit."""
        expected, untouched = run(self.original.gm, self.inputs(step))
        tell(self.state[0], mode=Ask.COMPUTE, store=1, slot=slot)
        got, kept = run(self.gm, [*self.inputs(step), *self.state])
        assert all(map(torch.equal, got, expected)) and not self.state[0][Control.REUSED]
        self.streams.append([untouched[name] for name in self.names])
        self.live_ins.append([None if node is None else kept[node.name] for node in self.plan.bases])

    def stored(self, stream: int, step: int) -> Tensor:
        """What a step gave to the history of a stream, in float64."""
        live_in = self.live_ins[step][stream]
        value = self.streams[step][stream].double()
        return value if live_in is None else value - live_in.double()


def filled(build: Callable[[], Sketch], options: dict[str, Any], first: int) -> tuple[Case, list[int], list[int]]:
    """A case in which all steps are stored, the steps that are still there and their slots, newest first."""
    case = Case(build, Fn_compute_blocks=first, **options)
    entries = max(history.spec.shape[0] for history in case.plan.histories)
    for step in range(STEPS):
        case.compute(step, step % entries)
    steps = list(range(STEPS))[::-1][:entries]
    slots = [step % entries for step in steps]
    tell(case.state[0], count=entries, times=[TIMES[step] for step in steps], slots=slots, now=NOW)
    return case, steps, slots


def state_of(case: Case, name: str) -> Tensor:
    return case.state[list(case.plan.placeholders).index(name)]


def weights_of(case: Case, kept: dict[str, Any], row: int) -> list[float]:
    assert isinstance(case.plan.weights, Node)
    return [float(weight) for weight in kept[case.plan.weights.name][row]]


def tolerance(plan: Plan) -> float:
    return 2e-2 if plan.options.calibrator_dtype == "bfloat16" else 2e-6


@pytest.mark.parametrize("build", [stream, two_streams, modulated, dynamic])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_computed_steps_are_exact_and_reused_ones_are_the_weighted_sum(
    build: Callable[[], Sketch], first: int, name: str
) -> None:
    case, steps, slots = filled(build, OPTIONS[name], first)
    plan, close = case.plan, tolerance(case.plan)

    # what the graph has stored is what the untouched graph gives
    for number, history in enumerate(plan.caches):
        stored = state_of(case, history.spec.name)
        entries = stored.shape[0]
        for step, slot in list(zip(steps, slots if entries > 1 else [0], strict=False))[:entries]:
            torch.testing.assert_close(stored[slot].double(), case.stored(number, step), rtol=close, atol=close)
        if history.gram is not None:
            flat = stored.double().flatten(1)
            torch.testing.assert_close(state_of(case, history.gram.name), flat @ flat.T)

    tell(case.state[0], mode=Ask.REUSE)
    before_reuse = [tensor.clone() for tensor in case.state[1:]]
    _, kept = run(case.gm, [*case.inputs(STEPS), *case.state])
    assert case.state[0][Control.REUSED]
    assert all(map(torch.equal, case.state[1:], before_reuse)), "a reused step writes nothing"
    # weights of its own for every stream with products: the indicator's stream has the first row
    own = [history.row for history in sorted(plan.caches, key=lambda cache: not cache.main) if history.gram is not None]
    for number, history in enumerate(plan.caches):
        stored = state_of(case, history.spec.name).double()
        weights = [1.0]
        if history.predicted:
            weights = weights_of(case, kept, own.index(history.row) if own else 0)
            assert sum(weight != 0 for weight in weights) >= 2, "a forecast is more than the last step"
        reference = plan.bases[number]
        expected = sum(weight * entry for weight, entry in zip(weights, stored, strict=True))
        if reference is not None:
            expected = kept[reference.name].double() + expected
        assert plan.compute is not None
        got = kept[plan.compute.name][number]
        assert got.dtype is case.streams[0][number].dtype
        scale = float(sum(abs(weight) for weight in weights))
        torch.testing.assert_close(got.double(), expected, rtol=close, atol=close * scale)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("order", [1, 2, 3])
@torch.no_grad()
def test_a_polynomial_is_continued_from_the_residuals_of_the_untouched_graph(first: int, order: int) -> None:
    options = {"calibrator": "taylorseer", "taylorseer_order": order}
    case, steps, _ = filled(two_streams, options, first)
    tell(case.state[0], mode=Ask.DECIDE, threshold=float("inf"))
    _, kept = run(case.gm, [*case.inputs(STEPS), *case.state])
    assert case.state[0][Control.REUSED] and case.state[0][Control.MEASURED]
    for number, reference in enumerate(case.plan.bases):
        assert reference is not None and case.plan.compute is not None
        values = np.stack([case.stored(number, step).flatten().numpy() for step in steps])
        fitted = np.polyfit([TIMES[step] for step in steps], values, order)
        continued = torch.from_numpy(sum(c * NOW**power for power, c in enumerate(fitted[::-1])))
        expected = kept[reference.name].double() + continued.view(kept[reference.name].shape)
        torch.testing.assert_close(kept[case.plan.compute.name][number].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("static")])
@pytest.mark.parametrize("first", [0, 1])
@torch.no_grad()
def test_a_step_that_is_the_last_one_again_has_no_difference(name: str, first: int) -> None:
    case, _, _ = filled(two_streams, OPTIONS[name], first)
    tell(case.state[0], mode=Ask.DECIDE, threshold=1e-4, now=TIMES[STEPS - 1])
    run(case.gm, [*case.inputs(STEPS - 1), *case.state])
    forecasts = case.plan.options.forecasts_indicator
    assert float(case.state[0][Control.DIFFERENCE]) <= (1e-6 if forecasts else 0.0)
    assert case.state[0][Control.REUSED]


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_step_that_is_not_a_number_is_computed_and_recovers(name: str) -> None:
    case, steps, slots = filled(two_streams, OPTIONS[name], 1)
    entries = len(steps)
    spoilt = case.inputs(STEPS)
    spoilt[0] = spoilt[0] * float("nan")
    oldest = slots[-1]
    tell(case.state[0], mode=Ask.COMPUTE, slot=oldest)
    run(case.gm, [*spoilt, *case.state])
    ages = [oldest, *slots[:-1]][:entries]
    times = [TIMES[STEPS - 1] - 1, *(TIMES[step] for step in steps)][:entries]
    tell(case.state[0], mode=Ask.DECIDE, threshold=float("inf"), slots=ages, times=times, slot=ages[-1])
    clean = case.inputs(STEPS + 1)
    got, _ = run(case.gm, [*clean, *case.state])
    assert not case.state[0][Control.REUSED] and not case.state[0][Control.FINITE]
    assert all(map(torch.equal, got, case.original.gm(*clean)))
    # the clean step is now the newest one; the spoilt one behind it is left out
    ages = [ages[-1], *ages[:-1]]
    times = [times[0] - 1, *times[:-1]]
    tell(case.state[0], slots=ages, times=times, slot=ages[-1])
    got, _ = run(case.gm, [*clean, *case.state])
    assert case.state[0][Control.REUSED]
    assert all(bool(value.isfinite().all()) for value in got)
    for value, wanted in zip(got, case.original.gm(*clean), strict=True):
        bound = 1e-5 if case.plan.options.calibrator_dtype is None else 2e-2
        torch.testing.assert_close(value, wanted, rtol=bound, atol=bound)
