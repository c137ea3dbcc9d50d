"""What is checked of every case: a tiny pipeline with and without fxcache, against an eager cache and fresh copies."""

from __future__ import annotations

import contextlib
import math
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcache.api as api
from fxcache.errors import RefusalError, RefusalWarning
from fxcache.runtime.attribution import attribution
from fxcache.summary import ContextSummary
from tests.integration.cases import BEFORE, Case, Turn
from tests.integration.eager import EagerF1B0, Memory
from tests.integration.hooks import Broken, Turns, breaking, each_step, in_threads
from tests.models.tiny_pipeline import TinyPipeline
from tests.models.variants import twin

TOLERANCE = {"atol": 5e-4, "rtol": 5e-4}
Word = tuple[str, int, str, str, tuple[float | None, ...]]
"""Model, loop, branch (empty where the pipeline gives no names), decisions, differences."""


def run(tiny: TinyPipeline, **request: Any) -> Tensor:
    """The result of one generation; of a pipeline that returns parts, the last and longest."""
    result: Any = tiny.run(**request)
    return result[-1] if isinstance(result, list) else result


class EagerTurns(EagerF1B0):
    """Somebody who has read the pipeline says whose turn it is."""

    def __init__(self, module: nn.Module, case: Case, threshold: float) -> None:
        self.case, self.steps = case, case.steps
        super().__init__(module, case.blocks, threshold, case.warmup)

    def begin(self) -> None:
        self.order: Iterator[Turn] = iter(self.case.turns(self.steps))
        self.remembered: dict[Turn, Memory] = defaultdict(Memory)

    def whose(self) -> Memory:
        return self.remembered[next(self.order)]


@dataclass
class Examined:
    """One case, with what its checks share."""

    case: Case
    notes: dict[str, Any] = field(default_factory=dict)
    """For the page of the documentation."""

    @property
    def request(self) -> dict[str, Any]:
        return {"steps": self.case.steps, "cfg": True}

    @cached_property
    def plain(self) -> Tensor:
        return run(self.case.make(), **self.request)

    @cached_property
    def expected(self) -> tuple[Tensor, list[Word], float]:
        """Output and decisions of the eager cache, with a threshold that is far from every difference."""
        tiny = self.case.make()
        named = bool(tiny.context_names)
        oracles = {name: EagerTurns(getattr(tiny.pipe, name), self.case, math.inf) for name in self.case.models}
        candidates = [math.inf]
        for attempt in range(12):
            threshold = candidates[min(attempt, len(candidates) - 1)]
            for oracle in oracles.values():
                oracle.threshold = threshold
                oracle.begin()
            out = run(tiny, **self.request)
            memories = [memory for oracle in oracles.values() for memory in oracle.remembered.values()]
            seen = sorted(d for memory in memories for d in memory.differences if d is not None)
            reused = "".join(memory.decisions[1:] for memory in memories)
            if all(abs(d - threshold) > 2e-3 * threshold for d in seen) and "." in reused and "C" in reused:
                return out, sorted(_words(oracles, named)), threshold
            shares = (0.5, 0.35, 0.65, 0.25, 0.75)
            fresh = [round((seen[i - 1] + seen[i]) / 2, 4) for s in shares if (i := int(s * len(seen))) > 0]
            candidates += [c for c in fresh if c not in candidates]
        raise AssertionError(f"no threshold splits the steps: {seen}")

    def cached(self, **more: Any) -> TinyPipeline:
        """A fresh copy with fxcache."""
        tiny = self.case.make()
        self.enable(tiny, **more)
        return tiny

    def enable(self, tiny: TinyPipeline, **more: Any) -> None:
        threshold = 0.5 if self.case.refusal else self.expected[2]
        options = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "inner_backend": "eager", "on_refusal": "raise"}
        api.enable_cache(tiny.pipe, **{**options, "residual_diff_threshold": min(threshold, 1.0), **more})

    def alone(self, **request: Any) -> tuple[Tensor, list[Word]]:
        """What a fresh copy makes of one request."""
        tiny = self.cached()
        return run(tiny, **request), words(tiny)


def _words(oracles: dict[str, EagerTurns], named: bool) -> Iterator[Word]:
    for model, oracle in oracles.items():
        for (loop, branch), memory in oracle.remembered.items():
            yield model, loop, branch if named else "", memory.decisions, tuple(memory.differences)


