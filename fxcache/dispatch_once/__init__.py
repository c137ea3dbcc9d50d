"""Let AOTAutograd run through blocks of one structure once.

Every operator of Dynamo's graph is dispatched twice on its way to the ATen graph. `outline` makes one submodule of the
blocks that are alike, called once for each, which AOTAutograd runs through a single time; `inline` puts copies of what
has become of it in the places of the calls, before anybody has seen them. The ATen graph is the one that would have
come of all blocks, node by node.

Blocks are outlined only where that is known: sizes are static, nobody writes to what goes in or comes out, and no mode
is changed. What turns out later ends the attempt, and the graph is traced as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch._inductor import compile_fx
from torch.fx import GraphModule

from fxcache.dispatch_once.inline import Unlike, inline
from fxcache.dispatch_once.outline import Outlined, outline
from fxcache.dispatch_once.products import products_with_weights
from fxcache.intake import needs_gradients

__all__ = ["Outlined", "Unlike", "attempt", "inline", "is_possible", "outline"]

TESTED = ((2, 13),)
"""Versions of torch in which the graphs were seen to be the same."""
_log = logging.getLogger(__name__)


def is_possible(inputs: Sequence[Any]) -> bool:
    """Say whether graphs with these inputs may be outlined now: not with gradients, under autocast or other modes."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return version in TESTED and not needs_gradients(inputs) and not torch._C._is_any_autocast_enabled()


def attempt(gm: GraphModule, compile: Callable[[GraphModule], Callable[..., Any]]) -> Callable[..., Any] | None:
    """Let ``compile`` have Inductor compile a graph with calls for its blocks; None where the whole has to be traced.

    Whatever is raised behind AOTAutograd is raised here.
    """
    original, inlined = compile_fx.compile_fx_forward, False
    try:
        outlined = outline(gm)
    except Exception as error:
        _log.debug("blocks are not outlined: %s: %s", type(error).__name__, error)
        return None
    if outlined is None:
        return None

    def forward(aten: GraphModule, *args: Any, **kwargs: Any) -> Any:
        nonlocal inlined
        inline(aten, outlined)
        inlined = True
        return original(aten, *args, **kwargs)

    try:
        with patch.object(compile_fx, "compile_fx_forward", forward), products_with_weights():
            return compile(outlined.gm)
    except Exception as error:
        if inlined:
            raise
        _log.debug("all blocks are traced: %s: %s", type(error).__name__, error)
        return None
