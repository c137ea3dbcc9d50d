"""Requests of all kinds take turns on one compiled model; every output and every decision is that of the oracle.

The oracle is told whose call each one is. fxcache finds it out from what a user, a pipeline, or nobody says.
"""

from __future__ import annotations

import contextvars
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import fxcache.backend  # noqa: F401
from fxcache.api import context, generation, reset
from fxcache.options import Options
from fxcache.runtime.attribution import Attribution, Lease, Outcome, attribution
from fxcache.runtime.generation import Branch, Generation, begin_loop, end_loop
from fxcache.runtime.signals import _cache_context
from tests.models.tiny_trunk import TinyTrunk, tiny_trunk
from tests.oracle import EagerDBCache, Label
from tests.slow import some_slow

DIM, WORDS, PROMPTS = 16, 3, 3
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "F1B0": (False, {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.12, "max_warmup_steps": 1}),
    "F2B1 two streams": (
        True,
        {
            "Fn_compute_blocks": 2,
            "Bn_compute_blocks": 1,
            "residual_diff_threshold": 0.3,
            "max_warmup_steps": 2,
            "max_continuous_cached_steps": 2,
            "max_accumulated_residual_diff_threshold": 0.15,
        },
    ),
    "interval": (
        False,
        {
            "Fn_compute_blocks": 1,
            "Bn_compute_blocks": 1,
            "residual_diff_threshold": 1.0,
            "max_warmup_steps": 4,
            "warmup_interval": 2,
            "max_cached_steps": 3,
        },
    ),
    "states": (
        True,
        {
            "Fn_compute_blocks": 1,
            "l1_hidden_states_diff_threshold": 0.1,
            "downsample_factor": 2,
            "important_condition_threshold": 0.05,
            "max_warmup_steps": 0,
        },
    ),
}


@dataclass
class Request:
    """One image on its way."""

    number: int
    kind: str
    prompt: int
    named: bool
    """The pipeline names its branches, which then share the conditioning tensor."""
    times: list[torch.Tensor]
    x: torch.Tensor
    in_place: bool
    rebuilt: bool
    """The conditioning is made anew for every call."""
    parts: int
    """Calls per step and branch: tiles of a picture, say."""
    comes_back: bool
    """Its times come twice, and only their values tell so."""
    drift: float
    task: contextvars.Context
    """Where it runs, as an asyncio task would."""
    handle: Generation | None = None
    step: int = 0
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    poison: bool = False


