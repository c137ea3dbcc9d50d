"""Update of the cached state, outside the branches and predicated on the decision.

    store false:  nothing is read or written
    store true:   cache        <- live_out - live_in          (``live_out`` itself when ``live_in`` is None)
                  health[slot] <- 0 * max |cache|                (0 when all of it is finite, NaN otherwise)

The difference is taken in float32 and rounded once to the dtype of ``cache``; with ``downsample_factor`` k only
every k-th channel is kept. ``store`` is a bool scalar on the CPU (no synchronisation), ``health`` float32 [slots] on
the device: the next decision reads it together with the indicator, so a state that overflowed is never reused.
Mutates ``cache`` and ``health``; they must not share memory with the other arguments.
"""

from __future__ import annotations

from torch import Tensor

from fxcache.kernels._library import register_operator
from fxcache.kernels.residual_diff import fn_residual


def commit_reference(
    store: Tensor,
    live_out: Tensor,
    live_in: Tensor | None,
    cache: Tensor,
    health: Tensor,
    slot: int,
    downsample_factor: int = 1,
) -> None:
    """Write the residual into ``cache`` and its health into ``health[slot]`` when ``store`` is true."""
    if not store.item():
        return
    if live_in is None:
        cache.copy_(live_out[..., ::downsample_factor] if downsample_factor > 1 else live_out)
    else:
        cache.copy_(fn_residual(live_out, live_in, downsample_factor))
    if cache.is_floating_point() and cache.numel():
        # A sum could overflow although every term is finite; a maximum cannot.
        health[slot] = cache.abs().amax().float() * 0.0


def _fake(
    store: Tensor,
    live_out: Tensor,
    live_in: Tensor | None,
    cache: Tensor,
    health: Tensor,
    slot: int,
    downsample_factor: int = 1,
) -> None:
    return None


register_operator(
    "commit(Tensor store, Tensor live_out, Tensor? live_in, Tensor(a!) cache, Tensor(b!) health, int slot,"
    " int downsample_factor=1) -> ()",
    commit_reference,
    _fake,
)
