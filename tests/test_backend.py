"""The backend under `torch.compile`: how it is found, told, refused, recompiled; outputs against the plain model."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fxcache.api as api
from fxcache.errors import OptionError, RefusalError
from tests.models.foreign import perceptron
from tests.models.tiny_trunk import tiny_trunk
from tests.processes import PYTHON
from tests.refusals import refusals

OPTIONS = {
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 1,
    "residual_diff_threshold": 0.99,
    "inner_backend": "eager",
    "on_refusal": "raise",
}
WARN = {**OPTIONS, "on_refusal": "warn"}
Call = tuple[Tensor, Tensor, Tensor]


def loop(
    steps: int = 3, length: int = 4, batch: int = 1, words: int = 3, dtype: torch.dtype = torch.float32
) -> list[Call]:
    """The calls of one generation; text is one object throughout."""
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(batch, size, 16, generator=generator).to(dtype) for size in (length, words))
    return [(x + 0.01 * step, torch.full((batch,), 1 - 0.1 * step), text) for step in range(steps)]


def decisions(model: nn.Module) -> list[str]:
    return [context.decisions for context in api.summary(model).contexts]


def inside(error: BaseException) -> BaseException:
    """The exception that Dynamo has wrapped."""
    return getattr(error, "inner_exception", error)


def test_found_by_name_without_an_import():
    script = """
import sys, torch
assert "fxcache" in torch._dynamo.list_backends()
assert "fxcache" not in sys.modules
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = torch.nn.LayerNorm(16), torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))
model = torch.nn.Sequential(*[Block() for _ in range(4)]).eval()
options = {"Fn_compute_blocks": 1, "inner_backend": "eager", "on_refusal": "raise"}
compiled = torch.compile(model, backend="fxcache", fullgraph=True, options=options)
x = torch.randn(2, 5, 16)
with torch.no_grad():
    assert torch.equal(compiled(x), model(x))
assert "fxcache.backend" in sys.modules
print("done")
"""
    result = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "done"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"residual_dif_threshold": 0.1}, "unknown option 'residual_dif_threshold': "),
        ({"max_warmup_steps": -1}, "max_warmup_steps=-1: expected an integer >= 0"),
        (
            {**OPTIONS, "Fn_compute_blocks": 4},
            "Fn_compute_blocks=4, Bn_compute_blocks=0: expected a sum below 4, the number of blocks of this trunk",
        ),
    ],
)
def test_wrong_options_say_so_through_torch_compile(options, sentence):
    compiled = torch.compile(tiny_trunk(), backend="fxcache", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=r".") as caught:
        compiled(*loop(1)[0])
    assert isinstance(inside(caught.value), OptionError)
    assert sentence in str(caught.value)


class Ways:
    """Everything a compiled model may be to its user."""

    @staticmethod
    def wrapped(model: nn.Module) -> Callable[..., Tensor]:
        return torch.compile(model, backend="fxcache", options=OPTIONS, fullgraph=True)

    @staticmethod
    def in_place(model: nn.Module) -> Callable[..., Tensor]:
        model.compile(backend="fxcache", options=OPTIONS, fullgraph=True)
        return model

    @staticmethod
    def closure(model: nn.Module) -> Callable[..., Tensor]:
        def function(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return 2 * model(x, t, c) / 2

        return torch.compile(function, backend="fxcache", options=OPTIONS, fullgraph=True)

    @staticmethod
    def partial(model: nn.Module) -> Callable[..., Tensor]:
        import fxcache.backend

        backend = functools.partial(fxcache.backend.fxcache, options=OPTIONS)
        return torch.compile(model, backend=backend, fullgraph=True)

    @staticmethod
    def partial_function(model: nn.Module) -> Callable[..., Tensor]:
        def function(scale: float, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return scale * model(x, t, c)

        return functools.partial(torch.compile(function, backend="fxcache", options=OPTIONS, fullgraph=True), 1.0)

    @staticmethod
    def forward(model: nn.Module) -> Callable[..., Tensor]:
        return torch.compile(model.forward, backend="fxcache", options=OPTIONS, fullgraph=True)

    @staticmethod
    def inside_another(model: nn.Module) -> Callable[..., Tensor]:
        return torch.compile(Around(model), backend="fxcache", options=OPTIONS, fullgraph=True)

    @staticmethod
    def functional(model: nn.Module) -> Callable[..., Tensor]:
        weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}

        def function(given: dict[str, Tensor], x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return torch.func.functional_call(model, given, (x, t, c))

        return functools.partial(torch.compile(function, backend="fxcache", options=OPTIONS, fullgraph=True), weights)


class Around(nn.Module):
    """A model that hands its arguments on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.model(*inputs, **named)


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "keywords"])
@pytest.mark.parametrize("way", [name for name in vars(Ways) if not name.startswith("_")])
def test_every_way_to_compile_a_model(way, by_name):
    model, reference = tiny_trunk(), tiny_trunk()
    compiled = getattr(Ways, way)(model)
    with torch.no_grad():
        for step, (x, t, c) in enumerate(loop()):
            out = compiled(c=c, t=t, x=x) if by_name else compiled(x, t, c)
            assert torch.equal(out, reference(x, t, c)) == (step == 0)
    assert decisions(model) == ["C.."]


