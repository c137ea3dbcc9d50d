"""Kernels against their references where launching makes a difference: many programs, strides, slots on the device.

Runs on a GPU, or in Triton's interpreter on the CPU (see `conftest.py`); elsewhere there is nothing to launch.
"""

from __future__ import annotations

import pytest
import torch

from fxcache.kernels import _launch
from fxcache.kernels import commit as commit_file
from fxcache.kernels import extrapolate as extrapolate_file
from fxcache.kernels import residual_diff as residual_diff_file
from fxcache.kernels import residual_products as residual_products_file
from fxcache.kernels import window_products as window_products_file
from fxcache.kernels.commit import commit_reference
from fxcache.kernels.extrapolate import extrapolate_reference
from fxcache.kernels.residual_diff import residual_diff_reference
from fxcache.kernels.residual_products import residual_products_reference
from fxcache.kernels.window_products import window_products_reference
from tests.kernels.conftest import INTERPRETED
from tests.kernels.tolerances import DTYPES, PRODUCTS, SUMMED, poisoned, random

commit = torch.ops.fxcache.commit.default
extrapolate = torch.ops.fxcache.extrapolate.default
residual_diff = torch.ops.fxcache.residual_diff.default
residual_products = torch.ops.fxcache.residual_products.default
window_products = torch.ops.fxcache.window_products.default

DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="nothing to launch on")

SEVERAL_PROGRAMS = (3, 37, 67)
"""Neither a multiple of a tile nor of 16 elements, and more than one tile for every dtype."""


def made(*shape, dtype=torch.float32, seed=0):
    return random(*shape, dtype=dtype, seed=seed).to(DEVICE)


def layouts(dtype, seed):
    """Tensors of `SEVERAL_PROGRAMS`, from one flat row to what has to be copied."""
    batch, tokens, channels = SEVERAL_PROGRAMS
    yield "flat", made(*SEVERAL_PROGRAMS, dtype=dtype, seed=seed)
    yield "slice of a longer sequence", made(batch, tokens + 9, channels, dtype=dtype, seed=seed)[:, 9:]
    yield "channels first", made(batch, channels, tokens, dtype=dtype, seed=seed).transpose(1, 2)
    yield "every second of everything", made(batch * 2, tokens * 2, channels * 2, dtype=dtype, seed=seed)[::2, ::2, ::2]
    yield "one token for all", made(batch, 1, channels, dtype=dtype, seed=seed).expand(SEVERAL_PROGRAMS)


LAYOUTS = range(5)


def assert_same_products(out, inp, history, every=1):
    products, expected = (f(out, inp, history, every) for f in (residual_products, residual_products_reference))
    sizes = expected.diagonal().sqrt()
    assert ((products - expected).abs() <= PRODUCTS * sizes[:, None] * sizes).all()
    assert torch.equal(products, products.T)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    (name, out), (_, inp) = list(layouts(dtype, 0))[layout], list(layouts(dtype, 1))[(layout * 2) % 5]
    reference, history = made(*SEVERAL_PROGRAMS, seed=2), made(2, *SEVERAL_PROGRAMS, dtype=dtype, seed=3)
    for important in (0.0, 1.0):
        sums, expected = (f(out, inp, reference, 1, important) for f in (residual_diff, residual_diff_reference))
        torch.testing.assert_close(sums, expected, rtol=SUMMED[dtype], atol=0, msg=lambda text: f"{name}: {text}")
    assert_same_products(out, inp, made(2, *SEVERAL_PROGRAMS, seed=4))
    assert torch.equal(extrapolate(out, history), extrapolate_reference(out, history)), name
    stored = [poisoned(2, *SEVERAL_PROGRAMS, dtype=dtype).to(DEVICE) for _ in range(2)]
    health = [poisoned(1, 2).to(DEVICE) for _ in range(2)]
    commit(torch.tensor(1), out, inp, stored[0], health[0], 0)
    commit_reference(torch.tensor(1), out, inp, stored[1], health[1], 0)
    torch.testing.assert_close(stored[0], stored[1], rtol=0, atol=0, equal_nan=True, msg=name)
    assert health[0].isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("important", [0.0, 1.0])
