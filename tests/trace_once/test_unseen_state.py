"""State that blocks share and are not handed: made by the trace, and reached through what was there before."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.trace_once.same import assert_same, trace
from tests.trace_once.stacks import LAYERS, Block, Config, Model, x

OWNER: Any = Config(scale=1.0)
"""An object that models and blocks know by its global name."""


class Owning(Model):
    """Puts something new in a place that its blocks know, for the time of one call."""

    def __init__(self, new: Callable[[], Any], read: Callable[[Any], Any]) -> None:
        super().__init__(lambda: Reading(read))
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        OWNER.state = self.new()
        return super().forward(x)


class Reading(Block):
    """Multiplies with a number that is not handed over."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.read = read

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        return super().forward(h) * self.read(OWNER.state)


def object_that_counts(state: Any) -> float:
    state.scale += 1
    return state.scale


def list_that_grows(state: Any) -> int:
    state.append(len(state))
    return len(state)


def set_that_grows(state: Any) -> int:
    state.add(len(state))
    return len(state)


def dictionary_that_counts(state: Any) -> int:
    state["n"] = state.get("n", 0) + 1
    return state["n"]


def numbers() -> list[float]:
    return [1.5 + number for number in range(LAYERS)]


def counter() -> Callable[[], int]:
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return count

    return counted


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "object": (lambda: Config(0.0), object_that_counts),
    "list": (list, list_that_grows),
    "list that shrinks": (numbers, lambda state: state.pop()),
    "set": (lambda: set(), set_that_grows),
    "dictionary": (dict, dictionary_that_counts),
    "closure": (counter, lambda state: state()),
    "iterator": (lambda: iter(numbers()), next),
    "iterator of pairs": (lambda: zip(numbers(), range(LAYERS), strict=True), lambda state: next(state)[0]),
    "counter": (lambda: itertools.count(1), next),
}


def reused(model: nn.Module) -> int:
    """How many blocks were copied, in graphs and with outputs like those of tracing all; the model has no old state."""
    calls: list[Any] = [((x(),), {})]
    with torch.no_grad():
        wanted = model(x())
    results = []
    for once in (True, False):
        vars(OWNER).pop("state", None)
        seen, (output,) = trace(model, calls, once=once)
        assert torch.equal(output, wanted)
        results.append(seen)
    vars(OWNER).pop("state", None)
    assert_same(*results)
    return sum(results[0].reused)


@pytest.mark.parametrize("kind", STATES)
def test_new_state_in_an_old_place(kind: str) -> None:
    assert reused(Owning(*STATES[kind])) == 0


class Finite(Owning):
    """A generator, which Dynamo can only put there by running to its end: the graph breaks."""

    def forward(self, x: Tensor) -> Tensor:
        OWNER.state = (number for number in numbers())
        return Model.forward(self, x)


def test_a_generator_in_an_old_place() -> None:
    reused(Finite(*STATES["iterator"]))


class Pairs(Model):
    """Hands over the same list twice to every other block."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        first, other = [h], [h]
        return block(h, (first, first if number % 2 else other))


class Comparing(Block):
    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        return super().forward(h) * (2 if more[0] is more[1] else 3)


def test_lists_that_are_the_same_one() -> None:
    assert reused(Pairs(Comparing)) == LAYERS - 2


class Stamping(Model):
    """Leaves a number on the tensor that it hands over."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        h = h * 1
        h.number = 1.0 + number  # type: ignore[attr-defined]
        return block(h)


class Stamped(Block):
    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        return super().forward(h) * h.number  # type: ignore[attr-defined]


def test_notes_on_tensors() -> None:
    assert reused(Stamping(Stamped)) == 0


class Mode(TorchFunctionMode):
    """Changes every result, more so from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        result = func(*args, **(kwargs or {}))
        return result * (1 + 0.01 * self.calls) if isinstance(result, Tensor) else result


class UnderMode(Model):
    def forward(self, x: Tensor) -> Tensor:
        with Mode():
            return super().forward(x)


def test_a_mode_that_sees_every_operator() -> None:
    assert reused(UnderMode()) == 0


class Annotating(Model):
    """Notes the number of every block at its nodes."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        with torch.fx.traceback.annotate({"number": number}):
            return block(h)


def test_annotated_nodes() -> None:
    assert reused(Annotating()) == 0


class Noting(Model):
    """Notes numbers, sizes and a tensor on itself, in front of the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        self.size, self.last, self.scale = (x.shape[0], x.shape[1]), 2 * x, 2.0
        return super().forward(x)


def test_what_cannot_change_may_be_noted() -> None:
    assert reused(Noting()) == LAYERS - 1
