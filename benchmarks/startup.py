"""What a process pays before its first step, and the memory it needs: measured in processes of their own.

`python -m benchmarks.startup '{"contestant": "plain", ...}'` is one such process; it prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.flux import PRESETS, Loop, new_transformer
from benchmarks.report import ROOT

CONTESTANTS = ("plain", "fxcache")
_STEPS = 4


def measure_startup(preset: str, device: str, inner: str, options: dict[str, Any], tick: Any) -> list[dict[str, Any]]:
    """Compile time of plain Inductor and of fxcache, each with empty caches and again with the caches filled.

    `tick` is called with a word before each of the processes.
    """
    rows = []
    for contestant in CONTESTANTS:
        with tempfile.TemporaryDirectory(prefix="fxcache-bench-") as folder:
            for caches in ("cold", "warm"):
                tick(f"{contestant}, {caches} start")
                task = {
                    "contestant": contestant,
                    "preset": preset,
                    "device": device,
                    "inner": inner,
                    "options": options,
                }
                rows.append({"contestant": contestant, "caches": caches, **_in_process(task, Path(folder))})
    return rows


def _in_process(task: dict[str, Any], caches: Path) -> dict[str, Any]:
    found: dict[str, Any] = run_module("benchmarks.startup", [json.dumps(task)], caches)
    return found


def run_module(module: str, arguments: list[str], caches: Path) -> Any:
    """Run a module in a process whose compilers keep their caches in a folder; what its last line says in JSON."""
    folders = {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **folders},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_task(task: dict[str, Any]) -> dict[str, Any]:
    """Compile one contestant in this process; seconds of the first call and of later ones, and memory in bytes.

    `compile_s` is the first call less a later computed one. `working_bytes` is what a short loop (of fxcache: one step
    computed, the others as the options say) takes at most above what the process holds before it: weights, state, code.
    """
    preset, device = PRESETS[task["preset"]], task["device"]
    transformer = new_transformer(preset, device)
    compiled = compile_with(transformer, task["contestant"], task["inner"], task["options"])
    loop = Loop(preset, device)
    held, seconds = 0, []
    with torch.no_grad():
        for lap in range(2):
            if lap == 1:
                held = reset_peak(device)
            for step in range(_STEPS):
                inputs = loop.step(step, _STEPS)
                synchronize(device)
                begin = time.perf_counter()
                compiled(**inputs, return_dict=False)
                synchronize(device)
                seconds.append(time.perf_counter() - begin)
    steady = seconds[_STEPS] if task["contestant"] == "fxcache" else statistics.median(seconds[1:])
    return {
        "first_call_s": seconds[0],
        "later_call_s": steady,
        "compile_s": seconds[0] - steady,
        "working_bytes": peak(device) - held,
    }


def compile_with(module: torch.nn.Module, contestant: str, inner: str, options: dict[str, Any]) -> Any:
    """The module under `torch.compile`: with the inner compiler alone, or with fxcache around it."""
    if contestant == "plain":
        return torch.compile(module, backend=inner, fullgraph=True, dynamic=False)
    settings = {"on_refusal": "raise", "inner_backend": inner, **options}
    return torch.compile(module, backend="fxcache", fullgraph=True, dynamic=False, options=settings)


def synchronize(device: str) -> None:
    """Wait until the device has done all work it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: str) -> int:
    """Begin a new measurement of the memory's peak; return what is held now."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    # freed activations would otherwise still be resident, and the next loop would seem to need nothing
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Most bytes held since `reset_peak`: of the allocator on a GPU, resident ones of this process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(run_task(json.loads(sys.argv[1]))))
