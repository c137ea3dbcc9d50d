"""Facts about an ATen graph that discovery needs: kinds of operators, liveness, sizes.

Sizes are read as hints (``int`` of the traced call) and never compared as SymInts: comparing would add a guard and
pin a dynamic size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

VIEWS = frozenset(
    "view _unsafe_view reshape slice select permute transpose t expand split split_with_sizes unbind alias as_strided"
    " squeeze unsqueeze detach lift_fresh_copy unflatten chunk movedim".split()
)
ADDITIVE = VIEWS | frozenset(
    "add sub cat clone where clamp convert_element_type _to_copy constant_pad_nd slice_scatter index_put copy".split()
)
HEAVY = frozenset(
    "mm addmm bmm baddbmm matmul linear convolution _convolution _int_mm _scaled_mm _weight_int4pack_mm flex_attention"
    " _scaled_grouped_mm _grouped_mm mkldnn_rnn_layer _mkl_linear linear_pointwise _native_multi_head_attention".split()
)
LAYERS = frozenset({"_transformer_encoder_layer_fwd"})
"""A whole layer in one operator, as `torch.nn.TransformerEncoder` calls it where no gradients are needed."""
NORMS = frozenset(
    "native_layer_norm native_group_norm native_batch_norm var_mean var mean pow rsqrt rms_norm _fused_rms_norm"
    " linalg_vector_norm layer_norm".split()
)
HALF = (torch.bfloat16, torch.float16)
_PLAIN_NAMESPACES = frozenset({"aten", "prims", "_operator", "math", "builtins", "sym", "higher_order"})


def op_name(node: Node) -> str:
    """Name of the operator without namespace and overload, e.g. ``add`` for ``aten.add.Tensor``."""
    packet = getattr(node.target, "_overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet)).rsplit(".", 1)[-1]


def is_view(node: Node) -> bool:
    """Say whether the node gives another view of its first operand (``getitem`` of a tuple included)."""
    return node.op == "call_function" and (op_name(node) in VIEWS or op_name(node) == "getitem")


def is_additive(node: Node) -> bool:
    """Say whether an identity path may pass the node at no cost: views, sums, concatenations, casts, selections."""
    return node.op == "call_function" and (op_name(node) in ADDITIVE or op_name(node) == "getitem")


def is_heavy(node: Node) -> bool:
    """Say whether the node is a matrix product, convolution or attention, or an operator of another package."""
    if node.op != "call_function":
        return False
    name = op_name(node)
    if name in HEAVY | LAYERS or name.startswith(("_scaled_dot_product", "scaled_dot_product", "_flash_attention")):
        return True
    namespace = getattr(node.target, "namespace", None)
    return namespace is not None and namespace not in _PLAIN_NAMESPACES


def heavy_operations(nodes: Iterable[Node]) -> int:
    """Count matrix products, convolutions and attentions: a layer in one operator has some of them."""
    return sum(2 if op_name(node) in LAYERS else 1 for node in nodes if is_heavy(node))


def is_pointwise(node: Node) -> bool:
    """Say whether the node computes its value element by element."""
    return node.op == "call_function" and torch.Tag.pointwise in getattr(node.target, "tags", ())


def is_norm(node: Node) -> bool:
    """Say whether the node is a normalisation or one of the reductions that normalisations are decomposed into."""
    return node.op == "call_function" and op_name(node) in NORMS


def is_impure(node: Node) -> bool:
    """Say whether the node mutates memory, draws random numbers or has another effect."""
    if node.op != "call_function":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        seeded = torch.Tag.nondeterministic_seeded in target.tags
        return bool(target._schema.is_mutable or (seeded and _drops_out(node)))
    return isinstance(target, torch._ops.HigherOrderOperator) and target.name() == "with_effects"


def _drops_out(node: Node) -> bool:
    """Say whether a seeded operator draws random numbers: attention does not when its dropout is zero."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == "dropout_p":
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            return bool(value != 0.0)
    return True


def hint(size: int | torch.SymInt) -> int:
    """Size in the traced call; an unbacked size, which has none, counts as a large odd number."""
    if isinstance(size, int):
        return size
    value = getattr(size.node, "hint", None)
    return int(value) if isinstance(value, int) else 8191


def depends_on_data(size: int | torch.SymInt) -> bool:
    """Say whether only the running graph knows a size: it is made of values, not of sizes of inputs."""
    return not isinstance(size, int) and bool(free_unbacked_symbols(size))


def has_known_size(node: Node) -> bool:
    """Say whether the sizes of a tensor follow from those of the inputs."""
    value = tensor_of(node)
    return value is not None and not any(map(depends_on_data, value.shape))


