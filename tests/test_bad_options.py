"""Every bad value of every option with its sentence, and unknown names."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fxcache import option_rules
from fxcache.errors import OptionError
from fxcache.options import Options

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
BLOCKS = "expected a sequence of different integers >= 0, such as [0, 3]"
METHODS = "expected 'dbcache' or 'dbprune' or 'interval' or 'teacache' or 'magcache' or 'easycache'"
COEFFICIENTS = "expected 1 to 8 finite numbers in a sequence"
RATIOS = "expected any number of finite numbers > 0 in a sequence"
MASK = "expected None, 'slow', 'medium', 'fast', 'ultra', "
MASK += "or one 0 (reuse) or 1 (compute) per step, such as '1101001' or [1, 1, 0]"
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
    *integer_cases("force_refresh_step_hint", 1, optional=True),
    (
        "force_refresh_step_policy",
        "repeated",
        "force_refresh_step_policy='repeated': expected 'once' or 'repeat'; did you mean 'repeat'?",
    ),
    ("force_refresh_step_policy", 1, "force_refresh_step_policy=1: expected 'once' or 'repeat'"),
    ("share_blocks", 1, "share_blocks=1: expected None, True or False"),
    ("share_blocks", "auto", "share_blocks='auto': expected None, True or False"),
    ("enable_separate_cfg", 1, "enable_separate_cfg=1: expected None, True or False"),
    ("enable_separate_cfg", "auto", "enable_separate_cfg='auto': expected None, True or False"),
    ("cfg_compute_first", None, "cfg_compute_first=None: expected True or False"),
    ("cfg_compute_first", 0, "cfg_compute_first=0: expected True or False"),
    ("cfg_diff_compute_separate", None, "cfg_diff_compute_separate=None: expected True or False"),
    ("cfg_diff_compute_separate", "no", "cfg_diff_compute_separate='no': expected True or False"),
    *number_cases("l1_hidden_states_diff_threshold", optional=True),
    *number_cases("important_condition_threshold", " >= 0", -0.5),
    *integer_cases("downsample_factor", 1),
    *integer_cases("max_contexts", 1),
    *integer_cases("max_state_bytes", 1, optional=True),
    ("method", "dbcach", f"method='dbcach': {METHODS}; did you mean 'dbcache'?"),
    ("method", "TeaCache", f"method='TeaCache': {METHODS}; did you mean 'teacache'?"),
    ("method", None, f"method=None: {METHODS}"),
    *integer_cases("last_steps", 0),
    *integer_cases("cache_interval", 1),
    *number_cases("retention_ratio", " >= 0 and <= 1", -0.1),
    ("retention_ratio", 1.01, "retention_ratio=1.01: expected a finite number >= 0 and <= 1"),
    *(
        ("rescale_coefficients", value, f"rescale_coefficients={value!r}: {COEFFICIENTS}")
        for value in ((), [NAN], [True], ["1"], "10", 1.0, None, {1.0: 2})
    ),
    ("rescale_coefficients", [0] * 9, f"rescale_coefficients=[0, 0, 0, 0, 0, 0, ...]: {COEFFICIENTS}"),
    *(
        ("magnitude_ratios", value, f"magnitude_ratios={value!r}: {RATIOS}")
        for value in ([1.0, 0.0], [-1.0], [INF], [None], "1", 0.5, None)
    ),
    *(
        ("non_prune_block_ids", value, f"non_prune_block_ids={value!r}: {BLOCKS}")
        for value in (None, 3, "3", [-1], [1.0], [True], [2, 2], ["2"], {2})
    ),
    (
        "prune_indicator",
        "inputs",
        "prune_indicator='inputs': expected 'input' or 'previous'; did you mean 'input'?",
    ),
    ("prune_indicator", None, "prune_indicator=None: expected 'input' or 'previous'"),
    *integer_cases("prune_group", 1),
    ("enable_dynamic_prune_threshold", 1, "enable_dynamic_prune_threshold=1: expected True or False"),
    *number_cases("max_dynamic_prune_threshold", " > 0", 0.0, optional=True),
    *number_cases("dynamic_prune_threshold_relax_ratio", " >= 0", -0.1),
    ("force_reduce_calibrator_vram", None, "force_reduce_calibrator_vram=None: expected True or False"),
    ("steps_computation_mask", "fasts", f"steps_computation_mask='fasts': {MASK}"),
    *number_cases("calibrator_max_gain", " >= 1", 0.99, optional=True),
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
    ("trace_once", None, "trace_once=None: expected True or False"),
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
    assert list(option_rules.CHECKS) == NAMES


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


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        (
            {"calibrator": "regression", "indicator": "residual"},
            "indicator='residual': expected 'forecast' or None with calibrator='regression'",
        ),
        (
            {"indicator": "forecast", "important_condition_threshold": 0.1},
            "important_condition_threshold=0.1: expected its default with indicator='forecast'",
        ),
        (
            {"calibrator": "regression", "l1_hidden_states_diff_threshold": 0.1},
            "l1_hidden_states_diff_threshold=0.1: expected its default with indicator='forecast'",
        ),
        (
            {"method": "dbprune", "indicator": "forecast"},
            "indicator='forecast': expected 'residual' or None with method='dbprune'",
        ),
        (
            {"method": "teacache", "calibrator": "regression"},
            "calibrator='regression': expected another one, or None, with method='teacache'",
        ),
        (
            {"method": "easycache", "indicator": "forecast"},
            "indicator='forecast': expected 'residual' or None with method='easycache'",
        ),
        *(
            (
                {"method": method, "l1_hidden_states_diff_threshold": 0.1},
                f"l1_hidden_states_diff_threshold=0.1: expected its default with method={method!r}",
            )
            for method in ("dbprune", "interval", "teacache", "easycache")
        ),
        (
            {"method": "easycache", "downsample_factor": 2},
            "downsample_factor=2: expected its default with method='easycache'",
        ),
        (
            {"method": "easycache", "important_condition_threshold": 0.1},
            "important_condition_threshold=0.1: expected its default with method='easycache'",
        ),
    ],
)
def test_options_that_contradict_each_other(mapping: dict[str, object], sentence: str):
    with pytest.raises(OptionError) as caught:
        Options.from_mapping(mapping)
    assert str(caught.value) == sentence
    for name in mapping:
        Options.from_mapping({name: mapping[name]})


def test_magcache_needs_a_table():
    with pytest.raises(OptionError) as caught:
        Options(method="magcache")
    sentence = (
        "magnitude_ratios=(): expected one number > 0 per step with method='magcache'; fxcache.calibrate measures them"
    )
    assert str(caught.value) == sentence
    assert Options(method="magcache", magnitude_ratios=[1, 0.5]).magnitude_ratios == (1.0, 0.5)  # type: ignore[arg-type]


def test_options_that_contradict_each_other_are_found_when_one_is_replaced():
    with pytest.raises(OptionError, match=r"^indicator='residual': expected 'forecast' or None"):
        Options(indicator="residual").replace(calibrator="regression")
