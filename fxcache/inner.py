"""The inner compiler: hand a graph to Inductor, or run it by operators; and the key of what is cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.aot_autograd
import torch._functorch.config
import torch._guards
import torch._inductor.config
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import SubgraphLowering
from torch._inductor.virtualized import V
from torch.fx import GraphModule

from fxcache.inductor_settings import inductor_settings
from fxcache.options import Options

Seam = Callable[..., Callable[..., Any]]
MARK = "fxcache"
"""Name of our key among the settings of Inductor, while AOTAutograd computes its own."""
_COND = "torch.ops.higher_order.cond"


def compile_through(seam: Seam, gm: GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Trace the graph to ATen and let ``seam(aten_graph, fake_inputs, **facts)`` compile it to a boxed callable.

    "inductor" and "aot_eager" get the graph with Inductor's decompositions and joint-graph passes, "eager" the plain
    ATen graph, whose operators are those of eager mode.
    """
    with _without_autograd_cache():
        if options.inner_backend == "eager":
            return _through_aot(seam, gm, inputs)
        return through_inductor(seam, gm, inputs, options)


def through_inductor(seam: Seam | None, gm: GraphModule, inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Trace as Inductor does, with its caches as they are set; without a seam the ATen graph is Inductor's alone."""
    patches = inductor_settings(options.inner_options) or None
    return compile_fx(gm, inputs, inner_compile=seam or compile_fx_inner, config_patches=patches)  # type: ignore[arg-type,return-value]


@contextmanager
def _without_autograd_cache() -> Iterator[None]:
    # The AOTAutograd cache would hand out what an earlier compilation made of the same Dynamo graph, and the seam
    # would never run. What Inductor makes of the rewritten graph is cached below it.
    settings = torch._functorch.config
    with settings.patch(enable_autograd_cache=False, enable_remote_autograd_cache=False), ExitStack() as stack:
        if settings.enable_autograd_cache or settings.enable_remote_autograd_cache:
            # An environment variable is stronger than settings. Nobody else compiles now: Dynamo holds its lock.
            for name in ("should_use_local_autograd_cache", "should_use_remote_autograd_cache"):
                stack.enter_context(patch.object(torch._functorch.aot_autograd, name, lambda: False))
        yield


def _through_aot(seam: Seam, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    def inference(aten: GraphModule, flat: Sequence[Any]) -> Callable[..., Any]:
        context = torch._guards.TracingContext.try_get()
        metadata = None if context is None else context.fw_metadata
        static = () if metadata is None else tuple(metadata.static_input_indices)
        return seam(aten, flat, is_inference=True, static_input_idxs=static)

    def training(aten: GraphModule, flat: Sequence[Any]) -> Callable[..., Any]:
        return seam(aten, flat, is_inference=False)

    backend = aot_autograd(fw_compiler=training, inference_compiler=inference, keep_inference_input_mutations=True)
    compiled: Callable[..., Any] = backend(gm, inputs)
    return compiled


def lower(
    gm: GraphModule, inputs: Sequence[Any], options: Options, facts: Mapping[str, Any], *, rewritten: bool
) -> Callable[[list[Any]], Any]:
    """Compile one ATen graph with the inner compiler that the options name; returns a boxed callable."""
    if options.inner_backend != "inductor":
        return _boxed(gm)
    inductor, aot = torch._inductor.config, torch._functorch.config
    marked = dict(inductor.unsafe_marked_cacheable_functions)
    with ExitStack() as stack:
        if marked.pop(MARK, None) is not None:
            # AOTAutograd bundles what we give it; Inductor would take that for the code, and not ask its own cache.
            stack.enter_context(aot.patch(bundled_autograd_cache=False))
        if rewritten:
            # Inductor caches a graph with a conditional only under a key that vouches for the conditional's code.
            marked[_COND] = cache_key(options)
            inputs = _as_named(gm, inputs)
            stack.enter_context(_weights_asserted_by_dynamo(facts.get("static_input_idxs", ())))
        stack.enter_context(inductor.patch(unsafe_marked_cacheable_functions=marked))
        return compile_fx_inner(gm, inputs, **facts)


def _as_named(gm: GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Give the inputs that hold sizes the symbols under which the passes have handed these on."""
    values = [node.meta["val"] for node in gm.graph.find_nodes(op="placeholder")]
    return [value if isinstance(value, torch.SymInt) else given for value, given in zip(values, inputs, strict=True)]


@contextmanager
def _weights_asserted_by_dynamo(static: Sequence[int]) -> Iterator[None]:
    """Let Inductor's code assert sizes and strides of those inputs only that are no weights.

    Dynamo's guards have compared the weights' already. Of a thousand of them a reused step reads a few, and
    would spend more time on asserting the others than on its own bookkeeping.
    """
    original = PythonWrapperCodegen.codegen_input_size_asserts

    def others(wrapper: Any) -> None:
        if isinstance(V.graph, SubgraphLowering):
            return  # it is handed weights, and what the graph around it has made
        names = V.graph.graph_input_names
        weights = {names[index] for index in static}
        inputs = {name: value for name, value in wrapper.get_graph_inputs().items() if name not in weights}
        with patch.object(wrapper, "get_graph_inputs", lambda: inputs):
            original(wrapper)

    with patch.object(PythonWrapperCodegen, "codegen_input_size_asserts", others):
        yield


def _boxed(gm: GraphModule) -> Callable[[list[Any]], Any]:
    def run(flat: list[Any]) -> Any:
        values = list(flat)
        flat.clear()
        # traced through already: a weight's own class (GGUF) would take the results of operators for weights
        with torch._C.DisableTorchFunctionSubclass():
            return gm(*values)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def cache_key(options: Options) -> str:
    """Key of compiled artefacts: options that shape the graph, package version, sources of passes and kernels."""
    return hashlib.sha256(f"{options.fingerprint()} {source_hash()}".encode()).hexdigest()


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of every source file of the package, so that an edited pass never meets what an older one compiled."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted([*root.rglob("*.py"), *(root / "kernels").glob("*.py")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
