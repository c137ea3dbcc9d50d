"""The state is written behind the conditional."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fxcache.kernels import Ask
from fxcache.rewrite.commit_state import commit_state
from tests.graphs import Sketch, new_state, printed, tell, text
from tests.rewrite.sketches import SKETCHES, before, dynamic, glue, plain, two_users


def after(sketch: Sketch, **options: object) -> str:
    gm, plan = before(sketch, "commit_state", **options)
    commit_state(gm, plan)
    return printed(gm)


def test_reference_and_caches() -> None:
    gm, plan = before(plain(), "commit_state", Fn_compute_blocks=2)
    assert printed(gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        fxcache_control: f64[51]
        fxcache_health: f32[2, 1]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[1, 6, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add_1, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add_1, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_2)
        fxcache_reuse:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            extrapolate: f32[6, 4] = fxcache::extrapolate(add_1, fxcache_cache_0)
            return (extrapolate)
    """)
    assert commit_state(gm, plan) == 2
    assert printed(gm) == text("""
        h: f32[6, 4]
        w: f32[4, 4]
        fxcache_control: f64[51]
        fxcache_health: f32[2, 1]
        fxcache_clock: f32[3]
        fxcache_reference: f32[1, 6, 4]
        fxcache_cache_0: f32[1, 6, 4]
        mm: f32[6, 4] = mm(h, w)
        relu: f32[6, 4] = relu(mm)
        mm_1: f32[6, 4] = mm(relu, w)
        add: f32[6, 4] = add(h, mm_1)
        mm_2: f32[6, 4] = mm(add, w)
        relu_1: f32[6, 4] = relu(mm_2)
        mm_3: f32[6, 4] = mm(relu_1, w)
        add_1: f32[6, 4] = add(add, mm_3)
        select_int: f32[6, 4] = select(fxcache_reference, 0, 0)
        residual_diff: f32[2] = fxcache::residual_diff(add_1, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        getitem_1: b8[] = getitem(decide, 0)
        getitem_2: i64[] = getitem(decide, 1)
        getitem_3: i64[] = getitem(decide, 2)
        getitem_4: f32[0] = getitem(decide, 3)
        fxcache_reuse = fxcache_reuse
        fxcache_compute_1 = fxcache_compute
        cond: (f32[6, 4]) = cond(getitem_1, fxcache_reuse, fxcache_compute_1, (w, add_1, fxcache_cache_0))
        getitem: f32[6, 4] = getitem(cond, 0)
        commit_1: NoneType = fxcache::commit(getitem_3, add_1, h, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_3, getitem, add_1, fxcache_cache_0, fxcache_health, 1, 1)
        add_3: f32[6, 4] = add(getitem, h)
        return (add_3)
        fxcache_compute:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            mm_4: f32[6, 4] = mm(add_1, w)
            relu_2: f32[6, 4] = relu(mm_4)
            mm_5: f32[6, 4] = mm(relu_2, w)
            add_2: f32[6, 4] = add(add_1, mm_5)
            return (add_2)
        fxcache_reuse:
            w: f32[4, 4]
            add_1: f32[6, 4]
            fxcache_cache_0: f32[1, 6, 4]
            extrapolate: f32[6, 4] = fxcache::extrapolate(add_1, fxcache_cache_0)
            return (extrapolate)
    """)


def commits(sketch: Sketch, **options: object) -> list[str]:
    return [line.split(" = ")[1] for line in after(sketch, **options).splitlines() if "fxcache::commit" in line]


def test_one_commit_per_tensor() -> None:
    assert commits(two_users()) == [
        "fxcache::commit(getitem_4, add, h, fxcache_reference, fxcache_health, 0, 1)",
        "fxcache::commit(getitem_4, getitem, add, fxcache_cache_0, fxcache_health, 1, 1)",
        "fxcache::commit(getitem_4, getitem_1, add, fxcache_cache_1, fxcache_health, 2, 1)",
    ]


def test_only_the_reference_is_downsampled() -> None:
    assert [call[-5:] for call in commits(plain(), downsample_factor=3)] == ["0, 3)", "1, 1)"]
    assert [call[-5:] for call in commits(plain(), downsample_factor=9)] == ["0, 4)", "1, 1)"]


