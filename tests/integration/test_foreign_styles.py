"""Models in other styles than those of diffusers, with the same checks for all: fxcache has no code for any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcache
from fxcache.api import context, summary
from fxcache.kernels import Ask, Control
from fxcache.options import Options
from fxcache.rewrite.pipeline import Rewritten, rewrite
from fxcache.runtime.attribution import attribution
from tests.graphs import new_state, tell
from tests.integration.eager_blocks import Cut, EagerBlocks
from tests.integration.scenes import equal, fxcache_of, plain, worst
from tests.models.foreign import stacked
from tests.models.foreign_calls import CALLS
from tests.models.foreign_image import IMAGE
from tests.models.foreign_latents import LATENTS
from tests.models.foreign_mixers import MIXERS
from tests.models.foreign_packages import PACKAGES
from tests.models.graphs import aot_graph
from tests.models.tiny import TinyModel

STYLES: dict[str, Callable[..., TinyModel]] = {
    **LATENTS, **CALLS, **IMAGE, **MIXERS, **PACKAGES, "stacked": stacked,
}  # fmt: skip

QUICK = (
    *("interface_network", "reversible", "universal", "by_words", "chained", "functional", "whole_in_sequential"),
    *("u_vit", "window_dit", "post_norm", "torch_encoder"),
)
STYLE = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STYLES]

THRESHOLD = 0.3
"""Between the small moves and the jump of `moves`, for every style."""

TRUNKS = {
    "u_vit": "in_blocks[3] + out_blocks[3]",
    "in_dictionary": "parts.layer_[4]",
    "functional": "repeated[4]",
    "stacked": "repeated[4]",
}
"""Where the trunk is not the one stack of the model: joined, named by the first part of its keys, not named at all."""

RAW = {"u_vit": (False, True), "post_norm": (True, True), "torch_encoder": (True, True)}
"""Whether values are compared, and stored, because no identity path shows: merges, norms behind sums, whole layers."""

DECOMPOSED = {"picture_encoder"}
"""Where AOTAutograd's own decompositions round in another way (an interpolation), with or without a cache."""


STATIC = {"window_dit"}
"""Where the size of padded windows leaves the middle under dynamic sizes, which is refused: one graph per size."""


def listed(path: str) -> Callable[[Any], Sequence[nn.Module]]:
    return lambda module: list(module.get_submodule(path).children())


def linked(module: Any) -> list[nn.Module]:
    link, found = module.first, []
    while link is not None:
        found.append(link.block)
        link = link.rest
    return found


CUTS: dict[str, Cut] = {
    "interface_network": Cut(listed("blocks"), streams=2, picture=1),
    "perceiver": Cut(listed("process")),
    "reversible": Cut(listed("layers"), streams=2),
    "universal": Cut(lambda module: [module.block] * 4),
    "shared": Cut(lambda module: list(module.blocks)),
    "torch_encoder": Cut(listed("encoder.layers"), raw=RAW["torch_encoder"]),
    "in_sequential": Cut(listed("trunk")),
    "whole_in_sequential": Cut(lambda module: list(module.net)[1:-2]),
    "in_while": Cut(listed("stages")),
    "in_dictionary": Cut(listed("parts")),
    "by_words": Cut(listed("parts")),
    "by_attribute": Cut(lambda module: [getattr(module, f"block_{i}") for i in range(4)]),
    "chained": Cut(linked),
    "containers": Cut(listed("encoder")),
    "facebook_dit": Cut(listed("blocks")),
    "u_vit": Cut(lambda module: [*module.in_blocks, module.mid_block, *module.out_blocks], raw=RAW["u_vit"]),
    "joint_dit": Cut(listed("joint_blocks")),
    "conv_dit": Cut(listed("stage")),
    "window_dit": Cut(listed("layers")),
    **{name: Cut(listed("h"), raw=RAW.get(name, (False, False))) for name in MIXERS},
    "token_to_wav": Cut(listed("dit.transformer_blocks")),
    "picture_encoder": Cut(listed("encoder.layer")),
}
"""Where to cut an uncompiled copy; only styles whose blocks are modules can be cut by hand like this."""


@dataclass
class Played:
    outputs: list[Tensor]
    decisions: str
    differences: tuple[float | None, ...]


def play(tiny: TinyModel, compiled: Callable[..., Any], calls: Sequence[dict[str, Any]], branch: str = "one") -> Played:
    """Make the calls as further steps of a branch."""
    known = {made.branch: made for made in summary(tiny.module).contexts}
    begun = len(known[branch].decisions) if branch in known else 0
    outputs = []
    for step, call in enumerate(calls, begun):
        with context(branch, step_index=step):
            outputs.append(tiny.run(call, compiled).clone())
    (made,) = (made for made in summary(tiny.module).contexts if made.branch == branch)
    return Played(outputs, made.decisions[begun:], made.differences[begun:])


