"""What `benchmarks.coverage` asks of one model: the calls of a short denoising run, beside those of the plain model."""

from __future__ import annotations

import math
import re
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor
from torch.utils import _pytree as pytree

import fxcache
from fxcache.errors import RefusalWarning
from fxcache.tracing import keeping_whole
from tests.models.every import Entry
from tests.models.tiny import TinyModel

OK = "ok"
NEVER, SAME, REAL, SIZE, BACK = "never reused", "identical call", "really reused", "second size", "first size again"
CHECKS = (NEVER, SAME, REAL, SIZE, BACK)
"""Checks of a class that is cached; those of another size with the first split only."""
WARNED, ALONE = "one warning, with the reason", "left alone"
REFUSED_CHECKS = (WARNED, ALONE)
"""Checks of a class that is refused."""
ROUNDING = 1e-5
"""Largest relative distance of two ways to the same numbers in float32."""
FAR = 1e9
"""A threshold above every difference."""
NEAR = 1e-6
"""One below every difference but that of identical calls, which is 0."""


@dataclass(frozen=True)
class Call:
    """One call of the run: the time and latents of a step, at one of two sizes."""

    step: int
    size: int = 0

    def arguments(self, tiny: TinyModel) -> dict[str, Any]:
        """Latents and time in new tensors, so that no call repeats another as an object."""
        given = tiny.inputs(step=self.step, size=self.size)
        copy = {name: pytree.tree_map(_cloned, value) for name, value in given.items() if name in tiny.changing}
        return {**given, **copy}


Made = tuple[str, Any]
"""What was decided for a call (`C` computed, `.` reused, `-` neither), and its result."""
START, NEXT, OTHER = Call(0), Call(1), Call(2, size=1)


@dataclass
class Outcome:
    """What came out for one class under one compiler; `splits` has a word per check, OK or what was seen instead."""

    trunk: str = ""
    expected: str = ""
    blocks: int = 0
    streams: int = 0
    graphs: int = 0
    refusal: str = ""
    """The warning that the user reads."""
    why: str = ""
    """Why the class should be refused, in one line."""
    one_size: str = ""
    """Why no second size was tried."""
    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    """What ended the examination early."""

    @property
    def answers(self) -> set[str]:
        """All words of all splits."""
        return {answer for checks in self.splits.values() for answer in checks.values()}

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        as_expected = self.trunk == self.expected and bool(self.refusal) == bool(self.why)
        return not self.error and as_expected and self.answers == {OK}


def examine(entry: Entry, inner: str, splits: Mapping[str, tuple[int, int]]) -> Outcome:
    """Run a model with and without fxcache; whatever goes wrong is in the answer."""
    one_size = entry.one_size or (entry.one_size_inductor if inner == "inductor" else "")
    outcome, began = Outcome(why=entry.refused, one_size=one_size), time.perf_counter()
    try:
        tiny = entry.build()
        outcome.expected = entry.expected(tiny)
        with torch.no_grad(), torch._dynamo.config.patch(**tiny.dynamo), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _explain(tiny, outcome)
            sizes = not one_size
            wanted = _plain(tiny, inner, (START, NEXT, OTHER, START, NEXT) if sizes else (START, NEXT))
            for name, split in splits.items():
                run = Run(tiny, inner, split, wanted, sizes=sizes and not outcome.splits, late=name in entry.late)
                answers = run.answers()
                if run.refusals:
                    said = "; ".join(dict.fromkeys(run.refusals))
                    outcome.refusal = re.sub(r" at /\S*/", " at ", said)  # without the folders of this machine
                    answers = refused(run.compared, run.refusals, entry.says)
                outcome.splits[name] = answers
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome.error = f"{type(error).__name__}: {_first_line(error)} ({place.name})"
    finally:
        torch._dynamo.reset()
    outcome.seconds = time.perf_counter() - began
    return outcome


def _explain(tiny: TinyModel, outcome: Outcome) -> None:
    torch._dynamo.reset()
    args, kwargs = tiny.split(START.arguments(tiny))
    options = {"Fn_compute_blocks": 1, "inner_backend": "eager"}
    found = fxcache.explain(tiny.module, *args, fxcache_options=options, **kwargs)
    outcome.trunk = "" if found.refusal is not None else found.trunk or ""
    outcome.blocks, outcome.streams, outcome.graphs = len(found.blocks), len(found.streams), len(found.graphs)


Wanted = Mapping[tuple[Call, bool], Any]
"""Answers by call, and by whether a second size has come before: its graph may serve the first size from then on."""


def _plain(tiny: TinyModel, inner: str, calls: Sequence[Call]) -> Wanted:
    """The answers of the model without fxcache, compiled by the same compiler and called in the same order.

    Dynamo traces it as it does for `enable_cache`: a model in more graphs has other kernels, and rounds otherwise.
    """
    torch._dynamo.reset()
    module = tiny.module if inner == "eager" else keeping_whole(torch.compile(tiny.module, backend=inner))
    wanted, later = {}, False
    for call in calls:
        later = later or call is OTHER
        try:
            wanted[call, later] = tiny.call(call.arguments(tiny), module)
        except Exception as error:
            raise RuntimeError(f"without fxcache as well: {type(error).__name__}: {_first_line(error)}") from error
    return wanted


