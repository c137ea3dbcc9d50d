"""How Dynamo traces what `enable_cache` compiles: values that depend on data stay in the graph.

By default Dynamo ends a graph where a size or a number is read off a tensor (`mask.sum()`, `nonzero`), which cuts the
blocks of some models apart. The settings below hold while the compiled module is called, on its thread, as those of the
arguments of `torch.compile` do; what is compiled elsewhere keeps those of the user. In torch 2.11 settings belong to no
thread: there another one that traces during the call sees them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch._dynamo.config
from torch._dynamo.exc import BackendCompilerFailed, UserError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxcache.errors import FxcacheError

SETTINGS: dict[str, Any] = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
TOO_MUCH = (GuardOnDataDependentSymNode, UserError, BackendCompilerFailed)
"""What Dynamo raises where somebody has to know a value that these settings keep in the graph."""


def keeping_whole(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled call of a module, tracing under `SETTINGS` what it has to trace.

    A model whose code needs such a value is traced as Dynamo does by default, from that call on.
    """
    # The public `config.patch` takes eight times as long; Dynamo uses this for `dynamic`.
    enter = torch._dynamo.config._make_closure_patcher(**SETTINGS)
    holds = True

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal holds
        if not holds:
            return compiled(*args, **kwargs)
        leave = enter()
        try:
            return compiled(*args, **kwargs)
        except TOO_MUCH as error:
            if isinstance(getattr(error, "inner_exception", None), FxcacheError):
                raise
            holds = False
        finally:
            leave()
        return compiled(*args, **kwargs)

    return call
