"""What a GPU would run, compiled without one: wide accesses, nothing spilled, no atomics.

The launches are those that the operators plan, for tensors without memory; arguments are specialised by Triton's own
code, so block sizes, warps and alignment are the real ones.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from fxcache.kernels import commit, extrapolate, residual_diff, residual_products, window_products
from fxcache.kernels._launch import Launch
from tests.kernels.conftest import INTERPRETED

triton = pytest.importorskip("triton", minversion="3.4")
GPUTarget = triton.backends.compiler.GPUTarget
pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted functions are not compiled")

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
IMAGE = (1, 4096, 3072)
SLOT = torch.empty((), dtype=torch.int64, device="meta")


@dataclass
class Code:
    """One compiled kernel: its assembly, and how wide it accesses global memory."""

    text: str
    spilled: list[str]
    loads: Counter[str] = field(default_factory=Counter)
    stores: Counter[str] = field(default_factory=Counter)

    def narrow(self, accesses: str) -> int:
        """How many accesses have less than 16 bytes."""
        wide = {"v4.b32", "v2.b64", "dwordx4"}
        return sum(count for width, count in getattr(self, accesses).items() if width not in wide)


def compiled(launch: Launch, target: Any) -> Code:
    backend, kernel, options = triton.compiler.make_backend(target), launch.kernel, {"num_warps": launch.warps}
    bind = triton.runtime.jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*launch.arguments, **launch.constants)
    parsed, *source = kernel._pack_args(backend, options, bound, specialization, options)
    log = io.StringIO()
    with redirect_stdout(log):
        found = triton.compile(triton.compiler.ASTSource(kernel, *source), target=target, options=parsed.__dict__).asm
    if target.backend == "cuda":
        text = found["ptx"]
        (spills,) = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
        spilled = [*(f"{count} bytes" for count in spills if count != "0"), *re.findall(r"\.local\b", text)]
        loads, stores = (re.findall(rf"\b{kind}\.global\.((?:v\d\.)?b\d+)", text) for kind in ("ld", "st"))
    else:
        text = found["amdgcn"]
        counts = re.findall(r"(private_segment_fixed_size|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text)
        assert len(counts) == 3
        spilled = [f"{name} {count}" for name, count in counts if count != "0"] + re.findall(r"scratch_store", text)
        loads, stores = (re.findall(rf"\b(?:global|buffer)_{kind}_(\w+)", text) for kind in ("load", "store"))
    return Code(text, spilled, Counter(loads), Counter(stores))


@pytest.fixture(autouse=True)
def _nothing_is_taken_from_a_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setattr(triton.knobs.compilation, "always_compile", True)
    monkeypatch.setattr(triton.knobs.nvidia, "dump_ptxas_log", True)


@pytest.fixture(params=TARGETS)
def target(request, monkeypatch) -> Any:
    monkeypatch.setattr(torch.version, "hip", "6.4" if request.param.startswith("gfx") else None)
    return TARGETS[request.param]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_all(launches: list[Launch], target: Any) -> list[Code]:
    codes = [compiled(launch, target) for launch in launches]
    for launch, code in zip(launches, codes, strict=True):
        assert not code.spilled, (launch.kernel.__name__, code.spilled)
        assert not re.search(r"\b(atom|red)\.|_atomic_", code.text), launch.kernel.__name__
    return codes


BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@BOTH
@pytest.mark.parametrize("entries", [None, 4, 8])
@pytest.mark.parametrize("layout", ["flat", "part of a sequence"])
def test_extrapolate(target, dtype, entries, layout):
    live_in = empty(1, 4608, 3072, dtype=dtype)[:, 512:] if layout != "flat" else empty(*IMAGE, dtype=dtype)
    coefficients = None if entries is None else empty(entries)
    history = empty(entries or 2, *IMAGE, dtype=dtype)
    (code,) = compile_all(extrapolate.plan(empty(*IMAGE, dtype=dtype), live_in, history, coefficients), target)
    assert code.loads.total() - code.narrow("loads") >= (entries or 1) + 1
    assert code.narrow("loads") <= (entries or 0), "only the coefficients are single numbers"
    assert code.stores and not code.narrow("stores")


@BOTH
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("with_input", [False, True])
def test_commit(target, dtype, on_device, with_input):
    values = empty(*IMAGE, dtype=dtype), empty(*IMAGE, dtype=dtype) if with_input else None
    index = None if on_device else 1
    mark, store = compile_all(commit.plan(SLOT, index, *values, empty(3, *IMAGE, dtype=dtype), empty(3), 1), target)
    assert (mark.stores.total(), mark.loads.total() <= on_device) == (1, True)
    assert store.loads.total() - store.narrow("loads") >= 1 + with_input
    assert store.narrow("loads") <= on_device, "only the slot is a single number"
    assert (store.stores.total() - store.narrow("stores") >= 1, store.narrow("stores")) == (True, 1)


@BOTH
@pytest.mark.parametrize("important", [0.0, 0.5])
@pytest.mark.parametrize("with_input", [False, True])
def test_residual_diff(target, dtype, important, with_input):
    values = empty(*IMAGE, dtype=dtype), empty(*IMAGE, dtype=dtype) if with_input else None
    first, second = compile_all(residual_diff.plan(empty(2), *values, empty(*IMAGE), 1, important), target)
    assert first.loads.total() >= 2 + with_input and not first.narrow("loads")
    assert second.loads.total() >= 2 and not second.narrow("loads")


@BOTH
@pytest.mark.parametrize(("entries", "with_input"), [(1, False), (3, True), (8, True)])
def test_residual_products(target, dtype, entries, with_input):
    values = empty(*IMAGE, dtype=dtype), empty(*IMAGE, dtype=dtype) if with_input else None
    products = empty(entries + 1, entries + 1, dtype=torch.float64)
    first, second = compile_all(residual_products.plan(products, *values, empty(entries, *IMAGE), 1), target)
    assert first.loads.total() == entries + 1 + with_input, "everything once"
    # A thread has four elements, which are 8 bytes of a value in half precision.
    halves = {"v2.b32", "dwordx2"} if dtype != torch.float32 else set()
    assert first.narrow("loads") == sum(first.loads[width] for width in halves) == bool(halves) * (1 + with_input)
    assert first.stores.total() == (entries + 1) * (entries + 2) // 2
    assert second.loads.total() and not second.narrow("loads")


@BOTH
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("entries", [1, 3, 8])
def test_window_products(target, dtype, on_device, entries):
    history, gram = empty(entries, *IMAGE, dtype=dtype), empty(entries, entries, dtype=torch.float64)
    launches = window_products.plan(SLOT, None if on_device else 0, history, gram)
    for code in compile_all(launches, target):
        assert code.loads.total() and code.narrow("loads") <= on_device, "only the slot is a single number"


@BOTH
def test_what_is_not_flat(target, dtype):
    """Strides between channels, odd sizes and more than 2**31 elements: narrow accesses, but nothing spilled."""
    across = empty(1, 3072, 4096, dtype=dtype).transpose(1, 2)
    compile_all(extrapolate.plan(empty(*IMAGE, dtype=dtype), across, empty(1, *IMAGE, dtype=dtype), None), target)
    odd = empty(1, 4097, 3071, dtype=dtype)
    compile_all(residual_diff.plan(empty(2), odd, odd, empty(1, 4097, 1024), 3, 0.5), target)
    products = empty(9, 9, dtype=torch.float64)
    compile_all(residual_products.plan(products, odd, across[:, :4097], empty(8, 1, 4097, 1024), 3), target)
    compile_all(commit.plan(SLOT, None, odd, None, empty(2, 1, 4097, 1536), empty(2), 2), target)
    large = empty(2, 75600, 5120 * 6, dtype=dtype)
    compile_all(extrapolate.plan(large, large, empty(3, *large.shape), empty(3)), target)
    compile_all(window_products.plan(SLOT, None, empty(3, *large.shape), empty(3, 3, dtype=torch.float64)), target)
