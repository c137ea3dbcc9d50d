"""Listen to diffusers: the name of the branch, the start and the end of a denoising loop; and to peft: new weights.

A few methods are wrapped once, at class level; the wrappers note what they see and return what the originals return.
Nothing is compiled, so there is nothing to keep Dynamo out of: pipelines call these methods outside of the model.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from fxcache.runtime.clock import host_number
from fxcache.runtime.generation import Branch, Run, begin_loop, end_loop
from fxcache.runtime.weights import note_write

_cache_context: ContextVar[Branch | None] = ContextVar("fxcache_cache_context", default=None)
_lock = threading.Lock()
_wrapped: dict[tuple[Any, str], tuple[Any, Any]] = {}
"""(class or module, method) -> (original, ours)."""


def current_cache_context() -> Branch | None:
    """Return what the running pipeline says about its call."""
    return _cache_context.get()


def install() -> None:
    """Wrap the methods of what is imported of diffusers and not wrapped yet. Cheap to call again and again.

    It has to happen before a pipeline runs, so: when the backend is imported, and once more whenever it is called.
    """
    with _lock:
        for module, owner, method, wrap in _WRAPPED:
            cls = getattr(sys.modules.get(module), owner, None) if owner else sys.modules.get(module)
            original = None if cls is None else vars(cls).get(method)
            if original is not None and (cls, method) not in _wrapped:
                ours = wrap(original)
                setattr(cls, method, ours)
                _wrapped[cls, method] = (original, ours)


def uninstall() -> None:
    """Put the original methods back."""
    with _lock:
        while _wrapped:
            (cls, method), (original, ours) = _wrapped.popitem()
            if cls.__dict__.get(method) is ours:  # somebody else may have wrapped it after us
                setattr(cls, method, original)


def _wrap_cache_context(original: Any) -> Any:
    @functools.wraps(original)
    @contextmanager
    def cache_context(self: object, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        branch = Branch(
            str(name),
            _count(kwargs.get("step_index")),
            _count(kwargs.get("num_inference_steps")),
            host_number(kwargs.get("timestep")),
            host_number(kwargs.get("sigma")),
        )
        with original(self, name, *args, **kwargs) as value:
            before = _cache_context.get()
            _cache_context.set(branch)
            try:
                yield value
            finally:
                _cache_context.set(before)

    return cache_context


def _wrap_progress_bar(original: Any) -> Any:
    @functools.wraps(original)
    def progress_bar(self: object, iterable: Any = None, total: int | None = None, **kwargs: Any) -> Any:
        bar = original(self, iterable=iterable, total=total, **kwargs)
        steps = total if total is not None else _length(iterable)
        _end_with(bar, begin_loop(steps, self))
        return bar

    return progress_bar


def _wrap_maybe_free_model_hooks(original: Any) -> Any:
    @functools.wraps(original)
    def maybe_free_model_hooks(self: object) -> Any:
        end_loop(self)
        return original(self)

    return maybe_free_model_hooks


def _wrap_write(original: Any) -> Any:
    @functools.wraps(original)
    def write(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(model, *args, **kwargs)
        finally:
            note_write(model.parameters())

    return write


def _end_with(bar: Any, run: Run) -> None:
    """End the run when its bar is closed, as at the end of a `with` block, also after an exception, or is gone."""
    reference = weakref.ref(bar) if hasattr(type(bar), "close") else None
    if reference is None:
        return

    def close(*args: Any, **kwargs: Any) -> Any:
        run.end()
        own = reference()
        return None if own is None else type(own).close(own, *args, **kwargs)

    bar.close = close
    weakref.finalize(bar, run.end).atexit = False
    run.seen_to_end = True


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except TypeError:
        return None


_WRAPPED: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("diffusers.models.cache_utils", "CacheMixin", "cache_context", _wrap_cache_context),
    ("diffusers.pipelines.pipeline_utils", "DiffusionPipeline", "progress_bar", _wrap_progress_bar),
    ("diffusers.pipelines.pipeline_utils", "DiffusionPipeline", "maybe_free_model_hooks", _wrap_maybe_free_model_hooks),
    (
        "diffusers.modular_pipelines.modular_pipeline",
        "LoopSequentialPipelineBlocks",
        "progress_bar",
        _wrap_progress_bar,
    ),
    # These write to parameters behind the back of autograd, which counts writes.
    ("diffusers.loaders.peft", "PeftAdapterMixin", "load_lora_adapter", _wrap_write),
    ("diffusers.loaders.peft", "PeftAdapterMixin", "fuse_lora", _wrap_write),
    ("diffusers.loaders.peft", "PeftAdapterMixin", "unfuse_lora", _wrap_write),
    ("peft.tuners.tuners_utils", "BaseTuner", "merge_adapter", _wrap_write),
    ("peft.tuners.tuners_utils", "BaseTuner", "unmerge_adapter", _wrap_write),
    ("peft.utils.hotswap", "", "hotswap_adapter_from_state_dict", _wrap_write),
)
