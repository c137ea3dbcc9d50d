"""The files of the repository, for the checks in this folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("fxcache", "kernels", "tests", "benchmarks")
PACKAGE = ("fxcache", "kernels")


def repository_files() -> list[Path]:
    """Every file that is, or would be, under version control; links are left out."""
    found = {path for path in _listed() if path.is_file() and not path.is_symlink()}
    assert found, "no files found"
    return sorted(found)


def _listed() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name]
    # an unpacked archive: there is no git, and nothing else than the folders we know
    folders = [ROOT / name for name in (*CODE, "docs", ".ci")]
    return [
        *ROOT.glob("*"),
        *(path for folder in folders for path in folder.rglob("*") if "__pycache__" not in str(path)),
    ]


def python_files(folders: tuple[str, ...] = CODE) -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".py" and relative(path).split("/")[0] in folders]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
