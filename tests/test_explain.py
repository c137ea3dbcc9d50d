"""`fxcache.explain`: its numbers against independent counts, refusals, the command, and that it leaves no trace."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxcache
from fxcache import DBCacheConfig, OptionError, Options
from fxcache.cli import main
from fxcache.explain import explain_class
from tests.models.transformers import TRANSFORMERS
from tests.processes import PYTHON

WIDTH = 12
EAGER = {"inner_backend": "eager"}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Two linear layers around a stack; the graph breaks behind the first layer if told so."""

    def __init__(self, layers: int = 6, breaks: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.breaks = breaks

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        x = self.into(hidden_states) + timestep
        if self.breaks:
            torch._dynamo.graph_break()
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def inputs(tokens: int = 5, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, tokens, 4), torch.ones(1)


def entries(module: nn.Module) -> int:
    """Compiled versions that Dynamo holds for the module's classes; those that it has given up do not count."""
    codes = {inspect.unwrap(type(part).forward).__code__ for part in module.modules()}
    held = [entry for code in codes for entry in _debug_get_cache_entry_list(code)]
    return sum(not isinstance(entry.guard_manager, DeletedGuardManagerWrapper) for entry in held)


def test_a_stack_by_hand():
    found = fxcache.explain(Stack(), *inputs(), fxcache_options={"Fn_compute_blocks": 1, "Bn_compute_blocks": 2})
    rows, block = 2 * 5, 2 * 2 * WIDTH * 2 * WIDTH
    assert found.refusal is None
    assert found.trunk == "blocks[6]"
    assert found.blocks == tuple(f"blocks.{i}" for i in range(6))
    assert (found.first_blocks, found.last_blocks) == (1, 2)
    assert found.flops.first == rows * block
    assert found.flops.middle == 3 * rows * block
    assert found.flops.last == 2 * rows * block
    assert found.flops.prefix == found.flops.suffix == rows * 2 * 4 * WIDTH
    assert found.reused_cost == pytest.approx(1 - found.flops.middle / found.flops.total)
    assert found.speedup(0.5) == pytest.approx(2 / (1 + found.reused_cost))
    (stream,) = found.streams
    assert (stream.shape, stream.dtype, stream.kind, stream.bytes) == ("[2, 5, 12]", "float32", "residual", rows * 48)
    assert (found.indicator.kind, found.indicator.shape) == ("residual", "[2, 5, 12]")
    assert found.inputs["latents"] == ("hidden_states",)
    assert found.inputs["timestep"] == ("timestep",)
    assert [graph.cached for graph in found.graphs] == [True]


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_work_and_state_of_a_real_model(name: str):
    tiny = TRANSFORMERS[name](layers=3)
    kwargs = tiny.inputs()
    found = fxcache.explain(tiny.module, **kwargs, fxcache_options={"Fn_compute_blocks": 1, **EAGER})
    # The counter knows attention only where it is made of matrix products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tiny.module(**kwargs)
    assert found.flops.total == found.total_flops == counter.get_total_flops()
    fxcache.enable_cache(tiny.module, Fn_compute_blocks=1, **EAGER)
    try:
        tiny.run(kwargs)
        held = fxcache.summary(tiny.module)
        (context,) = held.contexts
        assert found.state_bytes == context.state_bytes
        with_its_options = fxcache.explain(tiny.module, **kwargs)
        assert with_its_options == found
        assert fxcache.summary(tiny.module).steps == held.steps
    finally:
        fxcache.disable_cache(tiny.module)
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(str(found).splitlines()) <= 40


def test_the_meta_device_gives_the_same():
    model, (latents, time) = Stack(), inputs()
    here = fxcache.explain(model, latents, time)
    there = fxcache.explain(model.to("meta"), latents.to("meta"), time.to("meta"))
    assert there == here
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_options_shape_the_explanation():
    raw = fxcache.explain(Stack(), *inputs(), fxcache_options={"l1_hidden_states_diff_threshold": 0.1})
    assert raw.indicator.kind == "raw"
    config = DBCacheConfig(Fn_compute_blocks=2, downsample_factor=4)
    found = fxcache.explain(Stack(), *inputs(), fxcache_config=config, fxcache_options={"Bn_compute_blocks": 1})
    assert (found.first_blocks, found.last_blocks, found.indicator.shape) == (2, 1, "[2, 5, 3]")
    found = fxcache.explain(Stack(), *inputs(), fxcache_dynamic=True)
    assert found.streams[0].shape == "[s0, s1, 12]" or "s" in found.streams[0].shape
    with pytest.raises(OptionError, match="expected a sum below 6"):
        fxcache.explain(Stack(), *inputs(), fxcache_options=Options(Fn_compute_blocks=6))
    with pytest.raises(OptionError, match=r"module=.*expected a torch\.nn\.Module"):
        fxcache.explain(len, [])


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Stack(layers=2), {}, "no chained stack of repeated blocks (found blocks[2]: fewer than 3 blocks)"),
        (Stack(), {"residual_diff_threshold": 0}, "the options never reuse a step"),
        (Stack(), {"trunk": ["layers"]}, "no stack of repeated blocks named layers"),
    ],
)
def test_refusals_are_values(model: Stack, options: dict[str, Any], reason: str):
    found = fxcache.explain(model, *inputs(), fxcache_options=options)
    assert found.refusal is not None and found.refusal.reason.startswith(reason)
    assert (found.trunk, found.streams, found.state_bytes, found.reused_cost) == (None, (), 0, 1.0)
    assert "runs uncached" in str(found) and "never" not in str(found.speedup(0.5))
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_graph_break_is_reported_and_the_trunk_found(device: str):
    model = Stack(breaks=True).to(device)
    found = fxcache.explain(model, *(value.to(device) for value in inputs()))
    assert found.refusal is None and found.trunk == "blocks[6]"
    assert [graph.cached for graph in found.graphs] == [False, True]
    assert found.broken is not None and "test_explain.py" in found.broken and "forward" in found.broken
    assert found.graphs[0].ends is not None
    assert found.flops.outside == 2 * 5 * 2 * 4 * WIDTH
    assert entries(model) == 0


