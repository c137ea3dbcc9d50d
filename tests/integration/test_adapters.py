"""Adapters come, go and change under the compiled model: nothing stored of other weights is ever reused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcache.api import context, enable_cache, generation, summary
from fxcache.runtime import signals
from fxcache.runtime.attribution import attribution
from fxcache.runtime.interface import Reason
from tests.integration.eager import EagerF1B0
from tests.integration.scenes import OPTIONS, fxcache_of, worst
from tests.models.pipelines import flux as flux_pipeline
from tests.models.tiny import TinyModel
from tests.models.transformers import TRANSFORMERS

peft = pytest.importorskip("peft")

Change = Callable[[Any], object]
MIDDLE = r"single_transformer_blocks\.[12]\.(proj_out|proj_mlp|attn\.to_q)"
"""Layers behind the block that decides, so that the decision cannot see that they change."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    attribution.forget()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> TinyModel:
    return TRANSFORMERS["flux"](1, single_layers=3)


def weights(seed: int, alpha: int = 4, rank: int = 4) -> dict[str, Tensor]:
    """The state dict of an adapter, as a file of one has it."""
    module = TRANSFORMERS["flux"](1, single_layers=3).module
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=MIDDLE)
    module.add_adapter(config, "made")  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    state = peft.utils.get_peft_model_state_dict(module, adapter_name="made")
    return {f"transformer.{name}": torch.randn(value.shape, generator=generator) * 0.2 for name, value in state.items()}


FIRST, SECOND = weights(1), weights(2)


def load(state: dict[str, Tensor], name: str, **more: Any) -> Change:
    return lambda module: module.load_lora_adapter(dict(state), adapter_name=name, **more)


def both(*changes: Change) -> Change:
    def one_after_the_other(module: Any) -> None:
        for change in changes:
            change(module)

    return one_after_the_other


def nothing(module: Any) -> None:
    pass


def multiply(module: Any) -> None:
    with torch.no_grad():
        module.single_transformer_blocks[2].proj_out.weight.mul_(1.5)


def multiply_in_inference_mode(module: Any) -> None:
    with torch.inference_mode():
        module.single_transformer_blocks[2].proj_out.weight.mul_(1.5)


def load_other_weights(module: Any) -> None:
    module.load_state_dict({name: value * 1.01 for name, value in module.state_dict().items()})


def scale(*values: float, names: tuple[str, ...] = ("a",)) -> Change:
    return lambda module: module.set_adapters(list(names), list(values))


def fuse(*scales: float, **more: Any) -> Change:
    return lambda module: [module.unfuse_lora(), module.fuse_lora(*scales, **more)]


hotswappable: Change = both(lambda module: module.enable_lora_hotswap(target_rank=8), load(FIRST, "a"))
two = both(load(FIRST, "a"), load(SECOND, "b"))

CHANGES: dict[str, tuple[Change, Change, Change]] = {
    "writing": (nothing, multiply, multiply_in_inference_mode),
    "load_state_dict": (nothing, load_other_weights, load_other_weights),
    "load and unload": (nothing, load(FIRST, "a"), lambda module: module.unload_lora()),
    "load and fuse at once": (nothing, both(load(FIRST, "a"), fuse()), fuse(0.5)),
    "scale": (load(FIRST, "a"), scale(0.3), scale(0.6)),
    "scale and back": (load(FIRST, "a"), scale(0.3), scale(1.0)),
    "switch and mix": (both(two, scale(1.0)), scale(1.0, names=("b",)), scale(0.5, 0.5, names=("a", "b"))),
    "disable": (load(FIRST, "a"), lambda module: module.disable_lora(), lambda module: module.enable_lora()),
    "fuse and unfuse": (load(FIRST, "a"), fuse(), lambda module: module.unfuse_lora()),
    "fuse otherwise": (both(load(FIRST, "a"), fuse()), fuse(0.3), fuse(0.6, safe_fusing=True)),
    "delete": (
        both(two, scale(1.0, 1.0, names=("a", "b"))),
        lambda module: module.delete_adapters("a"),
        lambda module: module.delete_adapters("b"),
    ),
    "hotswap": (load(FIRST, "a"), load(SECOND, "a", hotswap=True), load(FIRST, "a", hotswap=True)),
    "hotswap, prepared": (hotswappable, load(SECOND, "a", hotswap=True), load(FIRST, "a", hotswap=True)),
    "hotswap, scale": (hotswappable, scale(0.4), scale(0.8)),
}

QUICK = ("writing", "load_state_dict", "load and fuse at once", "scale", "fuse otherwise", "hotswap, prepared")


def word_of(model: TinyModel, compiled: Callable[..., Any], *changes: Change, steps: int = 2) -> str:
    """Change the model before every second step; ``C`` where a step is what the model alone computes, else ``.``."""
    word = ""
    for number, change in enumerate(changes):
        change(model.module)
        for step in range(steps * number, steps * (number + 1)):
            call = model.inputs(step, drift=0.005)
            alone = model.run(call)
            with context("branch", step_index=step):
                made = model.run(call, compiled)
            assert worst([made], [alone]) < 1
            word += "C" if torch.equal(made, alone) else "."
    return word


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
)
def test_other_weights_in_the_middle_of_a_generation(model: TinyModel, name: str) -> None:
    before, *changes = CHANGES[name]
    before(model.module)
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    # enabled again, the model has the weights that the first steps were computed with
    assert word_of(model, compiled, nothing, *changes) == ("C.C..." if name == "disable" else "C.C.C.")


