"""Configurations in files: what cache-dit's files mean here, what is an error, and that nothing is lost on the way."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import fxcache
from fxcache.configs import (
    DBCacheConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
    config_classes,
)
from fxcache.dialect import short_names, to_options
from fxcache.enabled import enabled_of
from fxcache.errors import FxcacheError, OptionError
from fxcache.loading import load_configs, save_configs
from fxcache.modifiers import ParamsModifier
from fxcache.options import Options
from tests.models.tiny_trunk import tiny_trunk
from tests.test_api import Pipe, decisions, loop
from tests.test_options import consistent

PEER = """
cache_config:
  cache_type: DBCache
  max_warmup_steps: 8
  warmup_interval: 2
  max_continuous_cached_steps: 2
  Fn_compute_blocks: 1
  residual_diff_threshold: 0.12
  enable_separate_cfg: true
  cfg_compute_first: false
  cfg_diff_compute_separate: true
  num_inference_steps: 28
  steps_computation_mask: "1111110100"
  steps_computation_policy: dynamic
  force_refresh_step_hint: null
  enable_taylorseer: true
  enable_encoder_taylorseer: true
  taylorseer_cache_type: residual
  taylorseer_order: 2
"""


def written(folder: Path, text: str, name: str = "cache.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_of_cache_dit(tmp_path):
    found = load_configs(written(tmp_path, PEER))
    assert found == {
        "cache_config": DBCacheConfig(
            max_warmup_steps=8,
            warmup_interval=2,
            max_continuous_cached_steps=2,
            Fn_compute_blocks=1,
            residual_diff_threshold=0.12,
            enable_separate_cfg=True,
            num_inference_steps=28,
            steps_computation_mask="1111110100",
        ),
        "calibrator_config": TaylorSeerCalibratorConfig(taylorseer_order=2),
    }


@pytest.mark.parametrize(
    ("switches", "config"),
    [
        ({"enable_taylorseer": True}, TaylorSeerCalibratorConfig(enable_encoder_calibrator=False)),
        ({"enable_taylorseer": True, "enable_encoder_taylorseer": True}, TaylorSeerCalibratorConfig()),
        (
            {"enable_taylorseer": True, "taylorseer_order": 2, "taylorseer_cache_type": "hidden_states"},
            TaylorSeerCalibratorConfig(
                enable_encoder_calibrator=False, taylorseer_order=2, calibrator_cache_type="hidden_states"
            ),
        ),
        ({"enable_foca": True}, FoCaCalibratorConfig(enable_encoder_calibrator=False)),
        (
            {"enable_foca": True, "enable_encoder_foca": True, "calibrator_cache_type": "hidden_states"},
            FoCaCalibratorConfig(calibrator_cache_type="hidden_states"),
        ),
        ({"enable_dmd": True}, DMDCalibratorConfig()),
        (
            {"enable_dmd": True, "enable_encoder_dmd": False, "dmd_history": 5, "dmd_rank": 2, "dmd_ridge": 0.0},
            DMDCalibratorConfig(enable_encoder_calibrator=False, dmd_history=5, dmd_rank=2, dmd_ridge=0.0),
        ),
        ({"enable_regression": True}, RegressionCalibratorConfig()),
        ({"enable_taylorseer": False, "enable_encoder_taylorseer": False, "enable_dmd": None}, None),
        ({"calibrator": "regression", "regression_history": 4}, RegressionCalibratorConfig(regression_history=4)),
        ({"enable_taylorseer": True, "enable_encoder_calibrator": True}, TaylorSeerCalibratorConfig()),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_switches_of_calibrators(switches, config, flat):
    found = load_configs(switches if flat else {"cache_config": switches})
    assert found.get("calibrator_config") == config
    assert found["cache_config"] == DBCacheConfig()


@pytest.mark.parametrize("kind", ["taylorseer", "TaylorSeer", "TAYLORSEER"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_section_for_the_calibrator(kind, inside):
    section = {"calibrator_config": {"calibrator_type": kind, "taylorseer_order": 3}}
    found = load_configs({"cache_config": section} if inside else section)
    assert found["calibrator_config"] == TaylorSeerCalibratorConfig(taylorseer_order=3)


def test_a_flat_mapping_and_options_beside_the_sections():
    assert load_configs({"Fn_compute_blocks": 1, "max_contexts": 4, "fullgraph": True}) == {
        "cache_config": DBCacheConfig(Fn_compute_blocks=1),
        "max_contexts": 4,
        "fullgraph": True,
    }
    sections = {"cache_config": {"Fn_compute_blocks": 1}, "max_warmup_steps": 2, "trunk": ["blocks"]}
    assert load_configs(sections) == {
        "cache_config": DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2),
        "trunk": ("blocks",),
    }
    assert load_configs({}) == load_configs({"cache_config": None}) == {"cache_config": DBCacheConfig()}


def test_what_a_switched_off_calibrator_says_is_kept():
    found = load_configs({"cache_config": {"enable_taylorseer": False, "taylorseer_order": 2}})
    assert found == {"cache_config": DBCacheConfig(), "taylorseer_order": 2}


def test_the_name_of_a_preset_is_handed_on():
    section = {"steps_computation_mask": "fast", "num_inference_steps": 28}
    assert to_options({"cache_config": section}) == section


def test_d18_every_method_is_found_by_its_name():
    seen = set()
    for method, cls in config_classes("method").items():
        try:
            config = cls()
        except (OptionError, TypeError):  # it needs a value
            continue
        for spelled in (short_names("method")[method], method, method.upper()):
            found = load_configs({"cache_config": {"cache_type": spelled}})["cache_config"]
            assert type(found) is cls and found == config
        seen.add(method)
    assert "dbcache" in seen
    with pytest.raises(OptionError) as caught:
        load_configs({"cache_config": {"cache_type": "DBPrunes"}})
    assert str(caught.value).startswith("cache_type='DBPrunes': expected ") and "'DBCache'" in str(caught.value)


def test_d19_a_misspelt_key_is_an_error_with_the_right_name():
    with pytest.raises(OptionError) as caught:
        load_configs({"cache_config": {"enable_sperate_cfg": True}})
    assert str(caught.value) == (
        "unknown key 'enable_sperate_cfg' in cache_config: did you mean 'enable_separate_cfg'?"
    )


FAR = "pipe.transformer.enable_parallelism(config=...) of diffusers spreads a model over devices"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"cache_confg": {}}, "unknown key 'cache_confg' in the configuration: "),
        ({"calibrator_config": {"order": 2}}, "unknown key 'order' in calibrator_config: "),
        (
            {"enable_taylorsee": True},
            "unknown key 'enable_taylorsee' in the configuration: did you mean 'enable_taylors",
        ),
        ({"cache_config": 3}, "cache_config=3: expected a mapping"),
        ({"calibrator_config": [1]}, "calibrator_config=[1]: expected a mapping"),
        ({"params_modifiers": 3}, "params_modifiers=3: expected a mapping by name or a list"),
        ({"params_modifiers": {"transformer": 3}}, "params_modifiers.transformer=3: expected a mapping"),
        (
            {"params_modifiers": [None, {"max_warmup_step": 3}]},
            "params_modifiers[1]: unknown key 'max_warmup_step' in the configuration: did you mean 'max_warmup_steps'?",
        ),
        ({"max_warmup_steps": -1}, "max_warmup_steps=-1: expected an integer >= 0"),
        ({"steps_computation_mask": 110100}, "steps_computation_mask=110100: expected None, "),
        ({"enable_taylorseer": "yes"}, "enable_taylorseer='yes': expected True or False"),
        ({"enable_taylorseer": True, "enable_dmd": True}, "enable_"),
        ({"enable_encoder_dmd": True}, "enable_encoder_dmd=True: expected enable_dmd=True with it"),
        (
            {"cache_config": {"max_warmup_steps": 2}, "max_warmup_steps": 3},
            "max_warmup_steps is given twice, as 3 and as 2",
        ),
        (
            {"taylorseer_cache_type": "residual", "calibrator_cache_type": "hidden_states"},
            "calibrator_cache_type is given twice, as 'residual' and as 'hidden_states'",
        ),
        ({"calibrator_type": "taylor"}, "calibrator_type='taylor': expected "),
        ({"parallelism_config": {"ulysses_size": 4}}, f"parallelism_config is not about caching: {FAR}"),
        (
            {"quantize_config": {"quant_type": "float8"}},
            "quantize_config is not about caching: quantization_config=... of",
        ),
        (
            {"attention_backend": "sage"},
            "attention_backend is not about caching: pipe.transformer.set_attention_backend",
        ),
        ({"cache_config": {"dmd_svd_precision": "high"}}, "dmd_svd_precision is not about caching: the fit of dmd"),
        ({"params_modifiers": [{"attention_backend": "sage"}]}, "params_modifiers[0]: attention_backend is not about"),
        (
            {"calibrator": "regression", "indicator": "residual"},
            "indicator='residual': expected 'forecast' or None with",
        ),
    ],
)
def test_what_is_wrong_is_said(source, sentence):
    with pytest.raises(OptionError) as caught:
        load_configs(source)
    assert str(caught.value).startswith(sentence)


def test_what_belongs_elsewhere_can_be_left_to_others():
    source = {"cache_config": {"max_warmup_steps": 2}, "attention_backend": "sage", "parallelism_config": None}
    assert load_configs(source, ignore=["attention_backend"]) == {"cache_config": DBCacheConfig(max_warmup_steps=2)}
    with pytest.raises(OptionError, match=r"^ignore='attention': did you mean 'attention_backend'\?$"):
        load_configs(source, ignore=["attention"])
    with pytest.raises(OptionError, match=r"^attention_backend is not about caching: "):
        fxcache.enable_cache(tiny_trunk(), attention_backend="sage")


def test_the_error_names_the_file(tmp_path):
    path = written(tmp_path, "cache_config: {max_warmup_step: 3}\n")
    with pytest.raises(OptionError) as caught:
        load_configs(path)
    assert str(caught.value) == (
        f"{path}: unknown key 'max_warmup_step' in cache_config: did you mean 'max_warmup_steps'?"
    )


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.yaml", "cache_config: {a: [}", "not YAML: "),
        ("a.json", '{"a": }', "not JSON: "),
        ("a.yaml", "max_contexts: 2\nmax_contexts: 3\n", "max_contexts stands there twice"),
        ("a.json", '{"max_contexts": 2, "max_contexts": 3}', "max_contexts stands there twice"),
        ("a.yaml", "- 1\n", "source=[1]: expected a mapping"),
        ("a.yml", "", "source=None: expected a mapping"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, sentence):
    path = written(tmp_path, text, name)
    with pytest.raises(OptionError) as caught:
        load_configs(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


def test_other_sources_and_targets(tmp_path):
    with pytest.raises(OptionError, match=r"^source='.*a.toml': expected a file that ends in .yaml, .yml or .json$"):
        load_configs(written(tmp_path, "", "a.toml"))
    with pytest.raises(
        OptionError, match=r"^source=3: expected the path of a .yaml, .yml or .json file, or a mapping$"
    ):
        load_configs(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        load_configs(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match=r"^path='.*a.toml': expected a file that ends in"):
        save_configs({}, tmp_path / "a.toml")
    with pytest.raises(OptionError, match=r"^unknown key 'max_context' in the configuration"):
        save_configs({"max_context": 3}, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_numbers_of_yaml_with_an_exponent(tmp_path):
    found = load_configs(written(tmp_path, "calibrator_type: dmd\ndmd_ridge: 1e-6\ntrunk: ['1e3']\n"))
    assert found["calibrator_config"].dmd_ridge == 1e-6 and found["trunk"] == ("1e3",)


def test_without_the_package_for_yaml(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(FxcacheError, match=r"^YAML files need the package pyyaml: pip install pyyaml, or use a .json"):
        load_configs(written(tmp_path, PEER))
    assert load_configs(written(tmp_path, "{}", "a.json")) == {"cache_config": DBCacheConfig()}


def test_what_is_loaded_is_what_enable_cache_takes(tmp_path):
    text = """
    cache_config: {Fn_compute_blocks: 1, max_warmup_steps: 1, residual_diff_threshold: 0.99}
    inner_backend: eager
    fullgraph: true
    params_modifiers:
      transformer_2: {cache_config: {max_warmup_steps: 2}}
    """
    pipe = Pipe(transformer=tiny_trunk(), transformer_2=tiny_trunk(seed=1))
    fxcache.enable_cache(pipe, **load_configs(written(tmp_path, text)))
    for name in ("transformer", "transformer_2"):
        loop(pipe.components[name])
    assert decisions(pipe) == ["C..", "CC."]


def test_what_is_saved_is_short(tmp_path):
    configs = {
        "cache_config": DBCacheConfig(Fn_compute_blocks=1, steps_computation_mask=[1, 0]),
        "calibrator_config": DMDCalibratorConfig(dmd_history=4),
        "params_modifiers": {"transformer_2": ParamsModifier(calibrator=None, max_warmup_steps=2)},
        "trunk": ("blocks",),
    }
    plain = save_configs(configs, tmp_path / "a.yaml")
    assert plain == yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert plain == {
        "cache_config": {"cache_type": "DBCache", "Fn_compute_blocks": 1, "steps_computation_mask": "10"},
        "calibrator_config": {"calibrator_type": "DMD", "dmd_history": 4},
        "params_modifiers": {"transformer_2": {"calibrator": None, "max_warmup_steps": 2}},
        "trunk": ["blocks"],
    }
    assert save_configs(configs, tmp_path / "a.json") == json.loads((tmp_path / "a.json").read_text())
    assert load_configs(tmp_path / "a.yaml") == load_configs(tmp_path / "a.json") == configs


def enabled_with(arguments: dict[str, Any]) -> list[Options]:
    pipe = Pipe(transformer=tiny_trunk(), transformer_2=tiny_trunk())
    fxcache.enable_cache(pipe, **arguments)
    found = [enabled_of(module) for module in pipe.components.values()]
    return [enabled.options for enabled in found if enabled is not None]


SECTION = consistent.map(lambda options: {name: value for name, value in options.items() if name != "inner_options"})


@given(consistent, st.lists(SECTION, max_size=2), st.sampled_from([".yaml", ".json"]))
def test_round_trip(tmp_path_factory, options, sections, suffix):
    path = tmp_path_factory.mktemp("configs", numbered=True) / f"a{suffix}"
    alone = load_configs(options)
    assert enabled_with(alone) == [Options(**options)] * 2
    configs = {**alone, "params_modifiers": load_configs({"params_modifiers": sections})["params_modifiers"]}
    for given_configs in (alone, configs):
        plain = save_configs(given_configs, path)
        again = load_configs(path)
        assert again == given_configs == load_configs(plain)
        assert save_configs(again) == plain
    with contextlib.suppress(OptionError):  # what two of them say together may be impossible
        wanted = enabled_with(configs)
        assert enabled_with(again) == wanted