@dataclass
class Subject:
    """The compiled model, and what its last call did."""

    model: TinyTrunk
    options: Options
    compiled: Callable[..., torch.Tensor]
    seen: list[tuple[Lease, Outcome]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


PICK = st.integers(0, 7)
TURNS = st.lists(st.tuples(PICK, st.integers(1, 4)), max_size=4)
"""Who goes on after something has happened, and how many steps: part of every rule, so that no example stands still."""
KIND = st.sampled_from(["explicit", "loop", "ambient", "steps"])
REQUEST = st.fixed_dictionaries(
    {
        "kind": KIND,
        "prompt": st.integers(0, PROMPTS - 1),
        "steps": st.sampled_from([1, 2, 4, 6, 9]),
        "shape": st.sampled_from([(1, 4), (1, 6), (2, 4)]),
        "dtype": st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
        "drift": st.sampled_from([0.02, 0.1, 0.4]),
        "named": st.booleans(),
        "views": st.booleans(),
        "twice": st.booleans(),
        "in_place": st.booleans(),
        "rebuilt": st.booleans(),
        "parts": st.sampled_from([1, 1, 3]),
    }
)


class Requests(RuleBasedStateMachine):
    subject: Subject

    @initialize(seed=st.integers(0, 9), wanted=st.lists(REQUEST, min_size=2, max_size=4), turns=TURNS)
    def begin(self, seed: int, wanted: list[dict[str, Any]], turns: list[tuple[int, int]]) -> None:
        attribution.forget()
        self.random = torch.Generator().manual_seed(seed)
        self.oracle = EagerDBCache(self.subject.model, self.subject.options)
        texts = {(prompt, branch): self.draw(WORDS) for prompt in range(PROMPTS) for branch in range(2)}
        self.texts = {(*key, batch): text.repeat(batch, 1, 1) for key, text in texts.items() for batch in (1, 2)}
        self.ambient = contextvars.Context()
        self.requests: list[Request] = []
        self.numbers = itertools.count()
        for each in wanted:
            self.add(**each)
        self.go_on(turns)

    @rule(wanted=REQUEST, turns=TURNS)
    def start(self, wanted: dict[str, Any], turns: list[tuple[int, int]]) -> None:
        self.add(**wanted)
        self.go_on([(len(self.requests) - 1, 1), *turns])

    @rule(who=PICK, branch=st.integers(0, 1), turns=TURNS)
    def call_again(self, who: int, branch: int, turns: list[tuple[int, int]]) -> None:
        request = self.pick(who, lambda request: request.last is not None and request.kind != "steps")
        if request is not None and request.last is not None:
            self.call(request, branch, *request.last, stored=False)
        self.go_on(turns)

    @rule(who=PICK, turns=TURNS)
    def meet_nan(self, who: int, turns: list[tuple[int, int]]) -> None:
        request = self.pick(who)
        if request is not None:
            request.poison = True
            self.go_on([(self.requests.index(request), 3), *turns])

    @rule(who=PICK, said=st.booleans(), turns=TURNS)
    def break_off(self, who: int, said: bool, turns: list[tuple[int, int]]) -> None:
        chosen = self.pick(who)
        if chosen is not None:
            if said and chosen.handle is not None:
                chosen.handle.close()
            if said and chosen.kind == "loop":
                chosen.task.run(end_loop)
            self.leave(lambda request: request is chosen)
        self.go_on(turns)

    @rule(turns=TURNS)
    def start_over(self, turns: list[tuple[int, int]]) -> None:
        reset(self.subject.model)
        self.oracle.forget()
        # behind a single step, the time that comes twice would be the first one: that of parts of one picture
        self.leave(lambda request: request.comes_back and request.step == 1)
        for request in self.requests:
            request.last = None  # the same call again would be a first call
        self.go_on(turns)

    def draw(self, length: int, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, length, DIM, generator=self.random)

    def pick(self, who: int, which: Callable[[Request], bool] = lambda _: True) -> Request | None:
        possible = [request for request in self.requests if which(request)]
        return possible[who % len(possible)] if possible else None

    def add(self, kind, prompt, steps, shape, dtype, drift, named, views, twice, in_place, rebuilt, parts) -> None:
        self.leave(lambda other: kind in ("ambient", "steps") and (other.kind, other.prompt) == (kind, prompt))
        schedule = torch.linspace(1, 0.1, steps) if prompt else torch.linspace(0.1, 1, steps)
        if twice and (views or kind in ("explicit", "loop")):  # second order: every time but the first comes twice
            schedule = torch.cat([schedule[:1], schedule[1:].repeat_interleave(2)])
        request = Request(
            number=next(self.numbers),
            kind=kind,
            prompt=prompt,
            named=named and kind != "steps",
            times=[(time if views else time.clone()).expand(shape[0]) for time in schedule],
            x=self.draw(shape[1], shape[0]).to(dtype),
            in_place=in_place,
            rebuilt=rebuilt and kind in ("explicit", "loop"),
            # of parts each evaluation at a time that comes twice would be one of its own
            parts=parts if kind in ("explicit", "loop") and (views or not twice) else 1,
            comes_back=twice and not views,
            drift=drift,
            task=contextvars.Context() if kind == "loop" else self.ambient,
            handle=generation() if kind == "explicit" else None,
        )
        if kind == "loop":
            request.task.run(begin_loop, steps)
        self.requests.append(request)

    def go_on(self, turns: list[tuple[int, int]]) -> None:
        for who, count in turns:
            for _ in range(count):
                request = self.pick(who)
                if request is not None and request.step < len(request.times):
                    self.step(request)

    def step(self, request: Request) -> None:
        change = self.draw(request.x.shape[1], request.x.shape[0]).to(request.x.dtype) * request.drift
        if request.in_place:
            request.x.add_(change)
        else:
            request.x = request.x + change
        x = request.x
        if request.poison:
            x, request.poison = x.clone(), False
            x[0, 0, 0] = torch.nan
        for part in range(request.parts):
            piece = x + 0.3 * part if part else x
            for branch in range(2):
                self.call(request, branch, piece, request.times[request.step], stored=True, part=part)
        request.last = (x, request.times[request.step])
        request.step += 1

    def leave(self, which: Callable[[Request], bool]) -> None:
        self.requests = [request for request in self.requests if not which(request)]

    def call(
        self, request: Request, branch: int, x: torch.Tensor, t: torch.Tensor, stored: bool, part: int = 0
    ) -> None:
        text = self.texts[request.prompt, 0 if request.named else branch, x.shape[0]]
        self.subject.seen.clear()
        label = Label(request.number, (branch, part), request.step if request.kind == "steps" else None)
        out = request.task.run(self.real, request, branch, x, t, text)
        ((lease, outcome),) = self.subject.seen
        assert lease.store == stored, f"{lease.reason} at step {request.step} of {request}"
        if not stored:
            assert not outcome.reused
            expected = self.oracle.uncached(x, t, text)
            self.subject.counts["again"] += 1
        else:
            expected, decision = self.oracle.call(label, x, t, text, seen=outcome.reused)
            told = f"{lease.reason}, {outcome}, oracle: {decision}, step {request.step} of {request}"
            assert outcome.reused == decision.reused, told
            if outcome.difference is not None and decision.difference is not None:
                assert outcome.difference == pytest.approx(decision.difference, rel=1e-3, abs=1e-5, nan_ok=True), told
            self.subject.counts["reused" if decision.reused else "computed"] += 1
        tolerance = TOLERANCE[x.dtype]
        torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance, equal_nan=True)

    def real(self, request: Request, branch: int, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        name = ("cond", "uncond")[branch]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if request.handle is not None:
                stack.enter_context(request.handle)
            if request.kind == "steps":
                stack.enter_context(context(f"{name} {request.prompt}", step_index=request.step))
            if request.kind == "steps" or request.rebuilt:
                text = text.clone()
            if request.named:
                stack.callback(_cache_context.reset, _cache_context.set(Branch(name)))
            return self.subject.compiled(x, t, text)


@pytest.mark.parametrize("case", some_slow(CASES, ("F1B0", "interval")))
@torch._dynamo.config.patch(recompile_limit=64)
def test_every_request_gets_what_it_would_get_alone(case, monkeypatch):
    two_streams, chosen = CASES[case]
    options = Options(inner_backend="eager", on_refusal="raise", max_contexts=1000, **chosen)
    model = tiny_trunk(two_streams)
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=True, options=options.to_dict())
    subject = Subject(model, options, compiled)

    def end(lease: Lease, outcome: Outcome) -> None:
        subject.seen.append((lease, outcome))
        Attribution.end(attribution, lease, outcome)

    monkeypatch.setattr(attribution, "end", end)
    machine = type("Machine", (Requests,), {"subject": subject})
    run_state_machine_as_test(
        machine, settings=settings(settings.default, max_examples=20, stateful_step_count=20, deadline=None)
    )
    enough = {"reused": 100, "computed": 100, "again": 10}
    assert all(subject.counts[what] > least for what, least in enough.items()), subject.counts
    attribution.forget()
