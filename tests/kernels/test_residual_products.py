"""Scalar products of a residual and its differences to a history, against float64 and against exact sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fxcache.kernels import residual_products_by_pairs, residual_products_reference
from tests.kernels.tolerances import DIFFERENCES, DTYPES, EMPTY, PRODUCTS, SHAPES, random, strided

residual_products = torch.ops.fxcache.residual_products.default


def vectors(out: Tensor, inp: Tensor | None, history: Tensor, every: int = 1, dtype: torch.dtype = torch.float64):
    """r and the differences to it, one row each, computed in ``dtype``, given in float64."""
    residual = (out.to(dtype) - (inp.to(dtype) if inp is not None else 0.0))[..., ::every]
    differences = [entry.to(dtype) - residual for entry in history]
    return torch.stack([vector.double().flatten() for vector in (residual, *differences)])


def assert_products(products: Tensor, out: Tensor, inp: Tensor | None, history: Tensor, every: int = 1) -> None:
    """The definition in float64, near it; the sums of what float32 holds, exactly."""
    assert (products.dtype, products.shape) == (torch.float64, (len(history) + 1,) * 2)
    assert torch.equal(products, products.T)
    wide = vectors(out, inp, history, every)
    sizes = wide[0].norm() + wide.norm(dim=1)
    assert ((products - wide @ wide.T).abs() <= DIFFERENCES * sizes[:, None] * sizes).all()
    rows = vectors(out, inp, history, every, torch.float32)
    exact = [[math.fsum(map(float.__mul__, one, other)) for other in rows.tolist()] for one in rows.tolist()]
    norms = rows.norm(dim=1)
    difference = (products - torch.tensor(exact, dtype=torch.float64)).abs()
    assert (difference <= PRODUCTS * norms[:, None] * norms).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
@pytest.mark.parametrize("with_input", [True, False])
def test_products(dtype, shape, make, with_input):
    out = make(*shape, dtype=dtype)
    inp = make(*shape, dtype=dtype, seed=1) if with_input else None
    history = random(3, *shape, seed=2)
    assert_products(residual_products(out, inp, history), out, inp, history)
    for formula in (residual_products_reference, residual_products_by_pairs):
        assert_products(formula(out, inp, history), out, inp, history)


@pytest.mark.parametrize("entries", range(1, 9))
def test_every_number_of_entries(entries):
    out, inp, history = random(3, 37, 11), random(3, 37, 11, seed=1), random(entries, 3, 37, 11, seed=2)
    assert_products(residual_products(out, inp, history), out, inp, history)


@pytest.mark.parametrize("every", [2, 3, 7, 100])
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 33), (4, 8)])
@pytest.mark.parametrize("with_input", [True, False])
def test_every_nth_channel(every, shape, with_input):
    out, inp = random(*shape), random(*shape, seed=1) if with_input else None
    history = random(2, *shape[:-1], -(-shape[-1] // every), seed=2)
    for formula in (residual_products, residual_products_by_pairs):
        assert_products(formula(out, inp, history, every), out, inp, history, every)


def test_numbers_by_hand():
    out, inp, history = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 4.0], [0.0, 1.0]])
    # r = (2, 1), differences (0, 3) and (-2, 0)
    assert residual_products(out, inp, history).tolist() == [[5.0, 3.0, -4.0], [3.0, 9.0, 0.0], [-4.0, 0.0, 4.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_step_again_has_no_distance(dtype):
    out, inp = random(9, 16, dtype=dtype), random(9, 16, dtype=dtype, seed=1)
    residual = out.float() - inp.float()
    products = residual_products(out, inp, torch.stack([residual, random(9, 16)]))
    assert products[1].tolist() == [0.0, 0.0, 0.0] and products[0, 0] > 0.0 and products[2, 2] > 0.0


def test_small_distances_between_large_values_are_exact():
    """What products of the entries themselves would lose."""
    out = random(50, 40) + 1e4
    change = torch.arange(2000.0).view(50, 40) / 2.0**12
    stored = out + change
    moved = (stored - out).double()
    products = residual_products(out, None, stored[None])
    assert float(products[1, 1]) == pytest.approx(float(moved.square().sum()), rel=1e-12)


def test_products_beyond_float32():
    out, history = torch.full((4, 5), 1e30), torch.full((1, 4, 5), -1e30)
    assert residual_products(out, None, history)[1, 1].item() == pytest.approx(20 * 4e60, rel=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(3, 5), (3, 37, 67)])
@pytest.mark.parametrize("entry", [0, 2])
def test_an_entry_that_is_not_finite_spoils_its_own_products(value, shape, entry):
    out, history = random(*shape), random(3, *shape, seed=1)
    history[(entry, *(-1 for _ in shape))] = value
    products = residual_products(out, None, history)
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[entry + 1] = expected[:, entry + 1] = False
    assert torch.equal(products.isfinite(), expected)
    others = [place for place in range(3) if place != entry]
    kept = [0, *(place + 1 for place in others)]
    assert_products(products[kept][:, kept], out, None, history[others])


@pytest.mark.parametrize("where", ["out", "inp"])
def test_a_residual_that_is_not_finite_spoils_everything(where):
    tensors = {"out": random(3, 4), "inp": random(3, 4, seed=1)}
    tensors[where][1, 2] = torch.nan
    assert residual_products(*tensors.values(), random(2, 3, 4)).isnan().all()


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    assert residual_products(random(*shape), None, random(2, *shape)).tolist() == [[0.0] * 3] * 3


def test_float64_is_kept():
    out, inp, history = (random(*shape).double() / 3 for shape in ((5, 7), (5, 7), (2, 5, 7)))
    rows = vectors(out, inp, history)
    torch.testing.assert_close(residual_products(out, inp, history), rows @ rows.T, rtol=1e-13, atol=1e-13)


def test_the_result_is_the_same_every_time_and_inputs_stay():
    tensors = [random(30, 30), random(30, 30, seed=1), random(4, 30, 30, seed=2)]
    copies = [tensor.clone() for tensor in tensors]
    assert torch.equal(residual_products(*tensors), residual_products(*tensors))
    assert all(map(torch.equal, tensors, copies))


@pytest.mark.parametrize(
    ("out", "inp", "history", "every", "message"),
    [
        (random(2), None, random(9, 2), 1, "history: 9 entries, allowed are 1 to 8"),
        (random(2), None, random(0, 2), 1, "history: 0 entries, allowed are 1 to 8"),
        (random(2), None, random(2, 3).T, 1, r"history: strides \(1, 3\) of shape \(3, 2\), it must be contiguous"),
        (random(2).half(), None, random(1, 2).half(), 1, "history: torch.float16, it must be torch.float32 for out"),
        (random(2), None, random(1, 2).double(), 1, "history: torch.float64, it must be torch.float32 for out"),
        (random(2, 7), None, random(1, 2, 7), 2, r"history: entries of \(2, 7\), what is compared is \(2, 4\)"),
        (random(2, 7), random(7), random(1, 2, 7), 1, r"inp: shape \(7,\), that of out is \(2, 7\)"),
    ],
)
def test_what_is_refused(out, inp, history, every, message):
    with pytest.raises(ValueError, match=message):
        residual_products(out, inp, history, every)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    out, inp, history = random(5, 7), random(5, 7, seed=1), random(2, 5, 4, seed=2)
    compiled = torch.compile(
        lambda a, b, c: residual_products(a + 0.5, b, c * 2, 2) * 2, backend=backend, fullgraph=True
    )
    assert_products(compiled(out, inp, history) / 2, out + 0.5, inp, history * 2, 2)


@pytest.mark.parametrize("with_input", [True, False])
def test_registration(with_input):
    out = strided(3, 5)
    inp = strided(3, 5, seed=1) if with_input else None
    torch.library.opcheck(residual_products, (out, inp, random(2, 3, 3, seed=2), 2))
