"""Other processes: Python for a script, functions that run on several ranks, and what test processes share."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from filelock import FileLock

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
"""Without the folder of the script, or that of the caller, to import from; Python 3.10 cannot leave it out."""
TIMEOUT_S = 240
"""Ranks that wait for each other do so for ever."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """Return what `make(folder)` does, which one of all test processes calls, for what takes minutes."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    kept = base / f"{name}.pickle"
    with FileLock(base / f"{name}.lock"):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make(factory.mktemp(name))))
    return pickle.loads(kept.read_bytes())


def on_ranks(
    work: Callable[[int, Any], Any], given: Any, folder: Path, ranks: int = 2, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """Call `work(rank, given)` on every rank and return what came of it; RuntimeError if one of them does not end well.

    The processes import `work`, which has to be a function of a module.
    """
    (folder / "work").write_bytes(pickle.dumps((work, given)))
    errors = [folder / f"errors_{rank}" for rank in range(ranks)]
    processes = []
    for rank, error in enumerate(errors):
        command = [sys.executable, "-m", __name__, str(folder), str(rank), str(ranks)]
        with error.open("w") as stderr:
            processes.append(subprocess.Popen(command, cwd=ROOT, stderr=stderr, stdout=stderr))
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the ranks have not ended after {timeout_s} s")
            if any(process.poll() for process in processes):
                break  # the others would wait for this one
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, error in zip(processes, errors, strict=True):
        if process.returncode > 0:
            raise RuntimeError(error.read_text()[-4000:])
    return [pickle.loads((folder / f"found_{rank}").read_bytes()) for rank in range(ranks)]


def main(folder: Path, rank: int, ranks: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        # the name of a machine without a network leads nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    work, given = pickle.loads((folder / "work").read_bytes())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    found = work(rank, given)
    (folder / f"found_{rank}").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
