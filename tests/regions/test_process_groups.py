"""Which process groups a graph communicates in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.fx import Graph, GraphModule

from fxcache.regions.ranks import process_groups

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def graph_with(*groups: object, inside: GraphModule | None = None) -> GraphModule:
    graph = Graph()
    value = graph.placeholder("x")
    for group in groups:
        value = graph.call_function(torch.ops._c10d_functional.all_reduce.default, (value, "sum", group))
        value = graph.call_function(torch.ops._c10d_functional.wait_tensor.default, (value,))
    graph.call_function(torch.ops.aten.add.Tensor, (value, 1))
    graph.output(value)
    return GraphModule({} if inside is None else {"inside": inside}, graph)


def test_no_collective_no_group() -> None:
    assert process_groups(graph_with()) == ()


def test_every_group_once_in_the_order_of_the_graph() -> None:
    # another order on another rank, where they have other names, and the ranks would meet in different groups
    assert process_groups(graph_with("2", "10", "2")) == ("2", "10")


def test_a_group_by_itself_or_by_keyword() -> None:
    assert process_groups(graph_with(SimpleNamespace(group_name="3"))) == ("3",)
    graph = Graph()
    gather = torch.ops._c10d_functional.all_gather_into_tensor.default
    graph.output(graph.call_function(gather, (graph.placeholder("x"),), {"group_size": 2, "group_name": "4"}))
    assert process_groups(GraphModule({}, graph)) == ("4",)


def test_what_a_graph_calls_counts() -> None:
    graph = Graph()
    graph.output(graph.call_module("inside", (graph.placeholder("x"),)))
    assert process_groups(GraphModule({"inside": graph_with("7")}, graph)) == ("7",)
