"""Update of the state against float64."""

from __future__ import annotations

import pytest
import torch

from fxcache.kernels import commit_reference
from tests.kernels.tolerances import DTYPES, EMPTY, ROUNDED_ONCE, SHAPES, random, strided

commit = torch.ops.fxcache.commit.default
YES, NO = torch.tensor(True), torch.tensor(False)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
@pytest.mark.parametrize("with_input", [True, False])
def test_residual(dtype, shape, make, with_input):
    live_out = make(*shape, dtype=dtype)
    live_in = make(*shape, dtype=dtype, seed=1) if with_input else None
    cache, health = poisoned(*shape, dtype=dtype), poisoned(3)
    commit(YES, live_out, live_in, cache, health, 1)
    expected = live_out.double() - (live_in.double() if live_in is not None else 0.0)
    torch.testing.assert_close(cache.double(), expected, rtol=ROUNDED_ONCE[dtype], atol=0)
    assert health[1] == 0.0
    assert health.isnan().tolist() == [True, False, True]
    again = poisoned(*shape, dtype=dtype)
    commit_reference(YES, live_out, live_in, again, health, 1)
    assert torch.equal(again, cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [2, 3, 100])
def test_float32_reference_of_every_nth_channel(dtype, every):
    live_out, live_in = random(2, 5, 7, dtype=dtype), random(2, 5, 7, dtype=dtype, seed=1)
    cache, health = poisoned(2, 5, -(-7 // every)), poisoned(1)
    commit(YES, live_out, live_in, cache, health, 0, every)
    expected = (live_out.double() - live_in.double())[..., ::every]
    torch.testing.assert_close(cache.double(), expected, rtol=2.0**-23, atol=0)
    commit(YES, live_out, None, cache, health, 0, every)
    assert torch.equal(cache, live_out[..., ::every].float())


def test_without_permission_nothing_is_read_or_written():
    cache, health = random(3, 4), random(2)
    copies = cache.clone(), health.clone()
    commit(NO, poisoned(3, 4), poisoned(3, 4), cache, health, 0)
    assert torch.equal(cache, copies[0])
    assert torch.equal(health, copies[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("with_input", [True, False])
def test_what_is_not_finite_marks_the_slot(value, with_input):
    live_out = random(3, 4)
    live_out[2, 1] = value
    health = torch.zeros(2)
    commit(YES, live_out, random(3, 4, seed=1) if with_input else None, poisoned(3, 4), health, 1)
    assert health.isnan().tolist() == [False, True]


def test_a_residual_that_overflows_its_dtype_marks_the_slot():
    big = torch.full((2, 2), 60000.0, dtype=torch.float16)
    cache, health = poisoned(2, 2, dtype=torch.float16), torch.zeros(1)
    commit(YES, big, -big, cache, health, 0)
    assert health.isnan().all()
    commit(YES, big, None, cache, health, 0)
    assert health.tolist() == [0.0]


def test_large_but_finite_values_are_healthy():
    health = torch.full((1,), torch.nan)
    commit(YES, torch.full((64, 64), 3e38), None, poisoned(64, 64), health, 0)
    assert health.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_values_that_are_not_floating_point_are_copied(dtype):
    live_out, health = random(3, 4).mul(3).to(dtype), torch.zeros(1)
    cache = torch.zeros(3, 4, dtype=dtype)
    commit(YES, live_out, None, cache, health, 0)
    assert torch.equal(cache, live_out)
    assert health.tolist() == [0.0]


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    empty, health = random(*shape), torch.zeros(1)
    commit(YES, empty, empty, empty.clone(), health, 0)
    assert health.tolist() == [0.0]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(store, out, inp, cache, health):
        commit(store, out * 2, inp, cache, health, 0)
        return cache.sum() + out.sum()

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    out, inp, health = random(5, 7), random(5, 7, seed=1), torch.ones(1)
    cache = torch.zeros(5, 7)
    result = compiled(YES, out, inp, cache, health)
    torch.testing.assert_close(cache, out * 2 - inp)
    torch.testing.assert_close(result, cache.sum() + out.sum())
    assert health.tolist() == [0.0]
    kept = cache.clone()
    compiled(NO, inp, out, cache, health)
    assert torch.equal(cache, kept)


@pytest.mark.parametrize("store", [YES, NO])
@pytest.mark.parametrize("with_input", [True, False])
def test_registration(store, with_input):
    live_in = strided(3, 5, seed=1) if with_input else None
    torch.library.opcheck(commit, (store, strided(3, 5), live_in, torch.zeros(3, 3), torch.zeros(2), 1, 2))
