"""What the inputs of a graph mean to a denoising loop: parameters, latents, time, conditioning.

Argument names decide where they are telling (``hidden_states``, ``timestep``).  Otherwise the dataflow does: the
latents look like the output, the time is small and goes through sine and cosine, conditioning goes through weights, and
what only masks or rotates is "other".
"""

from __future__ import annotations

import itertools
import operator
import re
from collections import deque
from collections.abc import Collection, Sequence

import torch
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxcache.regions.dataflow import hint, is_heavy, op_name, shape_hint, tensor_of
from fxcache.runtime.arguments import LATENT_NAMES, is_time
from fxcache.runtime.interface import InputRoles

_STATIC = re.compile(r"_modules|_parameters|_buffers|^[LG]\['self'\]")
_LOCAL = re.compile(r"^[LG]\['([^']+)'\]")
_STEP = re.compile(r"\['([^']+)'\]|\[(\d+)\]|\.(\w+)")
_SMALL = 64
_END_NAMES = frozenset({"r", "t_end", "t_next", "next_t"})
"""The time that a step leads to, of models that learn averages over a step, beside the time that it starts from."""


def source_name(node: Node) -> str:
    """Where Dynamo read an input, e.g. ``L['kwargs']['hidden_states']``; empty when unknown."""
    source = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def argument_name(source: str) -> str:
    """Argument an input comes from: ``hidden_states``, ``x.0`` for the first of a list, ``1`` for an unnamed position.

    >>> argument_name("L['kwargs']['timestep']"), argument_name("L['x'][0]"), argument_name("L['args'][1]")
    ('timestep', 'x.0', '1')
    """
    head = _LOCAL.match(source)
    if head is None:
        return source
    parts = [head.group(1)]
    parts += [next(group for group in match if group) for match in _STEP.findall(source[head.end() :])]
    if parts[0] in ("args", "kwargs") and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


def is_static(node: Node, value: object) -> bool:
    """Say whether an input of Dynamo's graph belongs to the model (parameter, buffer, other attribute)."""
    return isinstance(value, torch.nn.Parameter) or bool(_STATIC.search(source_name(node)))


def needs_gradients(inputs: Sequence[object]) -> bool:
    """Say whether a graph that is compiled now for these inputs has a backward one."""
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def is_number(node: Node) -> bool:
    """Say whether an input of Dynamo's graph is a number of Python's, made a tensor anew for every call."""
    return bool(getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False))


def roles_of(dynamo: GraphModule, inputs: Sequence[object], aten: GraphModule, static: Collection[int]) -> InputRoles:
    """Classify the inputs of Dynamo's graph, with the help of the ATen graph made of it.

    ``static`` are the positions of parameters and buffers among the ATen graph's inputs.  The two lists differ in
    length where a parameter is a tensor subclass; the other inputs keep their order.
    """
    placeholders = [node for node in dynamo.graph.nodes if node.op == "placeholder"]
    names = [argument_name(source_name(node)) for node in placeholders]
    own = [i for i, node in enumerate(placeholders) if is_static(node, inputs[i])]
    moving = [i for i in range(len(placeholders)) if i not in set(own)]
    twin = _twins(moving, inputs, aten, static)
    activations = [i for i in moving if isinstance(inputs[i], torch.Tensor)]
    numbers = [i for i in own if is_number(placeholders[i])]
    parameters = [i for i in own if isinstance(inputs[i], torch.Tensor) and i not in set(numbers)]
    latents = _latents(activations, names, twin, aten)
    timestep = _timestep([i for i in activations if i not in latents], names, twin)
    rest = [i for i in activations if i not in latents and i not in timestep]
    conditioning = [i for i in rest if i not in twin or _reaches_weights(twin[i])]
    other = [i for i in rest if i not in conditioning]
    return InputRoles(
        parameters=tuple(parameters),
        latents=tuple(latents),
        timestep=tuple(timestep),
        conditioning=tuple(conditioning),
        other=tuple(other),
        names=tuple(names),
        numbers=tuple(numbers),
    )


def _twins(moving: list[int], inputs: Sequence[object], aten: GraphModule, static: Collection[int]) -> dict[int, Node]:
    """Find the inputs of the ATen graph that inputs of Dynamo's graph, none of them parameters, have become."""
    lowered = aten.graph.find_nodes(op="placeholder")
    spans = _spans(inputs, len(lowered))
    if spans is not None:
        return {i: lowered[spans[i].start] for i in moving if len(spans[i]) == 1}
    rest = [node for i, node in enumerate(lowered) if i not in set(static)]
    return dict(zip(moving, rest, strict=True)) if len(moving) == len(rest) else {}