def test_axes_that_cannot_be_merged(important):
    """Five axes, in an order that leaves no two of them next to each other in memory."""
    shape = (2, 3, 4, 3, 5)
    out, inp = made(*shape[::-1]).permute(4, 3, 2, 1, 0), made(*shape[::-1], seed=1).permute(4, 3, 2, 1, 0)
    reference, history = made(*shape, seed=2), made(1, *shape, seed=3)
    sums, expected = (f(out, inp, reference, 1, important) for f in (residual_diff, residual_diff_reference))
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)
    assert_same_products(out, inp, history)
    assert torch.equal(extrapolate(out, history), extrapolate_reference(out, history))
    stored, health = poisoned(1, *shape).to(DEVICE), poisoned(1, 1).to(DEVICE)
    commit(torch.tensor(0), out, inp, stored, health, 0)
    assert torch.equal(stored[0], out - inp)


def test_more_tiles_than_programs(monkeypatch):
    monkeypatch.setattr(residual_diff_file, "PARTIALS", 4)
    monkeypatch.setattr(window_products_file, "PARTIALS", 2)
    tensors = [made(9, 1300, seed=seed) for seed in range(3)]
    history, gram = made(3, 9, 1300), poisoned(3, 3, dtype=torch.float64).to(DEVICE)
    window_products(torch.tensor(2), history, gram)
    flat = history.double().flatten(1)
    torch.testing.assert_close(gram[2], (flat * flat[2]).sum(1), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(residual_diff(*tensors), residual_diff_reference(*tensors), rtol=1e-5, atol=0)
    every = tensors[2][:, ::3].contiguous()
    for important in (0.0, 1.0):
        sums = residual_diff(tensors[0], tensors[1], every, 3, important)
        expected = residual_diff_reference(tensors[0], tensors[1], every, 3, important)
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)


