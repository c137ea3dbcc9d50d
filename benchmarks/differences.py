"""Sequences of calls that cache-dit 1.5.3 and fxcache answer differently, played to both on a small random transformer.

`python -m benchmarks.differences` prints what both did; a word has one character per call, `C` computed, `.` reused. It
needs no GPU, nothing is downloaded, and `pip install -c constraints.txt -e ".[bench,peers]"` adds cache-dit. What it
prints stands in `docs/coming-from-cache-dit.md`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

import fxcache
from benchmarks.digits.sample import DigitsPipeline, load_pipeline
from benchmarks.peers import INSTALL, count_blocks
from fxcache.calibrators import CALIBRATORS
from fxcache.kernels import Window

BLOCKS = 4
"""Double blocks, which are cached; the one single block behind them always runs."""
TOKENS, TEXT, STEPS = 16, 7, 8

Seen = tuple[str, str]
"""What cache-dit and fxcache did."""


class Prompt:
    """Conditioning and noise of one request; the conditioning keeps its identity, as in a pipeline."""

    def __init__(self, seed: int = 0, batch: int = 1, noise: int | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.text = torch.randn(batch, TEXT, 24, generator=generator)
        self.pooled = torch.randn(batch, 40, generator=generator)
        drawn = torch.Generator().manual_seed(seed if noise is None else noise)
        self.noise, self.drift = torch.randn(2, batch, TOKENS, 4, generator=drawn)
        self.batch = batch

    def inputs(self, step: int, steps: int = STEPS) -> dict[str, Any]:
        """Arguments of one call: latents that move a little, and a time that falls from 1."""
        return {
            "hidden_states": self.noise + 0.02 * step * self.drift,
            "encoder_hidden_states": self.text,
            "pooled_projections": self.pooled,
            "timestep": torch.full((self.batch,), 1 - step / steps),
            "img_ids": torch.arange(TOKENS)[:, None].expand(TOKENS, 3).float(),
            "txt_ids": torch.zeros(TEXT, 3),
            "return_dict": False,
        }


def new_transformer() -> FluxTransformer2DModel:
    """A transformer with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=BLOCKS,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=40,
            axes_dims_rope=(4, 4, 8),
        )
    return model.eval()


@torch.no_grad()
def call(model: FluxTransformer2DModel, prompt: Prompt, step: int, steps: int = STEPS) -> Tensor:
    """Call a model for one step."""
    output: Tensor = model(**prompt.inputs(step, steps))[0]
    return output


def error_at(model: FluxTransformer2DModel, prompt: Prompt, step: int) -> str:
    """Call a model for one step and say how far it is from a model without a cache."""
    expected = call(new_transformer(), prompt, step)
    return f"off by {float((call(model, prompt, step) - expected).norm() / expected.norm()):.1%}"


class Peer:
    """The transformer under cache-dit, without a pipeline: its state then lives from call to call."""

    def __init__(self, **options: Any) -> None:
        import cache_dit

        self.model = new_transformer()
        self._counts = count_blocks(SimpleNamespace(transformer=self.model))  # type: ignore[arg-type]
        adapter = cache_dit.BlockAdapter(
            transformer=self.model,
            blocks=self.model.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_1,
            has_separate_cfg=False,
        )
        cache_dit.enable_cache(adapter, **options)

    def decision(self) -> str:
        """What the last call did."""
        return "C" if self._counts[-1] == BLOCKS + 1 else "."


class Own:
    """The transformer under fxcache, called without a word about generations, branches or steps."""

    def __init__(self, **options: Any) -> None:
        torch._dynamo.reset()
        self.model, self._reused = new_transformer(), 0
        fxcache.enable_cache(self.model, trunk=["transformer_blocks"], inner_backend="eager", **options)

    def decision(self) -> str:
        """What the last call did."""
        before, self._reused = self._reused, fxcache.summary(self.model).reused
        return "." if self._reused > before else "C"


def both(**config: Any) -> tuple[Peer, Own]:
    """One configuration of both: one first block, none at the end, a threshold that reuses nearly everything."""
    import cache_dit

    config = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, **config}
    return (
        Peer(cache_config=cache_dit.DBCacheConfig(**config)),
        Own(cache_config=fxcache.DBCacheConfig(**config)),
    )


