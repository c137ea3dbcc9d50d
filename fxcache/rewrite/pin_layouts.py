"""Passes: what enters the conditional, and what fxcache reads beside it, is decided by Inductor as without them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor import inductor_prims, ir
from torch._inductor.lowering import register_lowering
from torch._inductor.utils import convert_shape_to_symint
from torch._inductor.virtualized import V
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols

from fxcache.regions.dataflow import base_of, tensor_of
from fxcache.rewrite.plan import Plan, facts_of

settle_layout = inductor_prims.make_prim(
    "fxcache_settle(Tensor input) -> Tensor",
    lambda value: value.clone(),
    doc="The same values, in a layout that Inductor decides about here.",
)


def pin_layouts(gm: GraphModule, plan: Plan) -> int:
    """Let Inductor settle the layout of every computed operand of the conditional; return their number.

    Before::

        h1 = add(permute(p), e);  out = cond(reuse, ..., (h1,))

    after::

        h1 = add(permute(p), e);  h1_ = settle_layout(h1);  out = cond(reuse, ..., (h1_,))

    Inductor chooses the layout of an intermediate value late, and not always as traced, but compiles the branches for
    the strides that the graph names.  Forcing the traced ones would run reductions in the branch in another order
    than without the conditional: the results would differ in the last bits.
    """
    if plan.options.inner_backend != "inductor":
        return 0
    assert plan.compute is not None
    operands: tuple[Node, ...] = plan.compute.args[3]  # type: ignore[assignment]
    settled: dict[Node, Node] = {}
    with gm.graph.inserting_before(plan.compute):
        for node in filter(_is_computed, operands):
            settled[node] = _settled(node)
    plan.compute.update_arg(3, tuple(settled.get(node, node) for node in operands))
    return len(settled)


def pin_reads(gm: GraphModule, _: Plan) -> int:
    """Let Inductor decide about every value that fxcache's operators read as if they did not; return their number.

    Before::

        h0 = where(late, add(p, q), p);  n = norm(h0);  ...;  fxcache::commit(first, h1, h0, ...)

    after::

        h0 = where(late, add(p, q), p);  n = norm(h0);  ...
        h0_ = settle_layout(h0);  h1_ = settle_layout(h1);  fxcache::commit(first, h1_, h0_, ...)

    Inductor stores a value that such an operator reads as soon as it is known, where it would have computed it
    again inside of every loop that reads it. The model's loops would follow another layout, and sum in another order.
    """
    settled = 0
    for node in filter(_is_ours, list(gm.graph.nodes)):
        with gm.graph.inserting_before(node):
            for operand in filter(_may_be_inlined, node.all_input_nodes):
                node.replace_input_with(operand, _settled(operand))
                settled += 1
    return settled


def _settled(node: Node) -> Node:
    settled = node.graph.call_function(settle_layout, (node,))
    settled.meta = facts_of(node)
    return settled


def _is_ours(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "fxcache"


def _may_be_inlined(node: Node) -> bool:
    """Whether a value is the model's own and read more than once; what is read once, Inductor stores for its reader."""
    source = node.args[0] if node.target is operator.getitem else node
    given = isinstance(source, Node) and (_is_ours(source) or isinstance(source.target, HigherOrderOperator))
    return not given and _is_computed(node) and len(node.users) > 1


def _is_computed(node: Node) -> bool:
    value = tensor_of(node)
    return value is not None and value.dim() > 0 and base_of(node).op == "call_function"


@register_lowering(settle_layout, type_promotion_kind=None)
def settle(value: Any) -> Any:
    """Decide the layout of a value, and tell the graph, which the lowering of the conditional reads."""
    _decide(value)
    realized = ir.ExternKernel.realize_input(value)
    _decide(realized)  # a copy, where the view could not be expressed in strides
    node = V.graph.current_node
    traced = node.meta["val"]
    layout = realized.get_layout()
    if not free_symbols([*layout.stride, layout.offset]) <= free_symbols(traced):
        # A part of a joined buffer, whose size whoever gets the value has not been told.
        realized = ir.ExternKernel.copy_input(realized)
        _decide(realized)
        layout = realized.get_layout()
    node.meta["val"] = with_layout(traced, layout.stride, layout.offset)
    return ir.TensorBox(realized)


def _decide(value: Any) -> None:
    """Freeze the layout of the buffer under a value as the scheduler would at the end, after those it is read from."""
    value.realize()
    while not isinstance(value, ir.Buffer):
        value = value.unwrap_view() if isinstance(value, ir.BaseView) else value.data
    if isinstance(value.get_output_spec(), ir.FlexibleLayout):
        for name in value.get_read_names():
            source = V.graph.try_get_buffer(name)
            if isinstance(source, ir.ComputedBuffer):
                _decide(source)
        value.decide_layout()


def with_layout(traced: torch.Tensor, strides: Sequence[Any], offset: Any) -> torch.Tensor:
    """Fake tensor of the traced size with other strides."""
    strides, (offset,) = convert_shape_to_symint(strides), convert_shape_to_symint([offset])
    extent = 1 + offset + sum((size - 1) * stride for size, stride in zip(traced.shape, strides, strict=True))
    mode = traced.fake_mode  # type: ignore[attr-defined]
    with mode, V.graph.sizevars.shape_env.suppress_guards():
        return traced.new_empty((extent,)).as_strided(traced.shape, strides, offset)
