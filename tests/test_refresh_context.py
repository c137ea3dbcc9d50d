"""Options that change while a model is switched on: what changes, what does not, and when it is compiled again."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import fxcache
from fxcache.configs import DBCacheConfig, DMDCalibratorConfig, FoCaCalibratorConfig, TaylorSeerCalibratorConfig
from fxcache.enabled import enabled_of
from fxcache.errors import OptionError, StateError
from fxcache.options import Options
from tests.models.tiny_trunk import tiny_trunk
from tests.test_api import FAST, Pipe, decisions, loop


def options_of(model: nn.Module) -> Options:
    enabled = enabled_of(model)
    assert enabled is not None
    return enabled.options


def graphs() -> int:
    """Graphs that Dynamo has compiled in this test."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    counters.clear()


def cached(**options: Any) -> nn.Module:
    return fxcache.enable_cache(tiny_trunk(), **{**FAST, **options})


def sized(model: nn.Module, length: int, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(1, size, 16, generator=generator) for size in (length, 3))
    with torch.no_grad():
        for step in range(steps):
            model(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text)


HOST = [
    ({"max_warmup_steps": 2}, "CC.."),
    ({"max_cached_steps": 1}, "C.CC"),
    ({"residual_diff_threshold": 1e-9}, "CCCC"),
    ({"steps_computation_mask": "1101"}, "CC.C"),
    ({"force_refresh_step_hint": 2}, "C.C."),
    ({"num_inference_steps": 2}, "C.|C."),
]


@pytest.mark.parametrize("by_hand", [False, True], ids=["enabled", "by hand"])
def test_what_the_host_reads_changes_without_a_new_graph(by_hand):
    model = tiny_trunk() if by_hand else cached()
    target = torch.compile(model, backend="fxcache", options=FAST) if by_hand else model
    loop(target, 4)
    told = ["C..."]
    for changes, word in HOST:
        assert fxcache.refresh_context(target, **changes) is target
        loop(target, 4)
        told += word.split("|")
        assert decisions(model) == told, f"{changes}; what happened before is still told"
        fxcache.refresh_context(target, **{name: getattr(Options(**FAST), name) for name in changes})
    assert graphs() == 1


def test_what_shapes_the_graph_costs_one_compilation_at_the_next_call():
    model = cached()
    plain = loop(tiny_trunk(), 4)
    loop(model, 4)
    fxcache.refresh_context(model, Fn_compute_blocks=2, max_warmup_steps=2)
    assert graphs() == 1, "not before the next call"
    out = loop(model, 4)
    assert graphs() == 2 and decisions(model) == ["C...", "CC.."]
    assert all(map(torch.equal, out[:2], plain[:2])) and not torch.equal(out[3], plain[3])
    fxcache.refresh_context(model, max_warmup_steps=3)
    loop(model, 4)
    assert graphs() == 2 and decisions(model)[-1] == "CCC."
    fxcache.refresh_context(model, Fn_compute_blocks=1, max_warmup_steps=1)
    loop(model, 4)
    assert graphs() == 2 and decisions(model)[-1] == "C...", "the first graph is still there"


def test_the_new_options_give_what_a_fresh_model_gives():
    model = cached()
    loop(model, 5)
    fxcache.refresh_context(
        model,
        cache_config=DBCacheConfig(Fn_compute_blocks=2, residual_diff_threshold=0.7),
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
        max_warmup_steps=3,
    )
    fresh = cached(
        Fn_compute_blocks=2,
        residual_diff_threshold=0.7,
        max_warmup_steps=3,
        calibrator="taylorseer",
        taylorseer_order=1,
    )
    assert options_of(model) == options_of(fresh)
    assert all(map(torch.equal, loop(model, 6), loop(fresh, 6)))
    assert decisions(model)[-1] == decisions(fresh)[-1] == "CCC..."


