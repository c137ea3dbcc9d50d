"""When kernels run and when the references do."""

from __future__ import annotations

import subprocess
import warnings
from contextlib import nullcontext

import pytest
import torch

from fxcache.kernels import _launch
from fxcache.kernels._launch import Launch, elements_per_program, run, runs_triton
from tests.kernels.tolerances import random
from tests.processes import PYTHON


class Kernel:
    """Stands for a compiled function and notes what is asked of it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.__name__, self.error, self.log = "some_kernel", error, []

    def warmup(self, *arguments, grid, **options):
        self.log.append(("compile", arguments, grid, options))
        if self.error:
            raise self.error

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.log.append(("start", arguments, grid, options))


@pytest.fixture(autouse=True)
def _a_gpu_that_does_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(_launch, "_compiles", {})


def test_everything_is_compiled_before_anything_starts_and_once():
    kernel, tensor = Kernel(), random(3)
    launches = [Launch(kernel, 5, (tensor, 1), {"BLOCK": 8}), Launch(kernel, 1, (tensor,), {}, warps=1)]
    assert run("some", launches, torch.device("cuda:0"))
    assert [entry[0] for entry in kernel.log] == ["compile", "compile", "start", "start"]
    assert kernel.log[2] == ("start", (tensor, 1), (5,), {"BLOCK": 8, "num_warps": 4})
    assert kernel.log[3][3] == {"num_warps": 1}
    run("some", launches, torch.device("cuda:0"))
    assert [entry[0] for entry in kernel.log[4:]] == ["start", "start"]
    run("some", launches, torch.device("cuda:1"))
    assert [entry[0] for entry in kernel.log[6:]] == ["compile", "compile", "start", "start"]


def test_a_kernel_that_does_not_compile_leaves_one_warning():
    good, bad = Kernel(), Kernel(RuntimeError("no such instruction"))
    launches = [Launch(good, 1, (random(3),), {}), Launch(bad, 1, (random(3),), {})]
    sentence = (
        r"fxcache::some: some_kernel does not compile for cuda:0 \(Some GPU\), plain PyTorch runs instead: no such"
    )
    with pytest.warns(RuntimeWarning, match=sentence):
        assert not run("some", launches, torch.device("cuda:0"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not run("some", launches, torch.device("cuda:0"))
    assert "start" not in [entry[0] for entry in good.log + bad.log]
    launches = [Launch(good, 1, (random(3).half(),), {})]
    assert run("some", launches, torch.device("cuda:0")), "another dtype may compile"


def test_what_runs_on_the_cpu_is_the_reference():
    assert not runs_triton(random(3))


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("tensors", "runs"),
    [
        ((random(3), None, random(2).bfloat16(), random(1).half()), True),
        ((random(3).double(),), False),
        ((random(3), random(3).int()), False),
        ((random(3), random(0)), False),
        ((random(3), torch.empty(3, device="meta")), False),
    ],
    ids=["three dtypes", "float64", "integers", "empty", "another device"],
)
def test_what_kernels_take(tensors, runs):
    pytest.importorskip("triton")
    first, *others = tensors
    assert runs_triton(first.as_subclass(OnGpu), *others) is runs


def test_programs_by_item_size(monkeypatch):
    half, full = random(2).half(), random(2)
    assert (elements_per_program(full), elements_per_program(full, None, half)) == (1024, 2048)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert (elements_per_program(full), elements_per_program(full, None, half)) == (2048, 4096)


def test_without_triton_the_references_run():
    script = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from fxcache.kernels import _launch\n"
        "assert _launch.triton is None and not _launch.runs_triton(torch.ones(2))\n"
        "print(torch.ops.fxcache.extrapolate(torch.ones(2), torch.ones(1, 2)).tolist())\n"
    )
    done = subprocess.run([*PYTHON, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[2.0, 2.0]\n", 0), done.stderr
