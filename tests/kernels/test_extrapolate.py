"""Approximation on a reused step against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcache.kernels import extrapolate_reference
from tests.kernels.tolerances import DTYPES, EMPTY, ROUNDED_ONCE, SHAPES, WEIGHTED, random, strided

extrapolate = torch.ops.fxcache.extrapolate.default


def exact(live_in, history, coefficients=None):
    """The definition, entry by entry, in float64, and the sum of the sizes of its terms."""
    factors = [1.0] if coefficients is None else coefficients.tolist()
    terms = [factor * entry.double() for factor, entry in zip(factors, history, strict=False) if factor != 0.0]
    terms += [] if live_in is None else [live_in.double()]
    nothing = torch.zeros(history.shape[1:], dtype=torch.float64)
    return sum(terms, nothing), sum((term.abs() for term in terms), nothing)


def assert_near(out, live_in, history, coefficients=None):
    expected, size = exact(live_in, history, coefficients)
    allowed = ROUNDED_ONCE[out.dtype] * expected.abs() + WEIGHTED * size
    assert ((out.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
def test_sum(dtype, shape, make):
    live_in, history = make(*shape, dtype=dtype), random(2, *shape, dtype=dtype, seed=1)
    out = extrapolate(live_in, history)
    expected = live_in.double() + history[0].double()
    assert (out.dtype, out.shape, out.is_contiguous()) == (dtype, live_in.shape, True)
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDED_ONCE[dtype], atol=0)
    assert torch.equal(out, extrapolate_reference(live_in, history))
    assert torch.equal(out, (live_in.float() + history[0].float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("entries", [1, 3, 8])
@pytest.mark.parametrize("live_dtype", [None, torch.float32, torch.float16])
@pytest.mark.parametrize("result", [None, torch.float32, torch.bfloat16])
def test_weighted_sum(dtype, entries, live_dtype, result):
    history = random(entries, 3, 11, dtype=dtype)
    live_in = None if live_dtype is None else strided(3, 11, dtype=live_dtype, seed=1)
    coefficients = random(entries, seed=2)
    out = extrapolate(live_in, history, coefficients, result)
    assert (out.dtype, out.shape, out.is_contiguous()) == (result or dtype, (3, 11), True)
    assert_near(out, live_in, history, coefficients)


@given(st.data())
def test_any_shape_strides_and_coefficients(data):
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4), label="shape")
    axes = data.draw(st.permutations(range(len(shape))), label="order of the axes")
    factors = st.one_of(st.just(0.0), st.floats(-8, 8, width=32))
    chosen = data.draw(st.lists(factors, min_size=1, max_size=8), label="coefficients")
    history = random(len(chosen), *shape)
    live_in = random(*[shape[axis] for axis in axes], seed=1).permute([axes.index(axis) for axis in range(len(axes))])
    out = extrapolate(live_in, history, torch.tensor(chosen))
    assert out.is_contiguous()
    assert_near(out, live_in, history, torch.tensor(chosen))


@pytest.mark.parametrize("with_input", [True, False])
def test_an_entry_with_coefficient_zero_is_not_read(with_input):
    history = random(4, 3, 5)
    history[1], history[3] = torch.nan, torch.inf
    live_in = random(3, 5, seed=1) if with_input else None
    coefficients = torch.tensor([2.0, 0.0, -1.0, -0.0])
    assert_near(extrapolate(live_in, history, coefficients), live_in, history, coefficients)
    nothing = extrapolate(live_in, history, torch.zeros(4))
    assert torch.equal(nothing, torch.zeros(3, 5) if live_in is None else live_in)


def test_float64_is_computed_in_float64():
    history, live_in = random(2, 3, 5, dtype=torch.float64), random(3, 5, dtype=torch.float64, seed=1)
    coefficients = torch.tensor([0.1, -3.0])
    expected, _ = exact(live_in, history, coefficients)
    torch.testing.assert_close(extrapolate(live_in, history, coefficients), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(extrapolate(live_in, history.float()[:1]), (live_in + history[0].float().double()).float())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
def test_without_a_live_in_the_entry_is_copied(dtype):
    history = random(1, 3, 5).mul(3).to(dtype)
    out = extrapolate(None, history)
    assert torch.equal(out, history[0])
    assert out.is_contiguous()
    assert out.data_ptr() != history.data_ptr()


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    assert extrapolate(random(*shape), random(1, *shape)).shape == shape
    assert extrapolate(None, random(3, *shape), torch.ones(3)).shape == shape


def test_what_is_not_finite_shows():
    out = extrapolate(torch.tensor([torch.nan, torch.inf, 1.0]), torch.tensor([[0.0, -torch.inf, torch.inf]]))
    assert out.isnan().tolist() == [True, True, False]
    assert out[2] == torch.inf


def test_inputs_stay_and_the_result_is_the_same_every_time():
    live_in, history, coefficients = random(9, 9), random(3, 9, 9, seed=1), random(3, seed=2)
    copies = live_in.clone(), history.clone()
    first = extrapolate(live_in, history, coefficients)
    assert torch.equal(first, extrapolate(live_in, history, coefficients))
    assert torch.equal(live_in, copies[0])
    assert torch.equal(history, copies[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, random(9, 3)), "history: 9 entries, allowed are 1 to 8"),
        ((None, random(3, 2).T), r"history: strides \(1, 2\) of shape \(2, 3\), it must be contiguous"),
        ((random(3), random(1, 4)), r"live_in: shape \(3,\), that of an entry of history is \(4,\)"),
        ((None, random(2, 4), random(3)), r"coefficients: torch.float32 \(3,\), expected torch.float32 \(2,\)"),
        ((None, random(1, 4), random(1).double()), "coefficients: torch.float64"),
        ((None, random(2, 4).int(), random(2)), "history: torch.int32 can only be copied"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        extrapolate(*arguments)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(live_in, history, coefficients):
        return extrapolate(live_in * 2, history, coefficients) + extrapolate(None, history, None, torch.float32)

    live_in, history, coefficients = random(5, 7), random(2, 5, 7, seed=1), torch.tensor([1.0, 2.0])
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    expected = live_in * 2 + 2 * history[0] + 2 * history[1]
    torch.testing.assert_close(compiled(live_in, history, coefficients), expected)


@pytest.mark.parametrize("live_in", [None, strided(3, 5)])
@pytest.mark.parametrize("coefficients", [None, torch.tensor([1.0, 0.0])])
def test_registration(live_in, coefficients):
    torch.library.opcheck(extrapolate, (live_in, random(2, 3, 5, seed=1), coefficients, torch.bfloat16))
