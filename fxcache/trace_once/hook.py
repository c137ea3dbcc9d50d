"""Where Dynamo asks whether the call of a module is one that it has traced already.

`UnspecializedNNModuleVariable.call_function` is what Dynamo runs for the call of a module. Ours stands before it and
only does something in graphs that are compiled by this backend, for members of module lists.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config
import torch.fx.traceback
from torch import nn
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.guards import install_guard
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables.base import (
    AttributeMutationExisting,
    AttributeMutationNew,
    ValueMutationExisting,
    ValueMutationNew,
    VariableTracker,
)
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.lists import SizeVariable, TupleVariable
from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable
from torch._dynamo.variables.tensor import SymNodeVariable, TensorVariable
from torch._guards import Guard, Source
from torch.utils._device import DeviceContext

from fxcache.trace_once import segment as segments
from fxcache.trace_once.compare import Leaf, Move, Unlike, begins_at, check_guard, leaves, match_leaves, match_modules
from fxcache.trace_once.segment import Hint, Place, Segment

_log = logging.getLogger(__name__)
_MEMBERS = 3
"""Members of one class that make a module list worth looking at."""
_MISSES = 4
"""Traces of one class that no call could use, after which it is traced as always."""
_KEPT = 4
"""Calls of one class that later ones are compared with."""
_DEVICES = ("cpu", "cuda", "xpu", "mps")
_NOTES = "_fxcache_trace_once"

_backends: list[Callable[..., Any]] = []
_traced: Callable[..., VariableTracker] = UnspecializedNNModuleVariable.call_function


@dataclass(frozen=True)
class _Traced:
    """One call that Dynamo has traced."""

    module: nn.Module
    source: Source
    leaves: tuple[Leaf, ...]
    segment: Segment
    guards: tuple[Guard, ...]
    elsewhere: frozenset[int]
    state: tuple[Any, ...]


class _Notes:
    """What is known during the trace of one graph."""

    def __init__(self, output: Any) -> None:
        self.members = _members(output)
        self.traced: dict[type, list[_Traced]] = {}
        self.misses: Counter[type] = Counter()
        self.changes = 0
        """How often the trace has changed what existed before it."""
        self.escaped = False
        """Whether it has put something of its own there, of which blocks could see later changes."""
        self.reused = 0
        self.hints: list[Hint] = []


def install(backend: Callable[..., Any]) -> None:
    """Stand before what Dynamo does for the call of a module, in graphs for this backend; again is nothing new."""
    if backend not in _backends:
        _backends.append(backend)
    if UnspecializedNNModuleVariable.call_function is _traced:
        UnspecializedNNModuleVariable.call_function = _call  # type: ignore[method-assign]
        SideEffects.mutation = _noting_mutation(SideEffects.mutation)  # type: ignore[method-assign]
        SideEffects.store_attr = _noting_store(SideEffects.store_attr)  # type: ignore[method-assign]
        TensorVariable.set_name_hint = _naming(TensorVariable.set_name_hint)  # type: ignore[method-assign]


def _noting_store(original: Callable[..., Any]) -> Callable[..., Any]:
    def store_attr(self: SideEffects, item: VariableTracker, name: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        notes = _notes_of(self.output_graph_weakref())
        if notes is not None:
            if isinstance(item.mutation_type, AttributeMutationExisting):
                notes.changes += 1
                notes.escaped |= not _cannot_change(value)
            notes.escaped |= isinstance(item, TensorVariable)
        return original(self, item, name, value, *args, **kwargs)

    return store_attr


def _noting_mutation(original: Callable[..., Any]) -> Callable[..., Any]:
    def mutation(self: SideEffects, item: VariableTracker, *args: Any, **kwargs: Any) -> Any:
        notes = _notes_of(self.output_graph_weakref())
        if notes is not None and isinstance(item.mutation_type, ValueMutationExisting):
            notes.changes += 1
            notes.escaped = True  # what it holds from now on is not said here
        return original(self, item, *args, **kwargs)

    return mutation


def _cannot_change(value: Any) -> bool:
    """Say whether a value stays as it is, or existed before, so that its changes are noted themselves."""
    if isinstance(value, (ConstantVariable, TensorVariable, SymNodeVariable)):
        return True
    if type(value) in (TupleVariable, SizeVariable):
        return all(map(_cannot_change, value.items))
    return value.source is not None and not isinstance(value.mutation_type, (ValueMutationNew, AttributeMutationNew))


def _naming(original: Callable[..., Any]) -> Callable[..., Any]:
    def named(self: TensorVariable, name: str) -> Any:
        node, tracer = self.as_proxy().node, self.as_proxy().tracer
        notes = _notes_of(getattr(tracer, "output_graph", None))
        if notes is not None:
            notes.hints.append(Hint(segments.last_node(node.graph), node, name, not self._is_name_set))
        return original(self, name)

    return named


def _call(self: Any, tx: Any, args: list[VariableTracker], kwargs: dict[str, VariableTracker]) -> VariableTracker:
    notes = _notes_for(self, tx)
    if notes is None:
        return _traced(self, tx, args, kwargs)
    kind = type(self.value)
    try:
        flat = leaves(args, kwargs)
    except Unlike as reason:
        _say(reason, f"{self.source.name} is traced")
        return _traced(self, tx, args, kwargs)
    for known in notes.traced.get(kind, ()):
        try:
            result = _reuse(tx, known, self, flat, notes)
        except Exception as reason:
            _say(reason, f"{self.source.name} is not like {known.source.name}")
            continue
        notes.reused += 1
        notes.misses[kind] = 0
        return result
    notes.misses[kind] += 1
    before, changes, state = segments.mark(tx, notes.hints), notes.changes, _state(tx)
    result = _traced(self, tx, args, kwargs)
    try:
        flat, unread = leaves(args, kwargs), flat
        if notes.changes != changes or not set(_read(unread)) <= set(_read(flat)):
            raise Unlike("it changes something that exists outside of it")
        _check(tx, self)
        cut = segments.cut(tx, before, self.source, flat, result, notes.hints)
        own, elsewhere = _guards(tx, self.source, flat), _elsewhere(tx, self.source)
    except Exception as reason:
        _say(reason, f"{self.source.name} is traced again in other blocks")
        return result
    found = _Traced(self.value, self.source, tuple(flat), cut, own, elsewhere, (*state, changes))
    notes.traced[kind] = [found, *notes.traced.get(kind, ())][:_KEPT]
    return result


def _say(reason: Exception, what: str) -> None:
    _log.log(logging.DEBUG if isinstance(reason, Unlike) else logging.WARNING, "%s: %r", what, reason)


def _read(flat: Iterable[Leaf]) -> list[tuple[Any, ...]]:
    return [(leaf.place, leaf.kind, leaf.node) for leaf in flat if not leaf.is_unread]


def _notes_of(output: Any) -> _Notes | None:
    """Return the notes of the graph being traced, if it is for a backend of ours."""
    if output is None:
        return None
    if not hasattr(output, _NOTES):
        setattr(output, _NOTES, _Notes(output) if _is_ours(output) else None)
    notes: _Notes | None = getattr(output, _NOTES)
    return notes


def _notes_for(variable: Any, tx: Any) -> _Notes | None:
    """Return the notes of the graph being traced if the module is one that may be copied."""
    output = tx.output
    if type(variable) is not UnspecializedNNModuleVariable or variable.source is None or torch.is_grad_enabled():
        return None
    notes = _notes_of(output)
    if notes is None or id(variable.value) not in notes.members or output.current_tracer.parent is not None:
        return None
    if notes.escaped or notes.misses[type(variable.value)] >= _MISSES:
        return None
    modes = tx.symbolic_torch_function_state.mode_stack
    return notes if all(type(mode.value) is DeviceContext for mode in modes) else None


def _is_ours(output: Any) -> bool:
    config = torch._dynamo.config
    if output.export or config.use_graph_deduplication or config.track_nodes_for_deduplication:
        return False
    wrapper = innermost_backend(output.compiler_fn)
    given = getattr(wrapper, "compiler_fn", wrapper)
    if not any(given is backend for backend in _backends):
        return False
    options = getattr(wrapper, "kwargs", {}).get("options") or {}
    return bool(options.get("trace_once", True))


def _members(output: Any) -> frozenset[int]:
    """Return the modules that stand in a list with others of their class, by `id`."""
    found: set[int] = set()
    for root in output.root_tx.f_locals.values():
        for module in root.modules() if isinstance(root, nn.Module) else ():
            if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
                kinds = Counter(type(child) for child in module.children())
                found.update(id(child) for child in module.children() if kinds[type(child)] >= _MEMBERS)
    return frozenset(found)


def _state(tx: Any) -> tuple[Any, ...]:
    """Return what else a trace depends on that code can change between two blocks."""
    return (
        torch.is_inference_mode_enabled(),
        torch.is_autocast_cache_enabled(),
        tuple(
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _DEVICES
            if torch.amp.is_autocast_available(device)
        ),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
        tuple(map(id, tx.symbolic_torch_function_state.mode_stack)),
        repr(torch.fx.traceback.current_meta.get("custom")),
    )


def _reuse(tx: Any, known: _Traced, variable: Any, flat: list[Leaf], notes: _Notes) -> VariableTracker:
    if (*_state(tx), notes.changes) != known.state:
        raise Unlike("the state of the trace")
    flat = match_leaves(known.leaves, flat)
    _check(tx, variable)
    twins = match_modules(known.module, variable.value, known.elsewhere)
    move, read = Move(known.source, variable.source), _reader(tx)
    try:
        moved = [move(guard.originating_source) for guard in known.guards]
        kept = [check_guard(guard, place, read) for guard, place in zip(known.guards, moved, strict=True)]
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise Unlike(f"a guard that cannot be asked: {error}") from error
    if variable.source != known.source:
        install_guard(
            *(
                place.make_guard(guard.create_fn)
                for guard, place, keep in zip(known.guards, moved, kept, strict=True)
                if keep
            )
        )
    return segments.paste(tx, known.segment, Place(variable.source, flat, twins, move, read), notes.hints)


def _check(tx: Any, variable: Any) -> None:
    """Raise Unlike for a module that is in two places, and for one that the code being traced has changed."""
    # where the modules around a node are said to be: of two places the one that was read last
    if variable.get_nn_module_stack_source() != variable.source:
        raise Unlike("a module in two places")
    if any(begins_at(source, variable.source) for source in tx.output.side_effects.mutated_sources):
        raise Unlike("it has been changed")


def _reader(tx: Any) -> Callable[[Source], Any]:
    spaces = {"G": tx.output.root_tx.f_globals, "L": tx.output.root_tx.f_locals}
    scratch: dict[str, Any] = {}
    known: dict[Source, Any] = {}
    return lambda source: source.get_value(spaces, scratch, known)


def _guards(tx: Any, start: Source, flat: list[Leaf]) -> tuple[Guard, ...]:
    """Return the guards on what is read of a block; raises Unlike for some on what lies behind its arguments."""
    own = []
    sources = [source for leaf in flat if (source := leaf.variable.source) is not None and leaf.node is not None]
    for guard in tx.output.guards:
        place = guard.originating_source
        if begins_at(place, start):
            own.append(guard)
        elif any(place != source and begins_at(place, source) for source in sources):
            raise Unlike(f"a guard on {place.name}")
    own.sort()
    return tuple(own)


def _elsewhere(tx: Any, start: Source) -> frozenset[int]:
    """Return what Dynamo knows by another place than in the block, by `id`."""
    known = tx.output.side_effects.id_to_variable
    return frozenset(
        part for part, variable in known.items() if variable.source is None or not begins_at(variable.source, start)
    )