def play(pair: tuple[Peer, Own], calls: Iterable[tuple[Prompt, int]], steps: int = STEPS) -> Seen:
    """Give both the same calls, each a prompt and a step; return their decisions in the order of the calls."""
    words = ["", ""]
    for prompt, step in calls:
        for place, one in enumerate(pair):
            call(one.model, prompt, step, steps)
            words[place] += one.decision()
    return words[0], words[1]


def in_a_row(pair: tuple[Peer, Own], lengths: list[int]) -> Seen:
    """Generations one after the other, each of so many steps and with a prompt of its own."""
    words = [play(pair, ((prompt, step) for step in range(length))) for length in lengths for prompt in [Prompt()]]
    return " ".join(word[0] for word in words), " ".join(word[1] for word in words)


def turns() -> Seen:
    """Two requests with the same noise and different prompts, step by step."""
    prompts = [Prompt(1, noise=0), Prompt(2, noise=0)]
    return play(
        both(num_inference_steps=STEPS, max_warmup_steps=2),
        ((prompt, step) for step in range(STEPS) for prompt in prompts),
    )


def guidance_off() -> Seen:
    """Two calls per step are announced, and one comes."""
    import cache_dit

    config: dict[str, Any] = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, "max_warmup_steps": 2}
    peer = Peer(cache_config=cache_dit.DBCacheConfig(**config, enable_separate_cfg=True))
    return in_a_row((peer, Own(cache_config=fxcache.DBCacheConfig(**config))), [STEPS])


def accumulated() -> Seen:
    """One generation of 40 steps with a limit for the sum of the differences."""
    prompt, steps = Prompt(), 40
    pair = both(max_accumulated_residual_diff_threshold=0.1, max_warmup_steps=1)
    return play(pair, ((prompt, step) for step in range(steps)), steps)


def larger_batch() -> Seen:
    """A second prompt joins the batch at the second step, with a threshold of 1."""
    peer, own = both(residual_diff_threshold=1.0, max_warmup_steps=1)
    for one in (peer, own):
        call(one.model, Prompt(), 0)
    joined = Prompt(batch=2)
    found = [(error_at(one.model, joined, 1), one.decision()) for one in (peer, own)]
    return f"{found[0][1]} {found[0][0]}", f"{found[1][1]} {found[1][0]}"


def overlap() -> Seen:
    """More first and last blocks than there are: the first step, which nothing is reused in."""
    peer, own = both(Fn_compute_blocks=3, Bn_compute_blocks=3)
    return error_at(peer.model, Prompt(), 0), raised(lambda: call(own.model, Prompt(), 0))


def few_blocks() -> Seen:
    """A list shorter than the default number of first blocks."""
    peer, own = Peer(), Own()
    return raised(lambda: call(peer.model, Prompt(), 0)), raised(lambda: call(own.model, Prompt(), 0))


def misspelled() -> Seen:
    """An option that does not exist."""
    wrong: dict[str, Any] = {"residual_diff_treshold": 0.2}
    return raised(lambda: Peer(**wrong)), raised(lambda: Own(**wrong))


def two_pipelines() -> Seen:
    """Two pipelines of one class: reused steps of the first one after its run and after one of the second."""
    import cache_dit

    config: dict[str, Any] = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.99, "max_warmup_steps": 2}

    def adapter(pipe: DigitsPipeline) -> Any:
        return cache_dit.BlockAdapter(
            pipe=pipe,
            transformer=pipe.transformer,
            blocks=pipe.transformer.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_1,
            has_separate_cfg=True,
        )

    torch._dynamo.reset()
    # fxcache first: what cache-dit leaves behind on the class would break its run
    own = _two_runs(
        lambda pipe: fxcache.enable_cache(pipe, cache_config=fxcache.DBCacheConfig(**config), inner_backend="eager"),
        lambda pipe: fxcache.summary(pipe).contexts[0].reused,
        fxcache.disable_cache,
    )
    peer = _two_runs(
        lambda pipe: cache_dit.enable_cache(adapter(pipe), cache_config=cache_dit.DBCacheConfig(**config)),
        lambda pipe: len(cache_dit.summary(pipe, logging=False)[0].cached_steps),
        cache_dit.disable_cache,
    )
    return peer, own


