"""Inductor's caches on disk, shared by processes with and without fxcache, with other options, from another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scenes import DECISIONS

PROGRAM = Path(__file__).with_name("cache_process.py")
PLAIN: dict[str, Any] = {"fxcache": None}
CACHED: dict[str, Any] = {"fxcache": {}}


def process(folder: Path, *jobs: dict[str, Any], **variables: str) -> list[dict[str, Any]]:
    """Answers of a new process that keeps compiled code in the folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), json.dumps(jobs)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert all(answer["computed"] < 1e-5 for answer in answers)
    return answers


def reused(answer: dict[str, Any]) -> bool:
    """Whether steps were reused, by the records and by the numbers."""
    assert (answer["reused"] is not None) == ("." in answer["decisions"])
    return answer["reused"] is not None and 1e-4 < answer["reused"] < 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain Inductor and then fxcache have left behind, each in a process of its own."""
    folder = tmp_path_factory.mktemp("compiled")
    (plain,) = process(folder, PLAIN)
    (cached,) = process(folder, CACHED)
    assert not reused(plain) and plain["miss"] == 1
    assert reused(cached) and cached["decisions"] == DECISIONS and (cached["hit"], cached["miss"]) == (0, 1)
    return folder


def test_a_second_process_compiles_nothing_again(folder: Path) -> None:
    before = set(folder.rglob("*"))
    # the variable is stronger than any setting: plain Inductor has left something for this graph in that cache
    cached, host = process(folder, CACHED, {"fxcache": {"max_contexts": 3}}, TORCHINDUCTOR_AUTOGRAD_CACHE="1")
    assert reused(cached) and (cached["hit"], cached["miss"]) == (1, 0)
    assert reused(host) and (host["hit"], host["miss"]) == (1, 0)  # no part of the graph knows of this option
    assert cached["whole"] == host["whole"] == 0
    assert not [path for path in set(folder.rglob("*")) - before if path.suffix in (".so", ".cpp", ".py")]


def test_what_shapes_the_graph_meets_no_older_artefact(folder: Path) -> None:
    threshold, fewer, version, source = process(
        folder,
        {"fxcache": {"residual_diff_threshold": 0.01}},
        {"fxcache": {"Fn_compute_blocks": 2}},
        {"fxcache": {}, "pretend": {"fxcache.options.__version__": {"new": "0.0.0+other"}}},
        {"fxcache": {}, "pretend": {"fxcache.inner.source_hash": {"return_value": "edited sources"}}},
    )
    assert threshold["decisions"] == "CCC." and fewer["decisions"] == DECISIONS
    assert [(answer["hit"], answer["miss"]) for answer in (fewer, version, source)] == [(0, 1)] * 3
    assert reused(version) and reused(source)


def test_plain_inductor_never_meets_a_rewritten_graph(tmp_path: Path) -> None:
    (cached,) = process(tmp_path, CACHED)
    plain, off = process(tmp_path, PLAIN, {"fxcache": {"residual_diff_threshold": 0}})
    assert reused(cached)
    assert not reused(plain) and not reused(off)
    assert plain["decisions"] == off["decisions"] == "CCCC"
