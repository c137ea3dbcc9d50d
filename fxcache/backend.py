"""The ``torch.compile`` backend: the whole way of one graph, in order.

torch.compile(model, backend="fxcache", options={"Fn_compute_blocks": 1, "residual_diff_threshold": 0.12})
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch.fx import GraphModule

from fxcache import dispatch_once, trace_once
from fxcache.breaks import BrokenModel, broken_model, cut_by_hand
from fxcache.calibrators import CALIBRATORS
from fxcache.errors import OptionError, Refusal, RefusalError, RefusalWarning
from fxcache.found import Found, found_in
from fxcache.inner import compile_through, lower, through_inductor
from fxcache.intake import roles_of
from fxcache.options import Options
from fxcache.rewrite.pipeline import Rewritten, rewrite, share
from fxcache.runtime import signals
from fxcache.runtime.attribution import attribution
from fxcache.runtime.compiled import CompiledCall, Link, with_state
from fxcache.runtime.interface import GraphInfo

try:
    from fxcache import artefact as shelf
except ImportError:  # private names of torch have moved: only Inductor's own cache is used
    shelf = None  # type: ignore[assignment]

# A pipeline opens its progress bar before it first calls the model: naming the backend must be enough to see it.
signals.install()

# The graphs name their calibrator, also those that Inductor takes from its cache.
assert CALIBRATORS


def fxcache(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo; called by ``torch.compile(..., backend="fxcache")``.

    ``options`` are the fields of `fxcache.Options`.  ``mode`` is a mode of ``torch.compile`` ("max-autotune", ...),
    handed to Inductor.  A graph without a usable trunk is compiled unmodified, with one `RefusalWarning`.  Raises
    OptionError for a wrong option, and RefusalError for such a graph under ``on_refusal="raise"``.
    """
    parsed = Options.from_mapping(options or {})
    if mode is not None:
        parsed = parsed.replace(inner_options={"mode": mode, **parsed.inner_options})
    signals.install()
    broken = broken_model(gm, options)
    compilation = _Compilation(gm, example_inputs, parsed, broken)
    compiled = compilation.run(gm)
    if compilation.info is None:
        refused = compilation.refusal is not None
        return broken.watch(compiled, partial(_say, parsed)) if broken is not None and refused else compiled
    if broken is not None:
        broken.trunk_found = True
    return CompiledCall(compiled, compilation.info, compilation.link, attribution)


