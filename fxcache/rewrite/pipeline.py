"""The passes and their order: the only place that knows it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch.fx import GraphModule, Node

from fxcache.errors import Refusal
from fxcache.options import Options
from fxcache.regions.discover import discover, signature
from fxcache.rewrite.commit_state import commit_state
from fxcache.rewrite.gather_references import gather_references
from fxcache.rewrite.insert_cond import insert_cond
from fxcache.rewrite.instruments import Pass, PassRecord, run_pass
from fxcache.rewrite.keep_precision import keep_precision
from fxcache.rewrite.outline_middle import outline_middle
from fxcache.rewrite.pin_layouts import pin_layouts
from fxcache.rewrite.plan import Plan, StateTensor
from fxcache.rewrite.thread_state import thread_state

PASSES: tuple[Pass, ...] = (
    gather_references,  # first: it finds its anchor by the nodes of the middle, which the next pass removes
    outline_middle,
    thread_state,  # needs the outlined call to put the decision in front of it
    insert_cond,
    keep_precision,  # before layouts are settled: it changes the operands
    pin_layouts,  # needs the operands of the conditional
    commit_state,  # last: it writes what both branches give
)

_numbers = itertools.count()


@dataclass(frozen=True)
class Rewritten:
    """A rewritten graph, the state it takes as additional inputs, and how it came about."""

    gm: GraphModule
    state: tuple[StateTensor, ...]
    plan: Plan
    signature: str
    records: tuple[PassRecord, ...]


def copy_graph(gm: GraphModule) -> GraphModule:
    """Copy a graph module with its metadata; the original stays untouched for the fallback."""
    mine = GraphModule(gm, copy.deepcopy(gm.graph))
    mine.meta = dict(gm.meta)
    return mine


def rewrite(gm: GraphModule, static: Collection[int], options: Options) -> Rewritten | Refusal:
    """Copy the graph, find its region and run the passes on the copy.

    ``static`` are the positions of the inputs that hold parameters and buffers.
    """
    mine = copy_graph(gm)
    placeholders = [node for node in mine.graph.nodes if node.op == "placeholder"]
    parameters: set[Node] = {placeholders[i] for i in static}
    region = discover(mine.graph, parameters, options)
    if isinstance(region, Refusal):
        return region
    plan = Plan(region, options)
    name = signature(region)
    folder = Path(options.dump_dir) / f"graph_{next(_numbers):03d}" if options.dump_dir else None
    records = tuple(run_pass(number, one, mine, plan, folder) for number, one in enumerate(PASSES))
    return Rewritten(mine, tuple(plan.state), plan, name, records)