def words(tiny: TinyPipeline, before: Sequence[ContextSummary] = ()) -> list[Word]:
    """What was decided since `before`, in an order that does not depend on what ended first."""
    found = seen(tiny)
    for context in before:
        found.remove(context)
    loops = sorted({int(c.generation.split()[1]) for c in found if c.generation.startswith("loop ")})
    numbers = {f"loop {serial}": index for index, serial in enumerate(loops)}
    return sorted(
        (
            context.model,
            numbers.get(context.generation, BEFORE),
            context.branch if tiny.context_names else "",
            context.decisions,
            context.differences,
        )
        for context in found
    )


def seen(tiny: TinyPipeline) -> list[ContextSummary]:
    return list(api.summary(tiny.pipe).contexts)


def never_reused_is_plain(of: Examined) -> None:
    """Every step computed, in the code that could reuse: bit for bit what the plain pipeline makes."""
    tiny = of.cached()
    with each_step(tiny, lambda _: api.reset(tiny.pipe)):
        out = run(tiny, **of.request)
    assert torch.equal(out, of.plain)
    found = words(tiny)
    assert len(found) >= of.case.steps // 2 and all(set(decisions) == {"C"} for *_, decisions, _ in found)


def decisions_are_those_of_the_eager_cache(of: Examined) -> None:
    """Per generation, branch and step: the same decisions, differences and output as an independent eager cache."""
    expected, wanted, _ = of.expected
    tiny = of.cached()
    out = run(tiny, **of.request)
    found = words(tiny)
    assert [word[:4] for word in found] == [word[:4] for word in wanted]
    for (*_, measured), (*_, known) in zip(found, wanted, strict=True):
        for one, other in zip(measured, known, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or math.isclose(one, other, rel_tol=2e-3), (measured, known)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    contexts = api.summary(tiny.pipe).contexts
    records = [
        record
        for model in of.case.models
        for record in attribution.records(tuple(getattr(tiny.pipe, model).parameters()))
    ]
    of.notes |= {
        "trunk": sorted({record.trunk for record in records if record.trunk}),
        "branches": sorted({context.branch for context in contexts}),
        "calls": sum(context.steps for context in contexts),
        "reused": sum(context.reused for context in contexts),
    }


def no_generation_reads_what_another_left(of: Examined) -> None:
    """Other prompt, size, steps; after an exception, after one step, with the same tensors: as a fresh copy."""
    first = of.request
    used = of.cached()
    run(used, **first)
    assert any("." in decisions for *_, decisions, _ in words(used))
    scenes: dict[str, dict[str, Any]] = {
        "the same again": first,
        "another prompt": {**first, "prompt_seed": 5, "latent_seed": 1},
        "fewer steps": {**first, "steps": of.case.steps - 2},
    }
    known = {scene: of.alone(**request) for scene, request in scenes.items()}
    for scene, request in scenes.items():
        before = seen(used)
        assert torch.equal(run(used, **request), known[scene][0]), scene
        assert words(used, before) == known[scene][1], scene
    expected = known["the same again"]
    for step in (1, 3):
        broken_off(used, step, **first)
        before = seen(used)
        assert torch.equal(run(used, **first), expected[0]), f"after an exception in step {step}"
        assert words(used, before) == expected[1]
    run(used, **{**first, "steps": 1})
    assert torch.equal(run(used, **first), expected[0]), "after a single step"
    kept = used.inputs(**first)

    def same_tensors(noise: int) -> Tensor:
        result: Any = used.pipe(**{**kept, "generator": torch.Generator().manual_seed(noise)})[0]
        return result[-1] if isinstance(result, list) else result

    for noise in (3, 0):
        assert torch.equal(same_tensors(noise), of.alone(**first, latent_seed=noise)[0]), "the same prompt tensors"
    with contextlib.suppress(Broken), breaking(used, 1):
        same_tensors(4)
    assert torch.equal(same_tensors(0), expected[0]), "the same prompt tensors after an exception"
    other = {**first, "prompt_seed": 5, "size": 1}
    for request in (other, first) if of.case.sizes else ():  # last, because other code then runs for the first size too
        out, decided = of.alone(**request)
        before = seen(used)
        assert torch.equal(run(used, **request), out), "another size, and back"
        assert words(used, before) == decided


def broken_off(tiny: TinyPipeline, step: int, **request: Any) -> None:
    """A generation that ends in an exception."""
    with pytest.raises(Broken), breaking(tiny, step):
        run(tiny, **request)


def interleaved_is_alone(of: Examined) -> None:
    """Two generations that take turns in two threads, and one inside a step of another: each as if it were alone."""
    requests: dict[str, dict[str, Any]] = {
        "a": {**of.request, "prompt_seed": 1},
        "b": {**of.request, "prompt_seed": 2, "latent_seed": 7, "steps": of.case.steps - 1},
    }
    known = {me: of.alone(**request) for me, request in requests.items()}
    tiny = of.cached()
    pipes = {"a": tiny, "b": twin(tiny)}
    turns, outs, errors = Turns(["a", "b"]), {}, []

    def work() -> None:
        me = threading.current_thread().name
        try:
            turns.begin()
            with each_step(pipes[me], lambda _: turns.take()):
                outs[me] = run(pipes[me], **requests[me])
        except BaseException as error:
            errors.append(error)
        finally:
            turns.leave()

    in_threads(work, list(requests))
    assert not errors, errors
    assert turns.order.startswith("abab")
    for me, (out, _) in known.items():
        assert torch.equal(outs[me], out), f"in threads: {me}"
    assert sorted(word[2:4] for word in words(tiny)) == sorted(word[2:4] for _, w in known.values() for word in w)

    def act(step: int) -> None:
        if step == 2:
            outs["b"] = run(pipes["b"], **requests["b"])

    outs.clear()
    with each_step(pipes["a"], act):
        outs["a"] = run(pipes["a"], **requests["a"])
    for me, (out, _) in known.items():
        assert torch.equal(outs[me], out), f"one inside the other: {me}"


def disabled_is_as_before(of: Examined) -> None:
    """`disable_cache` gives back what `enable_cache` found: weights, classes, hooks, attributes, outputs."""
    tiny = of.case.make()
    assert torch.equal(run(tiny, **of.request), of.plain)
    before = _everything(tiny)
    if of.case.refusal is None:
        for _ in range(2):
            of.enable(tiny)
            assert not torch.equal(run(tiny, **of.request), of.plain)
        api.disable_cache(tiny.pipe)
    else:
        of.enable(tiny, on_refusal="warn")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RefusalWarning)
            run(tiny, **of.request)
        api.disable_cache(tiny.pipe)
    _same(_everything(tiny), before)
    assert torch.equal(run(tiny, **of.request), of.plain)
    assert not seen(tiny)


