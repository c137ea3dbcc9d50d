"""Which bytes a tensor covers: what an operator writes in place it must not read through another argument."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def byte_range(tensor: Tensor) -> tuple[int, int]:
    """First address of a tensor and the one behind its last element; empty for a tensor without elements."""
    start = tensor.data_ptr()
    if tensor.is_contiguous() or not tensor.numel():
        return start, start + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def check_apart(written: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    """Raise ValueError when a written tensor shares bytes with any other; ranges are compared, not single elements."""
    ranges = [(name, *byte_range(tensor)) for name, tensor in (*written.items(), *read.items())]
    for place in range(len(written)):
        name, start, end = ranges[place]
        for other, other_start, other_end in ranges[place + 1 :]:
            if start < other_end and other_start < end:
                raise ValueError(f"{name}: shares memory with {other}, it must have memory of its own")
