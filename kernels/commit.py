"""Update of the cached state, outside the branches and predicated on the decision.

    slot <  0:  nothing is read or written
    slot >= 0:  history[slot]     <- live_out - live_in        (``live_out`` itself when ``live_in`` is None)
                health[row, slot] <- 0 when all that was stored is finite, NaN otherwise

``slot`` is an int64 scalar: on the CPU (no synchronisation, and nothing is launched for a step that is not stored) or
on the device. ``live_out``/``live_in`` are [..., C] with any strides; ``history`` is contiguous [n, ..., ceil(C / k)]
and keeps every k-th channel, k = ``downsample_factor``; ``health`` is float32 [rows, n]: the next decision reads it
with the indicator, so a state that overflowed is never reused. The difference is taken in float32 (float64 if
``live_out`` is) and rounded once to the dtype of ``history``. Values that are not floating point are copied.

Mutates ``history`` and ``health``; they must not share memory with each other or with the values.
Bytes moved: every k-th channel of live_out and live_in read once, ``history[slot]`` written once.
"""

from __future__ import annotations

from torch import Tensor

from fxcache.kernels._library import register_operator
from fxcache.kernels._memory import check_apart
from fxcache.kernels.residual_diff import every_nth, fn_residual


def commit_reference(
    slot: Tensor,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    row: int,
    downsample_factor: int = 1,
) -> None:
    """Write the residual into ``history[slot]``, its health into ``health[row, slot]``; nothing for a negative slot."""
    index = int(slot.item())
    if index < 0:
        return
    _check(index, live_out, live_in, history, health, row, downsample_factor)
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


def _check(
    slot: int, live_out: Tensor, live_in: Tensor | None, history: Tensor, health: Tensor, row: int, every: int
) -> None:
    entries = history.shape[0]
    if slot >= entries:
        raise ValueError(f"slot: {slot}, history has {entries} entries")
    if not history.is_contiguous():
        raise ValueError(f"history: strides {history.stride()} of shape {tuple(history.shape)}, it must be contiguous")
    stored = every_nth(live_out, every).shape
    if history.shape[1:] != stored:
        raise ValueError(f"history: entries of {tuple(history.shape[1:])}, what is stored is {tuple(stored)}")
    if live_in is not None and live_in.shape != live_out.shape:
        raise ValueError(f"live_in: shape {tuple(live_in.shape)}, that of live_out is {tuple(live_out.shape)}")
    if health.ndim != 2 or health.shape[1] != entries or not 0 <= row < health.shape[0]:
        raise ValueError(f"health: shape {tuple(health.shape)}, expected more than {row} rows of {entries}")
    values = {"live_out": live_out} if live_in is None else {"live_out": live_out, "live_in": live_in}
    check_apart({"history": history, "health": health}, values)


def _fake(
    slot: Tensor,
    live_out: Tensor,
    live_in: Tensor | None,
    history: Tensor,
    health: Tensor,
    row: int,
    downsample_factor: int = 1,
) -> None:
    return None


register_operator(
    "commit(Tensor slot, Tensor live_out, Tensor? live_in, Tensor(a!) history, Tensor(b!) health, int row,"
    " int downsample_factor=1) -> ()",
    commit_reference,
    _fake,
)