def test_every_size_that_is_compiled_follows():
    model = fxcache.enable_cache(tiny_trunk(), **FAST, dynamic=False)
    for length in (4, 5, 6):
        sized(model, length)
    compiled = graphs()
    fxcache.refresh_context(model, max_warmup_steps=2)
    for length in (4, 5, 6, 7):
        sized(model, length)
    assert (compiled, graphs()) == (3, 4)
    assert decisions(model) == ["C.."] * 3 + ["CC."] * 4


def test_a_generation_that_is_running_begins_again():
    model = cached()
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(1, length, 16, generator=generator) for length in (4, 3))
    with torch.no_grad(), fxcache.generation():
        for step in range(6):
            if step == 3:
                fxcache.refresh_context(model, max_warmup_steps=2)
            model(x + 0.01 * step, torch.tensor([1 - 0.1 * step]), text)
    assert decisions(model) == ["C..", "CC."]
    assert fxcache.summary(model).state_bytes == 0


def test_a_call_that_is_running_ends_with_the_options_it_began_with():
    model = cached()
    inside, go_on = threading.Event(), threading.Event()
    original = fxcache.runtime.attribution.attribution.end  # type: ignore[attr-defined]
    outs: list[torch.Tensor] = []

    def waiting(lease: Any, outcome: Any) -> None:
        inside.set()
        assert go_on.wait(60)
        original(lease, outcome)

    expected = loop(cached(), 1)
    fxcache.runtime.attribution.attribution.end = waiting  # type: ignore[attr-defined]
    try:
        thread = threading.Thread(target=lambda: outs.extend(loop(model, 1)))
        thread.start()
        assert inside.wait(60)
        fxcache.refresh_context(model, max_warmup_steps=2)
        go_on.set()
        thread.join(60)
    finally:
        del fxcache.runtime.attribution.attribution.end  # type: ignore[attr-defined]
    assert torch.equal(outs[0], expected[0])
    loop(model, 4)
    assert decisions(model) == ["CC.."], "what the running call stored is not read"


def test_d16_a_new_config_changes_what_it_gives_and_clears_what_is_named():
    model = cached(steps_computation_mask="1101", max_cached_steps=3)
    fxcache.refresh_context(model, cache_config=DBCacheConfig(num_inference_steps=12))
    now = options_of(model)
    assert (now.num_inference_steps, now.Fn_compute_blocks, now.steps_computation_mask) == (12, 1, (1, 1, 0, 1))
    fxcache.refresh_context(model, steps_computation_mask=None)
    assert options_of(model).steps_computation_mask is None
    fxcache.refresh_context(model, clear=("num_inference_steps", "max_cached_steps"))
    assert (options_of(model).num_inference_steps, options_of(model).max_cached_steps) == (None, -1)
    fxcache.refresh_context(model, clear="cache_config", residual_diff_threshold=0.2)
    assert options_of(model) == Options(residual_diff_threshold=0.2, inner_backend="eager")


def test_d17_a_calibrator_can_be_added_changed_and_removed():
    model = cached()
    loop(model)
    fxcache.refresh_context(model, calibrator_config=TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states"))
    assert (options_of(model).calibrator, options_of(model).taylorseer_order) == ("taylorseer", 1)
    fxcache.refresh_context(model, calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=2))
    assert options_of(model).taylorseer_order == 2
    assert options_of(model).calibrator_cache_type == "hidden_states", (
        "of the same calibrator only what is given changes"
    )
    fxcache.refresh_context(model, calibrator_config=DMDCalibratorConfig(dmd_history=4))
    now = options_of(model)
    assert (now.calibrator, now.dmd_history, now.calibrator_cache_type) == ("dmd", 4, "residual")
    loop(model)
    fxcache.refresh_context(model, calibrator=None)
    assert options_of(model).calibrator is None
    loop(model)
    fxcache.refresh_context(model, calibrator_config=FoCaCalibratorConfig(), clear="calibrator_config")
    assert options_of(model) == Options(**FAST, calibrator="foca")
    fxcache.refresh_context(model, clear="calibrator_config")
    assert options_of(model) == Options(**FAST)
    loop(model)
    assert graphs() == 3, "the first graph, that of dmd, and one that has its length of history still"
    assert decisions(model) == ["C.."] * 4


