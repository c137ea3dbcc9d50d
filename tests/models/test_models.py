"""The tiny models do what the other tests take for granted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tests.models.foreign import FOREIGN
from tests.models.graphs import aot_graph, aot_graphs, module_path, summary_of
from tests.models.pipelines import PIPELINES
from tests.models.tiny import first_tensor
from tests.models.transformers import DIFFUSERS, TRANSFORMERS
from tests.models.variants import VARIANTS, twin


@contextmanager
def counted(*modules: nn.Module) -> Iterator[list[nn.Module]]:
    calls: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda module, _: calls.append(module)) for m in modules]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_same_seed_same_output(name: str) -> None:
    first, second = TRANSFORMERS[name](layers=3), TRANSFORMERS[name](layers=3)
    out = first.run(first.inputs())
    assert torch.equal(out, second.run(second.inputs()))
    assert torch.isfinite(out).all()
    other = TRANSFORMERS[name](layers=3, seed=1)
    assert not torch.equal(out, other.run(other.inputs()))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_steps_move_the_output_and_keep_the_conditioning_objects(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=3)
    now, later = tiny.inputs(step=0), tiny.inputs(step=1)
    moved = tiny.run(later) - tiny.run(now)
    assert 1e-4 < float(moved.norm() / tiny.run(now).norm()) < 1.0
    pairs = zip(pytree.tree_leaves_with_path(now), pytree.tree_leaves_with_path(later), strict=True)
    for (path, a), (_, b) in pairs:
        if isinstance(a, torch.Tensor):
            changing = any(getattr(key, "key", None) in tiny.changing for key in path)
            assert (a is b) != changing, pytree.keystr(path)
    again = pytree.tree_leaves(tiny.inputs(fresh=True))
    assert not any(a is b for a, b in zip(pytree.tree_leaves(now), again, strict=True) if isinstance(a, torch.Tensor))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_sizes_batches_and_bfloat16(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=2, dtype=torch.bfloat16)
    for size in range(5):
        out = tiny.run(tiny.inputs(size=size, batch=2))
        assert out.dtype is torch.bfloat16
        assert out.shape[0] == 2
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_rows_of_a_batch_are_independent(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=2)
    kwargs = tiny.inputs(batch=2)
    halves = pytree.tree_map(lambda v: v[:1] if isinstance(v, torch.Tensor) and v.shape[:1] == (2,) else v, kwargs)
    if "img_shapes" in halves:
        halves["img_shapes"] = halves["img_shapes"][:1]
    torch.testing.assert_close(tiny.run(kwargs)[:1], tiny.run(halves), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_no_parameter_is_all_zero(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=2)
    assert [key for key, value in tiny.module.named_parameters() if not bool(value.any())] == []


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_traces_as_one_graph(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=2)
    kwargs = tiny.inputs()
    graph = aot_graph(tiny, kwargs)
    torch.testing.assert_close(first_tensor(graph.outputs), tiny.run(kwargs), rtol=1e-4, atol=1e-5)
    gm, fake, real, static, dynamo_gm = graph
    assert len(fake) == len(real) == len(gm.graph.find_nodes(op="placeholder"))
    parameters = {id(p) for p in tiny.module.parameters()}
    assert sum(id(value) in parameters for value in real) == sum(id(real[i]) in parameters for i in static) > 0
    given = [v for v in pytree.tree_leaves(kwargs) if isinstance(v, torch.Tensor)]
    assert {id(v) for v in given} <= {id(v) for v in graph.dynamo_inputs}
    assert "example_value" in next(iter(dynamo_gm.graph.nodes)).meta
    for path, _ in tiny.stacks:
        assert any(module_path(node).startswith(path) for node in gm.graph.nodes), summary_of(graph)


@pytest.mark.parametrize("name", ["flux", "wan", "sequential_dit"])
def test_two_compilations_serve_many_sizes(name: str) -> None:
    tiny = TRANSFORMERS[name](layers=1)
    calls = [tiny.inputs(size=size) for size in range(3)]
    if tiny.positional:
        graphs = aot_graphs(lambda **kwargs: tiny.module(*kwargs.values()), calls[0], calls=calls[1:])
    else:
        graphs = aot_graphs(tiny.module, calls[0], calls=calls[1:])
    assert len(graphs) == 2
    assert any(isinstance(value, torch.SymInt) for value in graphs[1].fake_inputs)


def test_operators_may_stay_whole() -> None:
    tiny = DIFFUSERS["dit"](layers=2)
    kept, split = (summary_of(aot_graph(tiny, decompose=flag)) for flag in (False, True))
    assert "native_layer_norm" in kept
    assert "native_layer_norm" not in split


def test_stacks_name_real_modules() -> None:
    for name, build in TRANSFORMERS.items():
        tiny = build(layers=3)
        for path, number in tiny.stacks:
            blocks = tiny.module.get_submodule(path)
            assert name == "tied" or len(list(blocks.children())) == number
    assert [name for name, build in FOREIGN.items() if not build().stacks] == ["perceptron", "stacked"]


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("cfg", [False, True])
def test_pipelines_run_and_repeat(name: str, cfg: bool) -> None:
    tiny = PIPELINES[name](layers=2)
    with counted(tiny.transformer) as calls:
        out = tiny.run(cfg=cfg)
        assert len(calls) == tiny.calls(3, cfg) == (6 if cfg and tiny.separate else 3)
    assert torch.isfinite(out).all()
    assert torch.equal(out, tiny.run(cfg=cfg))
    assert torch.equal(out, PIPELINES[name](layers=2).run(cfg=cfg))
    assert not torch.equal(out, tiny.run(cfg=cfg, prompt_seed=1))
    assert not torch.equal(out, tiny.run(cfg=cfg, latent_seed=1))
    if name != "dit":
        assert tiny.run(cfg=cfg, size=1).shape != out.shape


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_and_repeat(name: str) -> None:
    tiny = VARIANTS[name](layers=2)
    assert torch.equal(tiny.run(cfg=True), tiny.run(cfg=True))


def test_second_model_takes_the_late_steps() -> None:
    tiny = VARIANTS["wan_two"](layers=2)
    with counted(tiny.pipe.transformer, tiny.pipe.transformer_2) as calls:
        tiny.run(steps=4, cfg=True)
    early = [module is tiny.pipe.transformer for module in calls]
    assert early == sorted(early, reverse=True)
    assert len(set(early)) == 2


def test_truncated_guidance_drops_calls() -> None:
    tiny = VARIANTS["lumina2"](layers=2)
    with counted(tiny.transformer) as calls:
        tiny.run(steps=4, cfg=True, cfg_trunc_ratio=0.5)
    assert 4 < len(calls) < 8


def test_start_in_the_middle_of_the_schedule() -> None:
    tiny = VARIANTS["flux_img2img"](layers=2)
    with counted(tiny.transformer) as calls:
        tiny.run(steps=5)
    assert len(calls) == 3


def test_twin_shares_the_model_but_not_the_schedule() -> None:
    tiny = PIPELINES["flux"](layers=2)
    other = twin(tiny)
    assert other.transformer is tiny.transformer
    assert other.pipe.scheduler is not tiny.pipe.scheduler
    assert torch.equal(other.run(), tiny.run())