def test_tokens_longer_than_a_tile():
    tensors = [made(3, 5000, seed=seed) for seed in range(3)]
    torch.testing.assert_close(
        residual_diff(*tensors, 1, 1.0), residual_diff_reference(*tensors, 1, 1.0), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("slot", [-1, 0, 1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slot_on_the_device(slot, dtype):
    """Kernels read it themselves; a slot beyond the history is left alone, as nobody on the host sees it."""
    live_out, live_in = made(3, 1001, dtype=dtype), made(3, 1001, dtype=dtype, seed=1)
    live_out[1, 1] = torch.inf if slot == 1 else 1.0
    history, health = made(2, 3, 1001, dtype=dtype, seed=2), made(3, 2)
    gram = made(2, 2).double()
    expected = [tensor.clone() for tensor in (history, health, gram)]
    place = torch.tensor(slot, device=DEVICE)
    _launch.start(commit_file.plan(place, None, live_out, live_in, history, health[1], 1))
    _launch.start(window_products_file.plan(place, None, history, gram))
    if 0 <= slot < 2:
        commit_reference(torch.tensor(slot), live_out, live_in, *expected[:2], 1)
        window_products_reference(torch.tensor(slot), expected[0], expected[2])
    torch.testing.assert_close(history, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(health, expected[1], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(gram, expected[2], rtol=1e-12, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_over_many_programs(dtype):
    history, gram = made(3, 41, 1003, dtype=dtype), poisoned(3, 3, dtype=torch.float64).to(DEVICE)
    window_products(torch.tensor(1), history, gram)
    flat = history.double().flatten(1)
    allowed = PRODUCTS * flat.norm(dim=1) * flat[1].norm()
    assert ((gram[1] - (flat * flat[1]).sum(1)).abs() <= allowed).all()
    assert torch.equal(gram[1], gram[:, 1])


@pytest.mark.parametrize("entries", [1, 3, 8])
def test_residual_products_over_more_tiles_than_programs(entries, monkeypatch):
    monkeypatch.setattr(residual_products_file, "_PROGRAMS", 6)
    monkeypatch.setattr(residual_products_file, "_COMBINED", 2)
    out, inp = made(9, 1001, dtype=torch.bfloat16), made(1001, 9, seed=1, dtype=torch.bfloat16).T
    assert_same_products(out, inp, made(entries, 9, 1001, seed=2))
    assert_same_products(out, inp, made(entries, 9, 334, seed=2), 3)


def test_the_same_bits_every_time():
    tensors = [made(7, 1500, seed=seed) for seed in range(3)]
    history, coefficients = made(4, 7, 1500), made(4)
    runs = []
    for _ in range(2):
        gram = torch.zeros(4, 4, dtype=torch.float64, device=DEVICE)
        window_products(torch.tensor(2), history, gram)
        sums = [residual_diff(*tensors, 1, important) for important in (0.0, 1.0)]
        products = residual_products(*tensors[:2], history)
        runs.append([gram, *sums, products, extrapolate(tensors[0], history, coefficients)])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("which", ["row", "column"])
def test_strides_beyond_31_bits(which, monkeypatch):
    """The memory in between is never touched, so it costs nothing where pages come when they are written."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    step = 2**30 + 8
    memory = torch.empty(3 * step, dtype=torch.bfloat16, device=DEVICE)
    live = memory.as_strided((3, 24), (step, 1) if which == "row" else (24, step // 8))
    live.copy_(random(3, 24))
    history = made(1, 3, 24, dtype=torch.bfloat16)
    assert torch.equal(extrapolate(live, history), extrapolate_reference(live, history))
    sums, expected = (f(live, None, history[0].float()) for f in (residual_diff, residual_diff_reference))
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)
    assert_same_products(live, None, made(2, 3, 24))
    stored, health = poisoned(1, 3, 24).to(DEVICE), poisoned(1, 1).to(DEVICE)
    commit(torch.tensor(0), live, None, stored, health, 0)
    assert torch.equal(stored[0], live.float())


def test_a_history_beyond_31_bits(monkeypatch):
    """Only the first program runs: it reads where entry 2 begins and writes where entry 2 begins."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    size = 2**30 + 16
    history = torch.empty(3 * size, dtype=torch.bfloat16, device=DEVICE).view(3, size)
    first = made(3, 16, dtype=torch.bfloat16)
    history[:, :4096] = 0
    history[:, :16] = first
    coefficients = torch.tensor([1.0, -2.0, 4.0], device=DEVICE)
    out = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)
    (launch,) = extrapolate_file.plan(out, None, history, coefficients)
    _launch.start([launch._replace(grid=1)])
    assert torch.equal(out[:16], extrapolate_reference(None, first, coefficients))
    slot, health = torch.tensor(2, device=DEVICE), poisoned(1, 3).to(DEVICE)
    mark, store = commit_file.plan(slot, None, out, None, history, health[0], 1)
    _launch.start([mark, store._replace(grid=1)])
    assert torch.equal(history[2, :16], out[:16])
    assert health[0, 2] == 0.0


def test_products_with_entries_beyond_31_bits(monkeypatch):
    """The launch for entries of 16 elements, told that they begin further apart."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    step = 2**30 + 16
    far = torch.empty(2 * step + 16, device=DEVICE).as_strided((3, 16), (step, 1))
    out, near, products = made(16), made(3, 16, seed=1), poisoned(4, 4, dtype=torch.float64).to(DEVICE)
    far.copy_(near)
    multiply, fill = residual_products_file.plan(products, out, None, near, 1)
    arguments = [far if item is near else item for item in multiply.arguments]
    assert arguments[4] == 16
    arguments[4] = step
    _launch.start([multiply._replace(arguments=tuple(arguments)), fill])
    torch.testing.assert_close(products, residual_products_reference(out, None, near), rtol=PRODUCTS, atol=PRODUCTS)
