"""Options: every bad value with its sentence, conversions, round trips, and what is derived from them."""

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
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from fxcache.errors import OptionError
from fxcache.options import Options, options_table

NAN, INF = math.nan, math.inf
NAMES = [entry.name for entry in dataclasses.fields(Options)]


def integer_cases(name: str, low: int, high: int | None = None, *, optional: bool = False):
    span = f">= {low}" if high is None else f"from {low} to {high}"
    expected = f"{'None or ' if optional else ''}an integer {span}"
    bad = [(low - 1, str(low - 1)), (True, "True"), (2.0, "2.0"), ("2", "'2'"), (NAN, "nan"), ([2], "[2]")]
    if high is not None:
        bad.append((high + 1, str(high + 1)))
    if not optional:
        bad.append((None, "None"))
    return [(name, value, f"{name}={shown}: expected {expected}") for value, shown in bad]


def number_cases(name: str, limit: str = "", below: float | None = None, *, optional: bool = False):
    expected = f"{'None or ' if optional else ''}a finite number{limit}"
    bad = [(NAN, "nan"), (INF, "inf"), (-INF, "-inf"), (False, "False"), ("0.1", "'0.1'"), (1j, "1j"), ((), "()")]
    if below is not None:
        bad.append((below, repr(below)))
    if not optional:
        bad.append((None, "None"))
    return [(name, value, f"{name}={shown}: expected {expected}") for value, shown in bad]


NAMES_WANTED = "expected a sequence of different non-empty names, such as ['blocks']"
PLAIN = "expected None, bool, int, float, str, or a list or mapping of these"
CALIBRATORS = "expected None or 'taylorseer' or 'foca' or 'dmd' or 'regression'"
MASK = "expected None, or one 0 (reuse) or 1 (compute) per step, such as '1101001' or [1, 1, 0]"
DTYPE = "expected None, 'float32', 'bfloat16' or 'float16'"

