"""Indicator of a step against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcache.kernels import residual_diff_reference
from tests.kernels.tolerances import DTYPES, EMPTY, SHAPES, SUMMED, random, strided

residual_diff = torch.ops.fxcache.residual_diff.default


def exact(out: Tensor, inp: Tensor | None, reference: Tensor, every: int = 1, important: float = 0.0) -> Tensor:
    """The definition, token by token, in float64."""
    residual = (out.double() - (inp.double() if inp is not None else 0.0))[..., ::every]
    tokens = (residual - reference.double()).abs().reshape(-1, residual.shape[-1])
    sizes = reference.double().abs().reshape(-1, residual.shape[-1])
    pairs = [(float(change.sum()), float(size.sum())) for change, size in zip(tokens, sizes, strict=True)]
    if important:
        pairs = [(change, size) for change, size in pairs if change > important * size] or pairs
    return torch.tensor([sum(change for change, _ in pairs), sum(size for _, size in pairs)], dtype=torch.float64)


def reference_for(out: Tensor, every: int = 1) -> Tensor:
    return random(*out.shape, seed=2)[..., ::every].contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
@pytest.mark.parametrize("with_input", [True, False])
def test_sums(dtype, shape, make, with_input):
    out = make(*shape, dtype=dtype)
    inp = make(*shape, dtype=dtype, seed=1) if with_input else None
    reference = reference_for(out)
    sums = residual_diff(out, inp, reference)
    assert (sums.dtype, sums.shape) == (torch.float32, (2,))
    torch.testing.assert_close(sums.double(), exact(out, inp, reference), rtol=SUMMED[dtype], atol=1e-6)
    torch.testing.assert_close(sums, residual_diff_reference(out, inp, reference), rtol=SUMMED[dtype], atol=1e-6)


@pytest.mark.parametrize("every", [2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 33), (4, 8)])
@pytest.mark.parametrize("important", [0.0, 1.0])
def test_every_nth_channel(every, shape, important):
    out, inp = random(*shape), random(*shape, seed=1)
    reference = reference_for(out, every)
    assert reference.shape[-1] == -(-shape[-1] // every)
    sums = residual_diff(out, inp, reference, every, important)
    torch.testing.assert_close(sums.double(), exact(out, inp, reference, every, important), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("important", [1e-6, 0.5, 1.0, 1.5, 1e6])
def test_important_tokens(dtype, important):
    out, inp = random(2, 40, 6, dtype=dtype), random(2, 40, 6, dtype=dtype, seed=1)
    reference = reference_for(out)
    sums = residual_diff(out, inp, reference, 1, important)
    torch.testing.assert_close(
        sums.double(), exact(out, inp, reference, important=important), rtol=SUMMED[dtype], atol=1e-6
    )


def test_one_important_token_decides_alone():
    reference = torch.ones(5, 4)
    out = reference.clone()
    out[3] = 3.0
    assert residual_diff(out, None, reference).tolist() == [8.0, 20.0]
    assert residual_diff(out, None, reference, 1, 0.5).tolist() == [8.0, 4.0]
    assert residual_diff(out, None, reference, 1, 2.0).tolist() == [8.0, 20.0]


def test_the_same_step_again_has_no_difference():
    for dtype in DTYPES:
        out, inp = random(9, 16, dtype=dtype), random(9, 16, dtype=dtype, seed=1)
        reference = out.float() - inp.float()
        assert residual_diff(out, inp, reference)[0] == 0.0


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    empty = random(*shape)
    assert residual_diff(empty, empty, empty).tolist() == [0.0, 0.0]
    assert residual_diff(empty, None, empty, 1, 0.5).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("important", [0.0, 0.5])
@pytest.mark.parametrize("where", ["out", "inp", "reference"])
def test_what_is_not_finite_shows(value, important, where):
    tensors = {"out": random(3, 4), "inp": random(3, 4, seed=1), "reference": random(3, 4, seed=2)}
    tensors[where][1, 2] = value
    sums = residual_diff(*tensors.values(), 1, important)
    assert not sums.isfinite().all()


def test_a_sum_beyond_half_precision():
    out = torch.full((64, 64), 60000.0, dtype=torch.float16)
    sums = residual_diff(out, -out, torch.zeros(64, 64))
    assert sums[0] == 64 * 64 * 120000.0


def test_the_result_is_the_same_every_time_and_inputs_stay():
    tensors = [random(30, 30, seed=seed) for seed in range(3)]
    copies = [tensor.clone() for tensor in tensors]
    assert torch.equal(residual_diff(*tensors), residual_diff(*tensors))
    assert all(map(torch.equal, tensors, copies))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"reference: shape \(2, 7\), what is compared is \(2, 4\)"):
        residual_diff(random(2, 7), None, random(2, 7), 2)
    with pytest.raises(ValueError, match=r"inp: shape \(7,\), that of out is \(2, 7\)"):
        residual_diff(random(2, 7), random(7), random(2, 7))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    out, inp, reference = random(5, 7), random(5, 7, seed=1), random(5, 4, seed=2)
    compiled = torch.compile(lambda a, b, c: residual_diff(a + 0.5, b, c, 2, 0.5) * 2, backend=backend, fullgraph=True)
    expected = exact(out + 0.5, inp, reference, 2, 0.5) * 2
    torch.testing.assert_close(compiled(out, inp, reference).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("with_input", [True, False])
@pytest.mark.parametrize("important", [0.0, 0.5])
def test_registration(with_input, important):
    out = strided(3, 5)
    inp = strided(3, 5, seed=1) if with_input else None
    torch.library.opcheck(residual_diff, (out, inp, random(3, 3, seed=2), 2, important))
