"""The graphs of one call of a module, at the seam where the backend would rewrite them; nothing is compiled or kept.

A module that traces whole is not even run: the backend stops Dynamo as soon as it has the graph, so Dynamo stores
nothing.  Only where the graph breaks do the parts run, operator by operator, because the code between them needs their
results; what Dynamo stored for them is removed again.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.convert_frame import register_bytecode_hook
from torch._dynamo.exc import BackendCompilerFailed, Unsupported, UserError
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from fxcache.errors import FxcacheError
from fxcache.inner import compile_through
from fxcache.options import Options
from fxcache.tracing import keeping_whole

_META = torch.device("meta")
_CPU = torch.device("cpu")
_SOURCE = "_dynamo_source"
_STATIC_MARK = "_dynamo_static_input_type"
_ENOUGH = 1 << 20
_calls = itertools.count()


class _Stop(Exception):
    """The graph is known: end the compilation."""


class _Nobody:
    """Stands for the object that a removed cache entry belongs to."""


_NOBODY = _Nobody()


@dataclass(frozen=True)
class Captured:
    """One graph as the backend would get it."""

    dynamo: GraphModule
    inputs: tuple[Any, ...]
    aten: GraphModule
    static: tuple[int, ...]
    """Positions of the ATen graph's inputs that hold parameters and buffers."""
    ends: str | None
    """Why another graph follows; None when the call was traced to its end."""


@dataclass
class Capture:
    """All graphs of one call, in the order in which they run."""

    graphs: list[Captured] = field(default_factory=list)
    broken: str | None = None
    """Where the call could not be traced further, in one line; None when it is one graph."""


class _Recorder(threading.local):
    """What the backend collects into, while this thread explains something."""

    options: Options | None = None
    keep_running: bool = False
    graphs: list[Captured]


_recorder = _Recorder()


def capture_call(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options, dynamic: bool | None = None
) -> Capture:
    """Trace one call of the module's own ``forward`` (not of what it was compiled to) and return its graphs."""
    args, kwargs = _by_name(module, args, kwargs)
    with _recording(options):
        found = Capture(_recorder.graphs)
        try:
            with torch.no_grad():
                torch.compile(_fresh_call(), backend=_backend, fullgraph=True, dynamic=dynamic)(module, args, kwargs)
        except BackendCompilerFailed as error:
            if not isinstance(getattr(error, "inner_exception", None), _Stop):
                raise
        except (Unsupported, UserError) as error:  # the latter where a branch depends on values of tensors
            found.broken = _first_break(error)
        if found.broken is not None:
            _recorder.graphs.clear()
            _recorder.keep_running = True
            _run_in_parts(module, args, kwargs, dynamic)
    return found


@contextmanager
def _recording(options: Options) -> Iterator[None]:
    if _recorder.options is not None:
        raise FxcacheError("explain was called while it explains something on the same thread")
    _recorder.options, _recorder.graphs, _recorder.keep_running = options, [], False
    try:
        yield
    finally:
        _recorder.options, _recorder.graphs = None, []


def _backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend of `capture_call`. One function for all calls: Dynamo keeps every backend that it has ever seen."""
    options = _recorder.options
    if options is None:
        return gm.forward
    reason: Any = getattr(gm, "compile_subgraph_reason", None)
    ends = _reason(reason.reason, reason.user_stack) if getattr(reason, "graph_break", False) else None
    eager = _deep_copy(gm) if _recorder.keep_running else gm
    dynamo, flat = _off_meta(gm, inputs)
    for_roles = dynamo.__copy__()

    def seam(aten: GraphModule, fakes: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        static = tuple(facts.get("static_input_idxs", ()))
        _recorder.graphs.append(Captured(for_roles, tuple(flat), aten, static, ends))
        raise _Stop

    try:
        compile_through(seam, dynamo, flat, options)
    except _Stop:
        if not _recorder.keep_running:
            raise
    return eager.forward


def _off_meta(gm: GraphModule, inputs: Sequence[Any]) -> tuple[GraphModule, list[Any]]:
    """Move a graph from the meta device to the CPU, without data: AOTAutograd drops what is computed on meta."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if not any(_on_meta(value) for value in inputs):
        return gm, list(inputs)
    moved = _deep_copy(gm)
    for node in moved.graph.nodes:
        node.args = map_aggregate(node.args, _cpu_if_meta)
        node.kwargs = map_aggregate(node.kwargs, _cpu_if_meta)
    moved.recompile()
    pairs = zip(inputs, placeholders, strict=True)
    return moved, [_twin(value, node) if _on_meta(value) else value for value, node in pairs]