def value_of(node: Node) -> Any:
    """Fake value of a node, as left by tracing."""
    return node.meta.get("val")


def tensor_of(node: Node) -> torch.Tensor | None:
    """Fake tensor of a node, or None when its value is no tensor."""
    value = value_of(node)
    return value if isinstance(value, torch.Tensor) else None


def shape_hint(node: Node) -> tuple[int, ...]:
    """Shape in the traced call; () for values that are no tensors."""
    value = tensor_of(node)
    return tuple(hint(s) for s in value.shape) if value is not None else ()


def numel_hint(node: Node) -> int:
    """Number of elements in the traced call; 0 for values that are no tensors."""
    return math.prod(shape_hint(node)) if tensor_of(node) is not None else 0


def by_size(node: Node) -> tuple[bool, int]:
    """Order of tensors by size; one whose size only the running graph knows comes before all others."""
    return has_known_size(node), numel_hint(node)


def is_half(node: Node) -> bool:
    """Say whether the node's value is one tensor in half precision."""
    value = tensor_of(node)
    return value is not None and value.dtype in HALF


def operands_of(nodes: Sequence[Node]) -> list[Node]:
    """What the nodes read from outside, in the order of first use."""
    members = set(nodes)
    return list(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in members))


def size_inputs(graph: Graph) -> dict[Any, Node]:
    """Inputs of the graph that hold dynamic sizes, by symbol."""
    found: dict[Any, Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        if isinstance(value_of(node), torch.SymInt):
            for symbol in symbols_read(node):
                found.setdefault(symbol, node)
    return found


def symbols_read(node: Node) -> set[Any]:
    """Symbols that Inductor's code can read off the value, where that is an input of a graph or of a branch.

    Sizes that turned out to be equal share one symbol in all expressions, but a value that holds such a size keeps the
    name which that had before.
    """
    value = value_of(node)
    if isinstance(value, torch.SymInt):
        return {value.node._expr}
    return set(dynamic_sizes(value).values())


def dynamic_sizes(value: object) -> dict[int, Any]:
    """Sizes of a tensor that are no fixed numbers, as expressions, by axis; empty for what is no tensor."""
    sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    return {axis: size.node.expr for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)}


def is_float_tensor(node: Node) -> bool:
    """Say whether the node's value is one floating-point tensor."""
    value = tensor_of(node)
    return value is not None and value.dtype.is_floating_point


def same_kind(a: Node, b: Node) -> bool:
    """Say whether two nodes have tensors of the same shape (by expression), dtype and device."""
    x, y = tensor_of(a), tensor_of(b)
    if x is None or y is None or x.dtype != y.dtype or x.device != y.device or x.dim() != y.dim():
        return False
    return all(_size_key(s) == _size_key(t) for s, t in zip(x.shape, y.shape, strict=True))


def _size_key(size: int | torch.SymInt) -> str:
    return str(size) if isinstance(size, int) else str(size.node.expr)


def base_of(node: Node) -> Node:
    """Follow views to the value whose memory they show."""
    while is_view(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


class Flow:
    """Positions and liveness of the nodes of one graph, in execution order."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: tuple[Node, ...] = tuple(graph.nodes)
        self.position: dict[Node, int] = {node: i for i, node in enumerate(self.nodes)}
        self.last_use: dict[Node, int] = {
            node: max((self.position[user] for user in node.users), default=-1) for node in self.nodes
        }

    def live(self, cut: int, keep: Callable[[Node], bool]) -> list[Node]:
        """Nodes before position ``cut`` that are used at or after it and satisfy ``keep``."""
        return [n for n in self.nodes[:cut] if self.last_use[n] >= cut and keep(n)]

    def live_numel(self, cut: int, keep: Callable[[Node], bool]) -> int:
        """Elements that live values hold at ``cut``; several views of one value count at most once in full."""
        groups: dict[Node, int] = {}
        for node in self.live(cut, keep):
            base = base_of(node)
            groups[base] = groups.get(base, 0) + numel_hint(node)
        return sum(
            min(total, max(numel_hint(base), 1) if tensor_of(base) is not None else total)
            for base, total in groups.items()
        )

    def depends_on(self, sources: Iterable[Node]) -> set[Node]:
        """All nodes that depend on one of ``sources``, the sources themselves included."""
        reached = set(sources)
        for node in self.nodes:
            if node not in reached and any(arg in reached for arg in node.all_input_nodes):
                reached.add(node)
        return reached

    def between(self, start: int, stop: int) -> Iterator[Node]:
        """Nodes at positions start .. stop - 1."""
        return iter(self.nodes[start:stop])
