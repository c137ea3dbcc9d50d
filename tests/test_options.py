"""Options: conversions, round trips, and what is derived from them; see `test_bad_options` for wrong values."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache import options as options_module
from fxcache.configs import (
    DBCacheConfig,
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from fxcache.errors import OptionError
from fxcache.option_table import options_table
from fxcache.options import Options
from fxcache.steps import PRESETS

NAN, INF = math.nan, math.inf
NAMES = [entry.name for entry in dataclasses.fields(Options)]


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), 3])
def test_integers_come_in_many_forms_and_leave_as_int(value: object):
    given_options = Options.from_mapping({"max_warmup_steps": value})
    assert given_options == Options(max_warmup_steps=3)
    assert type(given_options.max_warmup_steps) is int


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), 0.5, torch.tensor(0.5).bfloat16()]
)
def test_numbers_come_in_many_forms_and_leave_as_float(value: object):
    given_options = Options.from_mapping({"residual_diff_threshold": value})
    assert given_options == Options(residual_diff_threshold=0.5)
    assert type(given_options.residual_diff_threshold) is float


@pytest.mark.parametrize(
    "value",
    [torch.tensor(True), np.bool_(True), torch.tensor([0.5]), torch.tensor(NAN), Decimal("0.5"), 10**400],
)
def test_other_forms_of_numbers_are_refused(value: object):
    with pytest.raises(OptionError, match=r"residual_diff_threshold=.*: expected a finite number$"):
        Options.from_mapping({"residual_diff_threshold": value})


def test_a_tensor_without_data_is_refused():
    with pytest.raises(OptionError, match=r"max_contexts=.*: expected an integer >= 1"):
        Options.from_mapping({"max_contexts": torch.empty((), dtype=torch.int64, device="meta")})


def test_options_are_immutable_and_hashable():
    given_options = Options(inner_options={"a": [1, 2]}, trunk=["x", "y"])  # type: ignore[arg-type]
    assert given_options.trunk == ("x", "y")
    with pytest.raises(dataclasses.FrozenInstanceError):
        given_options.max_contexts = 2  # type: ignore[misc]
    given_options.inner_options["a"].append(3)
    assert given_options.inner_options == {"a": [1, 2]}
    with pytest.raises(TypeError):
        given_options.inner_options["b"] = 1  # type: ignore[index]
    assert hash(given_options) == hash(copy.deepcopy(given_options))
    assert pickle.loads(pickle.dumps(given_options)) == given_options


def test_the_callers_mapping_is_copied():
    inner = {"a": [1]}
    given_options = Options(inner_options=inner)
    inner["a"].append(2)
    assert given_options.inner_options == {"a": [1]}


def test_a_path_becomes_a_string():
    assert Options.from_mapping({"dump_dir": Path("a") / "b"}).dump_dir == str(Path("a", "b"))


counts = st.integers(1, 10**6)
finite = st.floats(-1e6, 1e6)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
valid_options = st.fixed_dictionaries(
    {},
    optional={
        "Fn_compute_blocks": st.none() | counts,
        "Bn_compute_blocks": st.integers(0, 99),
        "residual_diff_threshold": finite,
        "max_warmup_steps": st.integers(0, 99),
        "warmup_interval": counts,
        "max_cached_steps": st.integers(-1, 99),
        "max_continuous_cached_steps": st.integers(-1, 99),
        "max_accumulated_residual_diff_threshold": st.none() | st.floats(1e-6, 1e6),
        "num_inference_steps": st.none() | counts,
        "force_refresh_step_hint": st.none() | counts,
        "force_refresh_step_policy": st.sampled_from(["once", "repeat"]),
        "enable_separate_cfg": st.sampled_from([None, True, False]),
        "cfg_compute_first": st.booleans(),
        "cfg_diff_compute_separate": st.booleans(),
        "l1_hidden_states_diff_threshold": st.none() | finite,
        "important_condition_threshold": st.floats(0, 1e6),
        "downsample_factor": counts,
        "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
        "calibrator": st.sampled_from([None, "taylorseer", "foca", "dmd", "regression"]),
        "enable_calibrator": st.booleans(),
        "enable_encoder_calibrator": st.booleans(),
        "calibrator_cache_type": st.sampled_from(["residual", "hidden_states"]),
        "calibrator_dtype": st.sampled_from([None, "float32", "bfloat16", "float16"]),
        "calibrator_time": st.sampled_from(["step", "timestep", "sigma"]),
        "calibrator_max_gain": st.none() | st.floats(1, 1e6),
        "taylorseer_order": st.integers(1, 4),
        "dmd_history": st.integers(4, 8),
        "dmd_rank": st.integers(0, 7),
        "dmd_ridge": st.floats(0, 1),
        "regression_history": st.integers(2, 8),
        "regression_ridge": st.floats(0, 1),
        "last_steps": st.integers(0, 99),
        "cache_interval": counts,
        "rescale_coefficients": st.lists(finite, min_size=1, max_size=8).map(tuple),
        "magnitude_ratios": st.lists(st.floats(1e-6, 1e6), max_size=9).map(tuple),
        "retention_ratio": st.floats(0, 1),
        "non_prune_block_ids": st.lists(st.integers(0, 99), unique=True).map(lambda ids: tuple(sorted(ids))),
        "prune_indicator": st.sampled_from(["previous", "input"]),
        "prune_group": counts,
        "enable_dynamic_prune_threshold": st.booleans(),
        "max_dynamic_prune_threshold": st.none() | st.floats(1e-6, 1e6),
        "dynamic_prune_threshold_relax_ratio": st.floats(0, 1e6),
        "force_reduce_calibrator_vram": st.booleans(),
        "steps_computation_mask": st.none()
        | st.sampled_from(PRESETS)
        | st.lists(st.sampled_from([0, 1]), min_size=1).map(tuple),
        "trunk": st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=3),
        "inner_backend": st.sampled_from(["inductor", "aot_eager", "eager"]),
        "inner_options": st.dictionaries(st.text(max_size=5), plain, max_size=3),
        "share_blocks": st.sampled_from([None, True, False]),
        "on_refusal": st.sampled_from(["warn", "raise"]),
        "dump_dir": st.none() | st.text(min_size=1, max_size=5),
        "max_contexts": counts,
        "max_state_bytes": st.none() | counts,
    },
)


# what a forecast of the indicator excludes is left out
consistent = valid_options.map(
    lambda mapping: (
        mapping
        if mapping.get("calibrator") != "regression"
        else {
            name: value
            for name, value in mapping.items()
            if name not in ("l1_hidden_states_diff_threshold", "important_condition_threshold")
        }
    )
)


@given(consistent)
def test_round_trip_and_stable_fingerprint(mapping: dict[str, object]):
    built = Options.from_mapping(mapping)
    again = Options.from_mapping(built.to_dict())
    assert again == built
    assert hash(again) == hash(built)
    assert again.fingerprint() == built.fingerprint()
    assert built.replace() == built
    assert all(getattr(built, name) == value for name, value in mapping.items() if name != "trunk")


CHANGES = {
    "Fn_compute_blocks": 2,
    "Bn_compute_blocks": 1,
    "residual_diff_threshold": 0.1,
    "max_warmup_steps": 1,
    "warmup_interval": 2,
    "max_cached_steps": 5,
    "max_continuous_cached_steps": 5,
    "max_accumulated_residual_diff_threshold": 0.5,
    "num_inference_steps": 20,
    "force_refresh_step_hint": 3,
    "force_refresh_step_policy": "repeat",
    "enable_separate_cfg": False,
    "cfg_compute_first": True,
    "cfg_diff_compute_separate": False,
    "l1_hidden_states_diff_threshold": 0.1,
    "important_condition_threshold": 0.1,
    "downsample_factor": 2,
    "indicator": "forecast",
    "steps_computation_policy": "static",
    "method": "teacache",
    "calibrator": "foca",
    "enable_calibrator": False,
    "enable_encoder_calibrator": False,
    "calibrator_cache_type": "hidden_states",
    "calibrator_dtype": "float16",
    "calibrator_time": "sigma",
    "calibrator_max_gain": None,
    "taylorseer_order": 2,
    "dmd_history": 5,
    "dmd_rank": 2,
    "dmd_ridge": 0.0,
    "regression_history": 4,
    "regression_ridge": 0.0,
    "trunk": ("blocks",),
    "inner_backend": "eager",
    "inner_options": {"max_autotune": True},
    "share_blocks": False,
    "non_prune_block_ids": (2,),
    "prune_indicator": "previous",
    "prune_group": 2,
    "force_reduce_calibrator_vram": True,
}
HOST_ONLY = {"on_refusal": "raise", "dump_dir": "x", "max_contexts": 2, "max_state_bytes": 10}
HOST_ONLY.update(trace_once=False, last_steps=1, cache_interval=2, steps_computation_mask=(1, 0))
HOST_ONLY.update(rescale_coefficients=(2.0, 0.0), magnitude_ratios=(1.0, 0.9))
HOST_ONLY.update(retention_ratio=0.5, enable_dynamic_prune_threshold=True)
HOST_ONLY["max_dynamic_prune_threshold"] = 0.5
HOST_ONLY["dynamic_prune_threshold_relax_ratio"] = 1.5
# inputs of the graph, or what is counted in front of it
AT_RUN_TIME = """
    calibrator_time cfg_compute_first cfg_diff_compute_separate enable_separate_cfg force_refresh_step_hint
    force_refresh_step_policy max_accumulated_residual_diff_threshold max_cached_steps max_continuous_cached_steps
    max_warmup_steps num_inference_steps residual_diff_threshold warmup_interval