@dataclass
class Run:
    """A denoising run of a model with fxcache."""

    tiny: TinyModel
    inner: str
    split: tuple[int, int]
    wanted: Wanted
    sizes: bool = True
    """Whether another size comes in between."""
    late: bool = False
    """Whether the first call of a generation or a size stores nothing, because it has to meet the size of that."""
    calls: list[Call] = field(default_factory=list)
    compared: list[tuple[Made, Any]] = field(default_factory=list)
    """What was made of every call, and the plain model's answer."""
    refusals: list[str] = field(default_factory=list)

    def __call__(self, call: Call) -> tuple[Made, Any]:
        before = fxcache.summary(self.tiny.module)
        with fxcache.context("branch", step_index=len(self.calls)):
            out = self.tiny.call(call.arguments(self.tiny))
        self.calls.append(call)
        after = fxcache.summary(self.tiny.module)
        counts = (after.computed - before.computed, after.reused - before.reused)
        made = ({(1, 0): "C", (0, 1): "."}.get(counts, "-"), out)
        self.compared.append((made, self.wanted[call, OTHER in self.calls]))
        return self.compared[-1]

    def answers(self) -> dict[str, str]:
        """The answer to every check, from one compilation per size."""
        torch._dynamo.reset()
        options = {"max_warmup_steps": 0, "residual_diff_threshold": NEAR, "inner_backend": self.inner}
        first, last = self.split
        fxcache.enable_cache(self.tiny.module, Fn_compute_blocks=first, Bn_compute_blocks=last, **options)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", RefusalWarning)
                return self._answers()
        finally:
            self.refusals = [str(one.message) for one in said if issubclass(one.category, RefusalWarning)]
            fxcache.disable_cache(self.tiny.module)

    def _answers(self) -> dict[str, str]:
        answers = {}
        with fxcache.generation():
            answers[NEVER] = worst([computed(*self(call)) for call in (START, NEXT)])
            answers[SAME] = reused(*self(NEXT))
            if self.sizes:
                answers[SIZE] = worst([*self._stored(OTHER), reused(*self(OTHER))])
                answers[BACK] = right(*self(NEXT))
        fxcache.refresh_context(self.tiny.module, residual_diff_threshold=FAR)
        with fxcache.generation():
            answers[REAL] = worst([*self._stored(START), skipped(*self(NEXT))])
        return {check: answers[check] for check in CHECKS if check in answers}

    def _stored(self, call: Call) -> list[str]:
        """The answers of the calls until something is stored: a late one repeats itself and meets nothing to reuse."""
        return [computed(*self(call)) for _ in range(2 if self.late else 1)]


def computed(made: Made, wanted: Any) -> str:
    """OK for a computed call that is bit for bit that of the plain model."""
    decision, out = made
    if decision != "C":
        return f"decided {decision}"
    return OK if same(out, wanted) else f"off by {distance(out, wanted):.1e}"


def reused(made: Made, wanted: Any) -> str:
    """OK for a reused call that is that of the plain model within rounding."""
    return right(made, wanted) if made[0] == "." else f"decided {made[0]}"


def right(made: Made, wanted: Any) -> str:
    """OK for a call, computed or reused, that is that of the plain model within rounding."""
    away = distance(made[1], wanted)
    return OK if away <= ROUNDING else f"off by {away:.1e}"


def skipped(made: Made, wanted: Any) -> str:
    """OK for a reused call with other inputs: that something was reused shows, so the middle did not run after all."""
    decision, out = made
    if decision != ".":
        return f"decided {decision}"
    away = distance(out, wanted)
    return OK if 0 < away < math.inf else f"off by {away:.1e}"


def refused(compared: Sequence[tuple[Made, Any]], refusals: Sequence[str], says: str) -> dict[str, str]:
    """The answers for a class that is refused: the same warning for every size, and the plain model."""
    said = len(set(refusals)) == 1 and re.search(says, refusals[0]) is not None
    untouched = all(decision == "-" for (decision, _), _ in compared)
    plain = worst([OK if same(out, wanted) else "not as plain" for (_, out), wanted in compared])
    return {
        WARNED: OK if said else f"{len(refusals)} warnings: {'; '.join(refusals)}",
        ALONE: plain if untouched else "cached after all",
    }


def worst(answers: Sequence[str]) -> str:
    """The first answer that is not OK."""
    return next((answer for answer in answers if answer != OK), OK)


def same(one: Any, other: Any) -> bool:
    """Return whether all tensors of two results are equal bit for bit."""
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def distance(one: Any, other: Any) -> float:
    """The largest relative distance of two tensors at the same place of two results; infinite where shapes differ."""
    away = 0.0
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return math.inf
        away = max(away, float((a - b).double().norm() / (b.double().norm() + 1e-12)))
    return away


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:200]
