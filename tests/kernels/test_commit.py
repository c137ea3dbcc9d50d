"""Update of the state against float64."""

from __future__ import annotations

import pytest
import torch

from fxcache.kernels import commit_reference
from tests.kernels.tolerances import DTYPES, EMPTY, ROUNDED_ONCE, SHAPES, poisoned, random, strided

commit = torch.ops.fxcache.commit.default
NOWHERE, FIRST, SECOND = (torch.tensor(slot) for slot in (-1, 0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [random, strided])
@pytest.mark.parametrize("with_input", [True, False])
def test_residual(dtype, shape, make, with_input):
    live_out = make(*shape, dtype=dtype)
    live_in = make(*shape, dtype=dtype, seed=1) if with_input else None
    history, health = poisoned(3, *shape, dtype=dtype), poisoned(2, 3)
    commit(SECOND, live_out, live_in, history, health, 1)
    expected = live_out.double() - (live_in.double() if live_in is not None else 0.0)
    torch.testing.assert_close(history[1].double(), expected, rtol=ROUNDED_ONCE[dtype], atol=0)
    assert history[[0, 2]].isnan().all()
    assert health[1, 1] == 0.0
    assert health.isnan().sum() == 5
    again = poisoned(3, *shape, dtype=dtype)
    commit_reference(SECOND, live_out, live_in, again, health, 1)
    assert torch.equal(again[1], history[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every", [2, 3, 100])
def test_float32_reference_of_every_nth_channel(dtype, every):
    live_out, live_in = random(2, 5, 7, dtype=dtype), random(2, 5, 7, dtype=dtype, seed=1)
    history, health = poisoned(1, 2, 5, -(-7 // every)), poisoned(1, 1)
    commit(FIRST, live_out, live_in, history, health, 0, every)
    expected = (live_out.double() - live_in.double())[..., ::every]
    torch.testing.assert_close(history[0].double(), expected, rtol=2.0**-23, atol=0)
    commit(FIRST, live_out, None, history, health, 0, every)
    assert torch.equal(history[0], live_out[..., ::every].float())


def test_without_a_slot_nothing_is_read_or_written():
    history, health = random(2, 3, 4), random(1, 2)
    copies = history.clone(), health.clone()
    commit(NOWHERE, poisoned(3, 4), poisoned(3, 4), history, health, 0)
    assert torch.equal(history, copies[0])
    assert torch.equal(health, copies[1])


@pytest.mark.parametrize("operator", [commit, commit_reference])
def test_no_slot_at_all_is_the_first_one(operator):
    live_out, history, health = random(3, 4), poisoned(2, 3, 4), poisoned(1, 2)
    operator(None, live_out, None, history, health, 0)
    assert torch.equal(history[0], live_out)
    assert history[1].isnan().all()
    assert (health[0, 0].item(), bool(health[0, 1].isnan())) == (0.0, True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("with_input", [True, False])
def test_what_is_not_finite_marks_the_slot(value, with_input):
    live_out = random(3, 4)
    live_out[2, 1] = value
    health = torch.zeros(2, 2)
    commit(SECOND, live_out, random(3, 4, seed=1) if with_input else None, poisoned(2, 3, 4), health, 0)
    assert health.isnan().tolist() == [[False, True], [False, False]]


def test_a_residual_that_overflows_its_dtype_marks_the_slot():
    big = torch.full((2, 2), 60000.0, dtype=torch.float16)
    history, health = poisoned(1, 2, 2, dtype=torch.float16), torch.zeros(1, 1)
    commit(FIRST, big, -big, history, health, 0)
    assert health.isnan().all()
    commit(FIRST, big, None, history, health, 0)
    assert health.tolist() == [[0.0]]


def test_large_but_finite_values_are_healthy():
    health = poisoned(1, 1)
    commit(FIRST, torch.full((64, 64), 3e38), None, poisoned(1, 64, 64), health, 0)
    assert health.tolist() == [[0.0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_values_that_are_not_floating_point_are_copied(dtype):
    live_out, health = random(3, 4).mul(3).to(dtype), poisoned(1, 1)
    history = torch.zeros(1, 3, 4, dtype=dtype)
    commit(FIRST, live_out, None, history, health, 0)
    assert torch.equal(history[0], live_out)
    assert health.tolist() == [[0.0]]


@pytest.mark.parametrize("shape", EMPTY)
def test_nothing(shape):
    empty, health = random(*shape), poisoned(1, 1)
    commit(FIRST, empty, empty.clone(), random(1, *shape), health, 0)
    assert health.tolist() == [[0.0]]


def test_memory_in_common_is_refused():
    history, health = random(2, 3, 4), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="history: shares memory with live_out, it must have memory of its own"):
        commit(FIRST, history[1], None, history, health, 0)
    with pytest.raises(ValueError, match="history: shares memory with live_in"):
        commit(FIRST, random(3, 4), history[1], history, health, 0)
    with pytest.raises(ValueError, match="history: shares memory with health"):
        commit(FIRST, random(3, 4), None, history, history.view(-1)[:2].view(1, 2), 0)
    with pytest.raises(ValueError, match="health: shares memory with live_out"):
        commit(FIRST, health[0], None, random(2, 2), health, 0)
    with pytest.raises(ValueError, match="health: shares memory with live_in"):
        commit(FIRST, random(2), health[0], random(2, 2), health, 0)


def test_neighbours_in_one_buffer_are_not_memory_in_common():
    buffer = random(26)
    history, health, live_out = buffer[:12].view(1, 3, 4), buffer[12:13].view(1, 1), buffer[13:25].view(3, 4)
    commit(FIRST, live_out, None, history, health, 0)
    assert torch.equal(history[0], live_out)


@pytest.mark.parametrize(
    ("slot", "arguments", "message"),
    [
        (2, (random(3), None, random(2, 3), random(1, 2), 0), "slot: 2, history has 2 entries"),
        (0, (random(3), None, random(3, 2).T, random(1, 2), 0), r"history: strides \(1, 2\) of shape \(2, 3\)"),
        (0, (random(4), None, random(2, 3), random(1, 2), 0), r"history: entries of \(3,\), what is stored is \(4,\)"),
        (0, (random(4), None, random(2, 4), random(1, 2), 0, 3), r"what is stored is \(2,\)"),
        (0, (random(3), random(1, 3), random(2, 3), random(1, 2), 0), r"live_in: shape \(1, 3\), that of live_out"),
        (
            0,
            (random(3), None, random(2, 3), random(1, 1), 0),
            "health: shape .*, expected more than 0 rows of 2",
        ),
        (0, (random(3), None, random(2, 3), random(1, 2), 1), "health: shape .*, expected more than 1 rows of 2"),
    ],
)
def test_what_is_refused(slot, arguments, message):
    with pytest.raises(ValueError, match=message):
        commit(torch.tensor(slot), *arguments)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend):
    def step(slot, out, inp, history, health):
        commit(slot, out * 2, inp, history, health, 0)
        return history.sum() + out.sum()

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    out, inp, health = random(5, 7), random(5, 7, seed=1), torch.ones(1, 2)
    history = torch.zeros(2, 5, 7)
    result = compiled(SECOND, out, inp, history, health)
    torch.testing.assert_close(history[1], out * 2 - inp)
    torch.testing.assert_close(result, history.sum() + out.sum())
    assert health.tolist() == [[1.0, 0.0]]
    kept = history.clone()
    compiled(NOWHERE, inp, out, history, health)
    assert torch.equal(history, kept)


@pytest.mark.parametrize("slot", [NOWHERE, SECOND])
@pytest.mark.parametrize("with_input", [True, False])
def test_registration(slot, with_input):
    live_in = strided(3, 5, seed=1) if with_input else None
    torch.library.opcheck(commit, (slot, strided(3, 5), live_in, torch.zeros(2, 3, 3), torch.zeros(3, 2), 1, 2))
