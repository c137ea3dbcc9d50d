"""What all launchers share: when Triton runs, how big a program is, and how it is started.

An operator makes a plan, a list of `Launch`; `run` starts it, or says that this GPU cannot, and then the reference
runs. The tests compile the same plans ahead of time, so what they look at is what a GPU gets.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    jit: Any = triton.jit
except ImportError:  # only Linux has it; without it the kernels are names that nobody calls
    triton = tl = None

    def jit(function: Any = None, **options: Any) -> Any:
        """Leave the function as it is."""
        return function or jit


WARPS = 4
PARTIALS = 4096
"""Most programs of a reduction: several for every place on the largest GPU, few enough for one program to combine."""

_ELEMENTS = {
    ("cuda", 2): 2048, ("cuda", 4): 1024, ("cuda", 8): 1024,
    ("hip", 2): 4096, ("hip", 4): 2048, ("hip", 8): 2048,
}  # fmt: skip
"""Elements per program, by the smallest item size: two accesses of 16 bytes per thread, of 32 or 64 in a warp.

With 8 bytes, which only sums have, those of 4: a thread keeps 8 of them in registers.
"""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_compiles: dict[tuple[Any, ...], bool] = {}


class Launch(NamedTuple):
    """One start of a kernel: its grid, its arguments in order, its constants by name."""

    kernel: Any
    grid: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int = WARPS


def backend() -> str:
    """The compiler behind ``cuda`` devices of this torch: cuda or hip."""
    return "hip" if torch.version.hip else "cuda"


def elements_per_program(*tensors: Tensor | None) -> int:
    """Size of a tile that reads and writes these tensors."""
    smallest = min(tensor.element_size() for tensor in tensors if tensor is not None)
    return _ELEMENTS[backend(), smallest]


def runs_triton(device_of: Tensor, *others: Tensor | None) -> bool:
    """Say whether the kernels take these tensors: on a GPU, of a dtype they know, with elements."""
    if triton is None or not device_of.is_cuda:
        return False
    return all(
        tensor is None or (tensor.dtype in _DTYPES and tensor.numel() and tensor.device == device_of.device)
        for tensor in (device_of, *others)
    )


def run(operator: str, launches: Sequence[Launch], device: torch.device) -> bool:
    """Start the launches in order on the current stream of ``device``; False when they do not compile for it."""
    with torch.cuda.device(device):
        if not _compile(operator, launches, device):
            return False
        start(launches)
    return True


def start(launches: Sequence[Launch]) -> None:
    """Start the launches on the current device."""
    for launch in launches:
        launch.kernel[(launch.grid,)](*launch.arguments, **launch.constants, num_warps=launch.warps)


def _compile(operator: str, launches: Sequence[Launch], device: torch.device) -> bool:
    """Compile everything before anything starts, once per dtypes; a kernel that fails later fails loudly."""
    dtypes = (item.dtype for launch in launches for item in launch.arguments if isinstance(item, Tensor))
    key = (operator, device, *dtypes)
    known = _compiles.get(key)
    if known is None:
        known = _compiles[key] = all(_compile_one(operator, launch, device) for launch in launches)
    return known


def _compile_one(operator: str, launch: Launch, device: torch.device) -> bool:
    try:
        launch.kernel.warmup(*launch.arguments, grid=(launch.grid,), **launch.constants, num_warps=launch.warps)
    # Compilers for other vendors raise what they like; nothing has run yet that could fail for another reason.
    except Exception as error:
        gpu = torch.cuda.get_device_name(device)
        warnings.warn(
            f"fxcache::{operator}: {launch.kernel.__name__} does not compile for {device} ({gpu}), plain PyTorch runs"
            f" instead: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
