"""What every benchmark reports: a table for people, JSON for everything else, and where the figures come from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NOTHING = "-"
"""In a cell of a table that has no figure."""
_PACKAGES = ("torch", "diffusers", "triton", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Spread:
    """Median and the quantiles at 20 and 80 percent."""

    median: float
    q20: float
    q80: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), _quantile(ordered, 0.2), _quantile(ordered, 0.8), len(ordered))

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.q20 * factor, self.q80 * factor, self.count)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def paired_ratio(tops: Sequence[float], bottoms: Sequence[float]) -> Spread:
    """Spread of the ratios of values that were measured side by side: a slow minute of the machine cancels out."""
    return Spread.of([top / bottom for top, bottom in zip(tops, bottoms, strict=True)])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines with aligned columns: the first one to the left, the others to the right."""
    lines = [tuple(columns), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a page, in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ["---"] * len(columns), *rows))


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def environment(device: str = "cpu") -> dict[str, Any]:
    """Commit, versions and machine."""
    machine: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    versions = {"python": platform.python_version(), "fxcache": _version("fxcache")}
    return {
        "commit": _commit(),
        # of torch with its build, which its metadata need not name
        "versions": versions | {name: _version(name) for name in _PACKAGES} | {"torch": torch.__version__},
        "machine": machine,
    }


def other_version(theirs: dict[str, str], mine: dict[str, str]) -> str | None:
    """The first package that two reports have in different versions: their rows cannot stand beside each other."""
    return next((name for name in sorted(set(theirs) & set(mine)) if theirs[name] != mine[name]), None)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report; spreads become plain mappings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    # six digits: no clock here is better, and a file of fewer bytes reads better
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Short hash of the commit; with a mark when tracked files differ from it, but for those that benchmarks write."""
    written = [f":(exclude){path}" for path in ("README.md", "benchmarks/results", "docs")]
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + "-dirty" * bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *written))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
