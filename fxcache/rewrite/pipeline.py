"""The passes and their order: the only place that knows it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch._inductor.config
from torch.fx import GraphModule, Node

from fxcache.errors import Refusal
from fxcache.options import Options
from fxcache.regions.dataflow import Flow
from fxcache.regions.discover import discover, signature
from fxcache.regions.ranks import process_groups
from fxcache.regions.region import Region
from fxcache.regions.trunk import Trunk, find_trunk
from fxcache.regions.units import discover_units
from fxcache.rewrite.carry_along import carry_along
from fxcache.rewrite.commit_state import commit_state
from fxcache.rewrite.early_sizes import early_sizes
from fxcache.rewrite.fuse_measures import fuse_measures
from fxcache.rewrite.gather_references import gather_references
from fxcache.rewrite.insert_cond import insert_cond
from fxcache.rewrite.instruments import Pass, PassRecord, run_passes
from fxcache.rewrite.keep_inlined import keep_inlined
from fxcache.rewrite.keep_precision import keep_precision
from fxcache.rewrite.outline_middle import outline_middle
from fxcache.rewrite.pin_layouts import pin_layouts, pin_reads
from fxcache.rewrite.plan import Plan, StateTensor
from fxcache.rewrite.share_blocks import mark_blocks, share_blocks
from fxcache.rewrite.sizes import check_sizes
from fxcache.rewrite.thread_state import thread_state
from fxcache.rewrite.thread_units import commit_observed, observe_unit, state_of, thread_units

T = TypeVar("T")

PASSES: tuple[Pass, ...] = (
    gather_references,  # first: it finds its anchor by the nodes of the middle, which are removed later
    carry_along,  # moves copies into the middle
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
    plans: tuple[Plan, ...]
    """One, or one per unit that is decided for itself."""
    signature: str
    records: tuple[PassRecord, ...]

    @property
    def plan(self) -> Plan:
        """The first of them."""
        return self.plans[0]


def copy_graph(gm: GraphModule) -> GraphModule:
    """Copy a graph module with its metadata; the original stays untouched for the fallback."""
    mine = GraphModule(gm, copy.deepcopy(gm.graph))
    mine.meta = dict(gm.meta)
    for node in mine.graph.nodes:
        # Inductor numbers the nodes between two writes, and moves a read only within them. It has done so before there
        # were any writes, and would let a read of the state slip behind what the passes add.
        node.meta.pop("mutation_region_id", None)
    return mine


def rewrite(gm: GraphModule, static: Collection[int], options: Options) -> Rewritten | Refusal:
    """Copy the graph, find its region and run the passes on the copy.

    ``static`` are the positions of the inputs that hold parameters and buffers.
    """
    mine = copy_graph(gm)
    early_sizes(mine)
    parameters = _parameters(mine, static)
    folder = _folder(options)
    if options.prunes:
        units = _found(
            lambda: discover_units(mine.graph, parameters, options), lambda made: made[0].trunk, mine, options
        )
        if isinstance(units, Refusal):
            return units
        wrong = next(filter(None, (check_sizes(unit, options) for unit in units)), None)
        return wrong or _rewrite_units(mine, units, options, folder)
    region = _found(lambda: discover(mine.graph, parameters, options), lambda made: made.trunk, mine, options)
    if isinstance(region, Refusal):
        return region
    wrong = check_sizes(region, options)
    if wrong is not None:
        return wrong
    plan = Plan(region, options, groups=process_groups(mine))
    name = signature([region])
    passes = PASSES
    if _shares(options):
        mark_blocks(region.trunk, parameters)
        passes = (*passes, share_blocks)
    records = run_passes((*passes, *_last(options)), mine, plan, folder)
    return Rewritten(mine, tuple(plan.state), (plan,), name, records)


def share(gm: GraphModule, static: Collection[int], options: Options) -> GraphModule | None:
    """Copy a graph that is not cached and share its blocks; None where nobody has asked for it or none are alike."""
    if not (_shares(options) and options.share_blocks):
        return None
    mine = copy_graph(gm)
    parameters = _parameters(mine, static)
    trunk = _found(lambda: find_trunk(mine.graph, Flow(mine.graph), parameters), lambda made: made, mine, options)
    if isinstance(trunk, Refusal):
        return None
    mark_blocks(trunk, parameters)
    (record,) = run_passes((share_blocks,), mine, None, _folder(options))
    return mine if record.changes else None


def _found(
    find: Callable[[], T | Refusal], trunk_of: Callable[[T], Trunk], gm: GraphModule, options: Options
) -> T | Refusal:
    """What is found in a graph; once more if what Inductor computes in every block had to be copied into them."""
    found = find()
    if options.inner_backend == "inductor" and not isinstance(found, Refusal) and keep_inlined(gm, trunk_of(found)):
        found = find()
    return found


def _shares(options: Options) -> bool:
    return _calls_submodules(options) and options.share_blocks is not False


def _calls_submodules(options: Options) -> bool:
    # a wrapper in C++ cannot
    return options.inner_backend == "inductor" and not torch._inductor.config.cpp_wrapper


def _last(options: Options) -> tuple[Pass, ...]:
    """The passes over what all others have added to the graph."""
    if options.inner_backend != "inductor":
        return ()
    return (fuse_measures, pin_reads) if _calls_submodules(options) else (pin_reads,)


def _parameters(gm: GraphModule, static: Collection[int]) -> set[Node]:
    placeholders = gm.graph.find_nodes(op="placeholder")
    return {placeholders[i] for i in static}


def _folder(options: Options) -> Path | None:
    return Path(options.dump_dir) / f"graph_{next(_numbers):03d}" if options.dump_dir else None


def _rewrite_units(mine: GraphModule, units: list[Region], options: Options, folder: Path | None) -> Rewritten:
    """Run the passes on every unit, the last one first: what is behind it does not change any more."""
    name = signature(units)
    groups = process_groups(mine)
    plans = [Plan(region, options, number, groups) for number, region in enumerate(units)]
    observed: list[Node | None] = [None] * len(plans)

    def outline(gm: GraphModule, plan: Plan) -> int:
        assert plan.unit is not None
        changes = gather_references(gm, plan) + outline_middle(gm, plan)
        observed[plan.unit] = observe_unit(gm, plans, plan.unit)
        return changes

    def over_units(gm: GraphModule, _: Plan) -> int:
        passes = (outline, insert_cond, keep_precision, pin_layouts, commit_state)
        return sum(one(gm, plan) for plan in reversed(plans) for one in passes)

    steps: tuple[Pass, ...] = (
        _named("thread_units", lambda gm, _: thread_units(gm, plans)),
        _named("prune_units", over_units),
        _named("commit_observed", lambda gm, _: commit_observed(gm, plans, observed)),
        *_last(options),
    )
    records = run_passes(steps, mine, plans[0], folder)
    return Rewritten(mine, tuple(state_of(plans)), tuple(plans), name, records)


def _named(name: str, one: Pass) -> Pass:
    one.__name__ = name
    return one
