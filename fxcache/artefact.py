"""What a compilation leaves in AOTAutograd's cache: the key of the compiled graph, and what was found out about it.

A later process that gets the same graph from Dynamo under the same key takes both from there. It neither traces to ATen
nor runs a pass; what AOTAutograd does around the graph (views, mutations, tensor subclasses) is restored by itself.

All private names of torch that this needs are imported here: where one has moved, nothing but Inductor's own cache is
used.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch._dynamo.config
import torch._functorch.config
import torch._inductor.config
from torch._functorch._aot_autograd.aot_autograd_result import CompiledForward
from torch._functorch._aot_autograd.autograd_cache import (
    BypassAOTAutogradCache,
    should_use_local_autograd_cache,
    should_use_remote_autograd_cache,
)
from torch._inductor.output_code import OutputCode
from torch.fx import GraphModule

from fxcache.errors import Refusal
from fxcache.found import Found
from fxcache.inner import MARK, cache_key
from fxcache.intake import is_number, is_static, needs_gradients, source_name
from fxcache.options import Options
from fxcache.regions.dataflow import hint

Boxed: TypeAlias = "Callable[[list[Any]], Any]"


Bind: TypeAlias = "Callable[[Boxed, Found | Refusal | None], Boxed]"
"""Takes a compiled graph and what was found out about it, and returns what AOTAutograd is to call."""


class _Receiver(threading.local):
    bind: Bind | None = None
    """Of the compilation that runs on this thread."""


_receiver = _Receiver()


class Artefact(OutputCode):
    """A compiled graph bound to this process; on disk its key and what was found out about it."""

    def __init__(self, compiled: Boxed, found: Found | Refusal | None, bind: Bind) -> None:
        super().__init__()
        self._boxed_call = True
        self._found = found
        self._compiled: Boxed | None = compiled
        self._run: Boxed | None = bind(compiled, found)
        self._stored: CompiledForward | None = None

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """Run the graph on its original inputs, a list that is emptied."""
        assert self._run is not None and isinstance(inputs, list)
        return self._run(inputs)

    def prepare_for_serialization(self) -> None:
        """Keep the key instead of the code; called on a copy."""
        key = getattr(self._compiled, "_fx_graph_cache_key", None)
        if key is None:
            raise BypassAOTAutogradCache("Inductor has not cached the graph")
        lines = getattr(self._compiled, "_fx_graph_cache_debug_lines", None) or []
        self._stored = CompiledForward((key, lines), getattr(self._compiled, "guards_expr", None))
        self._compiled = self._run = None

    def post_compile(self, example_inputs: Sequence[Any], constants: Any, graph_kwargs: Any) -> None:
        """Load the graph from Inductor's cache and hand it to the compilation that has asked for it."""
        assert self._stored is not None and _receiver.bind is not None
        loaded = self._stored.load(example_inputs)
        self._compiled = self._stored.post_compile(loaded, graph_kwargs)
        self._stored = None
        self._run = _receiver.bind(self._compiled, self._found)

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        """Nothing to do: kernels are bundled with the graph in Inductor's cache."""


def can_keep(inputs: Sequence[Any], options: Options) -> bool:
    """Say whether AOTAutograd's cache is on and may answer for this graph without a pass being run."""
    if options.inner_backend != "inductor" or options.dump_dir is not None:
        return False
    # somebody else bundles: what is compiled is to be loaded without this backend
    if getattr(torch._functorch.config, "bundled_autograd_cache", True) or getattr(
        torch._dynamo.config, "caching_precompile", False
    ):
        return False
    # a backward graph is compiled and kept later, when nobody is there to receive it
    return not needs_gradients(inputs) and (should_use_local_autograd_cache() or should_use_remote_autograd_cache())


@contextmanager
def kept(key: str, bind: Bind) -> Iterator[None]:
    """Let AOTAutograd's cache hold the artefacts of the compilation inside, under a key of our own."""
    inductor, aot = torch._inductor.config, torch._functorch.config
    outer, _receiver.bind = _receiver.bind, bind
    # Inductor's settings are part of the key, and these are said to be a key of what torch cannot see.
    marked = {**inductor.unsafe_marked_cacheable_functions, MARK: key}
    try:
        # not bundled, AOTAutograd would keep the key of the graph and forget what it has to be wrapped in
        with inductor.patch(unsafe_marked_cacheable_functions=marked), aot.patch(bundled_autograd_cache=True):
            yield
    finally:
        _receiver.bind = outer


def key_of(gm: GraphModule, inputs: Sequence[Any], options: Options, *, is_fragment: bool) -> str:
    """Key of all that the passes read and AOTAutograd's key may not cover.

    That is the options and sources, and of Dynamo's graph its code (AOTAutograd sees one with calls for blocks), the
    modules its nodes come from, the names of its inputs and the sizes that stand for dynamic ones.
    """
    digest = hashlib.sha256(f"{cache_key(options)} {is_fragment} {gm.code}".encode())
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, inputs, strict=True):
        digest.update(f"\n{source_name(node)} {is_static(node, value)} {is_number(node)} {_sizes(value)}".encode())
    numbers: dict[str, int] = {}
    for module in gm.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            digest.update(b"\n")
            for call, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
                # the call begins with an address
                whose, _, which = call.partition("@")
                number = numbers.setdefault(whose, len(numbers))
                name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
                digest.update(f"{number}@{which} {path} {name};".encode())
    return digest.hexdigest()


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, torch.Tensor):
        return tuple(hint(size) for size in value.shape)
    return (hint(value),) if isinstance(value, (int, torch.SymInt)) else ()
