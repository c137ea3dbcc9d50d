"""What every option may be, and which of them shape a compiled graph."""

from __future__ import annotations

from fxcache import checks

__all__ = ["CHECKS", "HOST_ONLY"]

CHECKS: dict[str, checks.Check] = {
    "method": checks.choice("dbcache", "dbprune", "interval", "teacache", "magcache", "easycache"),
    "Fn_compute_blocks": checks.integer(0, optional=True),
    "Bn_compute_blocks": checks.integer(0),
    "residual_diff_threshold": checks.number(),
    "max_warmup_steps": checks.integer(0),
    "warmup_interval": checks.integer(1),
    "last_steps": checks.integer(0),
    "cache_interval": checks.integer(1),
    "rescale_coefficients": checks.finite_numbers(1, 8),
    "magnitude_ratios": checks.finite_numbers(0, above=0),
    "retention_ratio": checks.number(at_least=0, at_most=1),
    "max_cached_steps": checks.integer(-1),
    "max_continuous_cached_steps": checks.integer(-1),
    "max_accumulated_residual_diff_threshold": checks.number(above=0, optional=True),
    "num_inference_steps": checks.integer(1, optional=True),
    "force_refresh_step_hint": checks.integer(1, optional=True),
    "force_refresh_step_policy": checks.choice("once", "repeat"),
    "enable_separate_cfg": checks.optional_switch,
    "cfg_compute_first": checks.switch,
    "cfg_diff_compute_separate": checks.switch,
    "l1_hidden_states_diff_threshold": checks.number(optional=True),
    "important_condition_threshold": checks.number(at_least=0),
    "downsample_factor": checks.integer(1),
    "indicator": checks.choice(None, "residual", "forecast"),
    "steps_computation_mask": checks.mask,
    "steps_computation_policy": checks.choice("dynamic", "static"),
    "calibrator": checks.choice(None, "taylorseer", "foca", "dmd", "regression"),
    "enable_calibrator": checks.switch,
    "enable_encoder_calibrator": checks.switch,
    "calibrator_cache_type": checks.choice("residual", "hidden_states"),
    "calibrator_dtype": checks.dtype,
    "calibrator_time": checks.choice("step", "timestep", "sigma"),
    "calibrator_max_gain": checks.number(at_least=1, optional=True),
    "taylorseer_order": checks.integer(1, 4),
    "dmd_history": checks.integer(4, 8),
    "dmd_rank": checks.integer(0, 7),
    "dmd_ridge": checks.number(at_least=0),
    "regression_history": checks.integer(2, 8),
    "regression_ridge": checks.number(at_least=0),
    "non_prune_block_ids": checks.integers(0),
    "prune_indicator": checks.choice("input", "previous"),
    "prune_group": checks.integer(1),
    "enable_dynamic_prune_threshold": checks.switch,
    "max_dynamic_prune_threshold": checks.number(above=0, optional=True),
    "dynamic_prune_threshold_relax_ratio": checks.number(at_least=0),
    "force_reduce_calibrator_vram": checks.switch,
    "trunk": checks.names,
    "inner_backend": checks.choice("inductor", "aot_eager", "eager"),
    "inner_options": checks.plain_mapping,
    "share_blocks": checks.optional_switch,
    "trace_once": checks.switch,
    "on_refusal": checks.choice("warn", "raise"),
    "dump_dir": checks.path,
    "max_contexts": checks.integer(1),
    "max_state_bytes": checks.integer(1, optional=True),
}

HOST_ONLY = frozenset(
    "cache_interval calibrator_time cfg_compute_first cfg_diff_compute_separate dump_dir "
    "dynamic_prune_threshold_relax_ratio enable_dynamic_prune_threshold enable_separate_cfg force_refresh_step_hint "
    "force_refresh_step_policy last_steps magnitude_ratios max_accumulated_residual_diff_threshold max_cached_steps "
    "max_contexts max_continuous_cached_steps max_dynamic_prune_threshold max_state_bytes max_warmup_steps "
    "num_inference_steps on_refusal rescale_coefficients residual_diff_threshold retention_ratio "
    "steps_computation_mask trace_once warmup_interval".split()
)
"""Options that only the code around the graph reads: the graph takes a threshold as an input."""
