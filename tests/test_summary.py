"""The summary: counts, the table, JSON, and the picture."""

from __future__ import annotations

import builtins
import json

import pytest
import torch

from fxcache.errors import StateError
from fxcache.runtime.attribution import Attribution, Reason
from fxcache.runtime.generation import BranchContext, Generation
from fxcache.summary import Summary, summarize
from tests.runtime.loop import Model, latents, schedule


def summary_of(*models: Model) -> Summary:
    return summarize(
        (f"model {index}", record)
        for index, model in enumerate(models)
        for record in model.attribution.records(model.parameters)
    )


@pytest.fixture
def walked() -> Model:
    """Two branches of one generation that has ended, and one of another that has not."""
    model, texts = Model(Attribution(), residual_diff_threshold=0.3), (torch.ones(1, 3), torch.zeros(1, 3))
    with Generation("first") as first:
        model.run(schedule(3), *texts, difference=0.1)
    first.close()
    with Generation("second") as model.keep, BranchContext("cond"):
        for time, difference in zip(schedule(5), (0, 0.25, 0.5, float("nan"), 0.125), strict=True):
            model(latents(), time, texts[0], difference)
    return model


def test_counts(walked):
    summary = summary_of(walked)
    assert [(c.generation, c.branch, c.live) for c in summary.contexts] == [
        ("first", "branch 1", False),
        ("first", "branch 2", False),
        ("second", "cond", True),
    ]
    last = summary.contexts[-1]
    assert (last.steps, last.computed, last.reused, last.decisions) == (5, 3, 2, "C.CC.")
    assert last.outcomes == tuple(
        reason.value for reason in (Reason.WARMUP, Reason.REUSED, Reason.DIFFERENCE, Reason.NOT_FINITE, Reason.REUSED)
    )
    assert last.differences[:3] == (None, 0.25, 0.5) and last.threshold == 0.3
    assert last.reasons == {"warmup": 1, "reused": 2, "difference >= threshold": 1, "not finite": 1}
    assert last.state_bytes == 16 and summary.state_bytes == 16
    assert (summary.steps, summary.computed, summary.reused) == (11, 5, 6)


def test_speedup_counts_operations(walked):
    summary = summary_of(walked)
    assert summary.contexts[-1].estimated_speedup == pytest.approx(50 / (50 - 2 * 9))
    assert summary.estimated_speedup == pytest.approx(110 / (110 - 6 * 9))
    assert summary_of(Model(Attribution())).estimated_speedup is None


def test_refused_calls_are_no_steps():
    model, x, text = Model(Attribution()), latents(), torch.ones(1, 3)
    for _ in range(3):
        model(x, 0.5, text)
    (context,) = summary_of(model).contexts
    assert context.steps == 1 and context.reasons == {"warmup": 1, "repeated call": 2}
    model(latents(), None, text)
    summary = summary_of(model)
    assert summary.refused == {"no context for this call": 1}
    assert "outside any context: 1 no context for this call" in str(summary)


def test_table(walked):
    lines = str(summary_of(walked)).splitlines()
    assert lines[0].split() == "model generation branch shape steps computed reused difference state speedup".split()
    first = "model 0|first|branch 1|1x4|3|1|2|0.100 (max 0.100)|0 B|2.50x"
    assert lines[2].split() == first.replace("|", " ").split()
    assert lines[6].split()[:4] == ["total", "11", "5", "6"]
    assert len({len(line) for line in lines[:7]}) == 1, "columns line up"
    assert lines[-1] == "model 0, second, cond: 2 reused, 1 warmup, 1 difference >= threshold, 1 not finite"
    assert str(Summary((), {})) == "fxcache: no cached calls yet"


def test_json(walked):
    text = json.dumps(summary_of(walked).to_dict(), allow_nan=False)
    read = json.loads(text)
    assert read["steps"] == 11 and read["reused"] == 6
    assert read["contexts"][-1]["differences"] == [None, 0.25, 0.5, None, 0.125]
    assert read["contexts"][-1]["shape"] == [1, 4]


def test_plot(walked, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "decisions.png"
    summary_of(walked).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    with pytest.raises(StateError, match="no cached calls yet"):
        Summary((), {}).plot(path)


def test_plot_says_what_is_missing(walked, tmp_path, monkeypatch):
    def without_matplotlib(name, *args, real=builtins.__import__):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(StateError, match="needs matplotlib: pip install matplotlib"):
        summary_of(walked).plot(tmp_path / "decisions.png")


def test_many_steps_are_counted_beyond_those_listed(monkeypatch):
    model = Model(Attribution())
    with Generation():
        for step in range(5000):
            model(latents(), float(-step), None)
    (context,) = summary_of(model).contexts
    assert context.steps == 5000 and len(context.outcomes) == 4096
