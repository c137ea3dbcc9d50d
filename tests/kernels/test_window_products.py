"""Scalar products of a window against exact sums."""

from __future__ import annotations

import math

import pytest
import torch

from fxcache.kernels import window_products_reference
from tests.kernels.tolerances import DTYPES, EMPTY, PRODUCTS, SHAPES, poisoned, random

window_products = torch.ops.fxcache.window_products.default


def exact(history, slot):
    """Correctly rounded sums of the products, which float64 holds exactly for every dtype here."""
    rows = history.double().flatten(1).tolist()
    return [math.fsum(map(float.__mul__, rows[slot], row)) for row in rows]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slot", [0, 2])
def test_one_row_and_column(dtype, shape, slot):
    history, gram = random(3, *shape, dtype=dtype), poisoned(3, 3, dtype=torch.float64)
    window_products(torch.tensor(slot), history, gram)
    sizes = history.double().flatten(1).norm(dim=1)
    allowed = PRODUCTS * sizes[slot] * sizes
    assert ((gram[slot] - torch.tensor(exact(history, slot), dtype=torch.float64)).abs() <= allowed).all()
    assert torch.equal(gram[slot], gram[:, slot])
    assert gram.isnan().sum() == 4
    again = poisoned(3, 3, dtype=torch.float64)
    window_products_reference(torch.tensor(slot), history, again)
    assert ((gram[slot] - again[slot]).abs() <= allowed).all()


def test_one_slot_after_the_other_gives_the_gram_matrix():
    history, gram = random(4, 9, 5), poisoned(4, 4, dtype=torch.float64)
    for slot in range(4):
        window_products(torch.tensor(slot), history, gram)
    flat = history.double().flatten(1)
    torch.testing.assert_close(gram, flat @ flat.T)
    assert torch.equal(gram, gram.T)


def test_nearly_equal_products_keep_their_difference():
    history = (1e4 + random(2, 64, 64)).float()
    gram = poisoned(2, 2, dtype=torch.float64)
    window_products(torch.tensor(1), history, gram)
    own, cross = exact(history, 1)[1], exact(history, 1)[0]
    assert float(gram[1, 1] - gram[1, 0]) == pytest.approx(own - cross, rel=1e-6)


def test_without_a_slot_nothing_is_read_or_written():
    gram = poisoned(2, 2, dtype=torch.float64)
    gram[0] = 1.0
    kept = gram.clone()
    window_products(torch.tensor(-1), random(2, 3), gram)
    torch.testing.assert_close(gram, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_products(value):
    history, gram = random(3, 4, 4), torch.zeros(3, 3, dtype=torch.float64)
    history[1, 2, 2] = value
    window_products(torch.tensor(0), history, gram)
    assert gram.isfinite().tolist() == [[True, False, True], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    gram = poisoned(2, 2, dtype=torch.float64)
    window_products(torch.tensor(1), random(2, *shape), gram)
    assert gram[1].tolist() == gram[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("slot", "history", "gram", "message"),
    [
        (0, random(9, 2), torch.zeros(9, 9).double(), "history: 9 entries, allowed are 1 to 8"),
        (2, random(2, 2), torch.zeros(2, 2).double(), "slot: 2, history has 2 entries"),
        (0, random(3, 2).T, torch.zeros(2, 2).double(), "history: strides .*, it must be contiguous"),
        (0, random(2, 3), torch.zeros(2, 2), r"gram: torch.float32 \(2, 2\), expected torch.float64 \(2, 2\)"),
        (0, random(2, 3), torch.zeros(3, 3).double(), r"gram: torch.float64 \(3, 3\)"),
    ],
)
def test_what_is_refused(slot, history, gram, message):
    with pytest.raises(ValueError, match=message):
        window_products(torch.tensor(slot), history, gram)


def test_memory_in_common_is_refused():
    history = random(2, 4).double()
    with pytest.raises(ValueError, match="gram: shares memory with history"):
        window_products(torch.tensor(0), history, history.view(-1)[:4].view(2, 2))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(slot, history, gram):
        window_products(slot, history * 2, gram)
        return gram.sum()

    history, gram = random(2, 5, 7), torch.zeros(2, 2, dtype=torch.float64)
    result = torch.compile(step, backend=backend, fullgraph=True)(torch.tensor(1), history, gram)
    torch.testing.assert_close(gram[1], (history * 2)[1].double().flatten() @ (history * 2).double().flatten(1).T)
    torch.testing.assert_close(result, gram.sum())


@pytest.mark.parametrize("slot", [-1, 1])
def test_registration(slot):
    torch.library.opcheck(window_products, (torch.tensor(slot), random(2, 3, 5), torch.zeros(2, 2).double()))
