"""Shared blocks through Inductor: one function per structure, and the bits of plain Inductor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from fxcache.errors import RefusalWarning

OFF: dict[str, Any] = {"residual_diff_threshold": 0.0, "on_refusal": "raise"}
SHARED = {**OFF, "share_blocks": True}
ON = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0, "on_refusal": "raise"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


class Residual(nn.Module):
    """Two products and a residual path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Turned(Residual):
    """Gives its stream back in another memory layout than it has read it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2).contiguous().transpose(1, 2)


class Joint(Residual):
    """Joins two streams and gives back two parts of one tensor."""

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        joint = super().forward(torch.cat(x, dim=1))
        return joint[:, : x[0].shape[1]], joint[:, x[0].shape[1] :]


class Passing(Residual):
    """Hands one of its inputs through, and returns one value twice."""

    def forward(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # type: ignore[override]
        made = super().forward(x[0] + x[1] * 0.5)
        return made, torch.dropout(x[0], 0.1, train=False), made.clone()


class Chain(nn.Module):
    """A convolution makes the patches, blocks follow."""

    def __init__(self, block: Callable[[int], nn.Module], streams: int = 1, count: int = 5, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.blocks = nn.ModuleList(block(width) for _ in range(count))
        self.head = nn.Linear(width, 4)
        self.streams = streams

    def forward(self, x: Tensor) -> Tensor:
        h: Any = self.patches(x).flatten(2).transpose(1, 2)
        if self.streams > 1:
            h = (h, *(h.mean(1, keepdim=True).repeat(1, h.shape[1], 1) for _ in range(self.streams - 1)))
        for block in self.blocks:
            h = block(h)
        total: Tensor = sum(self.head(part).mean() for part in h) if self.streams > 1 else self.head(h)
        return total


class Scaled(Residual):
    """Is handed a factor besides its stream, for what lies between its products, as queries and keys do."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.inner = nn.LayerNorm(2 * width)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        stream, factor = x
        return stream + self.down(self.inner(self.up(self.norm(stream))) * factor)


class Rotated(Chain):
    """What rotary embeddings do: every block reads the cosine of angles, which are joined to themselves."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        rows, columns = torch.outer(torch.arange(h.shape[1]), torch.linspace(0.1, 1, 24)).chunk(2, -1)
        angles = torch.cat([columns, rows], -1)
        factor = torch.cat([angles, angles], -1).cos()
        for block in self.blocks:
            h = block((h, factor))
        out: Tensor = self.head(h)
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Chain(Residual),
    "another layout": lambda: Chain(Turned),
    "parts of one tensor": lambda: Chain(Joint, streams=2),
    "rotated": lambda: Rotated(Scaled),
    "inputs handed through": lambda: Chain(Passing, streams=3),
}


def functions(code: str) -> list[str]:
    """Names of the functions that Inductor has made of shared blocks."""
    return re.findall(r"^def (\w*fxcache_block_\d+)\(", code, re.MULTILINE)


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_plain_inductor(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        expected = torch.compile(model, fullgraph=True, dynamic=False)(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=False, options=SHARED)
        got, (code, *_) = run_and_get_code(compiled, x)
        assert torch.equal(got, expected)
        # the first block reads the patches and settles layouts for the others
        assert len(functions(code)) == 1
        assert code.count("fxcache_block_0(fxcache_block_0_args)") in (3, 4)
        again = compiled(x + 0.5)
        torch.testing.assert_close(again, model(x + 0.5), rtol=1e-4, atol=1e-4)


def test_dynamic_sizes() -> None:
    torch.manual_seed(0)
    model = MODELS["parts of one tensor"]().eval()
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=True, options=SHARED)
    with torch.no_grad():
        _, (code, *_) = run_and_get_code(compiled, torch.randn(2, 4, 6, 10))
        assert len(functions(code)) == 1
        for rows in (6, 8, 10):
            x = torch.randn(2, 4, rows, 10)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


def test_switched_off_there_is_none() -> None:
    model, x = MODELS["residual"]().eval(), torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        for options in ({**ON, "share_blocks": False}, {**SHARED, "share_blocks": False}):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=False, options=options)
            _, (code, *_) = run_and_get_code(compiled, x)
            assert functions(code) == []


def test_what_is_not_cached_is_left_to_plain_inductor() -> None:
    model, x = MODELS["rotated"]().eval(), torch.randn(2, 4, 6, 8)
    refused = {"Fn_compute_blocks": 1, "trunk": ["nowhere"]}
    codes = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RefusalWarning)
        for backend, options in (("inductor", None), ("fxcache", OFF), ("fxcache", refused)):
            torch._dynamo.reset()
            compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False, options=options)
            _, (code, *_) = run_and_get_code(compiled, x)
            codes.append(re.sub(r"^# AOT ID: .*$", "", code, flags=re.MULTILINE))
    assert codes[0] == codes[1] == codes[2]


@pytest.mark.parametrize("name", ["residual", pytest.param("rotated", marks=pytest.mark.slow)])
def test_in_the_branch_and_on_reused_steps(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        plain = torch.compile(model, fullgraph=True, dynamic=False)(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=False, options=ON)
        computed, (code, *_) = run_and_get_code(compiled, x)
        assert torch.equal(computed, plain)
        assert functions(code) == ["fxcache_compute_fxcache_block_0"]
        torch.testing.assert_close(compiled(x), plain, rtol=1e-5, atol=1e-6)


def test_dynamic_sizes_of_patches_in_the_branch() -> None:
    torch.manual_seed(0)
    model = MODELS["residual"]().eval()
    compiled = torch.compile(model, backend="fxcache", fullgraph=True, dynamic=True, options=ON)
    with torch.no_grad():
        for rows in (6, 8, 10):
            x = torch.randn(2, 4, rows, 10)
            for _ in range(2):  # computed, then reused
                torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
