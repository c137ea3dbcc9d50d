"""The files of the repository, for the checks in this folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("fxcache", "kernels", "tests", "benchmarks")
PACKAGE = ("fxcache", "kernels")


def repository_files() -> list[Path]:
    """Every file that is, or would be, under version control; links are left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in set(found) if path.is_file() and not path.is_symlink())


def python_files(folders: tuple[str, ...] = CODE) -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".py" and relative(path).split("/")[0] in folders]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