""".split()
HOST_ONLY.update({name: CHANGES.pop(name) for name in AT_RUN_TIME})


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_changes_the_fingerprint(name: str):
    assert Options().replace(**{name: CHANGES[name]}).fingerprint() != Options().fingerprint()


@pytest.mark.parametrize("name", HOST_ONLY)
def test_host_options_keep_the_fingerprint(name: str):
    changed = Options().replace(**{name: HOST_ONLY[name]})
    assert changed != Options()
    assert changed.fingerprint() == Options().fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        {"residual_diff_threshold": 0.0},
        {"max_cached_steps": 0},
        {"max_continuous_cached_steps": 0},
        {"steps_computation_mask": "11"},
        {"steps_computation_mask": "10", "steps_computation_policy": "static"},
    ],
)
def test_but_what_makes_another_graph_changes_it(changed: dict[str, object]):
    assert Options().replace(**changed).fingerprint() != Options().fingerprint()


def test_every_option_is_in_one_of_the_two_kinds():
    assert {*CHANGES, *HOST_ONLY} == set(NAMES)


def test_the_fingerprint_contains_the_version(monkeypatch: pytest.MonkeyPatch):
    before = Options().fingerprint()
    monkeypatch.setattr(options_module, "__version__", "0.0.0+other")
    assert Options().fingerprint() != before


def test_replace_checks_again():
    with pytest.raises(OptionError, match=r"^max_contexts=0: expected an integer >= 1$"):
        Options().replace(max_contexts=0)
    with pytest.raises(OptionError, match="did you mean 'max_contexts'"):
        Options().replace(max_context=3)


def test_the_table_has_every_option_with_a_meaning():
    rows = options_table()
    assert [row.name for row in rows] == NAMES
    assert all(len(row.meaning) > 20 for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["residual_diff_threshold"].default == "0.08"
    assert by_name["residual_diff_threshold"].type == "float"
    assert by_name["max_state_bytes"].type == "int | None"


def test_config_shares_names_defaults_and_types_with_the_options():
    of_options = {entry.name: entry for entry in dataclasses.fields(Options)}
    # what a user may write for an option that is kept in a narrower form
    written = {"steps_computation_mask": "str | Sequence[int] | None"}
    words = "steps_computation_policy force_refresh_step_policy calibrator_cache_type calibrator_time"
    written |= dict.fromkeys(words.split(), "str")
    written |= {"non_prune_block_ids": "Sequence[int]", "prune_indicator": "str"}
    written |= {"indicator": "str | None", "calibrator_dtype": "Any"}
    configs = (FoCaCalibratorConfig, TaylorSeerCalibratorConfig, DMDCalibratorConfig, RegressionCalibratorConfig)
    for config in (DBCacheConfig, DBPruneConfig, *configs):
        for entry in dataclasses.fields(config):
            option = of_options[entry.name]
            assert (entry.type, entry.default) == (written.get(entry.name, option.type), option.default)
    assert {entry.name for config in configs for entry in dataclasses.fields(config)} == {
        name for name in NAMES if name.startswith(("calibrator_", "enable_", "taylorseer_", "dmd_", "regression_"))
    } - {"enable_separate_cfg", "enable_dynamic_prune_threshold"}
    assert DBCacheConfig().to_options() == Options()


def test_config_checks_its_values_when_it_is_built():
    with pytest.raises(OptionError, match=r"^Fn_compute_blocks=-1: expected None or an integer >= 0$"):
        DBCacheConfig(Fn_compute_blocks=-1)
    assert type(DBCacheConfig(residual_diff_threshold=1).residual_diff_threshold) is float


def test_config_to_options_takes_further_options():
    built = DBCacheConfig(max_warmup_steps=4).to_options(inner_backend="eager", max_warmup_steps=2)
    assert built == Options(max_warmup_steps=2, inner_backend="eager")
    with pytest.raises(OptionError, match="did you mean 'inner_backend'"):
        DBCacheConfig().to_options(inner_backends="eager")


@pytest.mark.parametrize("value", ["1101", [1, 1, 0, 1], (True, True, False, True), ["1", "1", "0", "1"]])
def test_a_mask_comes_in_many_forms_and_leaves_as_a_tuple(value: object):
    made = Options.from_mapping({"steps_computation_mask": value}).steps_computation_mask
    assert made == (1, 1, 0, 1)
    assert [type(entry) for entry in made] == [int] * 4


@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_leaves_by_its_name(value: object):
    assert Options.from_mapping({"calibrator_dtype": value}).calibrator_dtype == "bfloat16"


def test_of_a_mask_the_fingerprint_knows_only_whether_it_alone_decides():
    def fingerprints(policy: str) -> list[str]:
        masks = (None, "10", "110", (1, 0))
        return [
            Options.from_mapping({"steps_computation_mask": mask, "steps_computation_policy": policy}).fingerprint()
            for mask in masks
        ]

    dynamic, (unused, *static) = fingerprints("dynamic"), fingerprints("static")
    assert len(set(dynamic)) == 1
    assert len(set(static)) == 1
    assert len({dynamic[0], unused, static[0]}) == 3
