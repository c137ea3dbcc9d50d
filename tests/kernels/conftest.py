"""Fresh memory is poisoned, and under TRITON_INTERPRET=1 the kernels run on the CPU in place of the references.

    TRITON_INTERPRET=1 pytest tests/kernels -k "not compiled"

runs every assertion of this folder on the kernels; `test_interpreted.py` does it in a process of its own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OPERATORS = ("commit", "extrapolate", "residual_diff", "residual_products", "window_products")
_launches: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh_memory_is_poisoned() -> Iterator[None]:
    """What `torch.empty` returns is NaN, so an element that a kernel leaves out is seen."""
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _kernels_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    from fxcache.kernels import _launch

    monkeypatch.setattr(interpreter, "_convert_float", _rounded_to_nearest(interpreter._convert_float))

    def runs_triton(*tensors: object) -> bool:
        return all(tensor is None or (tensor.dtype in _launch._DTYPES and tensor.numel()) for tensor in tensors)

    def run(operator: str, launches: Sequence[_launch.Launch], device: object) -> bool:
        _launches.update(launch.kernel.fn.__name__ for launch in launches)
        _launch.start(launches)
        return True

    for operator in OPERATORS:
        module = import_module(f"fxcache.kernels.{operator}")
        monkeypatch.setattr(module, "runs_triton", runs_triton)
        monkeypatch.setattr(module, "run", run)


def _rounded_to_nearest(convert: Any) -> Any:
    """The interpreter truncates float32 to bfloat16; every GPU rounds to nearest even, and so does torch."""
    import torch
    import triton.language as tl

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, rounding)
        return torch.tensor(data).to(torch.bfloat16).view(torch.uint16).numpy()

    return convert_float


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if INTERPRETED:
        counts = " ".join(f"{name}={count}" for name, count in sorted(_launches.items()))
        terminalreporter.write_line(f"interpreted launches: {counts}")