class _Compilation:
    """One call of the backend: what the seam needs to know of Dynamo's graph, and what it found out."""

    def __init__(self, gm: GraphModule, inputs: Sequence[Any], options: Options, broken: BrokenModel | None) -> None:
        self._dynamo = gm.__copy__()
        self._inputs = tuple(inputs)
        self._options = options
        reason = getattr(gm, "compile_subgraph_reason", None)
        self._is_fragment = bool(getattr(reason, "graph_break", False))
        self.link = Link()
        self._broken = broken
        self.info: GraphInfo | None = None
        self.refusal: Refusal | None = None
        self._bound = False
        self._kept_refusal: Refusal | None = None

    def run(self, gm: GraphModule) -> Callable[..., Any]:
        """Compile Dynamo's graph, or take from AOTAutograd's cache what an earlier process has made of it."""
        options, inputs = self._options, list(self._inputs)
        if not options.can_reuse and not options.share_blocks and options.inner_backend == "inductor":
            return through_inductor(None, gm, inputs, options)
        key = compiled = None
        if shelf is not None and shelf.can_keep(inputs, options):
            key = shelf.key_of(gm, inputs, options, is_fragment=self._is_fragment)
        if options.inner_backend != "eager" and options.trace_once and dispatch_once.is_possible(inputs):
            compiled = dispatch_once.attempt(gm, partial(self._compiled, key=key))
        if compiled is None:
            compiled = self._compiled(gm, key)
        if self._kept_refusal is not None:
            self._refuse(self._kept_refusal)
        return compiled

    def _compiled(self, gm: GraphModule, key: str | None) -> Callable[..., Any]:
        """Compile Dynamo's graph, or the same one with calls for its blocks; ``key`` is that of Dynamo's."""
        options, inputs = self._options, list(self._inputs)
        if key is not None:
            assert shelf is not None
            with shelf.kept(key, self._bind):
                compiled = through_inductor(self._seam_to_keep, gm, inputs, options)
            if self._bound:
                return compiled
        return compile_through(self.seam, gm, inputs, options)

    def seam(self, aten: GraphModule, inputs: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        """Rewrite the ATen graph if that is possible and wanted, and compile it."""
        return self._bind(*self._made(aten, inputs, facts))

    def _seam_to_keep(self, aten: GraphModule, inputs: Sequence[Any], **facts: Any) -> Callable[[list[Any]], Any]:
        return shelf.Artefact(*self._made(aten, inputs, facts), self._bind)

    def _made(
        self, aten: GraphModule, inputs: Sequence[Any], facts: Mapping[str, Any]
    ) -> tuple[Callable[[list[Any]], Any], Found | Refusal | None]:
        result = self._rewritten(aten, facts)
        if isinstance(result, Refusal):
            self._refuse(result)
        if not isinstance(result, Rewritten):
            whole = not facts.get("is_inference", False) or self._frozen
            shared = None if whole else share(aten, facts.get("static_input_idxs", ()), self._options)
            return lower(shared or aten, inputs, self._options, facts, rewritten=shared is not None), result
        added = [node.meta["val"] for node in result.plan.placeholders.values()]
        compiled = lower(result.gm, [*inputs, *added], self._options, facts, rewritten=True)
        roles = roles_of(self._dynamo, self._inputs, aten, facts.get("static_input_idxs", ()))
        return compiled, found_in(aten, result, roles, self._options)

    def _bind(self, compiled: Callable[[list[Any]], Any], found: Found | Refusal | None) -> Callable[[list[Any]], Any]:
        """Note what was found out about a graph, now or by an earlier process, and let its state be handed to it."""
        self._bound = True
        self._kept_refusal = found if isinstance(found, Refusal) else None
        self.info = None
        if not isinstance(found, Found):
            return compiled
        self.info = found.info(self._options, is_fragment=self._broken is not None)
        return with_state(compiled, self.link, found.layout.resolver(), found.device, len(found.units), found.sizes)

    def _rewritten(self, aten: GraphModule, facts: Mapping[str, Any]) -> Rewritten | Refusal | None:
        if not self._options.can_reuse:
            return None
        if not facts.get("is_inference", False):
            return Refusal("gradients are needed: caching is for inference, call the model under torch.no_grad()")
        if self._frozen:
            return Refusal("freezing is on (torch._inductor.config.freezing): it makes the weights a part of the graph")
        try:
            result = rewrite(aten, facts.get("static_input_idxs", ()), self._options)
        except OptionError as error:
            if not self._is_fragment:
                raise
            # A short stack in front of a graph break is not the trunk that the options speak of.
            return Refusal(str(error))
        return result

    @property
    def _frozen(self) -> bool:
        """Whether Inductor has made the weights constants of the graph; asked while it compiles, under its settings."""
        return self._options.inner_backend != "eager" and torch._inductor.config.freezing

    def _refuse(self, refusal: Refusal) -> None:
        if self.refusal is not None:
            return  # the backward graph, after the forward one
        self.refusal = refusal
        if self._broken is None:
            _say(self._options, refusal)
        else:  # the trunk may be in another graph of the model
            self._broken.refusals.append(refusal)


def _say(options: Options, refusal: Refusal) -> None:
    refusal, new = cut_by_hand(refusal)
    if options.on_refusal == "raise":
        raise RefusalError(refusal)
    if new:
        warnings.warn(RefusalWarning(f"fxcache leaves a graph unmodified: {refusal}"), stacklevel=2)


trace_once.install(fxcache)
