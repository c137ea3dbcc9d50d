"""The short name of a configuration."""

from __future__ import annotations

import pytest
import torch

import fxcache
from fxcache.configs import (
    DBCacheConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    RegressionCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from fxcache.errors import StateError
from fxcache.options import Options
from fxcache.short_name import strify
from tests.models.tiny_trunk import tiny_trunk
from tests.test_api import FAST, Pipe, loop

PLAIN = DBCacheConfig(Fn_compute_blocks=8)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (PLAIN, "DBCache_F8B0_W8I1M-1MC-1_R0.08_T0O0"),
        (DBCacheConfig(), "DBCache_FautoB0_W8I1M-1MC-1_R0.08_T0O0"),
        (
            DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=2, max_cached_steps=0, max_continuous_cached_steps=3),
            "DBCache_F1B2_W8I1M0MC3_R0.08_T0O0",
        ),
        (
            DBCacheConfig(
                Fn_compute_blocks=1,
                max_warmup_steps=2,
                warmup_interval=2,
                residual_diff_threshold=0.5,
                steps_computation_mask="110",
                steps_computation_policy="static",
                num_inference_steps=8,
                force_refresh_step_hint=3,
                force_refresh_step_policy="repeat",
                enable_separate_cfg=False,
            ),
            "DBCache_F1B0_W2I2M-1MC-1_R0.5_SCM110_static_N8_FR3_repeat_CFG0_T0O0",
        ),
        (Options(enable_separate_cfg=True, Fn_compute_blocks=1), "DBCache_F1B0_W8I1M-1MC-1_R0.08_CFG1_T0O0"),
        (TaylorSeerCalibratorConfig(taylorseer_order=2), "DBCache_FautoB0_W8I1M-1MC-1_R0.08_T1O2"),
        (FoCaCalibratorConfig(), "DBCache_FautoB0_W8I1M-1MC-1_R0.08_FoCa"),
        ({"cache_config": PLAIN, "calibrator_config": DMDCalibratorConfig()}, "DBCache_F8B0_W8I1M-1MC-1_R0.08_DMDH6"),
        (
            {"cache_config": PLAIN, "calibrator_config": RegressionCalibratorConfig(), "max_warmup_steps": 1},
            "DBCache_F8B0_W1I1M-1MC-1_R0.08_RegressionH3",
        ),
    ],
)
def test_names_of_configurations(target, name):
    assert strify(target) == name


def test_no_limit_and_never_differ():
    names = {strify(DBCacheConfig(max_cached_steps=count)) for count in (-1, 0, 1)}
    assert len(names) == 3


def test_names_of_models():
    model, second = tiny_trunk(), tiny_trunk(seed=1)
    with pytest.raises(StateError) as caught:
        strify(model)
    assert str(caught.value) == "fxcache is not switched on for TinyTrunk: call fxcache.enable_cache first"
    pipe = Pipe(transformer=model, transformer_2=second)
    fxcache.enable_cache(pipe, **FAST)
    name = "DBCache_F1B0_W1I1M-1MC-1_R0.99_T0O0"
    assert strify(pipe) == strify(model) == name
    loop(model, 5)
    assert strify(model) == f"{name}_S4"
    assert strify(pipe) == f"transformer={name}_S4,transformer_2={name}"
    fxcache.refresh_context(model, max_warmup_steps=2)
    loop(model, 5)
    assert strify(model) == "DBCache_F1B0_W2I1M-1MC-1_R0.99_T0O0_S3"
    by_hand = tiny_trunk(seed=2)
    compiled = torch.compile(by_hand, backend="fxcache", options=FAST)
    loop(compiled, 3)
    assert strify(by_hand) == strify(compiled) == f"{name}_S2"