class Lengths(Stack):
    """Takes a way that depends on what a tensor holds."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        lengths = hidden_states.argmax(dim=1)[:, 0].tolist()
        return super().forward(hidden_states * len(set(lengths)), timestep)


def test_a_break_where_values_decide_is_reported_and_the_trunk_found():
    model = Lengths()
    found = fxcache.explain(model, *inputs())
    assert found.refusal is None and found.trunk == "blocks[6]"
    assert found.broken is not None and "data-dependent" in found.broken
    assert entries(model) == 0


@pytest.mark.parametrize("breaks", [False, True])
def test_explaining_leaves_no_trace(breaks: bool):
    model, (latents, time) = Stack(breaks=breaks).eval(), inputs()
    with torch.no_grad():
        before, state = model(latents, time), torch.get_rng_state()
        fxcache.explain(model, latents, time)
        assert entries(model) == 0
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(model(latents, time), before)
        calls: list[torch.fx.GraphModule] = []

        def backend(gm: torch.fx.GraphModule, example: list[Tensor]) -> Any:
            calls.append(gm)
            return gm.forward

        compiled = torch.compile(model, backend=backend)
        compiled(latents, time)
        graphs, held = len(calls), entries(model)
        fxcache.explain(model, latents, time)
        fxcache.explain(compiled, *inputs(tokens=7))
        compiled(latents, time)
        assert len(calls) == graphs
        assert entries(model) == held
        # The size that was only explained was not seen: the next one is the second size, and makes the graph dynamic.
        compiled(*inputs(tokens=9))
        assert len(calls) == 2 * graphs
        compiled(*inputs(tokens=11))
        assert len(calls) == 2 * graphs


def test_a_module_that_is_already_compiled_is_traced_as_written():
    model = Stack()
    model.compile(backend="eager")
    wanted = fxcache.explain(Stack(), *inputs())
    assert fxcache.explain(model, *inputs()) == wanted
    assert fxcache.explain(torch.compile(model), *inputs()) == wanted


SMALL = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 3,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 40,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 4, 8],
}


def test_the_command(tmp_path: Path):
    config, given = tmp_path / "config.json", tmp_path / "inputs.json"
    config.write_text(json.dumps(SMALL))
    given.write_text(json.dumps({"hidden_states": [1, 16, 4], "img_ids": [16, 3], "timestep": {"shape": [1]}}))
    command = [sys.executable, "-m", "fxcache", "explain", "FluxTransformer2DModel", "--config", str(config)]
    command += ["--inputs", str(given), "--json", "Fn_compute_blocks=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trunk"] == "transformer_blocks[3] + single_transformer_blocks[3]"
    assert found["streams"][0]["shape"] == "[1, 16, 32]"
    assert found["inputs"]["latents"] == ["hidden_states"]
    assert found["refusal"] is None and 0 < found["reused_cost"] < 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["FluxTransformer2dModel"], "diffusers has no module class 'FluxTransformer2dModel': did you mean 'FluxTr"),
        (["no.such:Thing"], "class 'no.such:Thing': cannot import no.such"),
        (["torch.nn:Linear"], "Linear cannot be built with this configuration: TypeError: "),
    ],
)
def test_wrong_classes(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(["explain", *words]) == 2
    assert capsys.readouterr().err.startswith(f"fxcache: {sentence}")


class Odd(nn.Module):
    def forward(self, hidden_states: Tensor, gadget) -> Tensor:
        return hidden_states * gadget


def test_an_argument_that_cannot_be_guessed_is_named():
    here = f"{__name__}:Odd"
    with pytest.raises(OptionError, match=r"Odd: cannot guess the argument gadget; give it with --inputs FILE\.json"):
        explain_class(here)
    found = explain_class(here, inputs={"gadget": {"value": 2}})
    assert found.refusal is not None and found.inputs["latents"] == ("hidden_states",)
    with pytest.raises(OptionError, match="has no argument 'gadgets': did you mean 'gadget'"):
        explain_class(here, inputs={"gadgets": 1})


def test_the_package_root_gives_functions_whatever_is_loaded_first():
    script = "import sys, fxcache; assert 'torch' not in sys.modules\n"
    script += "import fxcache.summary, fxcache.explain\n"
    script += "assert all(callable(getattr(fxcache, name)) for name in ('summary', 'explain', 'enable_cache'))\n"
    script += "assert set(fxcache.__all__) <= set(dir(fxcache))\n"
    done = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