def _spans(inputs: Sequence[object], lowered: int) -> list[range] | None:
    """Where each input of Dynamo's graph is among the `lowered` ones of the ATen graph; None where that is unclear."""
    ends = list(itertools.accumulate(map(_plain_tensors, inputs), initial=0))
    if ends[-1] != lowered:
        return None
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def _plain_tensors(value: object) -> int:
    """Count what AOTAutograd makes of one input: the tensors inside of a subclass."""
    if not is_traceable_wrapper_subclass(value):
        return 1
    names, _ = value.__tensor_flatten__()
    return sum(_plain_tensors(getattr(value, name)) for name in names)


def _latents(activations: list[int], names: list[str], twin: dict[int, Node], aten: GraphModule) -> list[int]:
    named = [i for i in activations if names[i].split(".")[0] in LATENT_NAMES]
    if named:
        return named
    outputs = [node for node in _outputs(aten) if isinstance(node.meta.get("val"), torch.Tensor)]
    scores = {i: _likeness(twin[i], outputs) for i in activations if i in twin}
    best = max(scores.values(), default=0)
    if best == 0:
        return []
    alike = [i for i in activations if scores.get(i) == best]
    members = [i for i in alike if _without_index(names[i]) == _without_index(names[alike[0]])]
    # a list of latents has an output for each; what is more than that are all the arguments of a call, as `*args`
    return members if len(members) <= len(outputs) else members[:1]


def _without_index(name: str) -> str:
    """Name of the list that an input is a member of: ``x`` for ``x.0``."""
    return re.sub(r"(\.\d+)+$", "", name)


def _outputs(gm: GraphModule) -> list[Node]:
    output = next(iter(reversed(gm.graph.nodes)))
    return list(output.all_input_nodes)


def _likeness(node: Node, outputs: list[Node]) -> int:
    """How much an input looks like what the model returns.

    3 for a float input of an output's shape, 2 when one axis differs (learnt variance, extra channels), 1 for words of
    a table for each of which there is a row of an output (masked or discrete diffusion), else 0.
    """
    value = tensor_of(node)
    if value is None or value.dim() < 2:
        return 0
    shape, shapes = shape_hint(node), [shape_hint(output) for output in outputs]
    if not value.dtype.is_floating_point:
        read = any(op_name(user) == "embedding" for found in _light_closure(node) for user in found.users)
        return int(read and any(other[:-1] == shape for other in shapes))
    different = [sum(map(operator.ne, shape, other)) for other in shapes if len(other) == len(shape)]
    return {0: 3, 1: 2}.get(min(different, default=2), 0)


def _timestep(candidates: list[int], names: list[str], twin: dict[int, Node]) -> list[int]:
    named = [i for i in candidates if "timestep" in names[i].lower() or is_time(names[i].split(".")[0])]
    small = [i for i in candidates if i in twin and _is_small(twin[i])]
    if named:
        return [*named, *(i for i in small if i not in named and names[i].lower() in _END_NAMES)]
    rotated = [i for i in small if _goes_through_sine(twin[i])]
    floating = [i for i in small if twin[i].meta["val"].dtype.is_floating_point]
    return rotated[:1] or (floating if len(floating) == 1 else [])


def _is_small(node: Node) -> bool:
    """Say whether the input is a number per picture: [], [B] or [B, 1]."""
    shape = [hint(size) for size in node.meta["val"].shape]
    return len(shape) <= 2 and shape[1:] in ([], [1]) and all(size <= _SMALL for size in shape)


def _goes_through_sine(node: Node) -> bool:
    return any(op_name(found) in ("sin", "cos") for found in _light_closure(node))


def _reaches_weights(node: Node) -> bool:
    """Say whether the input enters a product with weights or an embedding table before it rotates or masks anything."""
    for found in _light_closure(node, stop=("sin", "cos", "outer", "logical_not", "where", "bitwise_and", "ge", "lt")):
        for user in found.users:
            if op_name(user) == "embedding" or (is_heavy(user) and "attention" not in op_name(user)):
                return True
    return False


def _light_closure(node: Node, stop: Collection[str] = ()) -> set[Node]:
    """Values computed from ``node`` alone, by other than heavy operators; not beyond operators named in ``stop``."""
    seen, queue = {node}, deque([node])
    while queue:
        for user in queue.popleft().users:
            if user.op != "call_function" or user in seen or is_heavy(user):
                continue
            alone = all(arg in seen or not _is_activation(arg) for arg in user.all_input_nodes)
            if op_name(user) not in stop and alone:
                seen.add(user)
                queue.append(user)
    return seen


def _is_activation(node: Node) -> bool:
    """Say whether a value may carry another input: constants, weights and sizes do not count."""
    computed = node.op == "call_function" and bool(node.all_input_nodes)
    return computed and isinstance(node.meta.get("val"), torch.Tensor)
