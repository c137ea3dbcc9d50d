"""Options of single transformers of a pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxcache
from fxcache.configs import DBCacheConfig, DMDCalibratorConfig, TaylorSeerCalibratorConfig
from fxcache.enabled import enabled_of
from fxcache.errors import OptionError
from fxcache.modifiers import ParamsModifier
from fxcache.options import Options
from tests.integration.eager import EagerF1B0
from tests.integration.test_pipelines import TOLERANCE, contexts
from tests.models.tiny_trunk import tiny_trunk
from tests.models.variants import wan_two
from tests.test_api import FAST, Pipe, decisions, loop

NAMES = ("transformer", "transformer_2", "unconditional_transformer")


def three() -> Pipe:
    return Pipe(vae=nn.Linear(1, 1), **{name: tiny_trunk(seed=seed) for seed, name in enumerate(NAMES)})


def options_of(pipe: Pipe) -> list[Options]:
    found = [enabled_of(pipe.components[name]) for name in NAMES]
    return [enabled.options for enabled in found if enabled is not None]


def test_two_transformers_of_a_pipeline_follow_their_own_options():
    tiny = wan_two(layers=3)
    request = {"steps": 6, "cfg": True}
    common: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "inner_backend": "eager"}
    modifier = ParamsModifier(cache_config=DBCacheConfig(max_warmup_steps=2))
    config = DBCacheConfig(residual_diff_threshold=0.99)
    fxcache.enable_cache(tiny.pipe, config, params_modifiers={"transformer_2": modifier}, **common)
    out = tiny.run(**request)
    oracle = wan_two(layers=3)
    memories = []
    for name, warmup in (("transformer", 1), ("transformer_2", 2)):
        memories.append(EagerF1B0(getattr(oracle.pipe, name), "wan", 0.99, warmup=warmup, branches=2))
    torch.testing.assert_close(out, oracle.run(**request), **TOLERANCE)
    assert [context.decisions for context in contexts(tiny)] == [word for each in memories for word in each.decisions]
    words = {context.model: context.decisions for context in contexts(tiny)}
    assert words["transformer"].startswith("C.") and words["transformer_2"].startswith("CC")


def test_a_second_model_for_the_unconditional_branch_has_options_and_state_of_its_own():
    pipe = three()
    modifier = ParamsModifier(max_cached_steps=1)
    fxcache.enable_cache(pipe, **FAST, params_modifiers={"unconditional_transformer": modifier})
    cond, uncond = (pipe.components[name] for name in ("transformer", "unconditional_transformer"))
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(1, length, 16, generator=generator) for length in (4, 3))
    with torch.no_grad():
        for step in range(5):
            for model in (cond, uncond):
                model(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text)
    found = fxcache.summary(pipe).contexts
    assert [(c.model, c.decisions) for c in found] == [("transformer", "C...."), ("unconditional_transformer", "C.CCC")]


def test_d15_a_calibrator_alone_takes_effect():
    pipe = three()
    modifier = ParamsModifier(calibrator_config=DMDCalibratorConfig(dmd_history=4))
    config, calibrator = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=3), TaylorSeerCalibratorConfig()
    fxcache.enable_cache(pipe, config, calibrator, [None, modifier], inner_backend="eager")
    first, second, third = options_of(pipe)
    assert (
        first
        == third
        == Options(Fn_compute_blocks=1, max_warmup_steps=3, calibrator="taylorseer", inner_backend="eager")
    )
    assert second == first.replace(calibrator="dmd", dmd_history=4)


def test_only_the_given_fields_count():
    pipe = three()
    config = DBCacheConfig(Fn_compute_blocks=2, max_warmup_steps=3, steps_computation_mask="110")
    modifiers = [
        ParamsModifier(DBCacheConfig(max_cached_steps=4), max_contexts=5),
        ParamsModifier(DBCacheConfig().reset(steps_computation_mask=None)),
        ParamsModifier(calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2)),
    ]
    common = {"calibrator_config": TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states")}
    fxcache.enable_cache(pipe, config, **common, params_modifiers=modifiers)
    base = config.to_options(calibrator="taylorseer", calibrator_cache_type="hidden_states")
    assert options_of(pipe) == [
        base.replace(max_cached_steps=4, max_contexts=5),
        base.replace(steps_computation_mask=None),
        base.replace(taylorseer_order=2),
    ]


def test_a_modifier_removes_a_calibrator():
    pipe = three()
    calibrator, modifier = TaylorSeerCalibratorConfig(), ParamsModifier(calibrator=None)
    fxcache.enable_cache(pipe, calibrator_config=calibrator, params_modifiers=modifier)
    assert [options.calibrator for options in options_of(pipe)] == [None, "taylorseer", "taylorseer"]


def test_a_bare_module_takes_one_modifier_or_its_class_name():
    model = tiny_trunk()
    for modifiers in (ParamsModifier(max_warmup_steps=2), {"TinyTrunk": ParamsModifier(max_warmup_steps=2)}):
        fxcache.enable_cache(model, **FAST, params_modifiers=modifiers)
        loop(model)
        assert decisions(model) == ["CC."]


@pytest.mark.parametrize(
    ("modifiers", "sentence"),
    [
        (
            {"transformer_3": ParamsModifier()},
            "params_modifiers['transformer_3']: no such transformer, did you mean 'transformer_2'?",
        ),
        ({"vae": ParamsModifier()}, f"params_modifiers['vae']: no such transformer, valid: {', '.join(NAMES)}"),
        (
            [ParamsModifier()] * 4,
            f"params_modifiers: expected at most 3, one for each transformer ({', '.join(NAMES)}), found 4; all blocks "
            "of one transformer follow one decision",
        ),
        ([DBCacheConfig()], "params_modifiers['transformer']=DBCacheConfig("),
        ({"transformer": {}}, "params_modifiers['transformer']={}: expected a ParamsModifier"),
        ("vae", "params_modifiers='vae': expected a ParamsModifier, a list of them, or a mapping by name"),
    ],
)
def test_wrong_modifiers_change_nothing(modifiers, sentence):
    pipe = three()
    with pytest.raises(OptionError) as caught:
        fxcache.enable_cache(pipe, params_modifiers=modifiers)
    assert str(caught.value).startswith(sentence)
    assert options_of(pipe) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_warmup_step": 1}, "unknown option 'max_warmup_step': did you mean 'max_warmup_steps'?"),
        ({"max_warmup_steps": -1}, "max_warmup_steps=-1: expected an integer >= 0"),
        ({"cache_config": DMDCalibratorConfig()}, "cache_config=DMDCalibratorConfig("),
        ({"calibrator_config": DBCacheConfig()}, "calibrator_config=DBCacheConfig("),
    ],
)
def test_a_modifier_is_checked_when_it_is_built(arguments, sentence):
    with pytest.raises(OptionError) as caught:
        ParamsModifier(**arguments)
    assert str(caught.value).startswith(sentence)


def test_modifiers_compare_and_show_what_they_change():
    one = ParamsModifier(DBCacheConfig(max_warmup_steps=2), trunk=["blocks"])
    assert one == ParamsModifier(DBCacheConfig(max_warmup_steps=2), trunk=("blocks",))
    assert one != ParamsModifier(DBCacheConfig(max_warmup_steps=2, Bn_compute_blocks=0), trunk=["blocks"])
    assert one != ParamsModifier(max_warmup_steps=2, trunk=["blocks"]) and one != 3
    assert repr(ParamsModifier(max_contexts=2)) == "ParamsModifier(max_contexts=2)"
