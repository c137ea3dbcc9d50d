"""The caches on disk, shared by processes with and without fxcache, with other options, from another version."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scenes import DECISIONS
from tests.processes import PYTHON, made_once

PROGRAM = Path(__file__).with_name("cache_process.py")
PLAIN: dict[str, Any] = {"fxcache": None}
CACHED: dict[str, Any] = {"fxcache": {}}
REFUSED: dict[str, Any] = {"fxcache": {"trunk": ["nowhere"], "share_blocks": False}}


def process(folder: Path, *jobs: dict[str, Any], error: float = 1e-5, **variables: str) -> list[dict[str, Any]]:
    """Answers of a new process that keeps compiled code in the folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), **variables}
    done = subprocess.run([*PYTHON, str(PROGRAM), json.dumps(jobs)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert all(answer["computed"] < error for answer in answers)
    return answers


def reused(answer: dict[str, Any]) -> bool:
    """Whether steps were reused, by the records and by the numbers."""
    assert (answer["reused"] is not None) == ("." in answer["decisions"])
    return answer["reused"] is not None and 1e-4 < answer["reused"] < 0.1


def found(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    """What the caches said: graphs whole from AOTAutograd's, kept there; hits and misses of Inductor's."""
    return answer["whole"], answer["kept"], answer["hit"], answer["miss"]


WHOLE = (1, 0, 1, 0)
REWRITTEN_AGAIN = (0, 1, 1, 0)
COMPILED = (0, 1, 0, 1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """What plain Inductor and then fxcache have left behind, each in a process of its own, and their answers."""
    answers: tuple[Path, dict[str, Any], dict[str, Any]] = made_once(tmp_path_factory, "compiled", compile_both)
    return answers


def compile_both(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    (plain,) = process(folder, PLAIN)
    (cached,) = process(folder, CACHED)  # which never meets what plain Inductor has left
    assert not reused(plain) and found(plain) == COMPILED
    assert reused(cached) and cached["decisions"] == DECISIONS and found(cached) == COMPILED
    return folder, plain, cached


@pytest.fixture
def folder(first: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of what the two have left behind."""
    return shutil.copytree(first[0], tmp_path / "compiled")


@pytest.fixture
def plain(first: tuple[Path, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """What the process without fxcache said."""
    return first[1]


@pytest.fixture
def before(first: tuple[Path, dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """What the process with fxcache said."""
    return first[2]


def test_a_second_process_neither_traces_nor_compiles_again(folder: Path, before: dict[str, Any]) -> None:
    files = set(folder.rglob("*"))
    # the variable is stronger than any setting
    cached, host, plain = process(
        folder, CACHED, {"fxcache": {"max_contexts": 3}}, PLAIN, TORCHINDUCTOR_AUTOGRAD_CACHE="1"
    )
    assert reused(cached) and found(cached) == WHOLE and cached["same"] == before["same"]
    assert found(host) == WHOLE and host["same"] == before["same"]  # no part of the graph knows of this option
    assert not reused(plain) and found(plain) == WHOLE
    assert not [path for path in set(folder.rglob("*")) - files if path.suffix in (".so", ".cpp", ".py")]


def test_without_the_cache_of_autograd_the_graph_is_rewritten_again(folder: Path, before: dict[str, Any]) -> None:
    (switched_off,) = process(folder, CACHED, TORCHINDUCTOR_AUTOGRAD_CACHE="0")
    moved, unbound, traced = process(
        folder,
        {**CACHED, "pretend": {"fxcache.backend.shelf": {"new": None}}},
        {**CACHED, "pretend": {"fxcache.artefact.Artefact.post_compile": {"return_value": None}}},
        {"fxcache": {"dump_dir": str(folder)}},
    )
    for answer in (switched_off, moved, unbound, traced):
        assert found(answer)[1:] == (0, 1, 0) and answer["same"] == before["same"]
        assert answer["whole"] == (answer is unbound)
    assert (folder / "graph_000").is_dir()


@pytest.mark.slow
def test_without_any_cache_all_is_compiled_again(folder: Path, before: dict[str, Any]) -> None:
    (cached,) = process(folder, CACHED, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert found(cached) == (0, 0, 0, 0) and cached["same"] == before["same"]


@pytest.mark.slow
def test_damaged_and_lost_entries_are_made_again(folder: Path, before: dict[str, Any]) -> None:
    for path in (folder / "aotautograd").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    (damaged,) = process(folder, CACHED)
    assert found(damaged) == REWRITTEN_AGAIN and damaged["same"] == before["same"]
    shutil.rmtree(folder / "fxgraph")
    (lost,) = process(folder, CACHED)  # missed by what AOTAutograd's cache holds, and again
    assert found(lost) == (0, 1, 0, 2) and lost["same"] == before["same"]
    (whole,) = process(folder, CACHED)
    assert found(whole) == WHOLE and whole["same"] == before["same"]


def test_what_shapes_the_graph_meets_no_older_artefact(folder: Path) -> None:
    fewer = {"fxcache": {"Fn_compute_blocks": 2}}
    threshold, other, version, source, once_more = process(
        folder,
        {"fxcache": {"residual_diff_threshold": 0.01}},
        fewer,
        {"fxcache": {}, "pretend": {"fxcache.options.__version__": {"new": "0.0.0+other"}}},
        {"fxcache": {}, "pretend": {"fxcache.inner.source_hash": {"return_value": "edited sources"}}},
        CACHED,
    )
    assert threshold["decisions"] == "CCC." and found(threshold) == WHOLE  # the graph takes a threshold as an input
    assert other["decisions"] == DECISIONS
    assert [found(answer) for answer in (other, version, source)] == [COMPILED] * 3
    assert reused(version) and reused(source) and found(once_more) == WHOLE
    answers = process(folder, CACHED, fewer, CACHED, fewer)
    assert [found(answer) for answer in answers] == [WHOLE] * 4
    assert [answer["same"] for answer in answers] == [once_more["same"], other["same"]] * 2


def test_what_can_never_reuse_is_plain_inductors(folder: Path, plain: dict[str, Any]) -> None:
    never = {"residual_diff_threshold": 0}
    off, sharing = process(folder, {"fxcache": never}, {"fxcache": {**never, "share_blocks": True}})
    assert found(off) == WHOLE  # what plain Inductor has left
    assert found(sharing) == COMPILED  # but not where blocks are shared
    assert not reused(off) and not reused(sharing)
    assert off["decisions"] == sharing["decisions"] == "CCCC"
    assert plain["same"][0] == off["same"][0] == sharing["same"][0]
    (again,) = process(folder, {"fxcache": {**never, "share_blocks": True}})
    assert found(again) == WHOLE and again["same"][0] == plain["same"][0]


@pytest.mark.slow
def test_plain_inductor_never_meets_a_rewritten_graph(tmp_path: Path) -> None:
    (cached,) = process(tmp_path, CACHED)
    (plain,) = process(tmp_path, PLAIN)
    assert reused(cached) and not reused(plain)
    assert found(cached) == found(plain) == COMPILED


def test_a_refusal_is_said_by_every_process(folder: Path) -> None:
    (refused,) = process(folder, REFUSED)
    assert found(refused) == REWRITTEN_AGAIN  # the code is plain Inductor's
    (said,) = refused["refusals"]
    assert "no stack of repeated blocks named nowhere" in said
    again, cached = process(folder, REFUSED, CACHED)
    assert found(again) == WHOLE and again["refusals"] == [said] and not reused(again)
    assert found(cached) == WHOLE and reused(cached) and not cached["refusals"]
    with pytest.raises(AssertionError, match="RefusalError: fxcache cannot cache this graph: no stack of repeated"):
        process(folder, {"fxcache": {**REFUSED["fxcache"], "on_refusal": "raise"}})


@pytest.mark.parametrize(
    ("job", "error"),
    [
        pytest.param({"model": "half"}, 0.05, marks=pytest.mark.slow),
        pytest.param({"model": "flux", "dynamic": True}, 1e-5, marks=pytest.mark.slow),
        pytest.param(
            {"model": "quantised"},
            0.01,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra [quant]"),
            ],
        ),
    ],
    ids=str,
)
def test_kinds_of_models(job: dict[str, Any], error: float, tmp_path: Path) -> None:
    (cold,) = process(tmp_path, {**CACHED, **job}, error=error)
    (warm,) = process(tmp_path, {**CACHED, **job}, error=error)
    assert found(cold) == COMPILED and found(warm) == WHOLE
    assert cold["same"] == warm["same"] and cold["decisions"] == DECISIONS
