"""What a report says about where it comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import report


def test_what_benchmarks_write_themselves_does_not_make_a_commit_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.environment()["commit"] is None
    names = ("code.py", "README.md", "docs/page.md", "benchmarks/results/found.json")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")[:12]
    for name in names[1:]:
        (tmp_path / name).write_text("after\n")
    assert report.environment()["commit"] == commit
    (tmp_path / "code.py").write_text("after\n")
    assert report.environment()["commit"] == f"{commit}-dirty"
