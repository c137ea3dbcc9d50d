"""The user API on bare modules and on things that look like pipelines."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from fxcache import api
from fxcache.configs import DBCacheConfig
from fxcache.enabled import COMPILE_ARGUMENTS
from fxcache.errors import OptionError, StateError
from fxcache.refresh import refresh_context
from tests.models.tiny_trunk import TinyTrunk, tiny_trunk

FAST = {"inner_backend": "eager", "Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.99}
SMALL = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=0.99)


class Pipe:
    def __init__(self, **components: Any) -> None:
        self.components = components


def loop(model: nn.Module, steps: int = 3) -> list[torch.Tensor]:
    """Denoise a little; the same inputs for the same model."""
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(1, length, 16, generator=generator) for length in (4, 3))
    with torch.no_grad():
        return [model(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text) for step in range(steps)]


def decisions(target: object) -> list[str]:
    return [context.decisions for context in api.summary(target).contexts]


def test_module_is_compiled_in_place_and_back():
    model = tiny_trunk()
    plain, attributes, state = loop(model), set(vars(model)), model.state_dict()
    assert api.enable_cache(model, **FAST, fullgraph=True, dynamic=True) is model
    cached = loop(model)
    assert torch.equal(cached[0], plain[0]) and not torch.equal(cached[2], plain[2])
    assert decisions(model) == ["C.."]
    assert type(model) is TinyTrunk and set(vars(model)) - attributes <= {"_compiled_call_impl"}
    assert model.state_dict().keys() == state.keys()
    assert "_compiled_call_impl" not in pickle.loads(pickle.dumps(model)).__dict__
    assert copy.deepcopy(model)._compiled_call_impl is None
    assert api.disable_cache(model) is model
    assert model._compiled_call_impl is None and decisions(model) == []
    assert all(map(torch.equal, loop(model), plain))


def test_a_guard_filter_is_handed_to_torch_compile():
    model, seen = tiny_trunk(), []

    def keep(entries: list[Any]) -> list[bool]:
        seen.extend(entries)
        return [not entry.is_global for entry in entries]

    api.enable_cache(model, **FAST, guard_filter_fn=keep)
    loop(model)
    assert seen and decisions(model) == ["C.."]
    refresh_context(model, Fn_compute_blocks=2)
    seen.clear()
    loop(model)
    assert seen


@pytest.mark.skipif("recompile_limit" not in COMPILE_ARGUMENTS, reason="this torch.compile has no recompile_limit")
def test_limits_of_torch_compile_are_handed_on():
    model, other = tiny_trunk(), tiny_trunk()
    api.enable_cache(model, **FAST, fullgraph=True, dynamic=False, recompile_limit=1, isolate_recompiles=True)
    api.enable_cache(other, **FAST, fullgraph=True, dynamic=False, recompile_limit=2, isolate_recompiles=True)
    for each in (model, other):
        loop(each)
    more = (torch.ones(1, 5, 16), torch.tensor([1.0]), torch.ones(1, 3, 16))
    with torch.no_grad():
        other(*more)
        with pytest.raises(FailOnRecompileLimitHit):
            model(*more)


def test_disabling_what_is_not_enabled_changes_nothing():
    model, pipe = tiny_trunk(), Pipe(unet=nn.Linear(1, 1), scheduler=None)
    assert api.disable_cache(model) is model and api.disable_cache(pipe) is pipe
    model.compile(backend="eager")
    users = model._compiled_call_impl
    api.disable_cache(model)
    assert model._compiled_call_impl is users


def test_disabling_brings_the_users_own_compilation_back():
    model = tiny_trunk()
    model.compile(backend="eager")
    users = model._compiled_call_impl
    for _ in range(2):
        api.enable_cache(model, **FAST)
        assert model._compiled_call_impl is not users
    api.disable_cache(model)
    assert model._compiled_call_impl is users
    api.disable_cache(model)
    assert model._compiled_call_impl is users


def test_enabling_again_replaces_the_options():
    model = tiny_trunk()
    api.enable_cache(model, SMALL, inner_backend="eager")
    loop(model)
    assert decisions(model) == ["C.."]
    api.enable_cache(model, SMALL, inner_backend="eager", max_warmup_steps=2)
    assert decisions(model) == []
    loop(model)
    assert decisions(model) == ["CC."]
    api.disable_cache(model)


def test_reset_keeps_the_statistics():
    model = api.enable_cache(tiny_trunk(), **FAST)
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(1, length, 16, generator=generator) for length in (4, 3))
    with torch.no_grad():
        for step in range(4):
            if step == 2:
                api.reset(model)
            model(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text)
    assert decisions(model) == ["C.", "C."]
    assert [context.live for context in api.summary(model).contexts] == [False, True]
    api.disable_cache(model)


def test_pipeline_with_two_transformers():
    vae = nn.Linear(1, 1)
    pipe = Pipe(vae=vae, transformer=tiny_trunk(), transformer_2=tiny_trunk(seed=1), scheduler=object(), tokenizer=None)
    assert api.enable_cache(pipe, SMALL, inner_backend="eager") is pipe
    assert vae._compiled_call_impl is None
    loop(pipe.components["transformer"], 2)
    loop(pipe.components["transformer_2"], 3)
    summary = api.summary(pipe)
    assert [(context.model, context.decisions) for context in summary.contexts] == [
        ("transformer", "C."),
        ("transformer_2", "C.."),
    ]
    api.disable_cache(pipe)
    assert api.summary(pipe).contexts == ()
    assert all(
        module._compiled_call_impl is None for module in pipe.components.values() if isinstance(module, nn.Module)
    )


def test_summary_of_a_model_compiled_by_hand():
    model = tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=FAST)
    loop(compiled)
    assert decisions(model) == decisions(compiled) == decisions(Pipe(transformer=compiled)) == ["C.."]
    assert api.summary(compiled).contexts[0].model == "TinyTrunk"
    api.reset(compiled)
    assert not api.summary(model).contexts[0].live


def test_generation_and_context_are_what_they_are_called():
    model = api.enable_cache(tiny_trunk(), **FAST)
    request = api.generation("portrait", num_inference_steps=3)
    with request, api.context("cond"):
        loop(model)
    with request, api.context("uncond", step_index=0, num_inference_steps=3):
        loop(model, 1)
    summary = api.summary(model)
    assert [(c.generation, c.branch, c.decisions) for c in summary.contexts] == [
        ("portrait", "cond", "C.."),
        ("portrait", "uncond", "C"),
    ]
    request.close()
    assert api.summary(model).state_bytes == 0
    api.disable_cache(model)


def test_deleted_model_is_gone():
    model = api.enable_cache(tiny_trunk(), **FAST)
    loop(model)
    gone, weight = weakref.ref(model), weakref.ref(model.embed.weight)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None and weight() is None


@pytest.mark.parametrize(
    ("target", "arguments", "sentence"),
    [
        (
            Pipe(unet=nn.Linear(1, 1), vae=nn.Linear(1, 1), scheduler=None),
            {},
            "target=Pipe: expected a component with 'transformer' in its name; its modules are: unet, vae. "
            "Give enable_cache the module itself.",
        ),
        (
            Pipe(),
            {},
            "target=Pipe: expected a component with 'transformer' in its name; its modules are: none. "
            "Give enable_cache the module itself.",
        ),
        ("transformer", {}, "target='transformer': expected a diffusers pipeline or a torch.nn.Module"),
        (
            nn.Linear(1, 1),
            {"cache_config": {}},
            "cache_config={}: expected None or a config of a method, such as DBCacheConfig()",
        ),
        (nn.Linear(1, 1), {"treshold": 0.1}, "unknown option 'treshold': "),
        (nn.Linear(1, 1), {"warmup_interval": 0}, "warmup_interval=0: expected an integer >= 1"),
    ],
)
def test_wrong_arguments(target, arguments, sentence):
    with pytest.raises(OptionError) as caught:
        api.enable_cache(target, **arguments)
    assert str(caught.value).startswith(sentence)
    if isinstance(target, nn.Module):
        assert target._compiled_call_impl is None


def test_wrapped_module_is_an_error_before_anything_is_compiled():
    first, second = nn.Linear(1, 1), torch.compile(nn.Linear(1, 1), backend="eager")
    with pytest.raises(StateError, match="transformer_2 is already wrapped by torch"):
        api.enable_cache(Pipe(transformer=first, transformer_2=second))
    assert first._compiled_call_impl is None
    with pytest.raises(StateError, match="Linear is already wrapped"):
        api.enable_cache(second)
