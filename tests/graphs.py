"""Small ATen graphs made by hand, with the metadata that tracing leaves, and their printed form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import dedent, indent
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg
from torch.utils._dtype_abbrs import dtype_abbrs

from fxcache.errors import Refusal
from fxcache.kernels import CONTROL_SIZE, Control
from fxcache.options import Options
from fxcache.regions.dataflow import Flow, op_name
from fxcache.regions.discover import discover
from fxcache.regions.region import Region
from fxcache.regions.trunk import Trunk, find_trunk
from fxcache.rewrite.plan import Plan

aten = torch.ops.aten


def module_stack(module: str, *, kind: str | None, call: int, whole: bool) -> dict[str, tuple[str, str]]:
    """The metadata of a node made in the module with this path: one entry per module whose `forward` was running.

    Lists of modules are not called. Without `whole` only the innermost module was.
    """
    tokens = module.split(".")
    prefixes = [tokens[: i + 1] for i in range(len(tokens)) if i + 1 == len(tokens) or not tokens[i + 1].isdigit()]
    found = {}
    for prefix in prefixes if whole else prefixes[-1:]:
        path = ".".join(prefix)
        plain = re.sub(r"\d+", "N", path)
        key = f"<{path}>" + (f"@{call}" if call else "")
        found[key] = (f"L['self'].{path}", kind if kind is not None and prefix is prefixes[0] else f"test.{plain}")
    return found


class Sketch:
    """A graph in the making. Every value gets its fake tensor; `static` are the positions of the weights."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.mode = FakeTensorMode(shape_env=ShapeEnv())
        self.static: list[int] = []
        self.gm = GraphModule({}, self.graph)
        self._inputs: list[Node] = []

    def size(self, name: str, hint: int) -> torch.SymInt:
        """A dynamic size: an integer input of its own, to be used in the shapes of others."""
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        value = self.mode.from_tensor(torch.empty(hint), symbolic_context=context).shape[0]
        self._placeholder(name, value)
        return value

    def input(self, name: str, *shape: int | torch.SymInt, dtype: torch.dtype = torch.float32) -> Node:
        """An input that changes from call to call."""
        with self.mode:
            return self._placeholder(name, torch.empty(shape, dtype=dtype))

    def weight(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Node:
        """A parameter."""
        self.static.append(len(self._inputs))
        return self.input(name, *shape, dtype=dtype)

    def _placeholder(self, name: str, value: Any) -> Node:
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        self._inputs.append(node)
        return node

    def op(
        self,
        target: Any,
        *args: Any,
        module: str = "",
        name: str | None = None,
        kind: str | None = None,
        call: int = 0,
        whole: bool = True,
        **kwargs: Any,
    ) -> Node:
        """Add a call, made in the module with this path (the root module, which leaves no trace, if empty)."""
        plain = getattr(target, "_overloadpacket", target).__name__
        node = self.graph.create_node("call_function", target, args, kwargs, name=name or plain)
        with self.mode:
            values = map_arg((args, kwargs), lambda n: n.meta["val"])
            node.meta["val"] = target(*values[0], **values[1])
        if module:
            node.meta["nn_module_stack"] = module_stack(module, kind=kind, call=call, whole=whole)
        return node

    def block(self, h: Node, *weights: Node, module: str, residual: bool = True, **place: Any) -> Node:
        """A small residual block with one matrix product per weight: `h + relu(h @ w0) @ w1 ...`."""
        out = h
        for number, weight in enumerate(weights):
            out = self.op(aten.relu.default, out, module=module, **place) if number else out
            out = self.op(aten.mm.default, out, weight, module=module, **place)
        return self.op(aten.add.Tensor, h, out, module=module, **place) if residual else out

    def blocks(self, h: Node, *weights: Node, stack: str, count: int, **place: Any) -> Node:
        """A chain of such blocks."""
        for index in range(count):
            h = self.block(h, *weights, module=f"{stack}.{index}", **place)
        return h

    def finish(self, *outputs: Node) -> GraphModule:
        """End the graph."""
        self.graph.output(tuple(outputs)).meta["val"] = tuple(node.meta["val"] for node in outputs)
        self.graph.lint()
        self.gm.recompile()
        return self.gm

    @property
    def parameters(self) -> set[Node]:
        return {self._inputs[i] for i in self.static}

    @property
    def flow(self) -> Flow:
        return Flow(self.graph)

    def trunk(self, *names: str) -> Trunk | Refusal:
        return find_trunk(self.graph, self.flow, self.parameters, names)

    def discover(self, **options: Any) -> Region | Refusal:
        return discover(self.graph, self.parameters, _options(options))

    def region(self, **options: Any) -> Region:
        region = self.discover(**options)
        assert isinstance(region, Region), region
        return region

    def plan(self, **options: Any) -> Plan:
        return Plan(self.region(**options), _options(options))

    def values(self, seed: int = 0, **sizes: int) -> list[Any]:
        """Random inputs; `sizes` gives the dynamic sizes other values than those of tracing."""
        names = {str(n.meta["val"]): n.name for n in self._inputs if isinstance(n.meta["val"], torch.SymInt)}
        generator = torch.Generator().manual_seed(seed)

        def concrete(size: int | torch.SymInt) -> int:
            name = names.get(str(size))
            return sizes[name] if name in sizes else int(size.node.hint if isinstance(size, torch.SymInt) else size)

        made: list[Any] = []
        for node in self._inputs:
            value = node.meta["val"]
            if not isinstance(value, Tensor):
                made.append(concrete(value))
            elif value.dtype.is_floating_point:
                shape = [concrete(size) for size in value.shape]
                made.append(torch.randn(shape, generator=generator).to(value.dtype) * 0.5)
            else:
                made.append(torch.randint(0, 3, [concrete(s) for s in value.shape], generator=generator))
        return made


def _options(changed: dict[str, Any]) -> Options:
    return Options(**{"Fn_compute_blocks": 1, "inner_backend": "eager", **changed})


def new_state(plan: Plan, like: Sequence[Any] = (), **told: float | Sequence[float]) -> list[Tensor]:
    """Zeroed values for the inputs that the passes added, with the control vector told what to do.

    One step is stored, in slot 0 at time 0, and this one would be stored there too.
    """
    sizes = {}
    for node in plan.placeholders["control"].graph.find_nodes(op="placeholder"):
        if isinstance(node.meta["val"], torch.SymInt):
            sizes[node.meta["val"].node.expr] = like[len(sizes)] if like else node.meta["val"].node.hint
    made = []
    for node in plan.placeholders.values():
        value = node.meta["val"]
        shape = [s if isinstance(s, int) else int(s.node.expr.subs(sizes)) for s in value.shape]
        made.append(torch.zeros(shape, dtype=value.dtype))
    assert made[0].shape == (CONTROL_SIZE,)
    tell(made[0], **{"count": 1, "now": 1, **told})
    return made


def tell(control: Tensor, **told: float | Sequence[float]) -> None:
    """Write into slots of the control vector by their names in small letters; several numbers stand side by side."""
    for name, value in told.items():
        values = torch.tensor([value]).flatten().double()
        start = Control[name.upper()]
        control[start : start + len(values)] = values


def printed(gm: GraphModule) -> str:
    """The graph as text: one line per value with its type, and the graphs of its submodules below."""
    names: dict[str, str] = {}

    def renamed(text: str) -> str:
        return re.sub(r"\bs\d+\b", lambda m: names.setdefault(m.group(), f"n{len(names)}"), text)

    return renamed(re.sub(r"\binductor_|_default(?=\b|_\d)", "", _printed(gm)))


def _printed(gm: GraphModule) -> str:
    lines = []
    for node in gm.graph.nodes:
        args = ", ".join([*map(_argument, node.args), *(f"{k}={_argument(v)}" for k, v in node.kwargs.items())])
        kind = _type(node.meta.get("val"))
        if node.op == "placeholder":
            lines.append(f"{node.name}: {kind}")
        elif node.op == "output":
            lines.append(f"return {args}")
        elif node.op == "get_attr":
            lines.append(f"{node.name} = {node.target}")
        else:
            namespace = getattr(node.target, "namespace", "")
            target = node.target if node.op == "call_module" else op_name(node)
            lines.append(f"{node.name}: {kind} = {'fxcache::' if namespace == 'fxcache' else ''}{target}({args})")
    for name, child in gm.named_children():
        lines += [f"{name}:", indent(_printed(child), "    ")]
    return "\n".join(lines)


def _argument(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_argument, value)) + ")"
    return repr(value) if isinstance(value, str) else str(value)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{dtype_abbrs[value.dtype]}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_type, value)) + ")"
    return "int" if isinstance(value, torch.SymInt) else type(value).__name__


def text(block: str) -> str:
    """A printed graph as it stands in a test, without its indentation and that of continued lines."""
    return re.sub(r"(?<=\S) +", " ", dedent(block).strip("\n"))