def _two_runs(
    enable: Callable[[DigitsPipeline], object],
    reused: Callable[[DigitsPipeline], int],
    disable: Callable[[DigitsPipeline], object],
) -> str:
    first, second = pipes = load_pipeline(), load_pipeline()
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        enable(pipe)
    counts = []
    for pipe in pipes:
        pipe([1], num_inference_steps=6)
        counts.append(reused(first))
    for pipe in pipes:
        disable(pipe)
    called = raised(lambda: second([1], num_inference_steps=2))
    return f"{counts[0]}, then {counts[1]}; a call after disable_cache: {called}"


def masked(mask: str, **config: Any) -> Seen:
    """One generation of 8 steps under a mask."""
    return in_a_row(both(steps_computation_mask=[int(digit) for digit in mask], **config), [STEPS])


def straight_line(name: str, computed: tuple[int, ...]) -> Seen:
    """The calibrators alone: forecasts of y = t for the three steps behind the last computed one."""
    from cache_dit.caching.cache_contexts import calibrators

    classes = {"taylorseer": "TaylorSeerCalibrator", "foca": "FoCaCalibrator", "dmd": "DMDCalibrator"}
    calibrator = getattr(calibrators, classes[name])()
    seen: list[float] = []
    for step in range(computed[-1] + 4):
        calibrator.mark_step_begin()
        if step in computed:
            calibrator.update(torch.tensor([[float(step)]]), "y")
        else:
            seen.append(float(calibrator.approximate("y")))
    times = tuple(map(float, reversed(computed)))
    values = torch.tensor(times, dtype=torch.float64)
    numbers = {"taylorseer": (1.0,), "dmd": (0.0, 1e-8)}.get(name, ())
    weights = CALIBRATORS[name](*numbers).weights
    gram = values.outer(values).tolist()
    own = [
        float(values @ values.new_tensor(weights(Window(times, computed[-1] + ahead, gram=gram))))
        for ahead in (1.0, 2.0, 3.0)
    ]
    return _rounded(seen[-3:]), _rounded(own)


def _rounded(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def raised(action: Callable[[], object]) -> str:
    """Do it and return the kind and the first line of what it raises."""
    try:
        action()
    except Exception as error:
        inner = getattr(error, "inner_exception", error)
        return f"{type(inner).__name__}: {inner}".partition("\n")[0]
    return "no error"


CASES: dict[str, Callable[[], Seen]] = {
    "four generations of 8 steps, num_inference_steps=8": lambda: in_a_row(
        both(num_inference_steps=STEPS, max_warmup_steps=1), [STEPS] * 4
    ),
    "two generations of 8 steps, no num_inference_steps": lambda: in_a_row(both(max_warmup_steps=2), [STEPS] * 2),
    "a generation broken off after 3 of 8 steps, then two whole ones": lambda: in_a_row(
        both(num_inference_steps=STEPS, max_warmup_steps=2), [3, STEPS, STEPS]
    ),
    "two requests taking turns": turns,
    "one call per step with enable_separate_cfg=True": guidance_off,
    "max_accumulated_residual_diff_threshold=0.1, 40 steps": accumulated,
    "residual_diff_threshold=1, the batch grows from 1 to 2": larger_batch,
    "Fn_compute_blocks=3, Bn_compute_blocks=3 on 4 blocks, the first step": overlap,
    "the default configuration on 4 blocks": few_blocks,
    "enable_cache(..., residual_diff_treshold=0.2)": misspelled,
    "taylorseer on y = t, computed at 0 1 2, forecasts at 3 4 5": lambda: straight_line("taylorseer", (0, 1, 2)),
    "foca on y = t, computed at 0 4 8, forecasts at 9 10 11": lambda: straight_line("foca", (0, 4, 8)),
    "dmd on y = t, computed at 0 4 8, forecasts at 9 10 11": lambda: straight_line("dmd", (0, 4, 8)),
    "two pipelines of one class, reused steps of the first after its run and after the second's": two_pipelines,
    "mask 1001 for 8 steps, static": lambda: masked("1001", steps_computation_policy="static", max_warmup_steps=1),
}
"""What is done, and how; in the order in which it is printed."""


def main() -> int:
    """Print all cases."""
    if find_spec("cache_dit") is None:
        print(INSTALL)
        return 1
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    names = f"cache-dit {version('cache-dit')}", "fxcache"
    for case, show in CASES.items():
        print(case)
        for name, seen in zip(names, show(), strict=True):
            print(f"    {name:<16}{seen}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
