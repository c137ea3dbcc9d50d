"""What is done around every pass: lint, stage check, numbered dump, timing, provenance. A pass contains none of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.graph_transform_observer import GraphTransformObserver

from fxcache.errors import FxcacheError
from fxcache.rewrite.plan import Plan

Pass = Callable[[GraphModule, Any], int]
"""Changes a graph in place by a plan and says how many changes that were."""


class PassError(FxcacheError, AssertionError):
    """A pass left a graph that breaks a rule of its stage: a defect of fxcache, with pass and node named."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: its count of changes, and its time."""

    name: str
    changes: int
    milliseconds: float


def run_passes(
    passes: Sequence[Pass], gm: GraphModule, plan: Plan | None, dump_dir: Path | None
) -> tuple[PassRecord, ...]:
    """Run passes one after the other under all instruments."""
    records = tuple(_run_pass(number, one, gm, plan, dump_dir) for number, one in enumerate(passes))
    # once, branches included: to write a graph as Python code takes longer than most of the passes
    gm.recompile()
    return records


def _run_pass(number: int, one: Pass, gm: GraphModule, plan: Plan | None, dump_dir: Path | None) -> PassRecord:
    name = one.__name__
    if dump_dir is not None:
        _dump(gm, dump_dir / f"{number:02d}_{name}.before.py")
    start = time.perf_counter()
    with _named(name), GraphTransformObserver(gm, f"fxcache_{name}"):
        changes = one(gm, plan)
    elapsed = (time.perf_counter() - start) * 1e3
    check_stage(gm, name)
    if dump_dir is not None:
        _dump(gm, dump_dir / f"{number:02d}_{name}.after.py")
    return PassRecord(name, changes, elapsed)


def check_stage(gm: GraphModule, name: str) -> None:
    """Check what holds after every pass: a well-formed graph in which every value has a fake one."""
    try:
        gm.graph.lint()
    except RuntimeError as error:
        raise PassError(f"pass {name} left a malformed graph: {error}") from error
    for node in gm.graph.nodes:
        has_value = node.op in ("call_function", "call_module", "placeholder") and not _returns_nothing(node)
        if has_value and "val" not in node.meta:
            raise PassError(f"pass {name} left node {node.name} without a fake value")


def _returns_nothing(node: Node) -> bool:
    """Say whether a node is run for what it checks or writes, such as an assertion about sizes."""
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except FxcacheError:
        raise
    except Exception as error:
        error.add_note(f"in pass {name} of fxcache") if hasattr(error, "add_note") else None
        raise


def _dump(gm: GraphModule, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(gm.print_readable(print_output=False, include_stride=True, include_device=True), encoding="utf-8")