BAD = [
    *integer_cases("Fn_compute_blocks", 0, optional=True),
    *integer_cases("Bn_compute_blocks", 0),
    *number_cases("residual_diff_threshold"),
    *integer_cases("max_warmup_steps", 0),
    *integer_cases("warmup_interval", 1),
    *integer_cases("max_cached_steps", -1),
    *integer_cases("max_continuous_cached_steps", -1),
    *number_cases("max_accumulated_residual_diff_threshold", " > 0", 0.0, optional=True),
    *integer_cases("num_inference_steps", 1, optional=True),
    *number_cases("l1_hidden_states_diff_threshold", optional=True),
    *number_cases("important_condition_threshold", " >= 0", -0.5),
    *integer_cases("downsample_factor", 1),
    *integer_cases("max_contexts", 1),
    *integer_cases("max_state_bytes", 1, optional=True),
    ("method", "dbcach", "method='dbcach': expected 'dbcache'; did you mean 'dbcache'?"),
    ("method", None, "method=None: expected 'dbcache'"),
    *integer_cases("taylorseer_order", 1, 4),
    *integer_cases("dmd_history", 4, 8),
    *integer_cases("dmd_rank", 0, 7),
    *number_cases("dmd_ridge", " >= 0", -1e-9),
    *integer_cases("regression_history", 2, 8),
    *number_cases("regression_ridge", " >= 0", -1e-9),
    ("calibrator", "taylor", f"calibrator='taylor': {CALIBRATORS}; did you mean 'taylorseer'?"),
    ("calibrator", "TaylorSeer", f"calibrator='TaylorSeer': {CALIBRATORS}; did you mean 'taylorseer'?"),
    ("calibrator", False, f"calibrator=False: {CALIBRATORS}"),
    (
        "indicator",
        "Residual",
        "indicator='Residual': expected None or 'residual' or 'forecast'; did you mean 'residual'?",
    ),
    ("indicator", True, "indicator=True: expected None or 'residual' or 'forecast'"),
    ("steps_computation_mask", "", f"steps_computation_mask='': {MASK}"),
    ("steps_computation_mask", [], f"steps_computation_mask=[]: {MASK}"),
    ("steps_computation_mask", "1021", f"steps_computation_mask='1021': {MASK}"),
    ("steps_computation_mask", [1, 2], f"steps_computation_mask=[1, 2]: {MASK}"),
    ("steps_computation_mask", [1, None], f"steps_computation_mask=[1, None]: {MASK}"),
    ("steps_computation_mask", 101, f"steps_computation_mask=101: {MASK}"),
    ("steps_computation_mask", {1, 0}, f"steps_computation_mask={{0, 1}}: {MASK}"),
    (
        "steps_computation_policy",
        "dynamc",
        "steps_computation_policy='dynamc': expected 'dynamic' or 'static'; did you mean 'dynamic'?",
    ),
    ("steps_computation_policy", None, "steps_computation_policy=None: expected 'dynamic' or 'static'"),
    ("enable_calibrator", 1, "enable_calibrator=1: expected True or False"),
    ("enable_calibrator", None, "enable_calibrator=None: expected True or False"),
    ("enable_encoder_calibrator", "no", "enable_encoder_calibrator='no': expected True or False"),
    (
        "calibrator_cache_type",
        "hidden",
        "calibrator_cache_type='hidden': expected 'residual' or 'hidden_states'; did you mean 'hidden_states'?",
    ),
    ("calibrator_cache_type", None, "calibrator_cache_type=None: expected 'residual' or 'hidden_states'"),
    ("calibrator_dtype", "float64", f"calibrator_dtype='float64': {DTYPE}"),
    ("calibrator_dtype", torch.int8, f"calibrator_dtype=torch.int8: {DTYPE}"),
    ("calibrator_dtype", 32, f"calibrator_dtype=32: {DTYPE}"),
    (
        "calibrator_time",
        "steps",
        "calibrator_time='steps': expected 'step' or 'timestep' or 'sigma'; did you mean 'step'?",
    ),
    ("calibrator_time", None, "calibrator_time=None: expected 'step' or 'timestep' or 'sigma'"),
    ("trunk", "blocks", f"trunk='blocks': {NAMES_WANTED}"),
    ("trunk", None, f"trunk=None: {NAMES_WANTED}"),
    ("trunk", [""], f"trunk=['']: {NAMES_WANTED}"),
    ("trunk", ["a", "a"], f"trunk=['a', 'a']: {NAMES_WANTED}"),
    ("trunk", [1], f"trunk=[1]: {NAMES_WANTED}"),
    (
        "inner_backend",
        "inducter",
        "inner_backend='inducter': expected 'inductor' or 'aot_eager' or 'eager'; did you mean 'inductor'?",
    ),
    ("inner_backend", 3, "inner_backend=3: expected 'inductor' or 'aot_eager' or 'eager'"),
    ("inner_options", None, "inner_options=None: expected a mapping"),
    ("inner_options", [("a", 1)], "inner_options=[('a', 1)]: expected a mapping"),
    ("inner_options", {1: 2}, "inner_options={1: 2}: expected string keys, found 1"),
    ("inner_options", {"a": len}, f"inner_options['a']=<built-in function len>: {PLAIN}"),
    ("inner_options", {"a": {1: 2}}, f"inner_options['a']={{1: 2}}: {PLAIN}"),
    ("on_refusal", "error", "on_refusal='error': expected 'warn' or 'raise'"),
    ("on_refusal", ["warn"], "on_refusal=['warn']: expected 'warn' or 'raise'; did you mean 'warn'?"),
    ("dump_dir", "", "dump_dir='': expected None or the path of a folder"),
    ("dump_dir", b"x", "dump_dir=b'x': expected None or the path of a folder"),
    ("dump_dir", 1, "dump_dir=1: expected None or the path of a folder"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BAD, ids=lambda entry: repr(entry)[:40])
def test_bad_value_is_refused_with_its_sentence(name: str, value: object, sentence: str):
    with pytest.raises(OptionError) as caught:
        Options.from_mapping({name: value})
    assert str(caught.value) == sentence


def test_every_option_has_a_bad_value_above():
    assert {name for name, _, _ in BAD} == set(NAMES)


def test_every_option_is_checked():
    assert list(options_module._CHECKS) == NAMES


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("residual_diff_treshold", "unknown option 'residual_diff_treshold': did you mean 'residual_diff_threshold'?"),
        ("Fn_compute_block", "unknown option 'Fn_compute_block': did you mean 'Fn_compute_blocks'?"),
        ("taylorseer_orders", "unknown option 'taylorseer_orders': did you mean 'taylorseer_order'?"),
        ("cfg_scale", f"unknown option 'cfg_scale': valid: {', '.join(NAMES)}"),
        (7, f"unknown option 7: valid: {', '.join(NAMES)}"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_name(key: object, sentence: str):
    with pytest.raises(OptionError) as caught:
        Options.from_mapping({key: 1})  # type: ignore[dict-item]
    assert str(caught.value) == sentence


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
        "l1_hidden_states_diff_threshold": st.none() | finite,
        "important_condition_threshold": st.floats(0, 1e6),
        "downsample_factor": counts,
        "trunk": st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=3),
        "inner_backend": st.sampled_from(["inductor", "aot_eager", "eager"]),
        "inner_options": st.dictionaries(st.text(max_size=5), plain, max_size=3),
        "on_refusal": st.sampled_from(["warn", "raise"]),
        "dump_dir": st.none() | st.text(min_size=1, max_size=5),
        "max_contexts": counts,
        "max_state_bytes": st.none() | counts,
    },
)