def test_a_pipeline_changes_all_its_transformers_and_keeps_their_differences():
    pipe = Pipe(transformer=tiny_trunk(), transformer_2=tiny_trunk(seed=1), vae=nn.Linear(1, 1))
    second = fxcache.ParamsModifier(max_warmup_steps=2)
    fxcache.enable_cache(pipe, **FAST, params_modifiers={"transformer_2": second})
    fxcache.refresh_context(pipe, max_cached_steps=1)
    for name in ("transformer", "transformer_2"):
        loop(pipe.components[name], 5)
    assert decisions(pipe) == ["C.CCC", "CC.CC"]


@pytest.mark.parametrize("name", ["dump_dir", "on_refusal"])
def test_what_only_the_compiler_reads_is_compiled_in_again(name, tmp_path):
    model = cached()
    loop(model)
    fxcache.refresh_context(model, **{name: {"dump_dir": tmp_path, "on_refusal": "raise"}[name]})
    loop(model)
    assert graphs() == 2
    assert any(tmp_path.iterdir()) is (name == "dump_dir")


def test_switched_off_and_on_again_nothing_of_the_changes_is_left():
    model = cached()
    loop(model)
    fxcache.refresh_context(model, max_warmup_steps=2)
    fxcache.disable_cache(model)
    fxcache.enable_cache(model, **FAST)
    loop(model)
    assert decisions(model) == ["C.."]


def test_models_that_share_compiled_code_change_alone():
    one, two = cached(), fxcache.enable_cache(tiny_trunk(seed=1), **FAST)
    for model in (one, two):
        loop(model)
    compiled = graphs()
    fxcache.refresh_context(two, max_warmup_steps=2)
    for model in (one, two):
        loop(model)
    assert graphs() == compiled
    assert (decisions(one), decisions(two)) == (["C..", "C.."], ["C..", "CC."])


def test_a_model_compiled_by_hand_cannot_get_another_graph():
    model = tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=FAST)
    loop(compiled)
    with pytest.raises(StateError) as caught:
        fxcache.refresh_context(compiled, Fn_compute_blocks=2, max_warmup_steps=2)
    assert str(caught.value) == (
        "TinyTrunk was compiled by torch.compile, and Fn_compute_blocks, max_warmup_steps would need another graph: "
        "give the options to torch.compile again, or switch fxcache on with fxcache.enable_cache"
    )
    loop(compiled)
    assert decisions(model) == ["C..", "C.."], "nothing has changed"


def test_where_nothing_is_switched_on():
    sentence = "fxcache is not switched on for TinyTrunk: call fxcache.enable_cache first"
    model = tiny_trunk()
    for target in (model, torch.compile(model, backend="fxcache", options=FAST)):
        with pytest.raises(StateError, match="is not switched on for"):
            fxcache.refresh_context(target, max_warmup_steps=2)
    with pytest.raises(StateError) as caught:
        fxcache.refresh_context(model)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_warmup_step": 2}, "unknown option 'max_warmup_step': did you mean 'max_warmup_steps'?"),
        ({"max_warmup_steps": -1}, "max_warmup_steps=-1: expected an integer >= 0"),
        ({"clear": "max_warmup_step"}, "clear='max_warmup_step': did you mean 'max_warmup_steps'?"),
        ({"clear": ["calibrator_confi"]}, "clear='calibrator_confi': did you mean 'calibrator_config'?"),
        ({"clear": "max_contexts", "max_contexts": 3}, "clear='max_contexts': max_contexts is given as well"),
        ({"cache_config": TaylorSeerCalibratorConfig()}, "cache_config=TaylorSeer"),
        ({"calibrator_config": {}}, "calibrator_config={}: expected None or a calibrator's config"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, sentence):
    model = cached()
    before = options_of(model)
    with pytest.raises(OptionError) as caught:
        fxcache.refresh_context(model, **arguments)
    assert str(caught.value).startswith(sentence)
    assert options_of(model) == before
