"""ATen graphs of a model with and without its blocks being dispatched once, and what may not differ between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from fxcache import dispatch_once
from fxcache.inner import compile_through
from fxcache.options import Options
from tests.trace_once.same import stack_of


@dataclass
class Seen:
    """What has come of a model while it was compiled."""

    graphs: list[fx.GraphModule] = field(default_factory=list)
    """After Inductor's passes over the joint graph, as the backend gets them."""
    calls: int = 0
    """In the place of blocks."""
    abandoned: int = 0
    """Attempts after which all blocks were traced."""
    static: list[Any] = field(default_factory=list)
    """Per graph: the inputs that stay where they are, and what AOTAutograd has asked of inputs."""
    outputs: Any = None
    names: dict[str, str] = field(default_factory=dict)
    """Of the parts of the model, by their `id`."""


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, once: bool) -> Seen:
    """Compile a model with static sizes, call it, and return what was seen."""
    seen = Seen(names={str(id(part)): name for name, part in module.named_modules(remove_duplicate=False)})

    def seam(aten: fx.GraphModule, _: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        seen.graphs.append(aten)
        asked = torch._guards.TracingContext.get().guards_context.aotautograd_guards
        seen.static.append((list(facts["static_input_idxs"]), sorted(map(str, asked))))

        def run(flat: list[Any]) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                return aten(*flat)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def whole(graph: fx.GraphModule) -> Callable[..., Any]:
            return compile_through(seam, graph, inputs, Options())

        if once and dispatch_once.is_possible(inputs):
            outlined = dispatch_once.outline(gm)
            compiled = dispatch_once.attempt(gm, whole)
            if compiled is not None:
                assert outlined is not None
                seen.calls += len(outlined.stacks)
                return compiled
            seen.abandoned += outlined is not None
        return whole(gm)

    torch._dynamo.reset()
    with torch.no_grad():
        seen.outputs = torch.compile(module, backend=backend, dynamic=False)(*args, **kwargs)
    torch._dynamo.reset()
    return seen


def assert_same(once: Seen, whole: Seen) -> None:
    """Compare operators, arguments, values, which of them share memory, and notes about modules."""
    assert len(once.graphs) == len(whole.graphs)
    assert once.static == whole.static
    for copied, traced in zip(once.graphs, whole.graphs, strict=True):
        there: dict[fx.Node, fx.Node] = {}
        copies, nodes = list(copied.graph.nodes), list(traced.graph.nodes)
        for copy, node in zip(copies, nodes, strict=False):
            assert (copy.op, _target(copy)) == (node.op, _target(node)), (copy.format_node(), node.format_node())
            wanted = fx.map_arg((node.args, node.kwargs), there.__getitem__)
            assert repr((copy.args, copy.kwargs)) == repr(wanted), (copy.format_node(), node.format_node())
            assert _value(copy) == _value(node), copy.format_node()
            assert stack_of(copy, once.names) == stack_of(node, whole.names), copy.format_node()
            assert str(copy.meta.get("original_aten")) == str(node.meta.get("original_aten")), copy.format_node()
            there[node] = copy
        assert len(copies) == len(nodes)
        assert _memory(copies) == _memory(nodes)


def _target(node: fx.Node) -> Any:
    # submodules and inputs are named in the order of what is traced
    return node.target if node.op == "call_function" else ""


def _value(node: fx.Node) -> Any:
    # torch gives such a result the offset of its operand, or none where it has computed the like before
    without_offset = "_scatter" in str(node.target)

    def facts(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return repr(value)
        offset = None if without_offset else value.storage_offset()
        return tuple(value.shape), value.stride(), offset, value.dtype, value.device

    return tree_map(facts, node.meta.get("val"))


def _memory(nodes: Sequence[fx.Node]) -> list[int]:
    """By value: the number of its memory."""
    numbers: dict[Any, int] = {}
    leaves = [leaf for node in nodes for leaf in tree_leaves(node.meta.get("val"))]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [numbers.setdefault(tensor.untyped_storage()._cdata, len(numbers)) for tensor in tensors]
