"""Approximation on a reused step against float64."""

from __future__ import annotations

import pytest
import torch

from fxcache.kernels import extrapolate_reference
from tests.kernels.tolerances import DTYPES, EMPTY, ROUNDED_ONCE, SHAPES, random, strided

extrapolate = torch.ops.fxcache.extrapolate.default


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
def test_sum(dtype, shape, make):
    live_in, cache = make(*shape, dtype=dtype), make(*shape, dtype=dtype, seed=1)
    out = extrapolate(live_in, cache)
    expected = live_in.double() + cache.double()
    assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, live_in.shape, True)
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDED_ONCE[dtype], atol=0)
    assert torch.equal(out, extrapolate_reference(live_in, cache))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize("make", [random, strided])
def test_without_a_live_in_the_cache_is_copied(dtype, make):
    cache = make(3, 5).mul(3).to(dtype)
    out = extrapolate(None, cache)
    assert torch.equal(out, cache)
    assert out.is_contiguous()
    assert out.data_ptr() != cache.data_ptr()


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    assert extrapolate(random(*shape), random(*shape)).shape == shape
    assert extrapolate(None, random(*shape)).shape == shape


def test_what_is_not_finite_shows():
    out = extrapolate(torch.tensor([torch.nan, torch.inf, 1.0]), torch.tensor([0.0, -torch.inf, torch.inf]))
    assert out.isnan().tolist() == [True, True, False]
    assert out[2] == torch.inf


def test_inputs_stay_and_the_result_is_the_same_every_time():
    live_in, cache = random(9, 9), random(9, 9, seed=1)
    copies = live_in.clone(), cache.clone()
    first = extrapolate(live_in, cache)
    assert torch.equal(first, extrapolate(live_in, cache))
    assert torch.equal(live_in, copies[0])
    assert torch.equal(cache, copies[1])


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    live_in, cache = random(5, 7), random(5, 7, seed=1)
    compiled = torch.compile(lambda a, b: extrapolate(a * 2, b) + extrapolate(None, b), backend=backend, fullgraph=True)
    assert torch.equal(compiled(live_in, cache), live_in * 2 + cache + cache)


@pytest.mark.parametrize("live_in", [None, strided(3, 5)])
def test_registration(live_in):
    torch.library.opcheck(extrapolate, (live_in, strided(3, 5, seed=1)))
