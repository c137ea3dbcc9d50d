"""Pass: fix the memory layout of what enters the conditional."""

from __future__ import annotations

from torch._inductor import inductor_prims
from torch.fx import GraphModule, Node

from fxcache.regions.dataflow import hint, is_view, tensor_of
from fxcache.rewrite.plan import Plan


def pin_layouts(gm: GraphModule, plan: Plan) -> int:
    """Ask Inductor to keep the traced stride order of every computed operand of the conditional; return their number.

    Before::

        h1 = add(permute(p), e);  out = cond(reuse, ..., (h1,))

    after::

        h1 = add(permute(p), e);  h1_ = force_stride_order(h1, [160, 1, 20]);  out = cond(reuse, ..., (h1_,))

    Inductor chooses the layout of an intermediate value freely, but compiles the branches for the traced one.  A value
    whose layout is still free is fixed by this without a copy.
    """
    if plan.options.inner_backend != "inductor":
        return 0
    assert plan.compute is not None
    operands: tuple[Node, ...] = plan.compute.args[3]  # type: ignore[assignment]
    pinned = 0
    for base in dict.fromkeys(map(_memory_of, operands)):
        value = tensor_of(base)
        if base.op != "call_function" or value is None or value.dim() < 2:
            continue
        with gm.graph.inserting_after(base):
            pin = gm.graph.call_function(
                inductor_prims.force_stride_order, (base, [hint(stride) for stride in value.stride()])
            )
        pin.meta = dict(base.meta)
        for user in [user for user in base.users if user is not pin]:
            user.replace_input_with(base, pin)
        pinned += 1
    return pinned


def _memory_of(node: Node) -> Node:
    """Follow views to the value that owns the memory; a member of a tuple that an operator returns owns its own."""
    while is_view(node) and isinstance(node.args[0], Node):
        source = node.args[0]
        if tensor_of(source) is None and not is_view(source):
            break
        node = source
    return node
