"""The ATen graphs that reach Inductor's `inner_compile` seam, captured without lowering anything."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
import torch._dynamo.config
import torch._functorch.config
import torch._inductor.compile_fx
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.models.tiny import TinyModel


@dataclass
class AotGraph:
    """One graph as the seam sees it; also unpacks as `gm, fake_inputs, real_inputs, static_input_idxs, dynamo_gm`."""

    gm: GraphModule
    """A copy of the ATen graph, free to be changed; `meta` (`val`, `nn_module_stack`, ...) is that of the original."""
    fake_inputs: list[Any]
    """One fake tensor or symbolic integer per placeholder."""
    real_inputs: list[Any]
    """What the compiled function was called with: tensors and integers, in the order of the placeholders."""
    static_input_idxs: list[int]
    """Placeholders with a fixed address: parameters and buffers."""
    dynamo_gm: GraphModule
    """Copy of the graph as Dynamo made it, before AOTAutograd."""
    dynamo_inputs: list[Any]
    """The real flat inputs of the Dynamo graph at its first call: the caller's own tensor objects."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """All keyword arguments of `inner_compile`."""
    outputs: Any = None
    """What the graph returned at its first call."""

    def __iter__(self) -> Any:
        return iter((self.gm, self.fake_inputs, self.real_inputs, self.static_input_idxs, self.dynamo_gm))


def aot_graphs(
    module: Callable[..., Any] | TinyModel,
    kwargs: Mapping[str, Any] | None = None,
    *,
    args: Sequence[Any] = (),
    dynamic: bool | None = None,
    decompose: bool = True,
    fullgraph: bool = False,
    calls: Sequence[Mapping[str, Any]] = (),
) -> list[AotGraph]:
    """Compile `module` for one call (and for each further one in `calls`) and return every graph, in order.

    A `TinyModel` may stand for its module; its arguments are then passed the way it wants them, by default `inputs()`,
    and the settings of Dynamo that it asks for are in force.

    `decompose=False` keeps the operators that Inductor would decompose (the core AOTAutograd ones still go).
    """
    captured: list[AotGraph] = []

    def backend(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        dynamo_gm = GraphModule(gm, copy.deepcopy(gm.graph))
        record: list[AotGraph] = []

        def capture(inner: GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
            mine = GraphModule(inner, copy.deepcopy(inner.graph))
            mine.meta = dict(inner.meta)
            graph = AotGraph(
                gm=mine,
                fake_inputs=list(inputs),
                real_inputs=[],
                static_input_idxs=[int(i) for i in options.get("static_input_idxs", ())],
                dynamo_gm=dynamo_gm,
                dynamo_inputs=[],
                kwargs=dict(options),
            )
            record.append(graph)
            captured.append(graph)

            def boxed(flat: list[Any]) -> Any:
                values = list(flat)
                flat.clear()
                out = inner(*values)
                if not graph.real_inputs:
                    graph.real_inputs, graph.outputs = values, out
                return out

            boxed._boxed_call = True  # type: ignore[attr-defined]
            return boxed

        options: dict[str, Any] = {} if decompose else {"decompositions": {}}
        compiled = torch._inductor.compile_fx.compile_fx(gm, example_inputs, inner_compile=capture, **options)

        def outer(*flat: Any) -> Any:
            if record and not record[0].dynamo_inputs:
                record[0].dynamo_inputs = list(flat)
            return compiled(*flat)

        return outer

    settings: Mapping[str, bool] = {}
    if isinstance(module, TinyModel):
        settings = module.dynamo
        args, kwargs = module.split(module.inputs() if kwargs is None else kwargs)
        module = module.module
    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(**settings),
        torch._functorch.config.patch(enable_autograd_cache=False),
        torch.no_grad(),
    ):
        compiled_module = torch.compile(module, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
        compiled_module(*args, **(kwargs or {}))
        for further in calls:
            compiled_module(*args, **further)
    torch._dynamo.reset()
    return captured


def aot_graph(
    module: Callable[..., Any] | TinyModel,
    kwargs: Mapping[str, Any] | None = None,
    *,
    args: Sequence[Any] = (),
    dynamic: bool | None = None,
    decompose: bool = True,
) -> AotGraph:
    """The one graph of a module that traces whole (`fullgraph=True`); see `aot_graphs` for the arguments."""
    graphs = aot_graphs(module, kwargs, args=args, dynamic=dynamic, decompose=decompose, fullgraph=True)
    if len(graphs) != 1:
        raise AssertionError(f"expected one graph, captured {len(graphs)}")
    return graphs[0]


def summary_of(graph: AotGraph | GraphModule) -> str:
    """A readable account: inputs, operators by number, and the module path of each run of nodes with its shapes."""
    gm = graph.gm if isinstance(graph, AotGraph) else graph
    nodes = list(gm.graph.nodes)
    ops = Counter(str(n.target) for n in nodes if n.op == "call_function")
    lines = [f"{len(nodes)} nodes, {sum(n.op == 'placeholder' for n in nodes)} placeholders"]
    if isinstance(graph, AotGraph):
        moving = [i for i in range(len(graph.fake_inputs)) if i not in set(graph.static_input_idxs)]
        lines += [f"input {i}: {_shape(graph.fake_inputs[i])}" for i in moving]
    lines.append("operators: " + ", ".join(f"{name} {count}" for name, count in ops.most_common(12)))
    path, first, count = None, None, 0
    last = None
    for node in [n for n in nodes if n.op == "call_function"] + [None]:
        here = module_path(node) if node is not None else None
        if node is None or here != path:
            if count:
                lines.append(f"{path or '-'}: {count} nodes, {first} .. {last.name} {_shape(last.meta.get('val'))}")
            path, first, count = here, node.name if node is not None else None, 0
        count, last = count + 1, node
    return "\n".join(lines)


def module_path(node: torch.fx.Node, depth: int | None = None) -> str:
    """Dotted path of the innermost module (at most `depth` names) that a node was traced in, empty if unknown."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    for prefix in ("L['self'].", "L['self']"):
        path = path.removeprefix(prefix)
    path = path.replace("['", ".").replace("']", "").replace("._modules", "").removeprefix("__dict__")
    names = path.removeprefix(".").split(".")
    return ".".join(names[:depth] if depth else names)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return (
            f"{str(value.dtype).removeprefix('torch.')}{[str(s) if not isinstance(s, int) else s for s in value.shape]}"
        )
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shape(v) for v in value) + ")"
    return str(value)


def parameters_of(module: nn.Module) -> dict[int, str]:
    """Name of every parameter and buffer by identity, to recognise them among the real inputs of a graph."""
    named = list(module.named_parameters()) + list(module.named_buffers())
    return {id(tensor): name for name, tensor in named}
