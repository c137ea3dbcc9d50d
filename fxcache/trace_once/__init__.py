"""Trace blocks of one structure once: Dynamo's graph gets copies of what the first of them gave.

Dynamo runs through the code of every block, and that is most of a warm start. While this backend compiles, the nodes
that one member of a module list has added to the graph are noted, with all that they depend on. A later member of the
list that Dynamo could not tell from it, and that is called alike, gets a copy of these nodes with its own weights, and
the guards that it would have got. The graph is the same, node by node, as if it had been traced.

What decides is in `compare` (the arguments, the modules, the guards), what is copied in `segment`; `hook` is the place
where Dynamo is asked. Nothing is copied where anything is not known for certain: then Dynamo traces as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["install"]

TESTED = ((2, 13),)
"""Versions of torch whose Dynamo gave the same graphs with copies as without: its private names are used."""


def install(backend: Callable[..., Any]) -> None:
    """Let Dynamo ask us about the members of module lists in graphs for this backend.

    Nothing happens in other versions of torch than the tested ones: Dynamo traces as always.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) not in TESTED:
        return
    from fxcache.trace_once import hook

    hook.install(backend)
