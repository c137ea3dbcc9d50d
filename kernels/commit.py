"""Update of the cached state, outside the branches and predicated on the decision.

    slot <  0:  nothing is read or written
    slot >= 0:  history[slot]     <- live_out - live_in        (``live_out`` itself when ``live_in`` is None)
                health[row, slot] <- 0 when all that was stored is finite, NaN otherwise

``slot`` is an int64 scalar: on the CPU (no synchronisation, and nothing is launched for a step that is not stored) or
on the device; None is 0, for what is written on every step. ``live_out``/``live_in`` are [..., C] with any strides;
``history`` is contiguous [n, ..., ceil(C / k)] and keeps every k-th channel, k = ``downsample_factor``; ``health`` is
float32 [rows, n]: the next decision reads it with the indicator, so a state that overflowed is never reused. The
difference is taken in float32 (float64 if ``live_out`` is) and rounded once to the dtype of ``history``. Values that
are not floating point are copied.

Mutates ``history`` and ``health``; they must not share memory with each other or with the values.
Bytes moved: every k-th channel of live_out and live_in read once, ``history[slot]`` written once.
"""

from __future__ import annotations

from torch import Tensor

from fxcache.kernels._launch import Launch, elements_per_program, jit, run, runs_triton, tl
from fxcache.kernels._library import register_operator
from fxcache.kernels._memory import check_apart
from fxcache.kernels._tiles import offsets, plan_tiles, tile_numbers
from fxcache.kernels.residual_diff import every_nth, fn_residual


def commit_reference(
    slot: Tensor | None,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    row: int,
    downsample_factor: int = 1,
) -> None:
    """Write the residual into ``history[slot]``, its health into ``health[row, slot]``; nothing for a negative slot."""
    index = 0 if slot is None else int(slot.item())
    if index < 0:
        return
    entry = history[index]
    if live_in is None:
        entry.copy_(every_nth(live_out, downsample_factor))
    else:
        entry.copy_(fn_residual(live_out, live_in, downsample_factor))
    if entry.is_floating_point() and entry.numel():
        # A sum could overflow although every term is finite; a maximum cannot.
        health[row, index] = entry.abs().amax().float() * 0.0
    else:
        health[row, index] = 0.0


# One entry or the next, aligned or not: none of this is worth a compilation of its own.
_PLACE = ("health_ptr", "health_stride", "slot_ptr", "entries")


@jit(do_not_specialize=_PLACE)
def mark_healthy_kernel(
    health_ptr: tl.tensor, health_stride: tl.tensor, slot_ptr: tl.tensor, entries: tl.tensor
) -> None:
    """Write 0 into the health of the slot; with ``slot_ptr`` None both are those of the slot already."""
    if slot_ptr is None:
        tl.store(health_ptr, 0.0)
    else:
        slot = tl.load(slot_ptr)
        tl.store(health_ptr + slot * health_stride, 0.0, mask=(slot >= 0) & (slot < entries))


@jit(do_not_specialize=_PLACE)
def commit_kernel(
    history_ptr: tl.tensor,
    live_out_ptr: tl.tensor,
    live_in_ptr: tl.tensor,
    health_ptr: tl.tensor,
    health_stride: tl.tensor,
    slot_ptr: tl.tensor,
    entries: tl.tensor,
    entry_size: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rows_1: tl.tensor,
    rows_2: tl.tensor,
    s_0: tl.tensor,
    s_1: tl.tensor,
    s_2: tl.tensor,
    s_3: tl.tensor,
    t_0: tl.tensor,
    t_1: tl.tensor,
    t_2: tl.tensor,
    t_3: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One tile of the entry; with ``slot_ptr`` None the pointers are those of the slot already."""
    if slot_ptr is not None:
        slot = tl.load(slot_ptr)
        if (slot < 0) | (slot >= entries):
            return
        history_ptr += slot * entry_size
        health_ptr += slot * health_stride
    o_row, o_column, m_tile = tile_numbers(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    p_out = live_out_ptr + offsets(o_row, o_column, rows_1, rows_2, s_0, s_1, s_2, s_3)
    b_entry = tl.load(p_out, mask=m_tile, other=0.0).to(tl.float32)
    if live_in_ptr is not None:
        p_in = live_in_ptr + offsets(o_row, o_column, rows_1, rows_2, t_0, t_1, t_2, t_3)
        b_entry -= tl.load(p_in, mask=m_tile, other=0.0).to(tl.float32)
    b_stored = b_entry.to(history_ptr.dtype.element_ty)
    tl.store(history_ptr + o_row * columns + o_column, b_stored, mask=m_tile)
    # Every program writes the same value or none, so their order does not matter.
    finite = tl.min((tl.abs(b_stored.to(tl.float32)) < float("inf")).to(tl.int32))
    tl.store(health_ptr, float("nan"), mask=finite == 0)


def commit(
    slot: Tensor | None,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    row: int,
    downsample_factor: int = 1,
) -> None:
    """The operator: the kernels where they run, the reference elsewhere."""
    index = 0 if slot is None else None if slot.is_cuda else int(slot.item())
    if index is not None and index < 0:
        return
    _check(index, live_out, live_in, history, health, row, downsample_factor)
    if runs_triton(history, live_out, live_in, health):
        launches = plan(slot, index, live_out, live_in, history, health[row], downsample_factor)
        if run("commit", launches, history.device):
            return
    commit_reference(slot, live_out, live_in, history, health, row, downsample_factor)


def plan(
    slot: Tensor | None,
    index: int | None,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    downsample_factor: int,
) -> list[Launch]:
    """The launches: ``health`` is the row of this history, ``index`` the slot where the host knows it."""
    entry = history[index or 0]
    values = [None if value is None else every_nth(value, downsample_factor) for value in (live_out, live_in)]
    tiling, tensors = plan_tiles([*values, entry], elements_per_program(live_out, live_in, history))
    place = (health[index or 0], health.stride(0), slot if index is None else None, history.shape[0])
    return [
        Launch(mark_healthy_kernel, 1, place, {}, warps=1),
        Launch(
            commit_kernel,
            tiling.count,
            (entry, *tensors[:2], *place, entry.numel(), *tiling.arguments[:-4]),
            tiling.constants,
        ),
    ]


def _check(
    slot: int | None, live_out: Tensor, live_in: Tensor | None, history: Tensor, health: Tensor, row: int, every: int
) -> None:
    entries = history.shape[0]
    if slot is not None and slot >= entries:
        raise ValueError(f"slot: {slot}, history has {entries} entries")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    stored = every_nth(live_out, every).shape
    if history.shape[1:] != stored:
        raise ValueError(f"history: entries of {tuple(history.shape[1:])}, what is stored is {tuple(stored)}")
    if live_in is not None and live_in.shape != live_out.shape:
        raise ValueError(f"live_in: shape {tuple(live_in.shape)}, that of live_out is {tuple(live_out.shape)}")
    if health.ndim != 2 or health.shape[1] < entries or not 0 <= row < health.shape[0]:
        raise ValueError(f"health: shape {tuple(health.shape)}, expected more than {row} rows of {entries} or more")
    values = {"live_out": live_out} if live_in is None else {"live_out": live_out, "live_in": live_in}
    check_apart({"history": history, "health": health}, values)


def _fake(
    slot: Tensor | None,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    row: int,
    downsample_factor: int = 1,
) -> None:
    return None


register_operator(
    "commit(Tensor? slot, Tensor live_out, Tensor? live_in, Tensor(a!) history, Tensor(b!) health, int row,"
    " int downsample_factor=1) -> ()",
    commit,
    _fake,
)
