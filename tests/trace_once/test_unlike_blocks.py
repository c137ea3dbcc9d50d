"""Blocks and calls that look alike and are not: outputs are those of eager, graphs those of tracing every block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trace_once.same import assert_same, trace
from tests.trace_once.stacks import CONFIG, LAYERS, WIDTH, Block, Config, Model, x


def compare(model: nn.Module) -> int:
    """Outputs and graphs with blocks traced once and all of them; how many were copied."""
    calls: list[Any] = [((x(),), {})]
    with torch.no_grad():
        wanted = model(x())
    once, (output,) = trace(model, calls, once=True, fullgraph=True)
    whole, _ = trace(model, calls, once=False, fullgraph=True)
    assert torch.equal(output, wanted)
    assert_same(once, whole)
    return sum(once.reused)


def test_blocks_that_are_alike_are_copied() -> None:
    assert compare(Model()) == LAYERS - 1


# what is done to the third block or to all, and how many copies that leaves
def scaled(model: Model) -> None:
    model.blocks[2].scale = 3.0


def all_scaled(model: Model) -> None:
    for number, block in enumerate(model.blocks):
        block.scale = 1.0 + number


def other_function(model: Model) -> None:
    model.blocks[2].act = F.silu


def partials(model: Model) -> None:
    for number, block in enumerate(model.blocks):
        block.act = functools.partial(F.leaky_relu, negative_slope=0.1 * number)


def closures(model: Model) -> None:
    for number, block in enumerate(model.blocks):
        block.act = lambda value, number=number: value * (number + 1)


def tied_weights(model: Model) -> None:
    model.blocks[0].up.weight = model.blocks[1].up.weight
    model.blocks[3].up.weight = model.blocks[4].up.weight


def tied_to_the_outside(model: Model) -> None:
    model.blocks[0].norm.weight = model.first.bias
    model.blocks[4].norm.weight = model.first.bias


def tied_inside(model: Model) -> None:
    model.blocks[2].norm.bias = model.blocks[2].down.bias


def global_object(model: Model) -> None:
    for number, block in enumerate(model.blocks):
        block.config = CONFIG if number % 2 else Config(scale=2.0 + number)


def one_object(model: Model) -> None:
    for block in model.blocks:
        block.config = CONFIG


def tables(model: Model) -> None:
    for number, block in enumerate(model.blocks):
        block.table = torch.full((WIDTH,), float(number))


def some_tables(model: Model) -> None:
    model.blocks[3].table = torch.ones(WIDTH)


def hooked(model: Model) -> None:
    model.blocks[2].register_forward_hook(lambda module, args, output: output * 2)


def patched(model: Model) -> None:
    block = model.blocks[2]
    block.forward = lambda h, more=None: h * 2


def cycles(model: Model) -> None:
    for block in model.blocks:
        block.norm.owner = [block]


def crossed(model: Model) -> None:
    cycles(model)
    model.blocks[2].norm.owner = [model.blocks[3]]


def other_class(model: Model) -> None:
    model.blocks[2].act = nn.Sequential(nn.SiLU(), nn.Dropout(0.0))


def one_block(model: Model) -> None:
    model.blocks = nn.ModuleList([model.blocks[0]] * LAYERS)


def frozen(model: Model) -> None:
    model.blocks[2].requires_grad_(False)


CHANGES: list[tuple[Callable[[Model], None], int]] = [
    (scaled, 4), (all_scaled, 0), (other_function, 4), (partials, 0), (closures, 0), (tied_weights, 5),
    (tied_to_the_outside, 4), (tied_inside, 4), (global_object, 2), (one_object, 5), (tables, 5), (some_tables, 4),
    (hooked, 4), (patched, 4), (cycles, 5), (crossed, 4), (other_class, 4), (one_block, 0), (frozen, 4),
]  # fmt: skip


@pytest.mark.parametrize("change, most", CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_blocks_that_differ(change: Callable[[Model], None], most: int) -> None:
    model = Model()
    change(model)
    assert compare(model) == most


class Numbered(Model):
    """Every block is told its number."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        return block(h, number)


