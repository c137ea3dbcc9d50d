"""Nothing outlives its model, nothing crosses from one model to another, and switching off leaves no trace."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.runtime.attribution import attribution
from tests.models.tiny_trunk import Streams, TinyTrunk, tiny_trunk
from tests.models.transformers import dit

OPTIONS = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 1,
    "residual_diff_threshold": 0.99,
    "inner_backend": "eager",
    "on_refusal": "raise",
}
Call = tuple[Tensor, Tensor, Tensor]


def calls(steps: int = 3, seed: int = 0) -> list[Call]:
    generator = torch.Generator().manual_seed(seed)
    x, text = (torch.randn(1, length, 16, generator=generator) for length in (4, 3))
    return [(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text) for step in range(steps)]


def run(model: Callable[..., Tensor], inputs: list[Call] | None = None) -> list[Tensor]:
    """Denoise. Without `inputs` the text dies at the end, and takes its contexts along."""
    with torch.no_grad():
        return [model(*call) for call in inputs or calls()]


def alone(seed: int, **changes: Any) -> list[Tensor]:
    """What a model of its own gives, in a Dynamo of its own."""
    torch._dynamo.reset()
    outs = run(torch.compile(tiny_trunk(seed=seed), backend="fxcache", options={**OPTIONS, **changes}))
    torch._dynamo.reset()
    return outs


def decisions(model: object) -> list[str]:
    return [context.decisions for context in api.summary(model).contexts]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def states(model: nn.Module) -> list[weakref.ref[Tensor]]:
    """Weak references to the tensors kept for a model."""
    wanted = {id(parameter) for parameter in model.parameters()}
    models = [state for state in attribution._table._models.values() if not wanted.isdisjoint(state.ids)]
    return [weakref.ref(t) for state in models for context in state.contexts.values() for t in context.tensors]


def tensors() -> int:
    gc.collect()
    return sum(1 for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter))


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    attribution.forget()
    yield
    attribution.forget()


def compiled_apart(model: nn.Module) -> Callable[..., Tensor]:
    return torch.compile(model, backend="fxcache", options=OPTIONS)


def compiled_in_place(model: nn.Module) -> Callable[..., Tensor]:
    return api.enable_cache(model, **OPTIONS)


@pytest.mark.parametrize("way", [compiled_apart, compiled_in_place])
def test_a_deleted_model_takes_everything_along(way):
    model, inputs = tiny_trunk(), calls()
    compiled = way(model)
    run(compiled, inputs)
    kept = states(model)
    assert len(kept) >= 3 and all(ref() is not None for ref in kept)
    gone = [weakref.ref(model), *(weakref.ref(parameter) for parameter in model.parameters())]
    contexts = [
        weakref.ref(context) for state in attribution._table._models.values() for context in state.contexts.values()
    ]
    assert contexts
    del model, compiled
    gc.collect()
    assert not any(ref() is not None for ref in (*gone, *kept, *contexts))
    assert attribution.records() == []


def test_models_that_come_and_go_leave_no_tensor():
    def life(seed: int) -> None:
        model = tiny_trunk(seed=seed)
        run(api.enable_cache(model, **OPTIONS), inputs)
        with api.generation("request"):
            run(model, inputs)
        assert decisions(model) == ["C..", "C.."]

    inputs = calls()
    life(0)
    before = tensors()
    counters.clear()
    for seed in range(1, 6):
        life(seed)
    assert tensors() == before
    assert counters["stats"]["unique_graphs"] == 0  # Dynamo gives one artefact to all instances of the class


def test_generations_that_come_and_go_leave_no_tensor():
    model = api.enable_cache(tiny_trunk(), **OPTIONS)
    sizes, inputs = [], calls()
    for seed in range(8):
        request = api.generation()
        with request:
            run(model, inputs)
        assert len(states(model)) >= 3
        if seed % 2:
            request.close()
        del request
        sizes.append(tensors())
        assert api.summary(model).state_bytes == 0 and states(model) == []
    assert sizes[0] == sizes[-1]


def test_prompts_that_come_and_go_leave_no_tensor():
    model = api.enable_cache(tiny_trunk(), **OPTIONS)
    sizes = []
    for seed in range(6):
        run(model, calls(seed=seed))  # in the ambient generation: what ends is the text
        sizes.append(tensors())
        assert states(model) == []
    assert sizes[0] == sizes[-1]
    assert decisions(model) == ["C.."] * 6


def test_disabling_restores_the_module():
    model, inputs = tiny_trunk(), calls()
    plain = run(model)
    before = dict(vars(model))
    keys, forward, cls = list(model.state_dict()), model.forward.__func__, type(model)
    request = api.generation()
    with request:
        run(api.enable_cache(model, **OPTIONS), inputs)
    kept = states(model)
    assert kept and model._compiled_call_impl is not None
    api.disable_cache(model)
    gc.collect()
    assert not any(ref() is not None for ref in kept)
    assert model._compiled_call_impl is None
    assert (type(model), model.forward.__func__, list(model.state_dict())) == (cls, forward, keys)
    assert {**vars(model), "_compiled_call_impl": None} == {**before, "_compiled_call_impl": None}
    assert same(run(model), plain)
    with request:
        assert same(run(model), plain)
    assert api.summary(model).contexts == ()


def test_enabling_again_and_again_compiles_once_and_keeps_one_state():
    model = tiny_trunk()
    expected = alone(0)
    counters.clear()
    kept: list[weakref.ref[Tensor]] = []
    for _ in range(10):
        text = calls()[0][2]  # outlives the loop below, so that only enabling again can drop the state
        api.enable_cache(model, **OPTIONS)
        gc.collect()
        assert not any(ref() is not None for ref in kept)
        with torch.no_grad():
            outs = [model(x, t, text) for x, t, _ in calls()]
        assert same(outs, expected) and decisions(model) == ["C.."]
        kept = states(model)
    assert counters["stats"]["unique_graphs"] == 1
    api.disable_cache(model)


def test_two_compilations_of_one_module_share_nothing():
    model = tiny_trunk()
    eager = run(model)
    first = torch.compile(model, backend="fxcache", options=OPTIONS)
    second = torch.compile(model, backend="fxcache", options={**OPTIONS, "Fn_compute_blocks": 2})
    third = torch.compile(model, backend="fxcache", options={**OPTIONS, "max_warmup_steps": 2})
    inputs = calls(4)
    outs: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for call in inputs:
            for number, compiled in enumerate((first, second, third)):
                outs[number].append(compiled(*call))
    assert sorted(decisions(model)) == ["C...", "C...", "CC.."]
    assert same(outs[0][:3], alone(0)) and same(outs[1][:3], alone(0, Fn_compute_blocks=2))
    assert same(outs[2][:3], alone(0, max_warmup_steps=2))
    assert not same(outs[0], outs[1])
    assert same(run(model), eager)


@pytest.mark.parametrize("in_place", [False, True])
def test_models_of_one_class_never_mix(in_place):
    settings: list[tuple[int, dict[str, Any]]] = [(0, {}), (1, {}), (2, {"max_warmup_steps": 2})]
    expected = [alone(seed, **changes) for seed, changes in settings]
    counters.clear()
    models = [tiny_trunk(seed=seed) for seed, _ in settings]
    compiled: list[Callable[..., Tensor]] = []
    for model, (_, changes) in zip(models, settings, strict=True):
        options = {**OPTIONS, **changes}
        compiled.append(
            api.enable_cache(model, **options) if in_place else torch.compile(model, backend="fxcache", options=options)
        )
    inputs = calls()  # the very same tensors for all of them, call by call
    outs: list[list[Tensor]] = [[] for _ in models]
    with torch.no_grad():
        for call in inputs:
            for number, one in enumerate(compiled):
                outs[number].append(one(*call))
    for number, wanted in enumerate(expected):
        assert same(outs[number], wanted), f"model {number}"
    assert [decisions(model) for model in models] == [["C.."], ["C.."], ["CC."]]
    assert counters["stats"]["unique_graphs"] == 2


def test_replaced_parameters_are_another_model():
    model = api.enable_cache(tiny_trunk(), **OPTIONS)
    changed = tiny_trunk()
    old = model.blocks[2].mlp.up.weight
    new = nn.Parameter(old + 0.5, requires_grad=False)
    inputs = calls(6)
    with torch.no_grad():
        for call in inputs[:2]:
            model(*call)
        model.blocks[2].mlp.up.weight = changed.blocks[2].mlp.up.weight = new
        fused = [model(*call) for call in inputs[2:4]]
        assert torch.equal(fused[0], changed(*inputs[2])) and not torch.equal(fused[1], changed(*inputs[3]))
        assert decisions(model) == ["C.", "C."]
        model.blocks[2].mlp.up.weight = old
        for call in inputs[4:]:
            model(*call)
    assert decisions(model) == ["C...", "C."]
    del new, old, changed
    api.disable_cache(model)


def test_the_summary_survives_what_it_is_about():
    model = tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS)
    with api.generation("first"):
        run(compiled)
    run(compiled)
    del compiled
    torch._dynamo.reset()
    gc.collect()
    summary = api.summary(model)
    assert [(context.generation, context.decisions, context.live) for context in summary.contexts] == [
        ("first", "C..", False),
        ("ambient", "C..", False),
    ]
    assert summary.state_bytes == 0
    assert api.summary(tiny_trunk()).contexts == ()


@torch.library.custom_op("fxcache_tests::fragile", mutates_args=())
def fragile(x: Tensor) -> Tensor:
    if Fragile.broken:
        raise ZeroDivisionError
    return x.clone()


@fragile.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Fragile(TinyTrunk):
    broken = False

    def suffix(self, changing: Streams, fixed: Streams, x: Tensor) -> Tensor:
        return fragile(super().suffix(changing, fixed, x))


def test_after_a_raising_call_nothing_old_is_read():
    model = Fragile().eval().requires_grad_(False)
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS)
    inputs = calls(6)
    with torch.no_grad():
        for call in inputs[:2]:
            compiled(*call)
        Fragile.broken = True
        try:
            with pytest.raises(ZeroDivisionError):
                compiled(*inputs[2])
        finally:
            Fragile.broken = False
        assert torch.equal(compiled(*inputs[3]), model(*inputs[3]))
        assert not torch.equal(compiled(*inputs[4]), model(*inputs[4]))
    assert decisions(model) == ["C.", "C."]
    kept = states(model)
    del inputs, call
    gc.collect()
    assert not any(ref() is not None for ref in kept)


def test_a_model_of_diffusers_is_as_it_was(tmp_path):
    tiny = dit(layers=3)
    plain = tiny.run(tiny.inputs())
    saved = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    names, config = set(vars(tiny.module)), dict(tiny.module.config)
    api.enable_cache(tiny.module, **OPTIONS)
    assert [tiny.run(tiny.inputs(step=step)).shape for step in range(2)]
    assert decisions(tiny.module) == ["C."]
    tiny.module.save_pretrained(tmp_path)
    loaded = type(tiny.module).from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)
    api.disable_cache(tiny.module)
    assert set(vars(tiny.module)) - names <= {"_compiled_call_impl"}
    assert config.items() <= dict(tiny.module.config).items()  # saving adds the name of the class
    assert torch.equal(tiny.run(tiny.inputs()), plain)
