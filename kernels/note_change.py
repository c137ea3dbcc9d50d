"""What a computed step shows of the trunk: how far its output has moved since the last one, and its input.

    slot <  0:  nothing is read or written
    slot >= 0:  change <- ( sum |out - last_out| , sum |inp - last_inp| , sum |out| );  last_out <- out, last_inp <- inp

``slot`` is an int64 scalar on the CPU. ``out`` and ``inp`` have any shapes and strides; ``last_out`` and ``last_inp``
have their shapes and at least float32; ``change`` is float32 [3]. The sums are those of `residual_diff`, whose kernels
run here.

Mutates ``last_out``, ``last_inp`` and ``change``. Bytes moved, on computed steps only: every tensor read once and every
reference written once, and once more ``out`` and ``last_out``.
Source: EasyCache (arXiv 2507.02860), whose transformation rate is the first sum over the second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcache.kernels._library import register_operator
from fxcache.kernels.residual_diff import residual_diff


def note_change(slot: Tensor, out: Tensor, inp: Tensor, last_out: Tensor, last_inp: Tensor, change: Tensor) -> None:
    """Measure what has changed and keep the values for the next computed step; nothing for a negative slot."""
    if int(slot.item()) < 0:
        return
    moved = [residual_diff(value, None, last)[0] for value, last in ((out, last_out), (inp, last_inp))]
    last_out.copy_(out)
    last_inp.copy_(inp)
    size = residual_diff(out, None, last_out)[1]
    change.copy_(torch.stack([*moved, size]))


def _fake(slot: Tensor, out: Tensor, inp: Tensor, last_out: Tensor, last_inp: Tensor, change: Tensor) -> None:
    return None


register_operator(
    "note_change(Tensor slot, Tensor out, Tensor inp, Tensor(a!) last_out, Tensor(b!) last_inp, Tensor(c!) change)"
    " -> ()",
    note_change,
    _fake,
)