def _deep_copy(gm: GraphModule) -> GraphModule:
    """Copy a graph of Dynamo with the marks that AOTAutograd looks for on module and inputs."""
    copied = GraphModule(gm, copy.deepcopy(gm.graph))
    for name, value in vars(gm).items():
        if name not in vars(copied):
            setattr(copied, name, value)
    copied.meta = dict(gm.meta)
    for old, new in zip(gm.graph.nodes, copied.graph.nodes, strict=True):
        if hasattr(old, _SOURCE):
            setattr(new, _SOURCE, getattr(old, _SOURCE))
    return copied


def _on_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device == _META


def _twin(value: torch.Tensor, placeholder: Node) -> torch.Tensor:
    """A tensor without data on the CPU, with the sizes that Dynamo gave the input."""
    fake = placeholder.meta["example_value"]
    with fake.fake_mode:
        twin = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=_CPU)
    if hasattr(value, _STATIC_MARK):
        setattr(twin, _STATIC_MARK, getattr(value, _STATIC_MARK))
    return twin


def _cpu_if_meta(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "meta":
        return _CPU
    return "cpu" if isinstance(value, str) and value == "meta" else value


def _by_name(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn positional arguments into named ones where ``forward`` allows it, so that inputs have names."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return tuple(args), dict(kwargs)
    names = []
    for name, parameter in parameters.items():
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        names.append(name)
    if len(args) > len(names) or any(name in kwargs for name in names[: len(args)]):
        return tuple(args), dict(kwargs)
    return (), {**dict(zip(names, args, strict=False)), **kwargs}


def _fresh_call() -> Callable[..., Any]:
    """A function with a code object of its own: what Dynamo remembers of it dies with it.

    ``_call_impl`` is a module's call without what ``Module.compile`` put in its place.
    """

    def call(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call_impl(*args, **kwargs)

    return types.FunctionType(call.__code__.replace(co_name=f"explained_{next(_calls)}"), call.__globals__)


def _run_in_parts(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic: bool | None) -> None:
    codes: set[types.CodeType] = set()
    mine = threading.get_ident()

    def note(code: types.CodeType, new_code: types.CodeType) -> None:
        if threading.get_ident() == mine:
            codes.add(code)

    hook = register_bytecode_hook(note)
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    # Sizes seen here must not make Dynamo trace the caller's own compilation with dynamic shapes.
    unseen = torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=_ENOUGH)
    try:
        with unseen, torch.no_grad(), torch.random.fork_rng(devices=devices):
            keeping_whole(torch.compile(_fresh_call(), backend=_backend, dynamic=dynamic))(module, args, kwargs)
    finally:
        hook.remove()
        for code in codes:
            _forget(code)


def _forget(code: types.CodeType) -> None:
    """Remove what `_backend` left in Dynamo's cache for one code object, and nothing else."""
    frames = torch._C._dynamo.eval_frame
    entries = frames._debug_get_cache_entry_list(code)
    ours = [entry for entry in entries if _is_ours(getattr(entry, "backend", None))]
    if len(ours) == len(entries):
        frames.reset_code(code)
        return
    for entry in ours:
        gone = DeletedGuardManagerWrapper("fxcache.explain has ended")
        # Dynamo counts entries per object towards its limit of recompilations; these shall count for no object.
        gone.id_matched_objs = {"self": weakref.ref(_NOBODY)}
        state: Any = entry.guard_manager.extra_state
        state.invalidate(entry, gone)


def _is_ours(backend: object) -> bool:
    return getattr(backend, "compiler_fn", backend) is _backend


def _first_break(error: Unsupported | UserError) -> str:
    return _reason(str(error), getattr(error, "real_stack", None) or ())


def _reason(text: str, stack: Sequence[Any]) -> str:
    first = text.strip().splitlines()[0].strip() if text.strip() else "graph break"
    if not stack:
        return first
    frame = list(stack)[-1]
    return f"{first} ({frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} in {frame.name})"