def _everything(tiny: TinyPipeline) -> dict[str, Any]:
    """What a pipeline and its modules are made of."""
    parts = {name: part for name, part in tiny.pipe.components.items() if isinstance(part, nn.Module)}
    inner = {f"{name}.{path}": module for name, part in parts.items() for path, module in part.named_modules()}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "pipeline": (type(tiny.pipe), type(tiny.pipe).__call__, sorted(vars(tiny.pipe)), sorted(vars(type(tiny.pipe)))),
        "modules": {name: (id(module), type(module), module.training) for name, module in inner.items()},
        "calls": {name: (module._compiled_call_impl, module.forward) for name, module in inner.items()},
        "hooks": {name: [dict(getattr(module, hook)) for hook in hooks] for name, module in inner.items()},
        "attributes": {name: sorted(set(vars(module)) - {"_compiled_call_impl"}) for name, module in inner.items()},
        "weights": {name: part.state_dict() for name, part in parts.items()},
    }


def _same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for what in one:
        if what != "weights":
            assert one[what] == other[what], what
    for name, state in one["weights"].items():
        saved = other["weights"][name]
        assert state.keys() == saved.keys()
        assert all(
            a.data_ptr() == b.data_ptr() and torch.equal(a, b)
            for a, b in zip(state.values(), saved.values(), strict=True)
        )


def refused_once_and_plain(of: Examined) -> None:
    """One warning that says why; outputs as without fxcache; with `on_refusal="raise"` an error."""
    assert of.case.refusal is not None
    tiny = of.cached(on_refusal="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outs = [run(tiny, **of.request) for _ in range(2)]
    said = [str(warning.message) for warning in caught if issubclass(warning.category, RefusalWarning)]
    assert len(said) == 1, said
    assert re.search(of.case.refusal, said[0]), said
    assert torch.equal(outs[0], of.plain) and torch.equal(outs[1], of.plain)
    assert not seen(tiny)
    of.notes["refusal"] = re.sub(r" at /.*/", " at ", said[0])
    with pytest.raises(RefusalError, match=of.case.refusal):
        run(of.cached(), **of.request)


CHECKS: tuple[Callable[[Examined], None], ...] = (
    never_reused_is_plain,
    decisions_are_those_of_the_eager_cache,
    no_generation_reads_what_another_left,
    interleaved_is_alone,
    disabled_is_as_before,
)
"""Of the cases that are cached."""
REFUSED_CHECKS: tuple[Callable[[Examined], None], ...] = (refused_once_and_plain, disabled_is_as_before)
"""Of the cases that are refused."""


def checks_of(case: Case) -> tuple[Callable[[Examined], None], ...]:
    if case.refusal:
        return REFUSED_CHECKS
    return tuple(check for check in CHECKS if not (case.exclusive and check is interleaved_is_alone))
