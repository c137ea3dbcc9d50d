"""Which blocks become calls, and that the graph is the same in every case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from fxcache import artefact, dispatch_once
from fxcache.options import Options
from tests.dispatch_once import stacks
from tests.dispatch_once.same import Seen, assert_same, trace
from tests.dispatch_once.stacks import Block, Stack, Transposed


def inputs(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, rows, stacks.WIDTH, generator=generator), torch.rand(2, 1, 1, generator=generator)


def both(make: Callable[[], nn.Module]) -> Seen:
    """What comes of a model with its blocks dispatched once, which is what comes of all of them."""
    found = []
    for once in (True, False):
        torch.manual_seed(0)
        module = make().eval()
        torch.manual_seed(1)
        found.append(trace(module, inputs(), {}, once=once))
    once_seen, whole = found
    assert_same(once_seen, whole)
    assert torch.equal(once_seen.outputs, whole.outputs)
    return once_seen


def graph_of(module: nn.Module, **settings: Any) -> fx.GraphModule:
    """Dynamo's graph of a model."""
    kept: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, _: Any) -> fx.GraphModule:
        kept.append(gm)
        return gm

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=backend, **settings)(*inputs())
    torch._dynamo.reset()
    return kept[0]


def test_blocks_become_calls_of_one_submodule() -> None:
    gm = graph_of(Stack())
    before = gm.print_readable(print_output=False)
    outlined = dispatch_once.outline(gm)
    assert outlined is not None and len(outlined.stacks) == 4
    assert gm.print_readable(print_output=False) == before  # the graph itself stays
    calls = outlined.gm.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    assert [call.args[0].target for call in calls] == ["fxcache_alike_0"] * 4
    states = [call.args[2].name for call in calls]
    assert states[1:] == [next(iter(call.users)).name for call in calls[:-1]]  # each is handed what the last one gave
    assert len({tuple(call.args[3:]) for call in calls}) == 4  # with weights of its own
    assert [node.target for node in outlined.gm.graph.nodes if node.op == "call_function"].count(
        torch.nn.functional.silu
    ) == 0


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (Block, 4),
        (stacks.WritesInside, 4),
        (stacks.ReturnsAView, 3),  # the first one is handed no view
        (stacks.ReturnsAViewOfItsInput, 4),
    ],
)
def test_blocks_that_show_only_in_their_results(kind: type[Block], calls: int) -> None:
    seen = both(lambda: Stack(kind))
    assert (seen.calls, seen.abandoned) == (calls, 0)


@pytest.mark.parametrize("kind", [stacks.WritesToItsInput, stacks.ChangesTheMode, stacks.Draws])
def test_blocks_that_show_elsewhere_are_traced(kind: type[Block]) -> None:
    assert both(lambda: Stack(kind)).calls == 0


def write(x: torch.Tensor) -> torch.Tensor:
    x[:, :1] = 0
    return x


def write_to_a_view(x: torch.Tensor) -> torch.Tensor:
    x.view(-1).mul_(2)
    return x


def write_by_an_argument(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.leaky_relu(x.transpose(0, 1), 0.1, True).transpose(0, 1) + x


def write_by_a_method(x: torch.Tensor) -> torch.Tensor:
    return x.__imul__(2)


def write_to_an_output(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x, out=x)


@pytest.mark.parametrize(
    "between", [write, write_to_a_view, write_by_an_argument, write_by_a_method, write_to_an_output]
)
def test_what_blocks_return_may_be_written_to(between: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert both(lambda: Stack(between=between)).calls == 0


def test_weights_that_require_gradients_are_multiplied_as_such() -> None:
    for trained in (True, False):
        seen = both(lambda: Transposed().requires_grad_(trained))  # noqa: B023
        assert seen.calls == 4
        products = [node.target for node in seen.graphs[0].graph.find_nodes(op="call_function", target=BMM)]
        assert bool(products) is not trained


BMM = torch.ops.aten.bmm.default


def test_only_some_blocks_are_alike() -> None:
    def make() -> Stack:
        stack = Stack()
        stack.blocks[2] = stacks.KeepsTheLayout()
        return stack

    assert both(make).calls == 3


def test_no_outlining_where_sizes_are_dynamic() -> None:
    assert dispatch_once.outline(graph_of(Stack(), dynamic=True)) is None


def test_is_possible() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    with torch.no_grad():
        assert dispatch_once.is_possible([weight])
        with torch.autocast("cpu"):
            assert not dispatch_once.is_possible([weight])
    assert not dispatch_once.is_possible([weight])
    assert dispatch_once.is_possible([torch.zeros(1)])


def test_an_error_behind_the_graph_is_raised_and_one_before_it_ends_the_attempt() -> None:
    gm = graph_of(Stack())

    def early(_: fx.GraphModule) -> Callable[..., Any]:
        raise ValueError("in AOTAutograd")

    assert dispatch_once.attempt(gm, early) is None

    def late(aten: fx.GraphModule, _: Any, **facts: Any) -> Callable[..., Any]:
        raise ValueError("in a pass")

    def compile(graph: fx.GraphModule) -> Callable[..., Any]:
        with torch.no_grad():
            return torch._inductor.compile_fx.compile_fx(graph, arguments, inner_compile=late)  # type: ignore[return-value]

    arguments = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
    with pytest.raises(ValueError, match="in a pass"):
        dispatch_once.attempt(gm, compile)


def test_what_is_in_a_block_is_in_the_key_of_the_cache() -> None:
    class Other(Block):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            gate, up = self.up(self.norm(x) * (1 + scale)).chunk(2, dim=-1)
            return x + self.down(torch.cat([torch.nn.functional.gelu(gate) * up, up], dim=-1))

    Other.__qualname__ = Block.__qualname__
    Other.__module__ = Block.__module__
    keys = set()
    for kind in (Block, Other, Block):
        gm = graph_of(Stack(kind))
        values = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
        keys.add(artefact.key_of(gm, values, Options(), is_fragment=False))
    assert len(keys) == 2