@given(valid_options)
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
    "l1_hidden_states_diff_threshold": 0.1,
    "important_condition_threshold": 0.1,
    "downsample_factor": 2,
    "indicator": "forecast",
    "steps_computation_policy": "static",
    "calibrator": "foca",
    "enable_calibrator": False,
    "enable_encoder_calibrator": False,
    "calibrator_cache_type": "hidden_states",
    "calibrator_dtype": "float16",
    "calibrator_time": "sigma",
    "taylorseer_order": 2,
    "dmd_history": 5,
    "dmd_rank": 2,
    "dmd_ridge": 0.0,
    "regression_history": 4,
    "regression_ridge": 0.0,
    "trunk": ("blocks",),
    "inner_backend": "eager",
    "inner_options": {"max_autotune": True},
}
HOST_ONLY = {"on_refusal": "raise", "dump_dir": "x", "max_contexts": 2, "max_state_bytes": 10}
HOST_ONLY["steps_computation_mask"] = (1, 0)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_changes_the_fingerprint(name: str):
    assert Options().replace(**{name: CHANGES[name]}).fingerprint() != Options().fingerprint()


@pytest.mark.parametrize("name", HOST_ONLY)
def test_host_options_keep_the_fingerprint(name: str):
    changed = Options().replace(**{name: HOST_ONLY[name]})
    assert changed != Options()
    assert changed.fingerprint() == Options().fingerprint()


def test_every_option_is_in_one_of_the_two_kinds():
    single_valued = {"method"}
    assert {*CHANGES, *HOST_ONLY, *single_valued} == set(NAMES)


def test_the_fingerprint_contains_the_version(monkeypatch: pytest.MonkeyPatch):
    before = Options().fingerprint()
    monkeypatch.setattr(options_module, "__version__", "0.0.0+other")
    assert Options().fingerprint() != before


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({}, True),
        ({"residual_diff_threshold": 0}, False),
        ({"residual_diff_threshold": -1}, False),
        ({"max_cached_steps": 0}, False),
        ({"max_continuous_cached_steps": 0}, False),
        ({"residual_diff_threshold": 0, "l1_hidden_states_diff_threshold": 0.1}, True),
        ({"l1_hidden_states_diff_threshold": 0}, False),
    ],
)
def test_can_reuse(mapping: dict[str, object], expected: bool):
    assert Options.from_mapping(mapping).can_reuse is expected


def test_the_l1_threshold_replaces_the_residual_one():
    assert Options(residual_diff_threshold=0.1).effective_threshold == 0.1
    assert Options(residual_diff_threshold=0.1, l1_hidden_states_diff_threshold=0.2).effective_threshold == 0.2


@pytest.mark.parametrize(
    ("length", "first"), [(2, 1), (4, 1), (7, 1), (8, 2), (12, 3), (31, 7), (32, 8), (57, 8), (1000, 8)]
)
def test_unset_fn_is_eight_but_at_most_a_quarter(length: int, first: int):
    assert Options().resolve_blocks(length) == (first, 0)


def test_explicit_blocks_are_taken_as_they_are():
    assert Options(Fn_compute_blocks=10, Bn_compute_blocks=1).resolve_blocks(12) == (10, 1)


@pytest.mark.parametrize(
    ("first", "last", "length", "sum_of"),
    [
        (6, 6, 12, "Fn_compute_blocks=6, Bn_compute_blocks=6"),
        (12, 0, 12, "Fn_compute_blocks=12, Bn_compute_blocks=0"),
        (None, 9, 12, "Fn_compute_blocks=3 (unset), Bn_compute_blocks=9"),
        (None, 0, 1, "Fn_compute_blocks=1 (unset), Bn_compute_blocks=0"),
    ],
)
def test_no_block_left_is_an_error_with_the_numbers(first: int | None, last: int, length: int, sum_of: str):
    with pytest.raises(OptionError) as caught:
        Options(Fn_compute_blocks=first, Bn_compute_blocks=last).resolve_blocks(length)
    assert str(caught.value) == (
        f"{sum_of}: expected a sum below {length}, the number of blocks of this trunk; none would be left to reuse"
    )


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
    written |= dict.fromkeys(("steps_computation_policy", "calibrator_cache_type", "calibrator_time"), "str")
    written |= {"indicator": "str | None", "calibrator_dtype": "Any"}
    configs = (FoCaCalibratorConfig, TaylorSeerCalibratorConfig, DMDCalibratorConfig, RegressionCalibratorConfig)
    for config in (DBCacheConfig, *configs):
        for entry in dataclasses.fields(config):
            option = of_options[entry.name]
            assert (entry.type, entry.default) == (written.get(entry.name, option.type), option.default)
    assert {entry.name for config in configs for entry in dataclasses.fields(config)} == {
        name for name in NAMES if name.startswith(("calibrator_", "enable_", "taylorseer_", "dmd_", "regression_"))
    }
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
