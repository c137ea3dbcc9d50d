"""What happens to memory at the borders of a shared block, when Inductor lowers them."""

from __future__ import annotations

from typing import Any

from torch._inductor import inductor_prims, ir
from torch._inductor.lowering import register_lowering
from torch._inductor.virtualized import V

from fxcache.rewrite.pin_layouts import settle, with_layout

own_memory = inductor_prims.make_prim(
    "fxcache_own(Tensor input) -> Tensor",
    lambda value: value.clone(),
    doc="The same values, in memory that holds nothing else and a layout that Inductor decides about here.",
)


@register_lowering(own_memory, type_promotion_kind=None)
def _own(value: Any) -> Any:
    """Copy what is part of something larger, an input or returned already.

    Inductor takes every result of a submodule for a buffer of its own, and uses its memory again.
    """
    settled = settle(value)
    layout, name = settled.get_layout(), settled.get_name()
    returned: set[str] = V.graph.__dict__.setdefault("fxcache_returned", set())
    is_part = isinstance(layout, ir.NonOwningLayout) or isinstance(settled.data, ir.ReinterpretView)
    if is_part or str(layout.offset) != "0" or name in returned or name in V.graph.graph_inputs:
        settled = settle(ir.ExternKernel.copy_input(settled))
    returned.add(settled.get_name())
    return settled


conform_layout = inductor_prims.make_prim(
    "fxcache_conform(Tensor input, Tensor model) -> Tensor",
    lambda value, model: value.clone(),
    doc="The same values, in the memory layout of another tensor.",
)


@register_lowering(conform_layout, type_promotion_kind=None)
def _conform(value: Any, model: Any) -> Any:
    """Give a value the layout with which the submodule was lowered, at the cost of a copy where it has another."""
    node = V.graph.current_node
    wanted = node.args[1].meta["val"]  # type: ignore[union-attr]
    shaped = ir.ExternKernel.realize_input(ir.ExternKernel.require_exact_strides(value, wanted.stride()))
    layout = shaped.get_layout()
    if str(layout.offset) != str(wanted.storage_offset()):
        # the kernels of the submodule may count on the alignment of the first call
        copied = ir.ExternKernel.require_exact_strides(ir.ExternKernel.copy_input(shaped), wanted.stride())
        shaped = ir.ExternKernel.realize_input(copied)
        layout = shaped.get_layout()
    node.meta["val"] = with_layout(node.meta["val"], layout.stride, layout.offset)
    return ir.TensorBox(shaped)
