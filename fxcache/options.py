"""The options of the backend: one frozen object, checked when it is built."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fxcache import checks, forecasts, split
from fxcache.contradictions import check_together
from fxcache.errors import OptionError
from fxcache.option_rules import CHECKS, HOST_ONLY
from fxcache.steps import preset_mask
from fxcache.version import __version__

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of the backend, as ``torch.compile(model, backend="fxcache", options={...})`` takes them.

    A wrong value raises :class:`~fxcache.errors.OptionError` here, not at the first call. Derive a changed object with
    :meth:`replace`; nothing ever edits one.

    >>> Options(Fn_compute_blocks=1).resolve_blocks(12)
    (1, 0)
    """

    method: Literal["dbcache", "dbprune", "interval", "teacache", "magcache", "easycache"] = "dbcache"
    """Caching method. ``dbcache``: the first blocks decide whether the middle blocks are computed or reused.
    ``dbprune``: every block of the middle is computed or reused for itself. ``interval``: every n-th step is computed.
    ``teacache``: the changes of what the first block reads are summed. ``magcache``: known ratios of magnitudes are.
    ``easycache``: the changes of what the trunk gives are estimated from those of what enters it, and summed."""

    Fn_compute_blocks: int | None = None
    """Blocks at the start of the trunk that always run and whose residual is the indicator, >= 0. With 0 the indicator
    is what the first block reads. None: 8, but never more than a quarter of the trunk (at least 1), and 0 with the
    methods that skip the whole trunk: all but ``dbcache``. Source: cache-dit, which always takes 8 and allows no 0."""

    Bn_compute_blocks: int = 0
    """Blocks at the end of the trunk that always run, >= 0; on approximated states when reused. Source: cache-dit."""

    residual_diff_threshold: float = 0.08
    """A step is reused while the relative difference of the indicator to the last computed step is below this number.
    Any finite number; 0 or less never reuses and leaves the graph as it is; 1 or more reuses at any finite difference.
    ``teacache``, ``magcache``, ``easycache``: their sum is compared, with 1 and more too. Source: cache-dit."""

    max_warmup_steps: int = 8
    """Number of leading steps in which the warmup applies, >= 0. Source: cache-dit."""

    warmup_interval: int = 1
    """In the warmup, every n-th step is computed, >= 1; the steps between follow the threshold. Source: cache-dit."""

    last_steps: int = 0
    """Number of final steps that are always computed, >= 0. It takes effect where the number of steps is known: from
    ``num_inference_steps``, or from what the pipeline or `fxcache.generation` says."""

    cache_interval: int = 3
    """Method ``interval``: from one computed step to the next, >= 1; 1 computes every step. Source: FORA."""

    rescale_coefficients: tuple[float, ...] = (1.0, 0.0)
    """Method ``teacache``: 1 to 8 coefficients of the polynomial that turns a difference into what is summed, highest
    power first. Source: TeaCache."""

    magnitude_ratios: tuple[float, ...] = ()
    """Method ``magcache``: how many times larger what the trunk adds is at a step than at the one before, one number
    > 0 per step; spread over the steps of the generation. Source: MagCache."""

    retention_ratio: float = 0.2
    """Method ``magcache``: share of the steps, at the start, that is always computed, 0 to 1. Source: MagCache."""

    max_cached_steps: int = -1
    """Most steps reused in one generation and branch; -1: no limit, 0: never reuse. Source: cache-dit."""

    max_continuous_cached_steps: int = -1
    """Most steps reused in a row; -1: no limit, 0: never reuse. Source: cache-dit."""

    max_accumulated_residual_diff_threshold: float | None = None
    """Limit for the sum of the differences of the steps reused since the last computed one, > 0; None: no limit.
    The sum restarts after every computed step (in cache-dit it never does)."""

    num_inference_steps: int | None = None
    """Steps of one generation, >= 1: where neither the pipeline nor the time of the step shows a new generation, one
    begins after this many steps. None: not known. Source: cache-dit, which begins one step late."""

    force_refresh_step_hint: int | None = None
    """Before this step of a generation, >= 1, the state of a branch is dropped, and its warmup and limits begin again.
    The digits of a mask and the end of the generation stay where they are. None: never. Source: cache-dit, which counts
    calls of the model and begins a new generation."""

    force_refresh_step_policy: Literal["once", "repeat"] = "once"
    """``once``: before the step of ``force_refresh_step_hint``; ``repeat``: before every multiple of it.
    Source: cache-dit."""

    enable_separate_cfg: bool | None = None
    """How the calls of one step are told apart. None: by the names that the pipeline gives and by their conditioning.
    True: calls that nothing else tells apart also by their order within the step. False: one call per step, even if its
    conditioning is another one every time. Source: cache-dit, which counts calls."""

    cfg_compute_first: bool = False
    """Whether the unconditional branch is called first. The branch called first leads, whichever that is; with
    ``enable_separate_cfg=True`` this says what branches without a name are called. Source: cache-dit."""

    cfg_diff_compute_separate: bool = True
    """Whether every branch decides for itself. False: the branches called later in a step do what the first one did,
    without a comparison; where that is impossible they decide. Source: cache-dit."""

    l1_hidden_states_diff_threshold: float | None = None
    """If set: compare the states after the first blocks, not their residual, and against this number; 0 or less never
    reuses. Source: cache-dit."""

    important_condition_threshold: float = 0.0
    """If > 0: only tokens that changed by more than this count in the difference, if there are any; >= 0.
    Source: cache-dit."""

    downsample_factor: int = 1
    """Only every n-th channel enters the indicator, >= 1: less memory for the reference. Source: cache-dit."""

    indicator: Literal["residual", "forecast"] | None = None
    """What the threshold is compared with. ``residual``: the mean absolute difference between what the first blocks add
    now and what they added at the last computed step. ``forecast``: the distance (root mean square) between what they
    add now and the calibrator's forecast of it, the forecast's own error. None: ``forecast`` for the calibrator
    ``regression``, which needs it, ``residual`` otherwise."""

    steps_computation_mask: tuple[int, ...] | str | None = None
    """One 1 (compute) or 0 per step, as a string or a sequence; steps behind its end are computed. ``slow``,
    ``medium``, ``fast``, ``ultra``: the mask of `fxcache.steps_mask` for the number of steps; where that is not known,
    every step is computed. None: no mask. Source: cache-dit."""

    steps_computation_policy: Literal["dynamic", "static"] = "dynamic"
    """What a 0 of the mask means. ``dynamic``: the other rules decide; ``static``: reuse, whatever the difference is.
    Source: cache-dit."""

    calibrator: Literal["taylorseer", "foca", "dmd", "regression"] | None = None
    """How a reused step is predicted from the computed ones. None: the last residual as it is. ``taylorseer``: a
    polynomial in time; ``foca``: predictor and corrector; ``dmd``: exponentials; ``regression``: the combination of the
    stored steps that gives what the first blocks add now."""

    enable_calibrator: bool = True
    """Whether the stream of the indicator (image, video) is predicted; if not, it is reused. Source: cache-dit."""

    enable_encoder_calibrator: bool = True
    """Whether the other streams (text) are predicted; if not, they are reused. Source: cache-dit."""

    calibrator_cache_type: Literal["residual", "hidden_states"] = "residual"
    """What is predicted: what the middle adds to a stream, or the stream behind it. Source: cache-dit."""

    calibrator_dtype: str | None = None
    """Dtype in which predicted streams are stored: ``float32``, ``bfloat16`` or ``float16``; None: their own."""

    calibrator_time: Literal["step", "timestep", "sigma"] = "step"
    """Axis of the prediction: the number of the step, the time the model is called with, or the noise level that the
    pipeline names. Where the host does not know the time without waiting for the device, the step counts."""

    calibrator_max_gain: float | None = 3.0
    """By how much a polynomial or exponentials in time may multiply errors of the stored values, >= 1: what the
    weights' absolute values may sum to. Where it would be more, a lower order is taken; None: no limit."""

    taylorseer_order: int = 1
    """Order of the polynomial, 1 to 4; order + 1 values are stored per stream. Source: cache-dit."""

    dmd_history: int = 6
    """Computed steps that are stored, 4 to 8. Source: cache-dit."""

    dmd_rank: int = 0
    """Exponentials at most, 0 to 7; 0: as many as the stored steps resolve. Source: cache-dit."""

    dmd_ridge: float = 1e-8
    """Share of the largest singular value added to all, >= 0. Source: cache-dit."""

    regression_history: int = 3
    """Computed steps that are stored and combined, 2 to 8."""

    regression_ridge: float = 0.03
    """How much the parabola in time counts beside the first blocks, as a share of their mean square distance, >= 0."""

    non_prune_block_ids: tuple[int, ...] = ()
    """With ``dbprune``: blocks that always run, numbered over the whole trunk from 0. Source: cache-dit, which numbers
    every module list for itself."""

    prune_indicator: Literal["input", "previous"] = "input"
    """With ``dbprune``: what decides about a block. ``input``: its input now, as in cache-dit: the host waits for the
    device once per decision. ``previous``: how far its input had moved at the step before, carried on to this one: all
    blocks are decided at once, less exactly."""

    prune_group: int = 1
    """With ``dbprune``: blocks in a row that share a decision and their stored values, >= 1."""

    enable_dynamic_prune_threshold: bool = False
    """With ``dbprune``: let the threshold grow with the differences that the first blocks of a step show. Source:
    cache-dit."""

    max_dynamic_prune_threshold: float | None = None
    """Where that growth ends, > 0; None: twice the threshold. Source: cache-dit, where a threshold beyond it falls back
    to where it began."""

    dynamic_prune_threshold_relax_ratio: float = 1.25
    """The grown threshold is the mean of the first five differences of the step times this, >= 0. Source: cache-dit."""

    force_reduce_calibrator_vram: bool = False
    """With ``dbprune`` and a calibrator: let at most every fourth channel enter the indicator. Source: cache-dit."""

    trunk: tuple[str, ...] = ()
    """Names of the module lists that form the trunk, in order; empty: discover it."""

    inner_backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """Compiler that gets the rewritten graph."""

    inner_options: Mapping[str, Any] = field(default_factory=dict)
    """Options for the inner compiler: Inductor's settings and ``mode``, such as ``{"mode": "max-autotune"}``."""

    share_blocks: bool | None = None
    """With ``inner_backend`` "inductor": compile blocks of one structure once. None: in graphs that are cached, so that
    others are left to plain Inductor as they are."""

    trace_once: bool = True
    """Whether blocks that cannot be told apart are traced once (torch 2.13): less time for the same graphs."""

    on_refusal: Literal["warn", "raise"] = "warn"
    """What a graph without a usable trunk does: run uncached with one warning, or raise ``RefusalError``."""

    dump_dir: str | None = None
    """Folder for the graph before and after every pass; None: nothing is written."""

    max_contexts: int = 16
    """Contexts (generation and branch) kept per model, >= 1; the least recently used one goes first, and that costs one
    computed step if it comes back."""

    max_state_bytes: int | None = None
    """Bytes that the contexts of one model may hold together, >= 1; None: no limit but ``max_contexts``."""

    def __post_init__(self) -> None:
        for name, check in CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        check_together(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> Options:
        """Build the options from a flat mapping; an unknown key is an error that names the nearest valid one."""
        given = {} if mapping is None else mapping
        for key in given:
            if key not in CHECKS:
                raise OptionError(f"unknown option {key!r}: {checks.nearest(key, CHECKS)}")
        return cls(**given)

    def replace(self, **changes: Any) -> Options:
        """Return the same options with some changed, checked again."""
        return self.from_mapping({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return all options as a flat mapping that :meth:`from_mapping` takes back."""
        return {name: getattr(self, name) for name in CHECKS}

    @property
    def prunes(self) -> bool:
        """Whether every block is decided for itself."""
        return self.method == "dbprune"

    @property
    def indicator_stride(self) -> int:
        """Every how-manieth channel the indicator looks at."""
        reduced = self.prunes and self.force_reduce_calibrator_vram and self.calibrator is not None
        return max(4, self.downsample_factor) if reduced else self.downsample_factor

    @property
    def effective_threshold(self) -> float:
        """The number that the difference is compared with; infinite where nothing is compared."""
        if self.method == "interval":
            return math.inf
        l1 = self.l1_hidden_states_diff_threshold
        return self.residual_diff_threshold if l1 is None else l1

    @property
    def can_reuse(self) -> bool:
        """Whether any step could ever be reused; if not, the graph is left as it is."""
        mask, steps = self.steps_computation_mask, self.num_inference_steps
        if isinstance(mask, str):
            mask = None if steps is None else preset_mask(mask, steps)
        if mask is not None and 0 not in mask:
            return False
        if self.has_static_mask:
            return True
        if self.method == "interval" and self.cache_interval == 1:
            return False
        return self.effective_threshold > 0 and self.max_cached_steps != 0 and self.max_continuous_cached_steps != 0

    @property
    def has_static_mask(self) -> bool:
        """Whether a mask alone decides."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"

    @property
    def has_schedule(self) -> bool:
        """Whether the host alone decides: by a static mask, or by a method that compares nothing."""
        return self.has_static_mask or self.method in ("interval", "magcache")

    @property
    def sums_changes(self) -> bool:
        """Whether the indicator is compared with that of the previous step, and the differences are summed."""
        return self.method in ("teacache", "easycache") and not self.has_static_mask

    @property
    def estimates_change(self) -> bool:
        """Whether what is summed is the change of what the trunk gives, estimated from what enters it."""
        return self.method == "easycache" and self.sums_changes

    @property
    def forecasts_indicator(self) -> bool:
        """Whether the indicator is the error of the forecast."""
        return self.calibrator == "regression" if self.indicator is None else self.indicator == "forecast"

    @property
    def observes(self) -> bool:
        """Whether a step needs an indicator at all."""
        return not self.has_schedule or self.calibrator == "regression"

    @property
    def history(self) -> int:
        """Computed steps stored per predicted stream."""
        return forecasts.history_of(self)

    @property
    def forecast(self) -> str:
        """The calibrator and its numbers, as they stand in the graph; empty for none."""
        return forecasts.forecast_of(self)

    def resolve_blocks(self, trunk_length: int) -> tuple[int, int]:
        """Return how many blocks at the start and at the end always run, for a trunk of this many blocks.

        Raises OptionError if no block is left between them.
        """
        return split.blocks_that_run(self, trunk_length)

    def resolve_units(self, trunk_length: int) -> list[tuple[int, int]]:
        """Return the units that `method="dbprune"` decides about, as (first block, one behind the last).

        Raises OptionError for a number in `non_prune_block_ids` that the trunk has not, and if no block is left.
        """
        return split.units(self, trunk_length)

    def fingerprint(self) -> str:
        """Return a stable hash of the package version and every option that can shape a compiled graph."""
        shaping = {name: value for name, value in self.to_dict().items() if name not in HOST_ONLY}
        shaping["rewritten"], shaping["observes"] = self.can_reuse, self.observes
        text = json.dumps({"fxcache": __version__, **shaping}, sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()