def moves(tiny: TinyModel) -> list[dict[str, Any]]:
    """A step, the same once more, one that is close, a jump, and one that is close to where it went."""
    start, far = tiny.inputs(0), tiny.vary(tiny.inputs(2), amount=8.0)
    return [start, tiny.vary(start, amount=0.0), tiny.vary(start, amount=0.02), far, tiny.vary(far, amount=0.02)]


@pytest.mark.parametrize("name", STYLE)
def test_a_style(name: str) -> None:
    """Computed steps are those of the plain model, reused ones those of an eager cache, at one size and at another."""
    tiny, other = STYLES[name](), STYLES[name]().module
    args, kwargs = tiny.split(tiny.inputs())
    found = fxcache.explain(tiny.module, *args, fxcache_options={"Fn_compute_blocks": 1}, **kwargs)
    trunk = TRUNKS.get(name) or "{}[{}]".format(*tiny.stacks[0])
    text = [line.split() for line in str(found).splitlines()]
    assert ["trunk", *trunk.split(), f"({len(found.blocks)}", "blocks)"] in text, str(found)

    attribution.forget()
    torch._dynamo.reset()
    options = {"inner_backend": "eager", "on_refusal": "raise", "residual_diff_threshold": THRESHOLD}
    compiled = fxcache_of(tiny.module, False if name in STATIC else None, **options)
    calls, (elsewhere,) = moves(tiny), [tiny.inputs(size=1, seed=3)]
    run = play(tiny, compiled, calls)
    expected = [tiny.run(call) for call in calls]
    if name in DECOMPOSED:
        torch._dynamo.reset()
        off = fxcache_of(tiny.module, **{**options, "residual_diff_threshold": 0})
        expected = [tiny.run(call, off) for call in calls]
    assert run.decisions == "C..C.", run.differences
    assert torch.equal(run.outputs[0], expected[0])
    assert torch.equal(run.outputs[3], expected[3])
    assert run.differences[1] == 0
    assert worst([run.outputs[1]], [expected[1]]) < 1e-6
    assert run.differences[2] < 0.9 * THRESHOLD < 1.1 * THRESHOLD < run.differences[3]

    if name in CUTS:
        oracle = EagerBlocks(other, CUTS[name], first=1, last=0, threshold=THRESHOLD)
        outputs = [tiny.run(call, other) for call in calls]
        assert oracle.decisions == run.decisions
        assert worst(run.outputs, outputs) < 1e-5
        torch.testing.assert_close(run.differences[2:], tuple(oracle.differences[2:]), rtol=1e-3, atol=0)

    between = play(tiny, compiled, [elsewhere], "another size")
    assert between.decisions == "C"
    assert worst(between.outputs, [tiny.run(elsewhere)]) < 1e-5
    back = play(tiny, compiled, [calls[3]])
    assert worst(back.outputs, [expected[3]]) < 1e-6


@pytest.mark.parametrize("name", STYLE)
@torch.no_grad()
def test_other_splits(name: str) -> None:
    """On the graph of Inductor: computed to the last bit, and an identical call reused within rounding."""
    tiny = STYLES[name]()
    graph = aot_graph(tiny)
    wanted = graph.gm(*graph.real_inputs)
    for first, last in ((1, 0), (1, 1), (2, 1)):
        options = Options(Fn_compute_blocks=first, Bn_compute_blocks=last, inner_backend="eager")
        result = rewrite(graph.gm, graph.static_input_idxs, options)
        assert isinstance(result, Rewritten), result
        control, *state = new_state(result.plan, store=1)
        computed = result.gm(*graph.real_inputs, control, *state)
        assert all(map(torch.equal, computed, wanted))
        tell(control, mode=Ask.DECIDE, threshold=1e-6)
        reused = result.gm(*graph.real_inputs, control, *state)
        assert control[Control.REUSED]
        assert worst(reused, wanted) < 1e-6


@pytest.mark.parametrize(
    "name",
    ["functional", *(pytest.param(n, marks=pytest.mark.slow) for n in ("interface_network", "window_dit", "experts"))],
)
def test_through_inductor(name: str) -> None:
    """Computed steps are those of plain Inductor to the last bit, reused ones those of the graph run by operators."""
    tiny = STYLES[name](layers=3)
    calls = moves(tiny)
    wanted = plain(tiny, calls[::3])
    outputs = {}
    for inner in ("inductor", "eager"):
        torch._dynamo.reset()
        attribution.forget()
        compiled = fxcache_of(tiny.module, inner_backend=inner, residual_diff_threshold=THRESHOLD, on_refusal="raise")
        run = play(tiny, compiled, calls)
        assert run.decisions == "C..C."
        outputs[inner] = run.outputs
    assert equal(outputs["inductor"][::3], wanted)
    assert worst(outputs["inductor"], outputs["eager"]) < 1e-5