PAIRS = [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)]
OTHERS = [pytest.param(dtype, not two_streams, marks=pytest.mark.slow) for dtype, two_streams in PAIRS]


@pytest.mark.parametrize(("dtype", "two_streams"), [*PAIRS, *OTHERS])
def test_dtypes_and_batches(dtype, two_streams):
    model, reference = (tiny_trunk(two_streams).to(dtype) for _ in range(2))
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS, fullgraph=True)
    with torch.no_grad():
        for batch in (1, 3):
            calls = loop(batch=batch, dtype=dtype)
            outs = [compiled(*call) for call in calls]
            plain = [reference(*call) for call in calls]
            assert torch.equal(outs[0], plain[0])
            for out, expected in zip(outs[1:], plain[1:], strict=True):
                assert out.dtype == dtype and out.shape == expected.shape
                assert not torch.equal(out, expected)
                assert (out - expected).norm() < 0.1 * expected.norm()
    assert decisions(model) == ["C..", "C.."]
    assert [context.shape[0] for context in api.summary(model).contexts] == [1, 3]


def test_no_grad_and_inference_mode_in_turn():
    model, reference = tiny_trunk().requires_grad_(True), tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS, fullgraph=True)
    modes = [torch.no_grad, torch.inference_mode] * 3
    text = None
    for step, (mode, call) in enumerate(zip(modes, loop(6), strict=True)):
        with mode():
            text = call[2] if text is None else text
            out = compiled(call[0].clone(), call[1].clone(), text)
            assert torch.equal(out, reference(call[0], call[1], text)) == (step == 0)
            assert out.is_inference() == (mode is torch.inference_mode)
    assert decisions(model) == ["C....."]


def test_gradients_need_the_unmodified_graph_and_it_is_said_once():
    model, reference = (tiny_trunk().requires_grad_(True) for _ in range(2))
    compiled = torch.compile(model, backend="fxcache", options=WARN, fullgraph=True)
    with refusals() as said:
        for call in loop():
            compiled(*call).square().sum().backward()
            reference(*call).square().sum().backward()
    assert said == [
        "fxcache leaves a graph unmodified: gradients are needed: "
        "caching is for inference, call the model under torch.no_grad()"
    ]
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None and torch.equal(mine.grad, theirs.grad)
    with torch.no_grad():
        for call in loop():
            compiled(*call)
    assert decisions(model) == ["C.."]


def test_branches_of_a_model_that_hands_its_arguments_on_share_nothing():
    model, reference = tiny_trunk(), tiny_trunk()
    compiled = torch.compile(Around(model), backend="fxcache", options=OPTIONS, fullgraph=True)
    other = torch.full((1, 3, 16), 0.5)
    with torch.no_grad(), api.generation(num_inference_steps=3):
        for step, (x, t, c) in enumerate(loop()):
            for text in (c, other):
                assert torch.equal(compiled(x, t, text), reference(x, t, text)) == (step == 0)
    assert decisions(model) == ["C..", "C.."]


@torch._inductor.config.patch(freezing=True)
def test_frozen_weights_need_the_unmodified_graph():
    model, reference = tiny_trunk(), tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options={**WARN, "inner_backend": "inductor"}, fullgraph=True)
    with refusals() as said, torch.no_grad():
        for x, t, c in loop():
            torch.testing.assert_close(compiled(x, t, c), reference(x, t, c))
    assert said == [
        "fxcache leaves a graph unmodified: freezing is on (torch._inductor.config.freezing): "
        "it makes the weights a part of the graph"
    ]
    assert decisions(model) == []