def test_no_other_weights(model: TinyModel) -> None:
    load(FIRST, "a")(model.module)
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    assert word_of(model, compiled, nothing, nothing, scale(1.0)) == "C....."


def test_the_reason_is_told_and_the_warmup_begins_again(model: TinyModel) -> None:
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9, max_warmup_steps=2)
    assert word_of(model, compiled, nothing, multiply, steps=4) == "CC..CC.."
    (made,) = summary(model.module).contexts
    assert list(made.outcomes[4:6]) == [Reason.WEIGHTS, Reason.WARMUP]


def test_a_scale_is_no_new_model_at_every_call(model: TinyModel) -> None:
    """From the second value on Dynamo hands scales over as tensors, made anew for every call."""
    load(FIRST, "a")(model.module)
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    changes = [scale(value) for value in (1.0, 0.3, 0.6, 0.9)]
    assert word_of(model, compiled, *changes, steps=3) == "C.." * 4
    assert len(summary(model.module).contexts) == 2  # the number in the graph, the number as an input


def test_scales_of_fixed_graphs(model: TinyModel) -> None:
    load(FIRST, "a")(model.module)
    compiled = fxcache_of(model.module, False, inner_backend="eager", residual_diff_threshold=0.9)
    with torch._dynamo.config.patch(specialize_float=True):
        assert word_of(model, compiled, nothing, scale(0.3), scale(0.6)) == "C.C.C."


@pytest.mark.slow
def test_a_scale_under_inductor(model: TinyModel) -> None:
    load(FIRST, "a")(model.module)
    compiled = fxcache_of(model.module, residual_diff_threshold=0.9)
    decisions = []
    for number, value in enumerate((1.0, 0.3, 0.6)):
        scale(value)(model.module)
        for step in (2 * number, 2 * number + 1):
            call = model.inputs(step, drift=0.005)
            with context("branch", step_index=step):
                made = model.run(call, compiled)
            decisions.append(worst([made], [model.run(call)]) < 1e-5)
    assert decisions == [True, False] * 3


def test_a_hotswap_compiles_nothing_and_is_right_between_two_generations(model: TinyModel) -> None:
    hotswappable(model.module)
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    words = []
    for state in (FIRST, SECOND, FIRST):
        with generation(), torch._dynamo.config.patch(error_on_recompile=bool(words)):
            words.append(word_of(model, compiled, load(state, "a", hotswap=True)))
    assert words == ["C."] * 3


def test_a_model_of_peft(model: TinyModel) -> None:
    """Without the methods of diffusers: merged and unmerged by peft itself."""
    config = peft.LoraConfig(target_modules=MIDDLE, init_lora_weights=False)
    signals.install()
    wrapped = peft.get_peft_model(copy.deepcopy(model.module), config)
    tiny = TinyModel(wrapped, model.make, changing=model.changing)
    wrapped.merge_adapter()
    compiled = fxcache_of(wrapped, inner_backend="eager", residual_diff_threshold=0.9)
    again: Change = lambda module: [module.unmerge_adapter(), rescale(module), module.merge_adapter()]  # noqa: E731
    assert word_of(tiny, compiled, nothing, again) == "C.C."


def rescale(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.scale_layer(0.5)


@pytest.mark.parametrize("seen", [False, True])
def test_what_nobody_can_see_has_to_be_said(model: TinyModel, seen: bool) -> None:
    """docs/combining.md says so."""

    def behind_the_back(module: Any) -> None:
        weight = module.single_transformer_blocks[2].proj_out.weight
        weight.data += 0.1
        if seen:
            torch.autograd.graph.increment_version(weight)

    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    assert word_of(model, compiled, nothing, behind_the_back) == ("C.C." if seen else "C...")


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = TRANSFORMERS["flux"](1, single_layers=3)
        model.module.load_state_dict({k: v.clone() for k, v in model.module.state_dict().items()}, assign=True)
    assert all(parameter.is_inference() for parameter in model.module.parameters())
    compiled = fxcache_of(model.module, inner_backend="eager", residual_diff_threshold=0.9)
    assert word_of(model, compiled, nothing, nothing) == "C..."


def test_a_pipeline_with_adapters() -> None:
    """Between generations, through the methods of the pipeline, against the eager oracle without anything compiled."""
    changes: list[Change] = [
        nothing,
        lambda pipe: pipe.load_lora_weights(dict(FIRST), adapter_name="a"),
        lambda pipe: pipe.set_adapters(["a"], [0.4]),
        lambda pipe: pipe.fuse_lora(lora_scale=2.0),
        lambda pipe: [pipe.unfuse_lora(), pipe.unload_lora_weights()],
    ]
    tiny, alone = flux_pipeline(layers=3), flux_pipeline(layers=3)
    enable_cache(tiny.pipe, **{**OPTIONS, "residual_diff_threshold": 0.9, "inner_backend": "eager"})
    oracle, made = EagerF1B0(alone.transformer, "flux", threshold=0.9), []
    for change in changes:
        for each in (tiny, alone):
            change(each.pipe)
        oracle.begin()
        expected = alone.run(steps=4)
        made.append(tiny.run(steps=4))
        assert oracle.decisions == [summary(tiny.pipe).contexts[-1].decisions] == ["C..."]
        assert worst(made[-1:], [expected]) < 1e-5
    assert all(worst([after], [before]) > 1e-3 for before, after in itertools.pairwise(made))