def test_dynamic_sizes() -> None:
    assert commits(dynamic()) == [
        "fxcache::commit(getitem_3, add, cat, fxcache_reference, fxcache_health, 0, 1)",
        "fxcache::commit(getitem_3, getitem, image_1, fxcache_cache_0, fxcache_health, 1, 1)",
    ]


@pytest.mark.parametrize("build", SKETCHES)
def test_numbers_stay_and_a_repeated_call_is_reused_exactly(build: Callable[[], Sketch]) -> None:
    sketch = build()
    values = sketch.values()
    expected = sketch.gm(*values)
    gm, plan = before(sketch, "commit_state")
    commit_state(gm, plan)
    gm.recompile()
    control, *state = new_state(plan, values, store=1)
    for got, wanted in zip(gm(*values, control, *state), expected, strict=True):
        assert torch.equal(got, wanted)
    tell(control, mode=Ask.DECIDE, threshold=1e-9)
    kept = [tensor.clone() for tensor in state]
    tolerance = 1e-2 if state[-1].dtype is torch.bfloat16 else 1e-6
    for got, wanted in zip(gm(*values, control, *state), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert all(map(torch.equal, state, kept)), "a reused step writes nothing"


def test_other_sizes_than_those_of_tracing() -> None:
    sketch = dynamic()
    gm, plan = before(sketch, "commit_state")
    original = dynamic().gm
    commit_state(gm, plan)
    gm.recompile()
    for length, words in ((9, 3), (5, 7), (4, 4)):
        values = sketch.values(length=length, words=words)
        state = new_state(plan, values, store=1)
        assert torch.equal(gm(*values, *state)[0], original(*values)[0])
        tell(state[0], mode=Ask.DECIDE, threshold=1e-9)
        torch.testing.assert_close(gm(*values, *state)[0], original(*values)[0])


def test_a_context_that_may_not_be_written_stays_as_it_is() -> None:
    sketch = glue()
    gm, plan = before(sketch, "commit_state")
    commit_state(gm, plan)
    gm.recompile()
    state = new_state(plan)
    gm(*sketch.values(), *state)
    assert not any(bool(tensor.any()) for tensor in state[1:])


def behind_the_inputs(sketch: Sketch, **options: object) -> str:
    """The lines that measure, decide and write."""
    words = ("fxcache::", "cat(")
    lines = [line for line in after(sketch, **options).splitlines() if any(word in line for word in words)]
    return "\n".join(line for line in lines if not line.startswith(" "))


def test_where_changes_are_summed_the_reference_is_that_of_every_step() -> None:
    assert behind_the_inputs(plain(), method="teacache", Fn_compute_blocks=1) == text("""
        residual_diff: f32[2] = fxcache::residual_diff(add, h, select_int, 1, 0.0)
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(residual_diff, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        commit_1: NoneType = fxcache::commit(None, add, h, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_3, getitem, add, fxcache_cache_0, fxcache_health, 1, 1)
    """)


def test_a_measured_change_is_noted_on_computed_steps() -> None:
    assert behind_the_inputs(plain(), method="easycache", Fn_compute_blocks=1) == text("""
        residual_diff: f32[2] = fxcache::residual_diff(add, None, select_int, 1, 0.0)
        cat: f32[5] = cat((residual_diff, fxcache_change))
        decide: (b8[], i64[], i64[], f32[0]) = \
            fxcache::decide(cat, (), fxcache_health, fxcache_clock, fxcache_control, '', (0, 1))
        commit_1: NoneType = fxcache::commit(None, add, None, fxcache_reference, fxcache_health, 0, 1)
        commit: NoneType = fxcache::commit(getitem_3, getitem, add, fxcache_cache_0, fxcache_health, 1, 1)
        note_change: NoneType = \
            fxcache::note_change(getitem_3, getitem, add, fxcache_last_out, fxcache_last_inp, fxcache_change)
    """)


def test_a_static_mask_needs_neither() -> None:
    for method in ("teacache", "easycache"):
        mask = {"steps_computation_mask": "10", "steps_computation_policy": "static"}
        assert behind_the_inputs(plain(), method=method, Fn_compute_blocks=1, **mask) == text("""
            decide: (b8[], i64[], i64[], f32[0]) = \
                fxcache::decide(None, (), fxcache_health, fxcache_clock, fxcache_control, '', (0))
            commit: NoneType = fxcache::commit(getitem_3, getitem, add, fxcache_cache_0, fxcache_health, 0, 1)
        """)