class Aliased(Model):
    """Some blocks get one tensor twice."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        return block(h, h if number % 2 else h + 1)


class Counting(Model):
    """The model changes what its blocks read."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        block.scale = 1.0 + number
        return block(h)


class Preparing(Model):
    """One block is changed before the first one runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.blocks[2].scale = 5.0
        return super().forward(x)


class Turning(Model):
    """The model changes an object that its blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Config(scale=1.0)
        for block in self.blocks:
            block.config = self.shared

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        self.shared.scale = 1.0 + number
        return block(h)


class Global(Model):
    """One of the blocks has an object that Dynamo first meets elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        for number, block in enumerate(self.blocks):
            block.config = Config(scale=2.0 + number) if number else CONFIG

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * CONFIG.scale)


class Cast(Model):
    """Half of the blocks under autocast."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=number % 2 == 1):
            return block(h).float()


class Shrinking(Model):
    """Fewer tokens behind the third block."""

    def run(self, number: int, block: nn.Module, h: Tensor) -> Tensor:
        return block(h[:2] if number == 3 else h)


class Backwards(Model):
    """Every block twice, the second time in the other direction."""

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.blocks, *reversed(self.blocks)]:
            x = block(x)
        return x


@pytest.mark.parametrize(
    "kind, most",
    [
        (Numbered, 0),
        (Aliased, 4),
        (Counting, 0),
        (Preparing, 4),
        (Turning, 0),
        (Global, 0),
        (Cast, 4),
        (Shrinking, 4),
        (Backwards, 11),
    ],
)
def test_calls_that_differ(kind: Callable[[], Model], most: int) -> None:
    assert compare(kind()) == most


class Appending(Block):
    """Leaves something in a list that it is handed."""

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        result = super().forward(h)
        more.append(result * 2)
        return result


class Collecting(Model):
    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for block in self.blocks:
            x = block(x, found)
        return x + sum(found)


class Remembering(Block):
    """Leaves something on itself."""

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        result = super().forward(h)
        self.seen = result * 2
        return result


class Asking(Model):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        for block in self.blocks:
            x = x + block.seen
        return x


class InPlace(Block):
    """Writes into its argument and into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        self.count += 1
        h.add_(1)
        return super().forward(h) * self.count


class Passing(Block):
    """Gives back one of its arguments, and a list."""

    def forward(self, h: Tensor, more: Any = None) -> Any:
        return [super().forward(h), more]


class Handing(Model):
    def forward(self, x: Tensor) -> Tensor:
        first = h = self.first(x)
        for block in self.blocks:
            h, same = block(h, first)
            h = h * (2 if same is first else 3)
        return h


class Adding(Block):
    """Writes into its argument."""

    def forward(self, h: Tensor, more: Any = None) -> Tensor:
        return super().forward(h.add_(1))


class Returning(Block):
    """Gives back the list that it was handed."""

    def forward(self, h: Tensor, more: Any = None) -> Any:
        return super().forward(h), more


class Growing(Model):
    """Appends to the list that it gets back."""

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = [x]
        for block in self.blocks:
            x, same = block(x, found)
            same.append(x)
        return x + sum(found)


@pytest.mark.parametrize(
    "kind, block, most",
    [
        (Model, Adding, 5),
        (Growing, Returning, 0),
        (Collecting, Appending, 0),
        (Asking, Remembering, 0),
        (Model, InPlace, 0),
        (Handing, Passing, 4),
    ],
)
def test_blocks_that_do_more_than_return(kind: Callable[..., Model], block: Callable[[], nn.Module], most: int) -> None:
    model = kind(block)
    calls: list[Any] = [((x(),), {})] * 2
    states = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        wanted = [model(x()), model(x())]
    results = []
    for once in (True, False):
        model.load_state_dict(states)
        for member in model.blocks:
            vars(member).pop("seen", None)
        seen, outputs = trace(model, calls, once=once, fullgraph=True)
        torch.testing.assert_close(outputs, wanted, rtol=0, atol=0)
        results.append(seen)
    assert sum(results[0].reused) == most
    assert_same(*results)
