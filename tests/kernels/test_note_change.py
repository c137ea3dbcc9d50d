"""What a computed step shows of the trunk, against sums in float64."""

from __future__ import annotations

import pytest
import torch

import fxcache.kernels  # noqa: F401  (the operators)

note_change = torch.ops.fxcache.note_change.default


def state(out: torch.Tensor, inp: torch.Tensor) -> list[torch.Tensor]:
    return [torch.randn(out.shape), torch.randn(inp.shape), torch.full((3,), -1.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("out_shape", "inp_shape"), [((2, 5, 7), (2, 5, 7)), ((1, 3), (4, 9, 2))])
def test_sums_and_what_is_kept(out_shape, inp_shape, dtype):
    out, inp = torch.randn(out_shape).to(dtype), torch.randn(*inp_shape[:-1], 2 * inp_shape[-1]).to(dtype)[..., ::2]
    last_out, last_inp, change = state(out, inp)
    expected = [(a.double() - b.double()).abs().sum() for a, b in ((out, last_out), (inp, last_inp))]
    note_change(torch.tensor(0), out, inp, last_out, last_inp, change)
    torch.testing.assert_close(change.double(), torch.stack([*expected, out.double().abs().sum()]), rtol=1e-5, atol=0)
    assert torch.equal(last_out, out.float())
    assert torch.equal(last_inp, inp.float())


def test_a_reused_step_changes_nothing():
    out, inp = torch.randn(2, 3), torch.randn(2, 3)
    kept = state(out, inp)
    before = [tensor.clone() for tensor in kept]
    note_change(torch.tensor(-1), out, inp, *kept)
    assert all(map(torch.equal, kept, before))


def test_what_is_not_finite_shows():
    out, inp = torch.tensor([[1.0, float("inf")]]), torch.ones(1, 2)
    last_out, last_inp, change = state(out, inp)
    note_change(torch.tensor(0), out, inp, last_out, last_inp, change)
    assert change.isfinite().tolist() == [False, True, False]
    note_change(torch.tensor(0), torch.ones(1, 2), inp, last_out, last_inp, change)
    assert change.isfinite().tolist() == [False, True, True]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def run(slot, out, inp, last_out, last_inp, change):
        note_change(slot, out, inp, last_out, last_inp, change)
        return change + 1

    torch.manual_seed(0)
    out, inp = torch.randn(2, 3), torch.randn(2, 3)
    kept = state(out, inp)
    others = [tensor.clone() for tensor in kept]
    result = torch.compile(run, backend=backend, fullgraph=True)(torch.tensor(0), out, inp, *kept)
    note_change(torch.tensor(0), out, inp, *others)
    assert all(map(torch.equal, kept, others))
    assert torch.equal(result, others[2] + 1)
