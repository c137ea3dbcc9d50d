"""What an installation gives: the entry point, the kernels under one name, pinned versions, the files of a wheel."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import fxcache
from tests.repo.files import ROOT, relative, repository_files


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_backend_is_an_entry_point():
    (entry,) = [entry for entry in metadata.entry_points(group="torch_dynamo_backends") if entry.name == "fxcache"]
    assert entry.value == "fxcache.backend:fxcache"


def test_one_version_everywhere():
    assert metadata.version("fxcache") == fxcache.__version__


def test_kernels_is_a_link_that_git_keeps():
    assert (ROOT / "fxcache" / "kernels").is_symlink()
    assert (ROOT / "fxcache" / "kernels").readlink() == Path("..", "kernels")


def test_kernels_have_one_name():
    assert importlib.util.find_spec("kernels") is None
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "kernels" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    second = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(second)
    assert second.__path__ == []
    assert not [name for name in vars(second) if not name.startswith("__")]


def test_every_direct_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line.partition("#")[0]}
    wanted = {normal(re.split(r"[^\w.-]", entry)[0]) for entry in metadata.requires("fxcache") or ()}
    assert wanted <= pinned


def test_a_wheel_holds_the_whole_package(tmp_path: Path):
    """Built from a copy, because a build writes into its tree."""
    source = tmp_path / "source"
    for path in repository_files():
        if relative(path).split("/")[0] in {"fxcache", "kernels", "pyproject.toml", "README.md", "LICENSE"}:
            target = source / relative(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (source / "fxcache" / "kernels").symlink_to(Path("..", "kernels"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {relative(path) for path in repository_files() if relative(path).startswith("fxcache/")}
    kernels = {f"fxcache/{relative(path)}" for path in repository_files() if relative(path).startswith("kernels/")}
    assert package | kernels <= names
    assert not [name for name in names if name.split("/")[0] in {"kernels", "tests", "benchmarks"}]
