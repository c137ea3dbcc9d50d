"""Scalar products of the present residual and of what separates it from the stored ones, against exact sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxcache.kernels import residual_products_reference
from tests.kernels.tolerances import DTYPES, ROUNDED_ONCE, SHAPES, random, strided

residual_products = torch.ops.fxcache.residual_products.default

FORMED = 4 * ROUNDED_ONCE[torch.float32]
"""Relative to the sizes of both vectors: the residual and its distances are formed in float32, the rest in float64."""


def vectors(out: Tensor, inp: Tensor | None, history: Tensor, every: int = 1) -> Tensor:
    """The vectors in float64, one per row; half precision and float32 are exact in it."""
    wide = out.double() if inp is None else out.double() - inp.double()
    present = wide[..., ::every].flatten()
    return torch.stack([present, *(entry.double().flatten() - present for entry in history)])


def exact(rows: Tensor) -> Tensor:
    lists = rows.tolist()
    sums = [[math.fsum(map(float.__mul__, one, other)) for other in lists] for one in lists]
    return torch.tensor(sums, dtype=torch.float64)


def assert_close(products: Tensor, out: Tensor, inp: Tensor | None, history: Tensor, every: int = 1) -> None:
    rows = vectors(out, inp, history, every)
    # what is rounded is as large as what is subtracted, not as what is left
    present = [term[..., ::every] for term in (out, inp) if term is not None]
    largest = max(float(term.double().norm()) for term in (*present, *history))
    sizes = rows.norm(dim=1) + FORMED * largest
    assert ((products - exact(rows)).abs() <= FORMED * largest * (sizes[:, None] + sizes[None, :])).all()


def stored(count: int, out: Tensor, every: int = 1, seed: int = 3) -> Tensor:
    shape = out[..., ::every].shape
    return torch.stack([random(*shape, seed=seed + number) for number in range(count)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_input", [True, False])
def test_products(dtype, shape, with_input):
    out, inp = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1) if with_input else None
    history = stored(3, out)
    products = residual_products(out, inp, history)
    assert (products.dtype, products.shape) == (torch.float64, (4, 4))
    assert_close(products, out, inp, history)
    assert torch.equal(products, products.T)
    assert_close(residual_products_reference(out, inp, history), out, inp, history)


@pytest.mark.parametrize("count", range(1, 9))
def test_histories_of_every_length(count):
    out, inp = random(2, 9, 5), random(2, 9, 5, seed=1)
    history = stored(count, out)
    products = residual_products(out, inp, history)
    assert products.shape == (count + 1, count + 1)
    assert_close(products, out, inp, history)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (1, 1)])
def test_every_nth_channel(every, shape):
    out, inp = random(*shape), random(*shape, seed=1)
    history = stored(2, out, every)
    assert_close(residual_products(out, inp, history, every), out, inp, history, every)
    kept = residual_products(out[..., ::every].contiguous(), inp[..., ::every].contiguous(), history)
    torch.testing.assert_close(residual_products(out, inp, history, every), kept)


def test_strides_do_not_matter():
    out, inp = strided(3, 4, 6), strided(3, 4, 6, seed=1)
    history = stored(2, out)
    products = residual_products(out, inp, history)
    torch.testing.assert_close(products, residual_products(out.contiguous(), inp.contiguous(), history))


def test_a_small_distance_is_exact():
    """The distance of nearly equal values would be lost in the difference of their products."""
    present = random(64, 64)
    history = torch.stack([present + 2.0**-20, present])
    products = residual_products(present, None, history)
    distance = history[0].double() - present.double()
    assert float(products[1, 1]) == pytest.approx(float(distance.square().sum()), rel=1e-12)
    assert not products[2].any()


@pytest.mark.parametrize("spoilt", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_entry_that_is_not_finite_spoils_its_own_row_and_column(spoilt, value):
    out, history = random(4, 5), stored(3, random(4, 5))
    clean = residual_products(out, None, history)
    history[spoilt, 1, 2] = value
    products = residual_products(out, None, history)
    others = [row for row in range(4) if row != 1 + spoilt]
    assert torch.equal(products[others][:, others], clean[others][:, others])
    assert not products[1 + spoilt].isfinite().any() and not products[:, 1 + spoilt].isfinite().any()


def test_a_present_value_that_is_not_finite_spoils_everything():
    out, history = random(4, 5), stored(2, random(4, 5))
    out[0, 0] = math.nan
    assert residual_products(out, None, history).isnan().all()


@pytest.mark.parametrize("with_input", [True, False])
def test_registration(with_input):
    out, inp = random(3, 5), random(3, 5, seed=1) if with_input else None
    torch.library.opcheck(residual_products, (out, inp, stored(2, out)))
    torch.library.opcheck(residual_products, (out, inp, stored(2, out, 2), 2))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(out, inp, history):
        return residual_products((out * 2).permute(1, 0), inp.permute(1, 0), history, 2) + 1

    compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (6, 9):
            out, inp = random(5, rows), random(5, rows, seed=1)
            history = stored(3, out.permute(1, 0), 2)
            torch.testing.assert_close(compiled(out, inp, history), step(out, inp, history), rtol=1e-6, atol=1e-6)