def test_a_model_without_trunk_is_refused_once_and_runs():
    tiny, compile_as = perceptron(), {"backend": "fxcache", "fullgraph": True, "dynamic": False}
    compiled = torch.compile(tiny.module, options=WARN, **compile_as)
    with refusals() as said:
        for step in range(3):
            kwargs = tiny.inputs(step=step)
            assert torch.equal(tiny.run(kwargs, compiled), tiny.run(kwargs))
    (sentence,) = said
    assert sentence.startswith("fxcache leaves a graph unmodified: ")
    assert api.summary(tiny.module).contexts == ()
    strict = torch.compile(tiny.module, options=OPTIONS, **compile_as)
    with pytest.raises(Exception, match="fxcache cannot cache this graph") as caught:
        tiny.run(tiny.inputs(), strict)
    assert isinstance(inside(caught.value), RefusalError)


def compilations(backend: str, sizes: list[tuple[int, int, int]], dynamic: bool | None) -> int:
    """Graphs that another backend gets for one generation per size."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(tiny_trunk(), backend=backend, dynamic=dynamic, fullgraph=True)
    with torch.no_grad():
        for length, batch, words in sizes:
            for call in loop(2, length, batch, words):
                compiled(*call)
    torch._dynamo.reset()
    return graphs()


def graphs() -> int:
    """Graphs compiled since the counters were cleared; one that Dynamo traces again to learn more counts once."""
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("dynamic", [None, False, pytest.param(True, marks=pytest.mark.slow)])
def test_as_many_compilations_as_any_backend_and_state_per_shape(dynamic):
    sizes = [(4, 1, 3), (6, 1, 3), (9, 1, 3), (5, 2, 3), (7, 1, 5)]
    expected = compilations("aot_eager", sizes, dynamic)
    model, reference = tiny_trunk(), tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS, dynamic=dynamic, fullgraph=True)
    counters.clear()
    firsts = []
    with torch.no_grad():
        for length, batch, words in sizes:
            calls = loop(3, length, batch, words)
            outs = [compiled(*call) for call in calls]
            plain = [reference(*call) for call in calls]
            torch.testing.assert_close(outs[0], plain[0], rtol=1e-6, atol=1e-6)
            assert 0 < (outs[2] - plain[2]).norm() < 0.1 * plain[2].norm()
            firsts.append(outs)
        assert graphs() == expected
        for (length, batch, words), outs in zip(sizes, firsts, strict=True):  # all sizes again: nothing is compiled
            for call, out in zip(loop(3, length, batch, words), outs, strict=True):
                torch.testing.assert_close(compiled(*call), out, rtol=1e-6, atol=1e-6)
    assert graphs() == expected
    assert decisions(model) == ["C.."] * 10
    assert len({context.shape for context in api.summary(model).contexts}) == 5


def test_sizes_in_turn_share_nothing():
    model = tiny_trunk()
    compiled = torch.compile(model, backend="fxcache", options=OPTIONS, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for small, large in zip(loop(3), loop(3, length=6), strict=True):
            compiled(*small)
            compiled(*large)
    assert sorted(decisions(model)) == ["C..", "C.."]


def test_dumped_graphs_are_numbered(tmp_path):
    options = {**OPTIONS, "dump_dir": str(tmp_path / "graphs")}
    compiled = torch.compile(tiny_trunk(), backend="fxcache", options=options, fullgraph=True)
    with torch.no_grad():
        compiled(*loop(1)[0])
    (folder,) = (tmp_path / "graphs").iterdir()
    files = sorted(path.name for path in folder.iterdir())
    numbers = sorted({int(name[:2]) for name in files})
    assert numbers == list(range(len(numbers))) and len(files) == 2 * len(numbers) > 2
    last = (
        folder / next(name for name in files if name.startswith(f"{numbers[-1]:02d}") and "after" in name)
    ).read_text()
    assert "cond" in last and "fxcache.decide" in last and "fxcache.commit" in last
    first = (folder / files[1]).read_text()
    assert "before" in files[1] and "ops.fxcache" not in first


def test_a_mode_of_torch_compile_reaches_the_options():
    import fxcache.backend

    seen: dict[str, Any] = {}

    def spy(seam: Any, gm: Any, inputs: Any, options: Any) -> Any:
        seen["inner"] = dict(options.inner_options)
        return gm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fxcache.backend, "through_inductor", spy)
        patch.setattr(fxcache.backend, "compile_through", spy)
        compiled = torch.compile(tiny_trunk(), backend="fxcache", mode="max-autotune-no-cudagraphs")
        with torch.no_grad():
            compiled(*loop(1)[0])
    assert seen["inner"] == {"mode": "max-autotune-no-cudagraphs"}
