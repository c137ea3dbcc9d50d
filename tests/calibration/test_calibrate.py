"""`fxcache.calibrate` against measurements of the plain eager model, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcache
from fxcache.cli import main
from fxcache.errors import OptionError, RefusalError, StateError
from tests.integration.published import EagerPublished, relative
from tests.integration.walks import Step, interleaved, steps_of
from tests.models.pipelines import dit
from tests.models.tiny_trunk import TinyTrunk, tiny_trunk


def walk(model: TinyTrunk, calls: list[Step]) -> Callable[[], None]:
    """Make the calls, each in its generation and branch."""

    def run() -> None:
        runs = {call.generation: fxcache.generation(call.generation) for call in calls}
        for call in calls:
            with runs[call.generation], fxcache.context(call.branch):
                model(call.x, call.t, call.c)

    return run


def measured(model: TinyTrunk, calls: list[Step]) -> dict[Any, list[tuple[float, float, float]]]:
    """Per branch and generation the changes from step to step, from the model opened up."""
    oracle, rows, last = EagerPublished(model, fxcache.Options(), 0), {}, {}
    for call in calls:
        entered, fixed = model.prefix(call.x, call.t, call.c)
        streams = entered
        for index in range(len(model.blocks)):
            streams = model.block(index, streams, fixed)
        now = (oracle.read(entered, fixed), model.suffix(streams, fixed, call.x), streams[0] - entered[0])
        key = (call.generation, call.branch)
        if key in last:
            read, output, added = last[key]
            ratio = float((now[2].norm(dim=-1) / added.norm(dim=-1)).mean())
            rows.setdefault(key, []).append((relative(now[0], read), relative(now[1], output), ratio))
        last[key] = now
    return rows


@pytest.mark.parametrize("two_streams", [False, True])
def test_what_is_measured_is_what_the_eager_model_shows(two_streams: bool) -> None:
    model = tiny_trunk(two_streams, blocks=3)
    calls = interleaved(steps_of("first", 1, count=8), steps_of("second", 2, count=8))
    found = fxcache.calibrate(model, walk(model, calls), degree=2)
    expected = measured(model, calls)
    assert (found.model, found.steps, found.series) == ("TinyTrunk", 8, 4)
    points = np.array([row[:2] for rows in expected.values() for row in rows])
    assert sorted(found.changes) == [pytest.approx(tuple(point), rel=1e-4) for point in sorted(map(tuple, points))]
    assert found.rescale_coefficients == pytest.approx(np.polyfit(*points.T, 2).tolist(), rel=1e-2)
    ratios = np.array([[row[2] for row in rows] for rows in expected.values()])
    mean = np.exp(np.log(ratios).mean(0))
    assert found.magnitude_ratios == pytest.approx([1.0, *mean.tolist()], rel=1e-4)
    assert found.deviation == pytest.approx(np.exp(np.abs(np.log(ratios / mean)).max()) - 1, rel=1e-2)
    assert -1.0 < found.explained <= 1.0


def test_what_the_trunk_adds_is_what_the_eager_model_shows() -> None:
    model = tiny_trunk(blocks=3)
    calls = interleaved(steps_of("first", 1, count=8), steps_of("second", 2, count=8))
    found = fxcache.calibrate(model, walk(model, calls))
    rows: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for call in calls:
        entered, fixed = model.prefix(call.x, call.t, call.c)
        streams = entered
        for index in range(len(model.blocks)):
            streams = model.block(index, streams, fixed)
        values = model.suffix(streams, fixed, call.x), streams[0] - entered[0]
        rows.setdefault((call.generation, call.branch), []).append(values)
    outputs, added = (
        torch.stack([torch.stack([row[i].double().flatten() for row in each]) for each in rows.values()])
        for i in (0, 1)
    )
    expected = (added @ added.mT / added.shape[2]).mean(0)
    torch.testing.assert_close(torch.tensor(found.trunk_products, dtype=torch.float64), expected, rtol=1e-5, atol=1e-7)
    moved = [values.diff(dim=1).square().sum((0, 2)).sqrt() for values in (outputs, added)]
    ratios = (moved[0] / moved[1]).tolist()
    assert found.sensitivities == pytest.approx([ratios[0], *ratios], rel=1e-4)
    first = [float(call.t.max()) for call in calls if (call.generation, call.branch) == ("first", "cond")]
    assert found.times == pytest.approx(first)


class Turning(nn.Module):
    """What the blocks add changes its direction once, between two steps."""

    def __init__(self, turn: float) -> None:
        super().__init__()
        self.turn, self.enter = turn, nn.Linear(16, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(4))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        sign = torch.where(timestep > self.turn, 1.0, -1.0)[:, None, None]
        x = self.enter(hidden_states)
        for block in self.blocks:
            x = x + sign * block(x)
        return x


def test_the_mask_computes_where_the_output_turns() -> None:
    torch.manual_seed(0)
    model, noise = Turning(0.45).eval(), torch.randn(1, 6, 16)
    times = torch.linspace(1, 0.05, 20)

    def run() -> None:
        with fxcache.generation():
            for time in times:
                model(noise, time.expand(1))

    found = fxcache.calibrate(model, run)
    assert found.steps_mask(2) == [1, *(int(step == int((times > 0.45).sum())) for step in range(1, 20))]
    assert found.steps_mask(20) == [1] * 20
    with pytest.raises(OptionError, match=r"^computed_steps=21: expected an integer from 1 to 20$"):
        found.steps_mask(21)


def test_no_change_is_measured_from_one_generation_to_the_next() -> None:
    model = tiny_trunk(blocks=3)
    calls = [*steps_of("first", 1, count=4), *steps_of("second", 2, count=4)]

    def run() -> None:
        for call in calls:
            with fxcache.context(call.branch, step_index=call.number):
                model(call.x, call.t, call.c)

    found = fxcache.calibrate(model, run)
    assert (found.steps, found.series) == (4, 4)
    points = [row[:2] for rows in measured(model, calls).values() for row in rows]
    assert sorted(found.changes) == [pytest.approx(point, rel=1e-4) for point in sorted(points)]


def test_the_model_runs_as_before_and_is_left_as_it_was() -> None:
    model, calls = tiny_trunk(blocks=3), steps_of("first", 1, count=4)
    plain = [model(call.x, call.t, call.c) for call in calls]
    seen: list[Tensor] = []

    def run() -> None:
        with fxcache.generation():
            seen.extend(model(call.x, call.t, call.c) for call in calls)

    fxcache.enable_cache(model, inner_backend="eager", Fn_compute_blocks=1, residual_diff_threshold=1.0)
    before = model._compiled_call_impl
    fxcache.calibrate(model, run)
    assert all(map(torch.equal, seen, plain))
    assert model._compiled_call_impl is before
    assert fxcache.summary(model).steps == 0
    fxcache.disable_cache(model)
    assert model._compiled_call_impl is None


def test_the_model_is_left_as_it_was_after_an_error_too() -> None:
    model = tiny_trunk(blocks=3)
    with pytest.raises(ZeroDivisionError):
        fxcache.calibrate(model, lambda: 1 / 0)
    assert model._compiled_call_impl is None


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    trunk = (1.0, 0.6, 0.3), ((1.0, 0.5, 0.2), (0.5, 1.0, 0.6), (0.2, 0.6, 1.0)), (1.0, 1.0, 2.0)
    found = fxcache.Calibration("M", 3, 2, (1.5, 0.0), 0.9, (1.0, 0.5, 0.25), 0.01, ((0.1, 0.2), (0.3, 0.4)), *trunk)
    found.save(tmp_path / "model.json")
    assert fxcache.Calibration.load(tmp_path / "model.json") == found
    assert found.teacache_config(residual_diff_threshold=0.3) == fxcache.TeaCacheConfig(
        rescale_coefficients=(1.5, 0.0), residual_diff_threshold=0.3
    )
    assert found.magcache_config(last_steps=2) == fxcache.MagCacheConfig(
        magnitude_ratios=(1.0, 0.5, 0.25), last_steps=2
    )
    text = str(found)
    assert "explain 90.0 % of the variance" in text and "1.0000, 0.5000, 0.2500" in text
    assert f"steps_mask(2)         {''.join(map(str, found.steps_mask(2)))}" in text


@pytest.mark.parametrize("by", ["sensitivities", "times"])
def test_steps_that_reach_far_are_computed(by: str) -> None:
    rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)
    products = tuple(map(tuple, (rows @ rows.T).tolist()))
    far, near = [10.0] * 6, [0.1] * 6
    computed = []
    for reach in (far + near, near + far):
        times = tuple(sum(reach[step:]) for step in range(12)) if by == "times" else tuple(range(12, 0, -1))
        shares = tuple(reach) if by == "sensitivities" else (1.0,) * 12
        found = fxcache.Calibration("M", 12, 1, (1.0,), 1.0, (1.0,) * 12, 0.0, (), times, products, shares)
        computed.append(sum(found.steps_mask(5)[:6]))
    assert computed[0] > computed[1]


@pytest.mark.parametrize(("content", "sentence"), [("{", "expected JSON"), ("{}", "expected an object with changes,")])
def test_a_file_with_something_else_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=f"^{path}: {sentence}"):
        fxcache.Calibration.load(path)


class PostNorm(nn.Module):
    """A trunk without residual paths: there is nothing to cache it against."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(6)
        )

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states * timestep


def test_a_trunk_that_cannot_be_skipped_is_refused() -> None:
    model = PostNorm().eval()
    with pytest.raises(RefusalError, match=r"fxcache cannot cache this graph: .*Fn_compute_blocks=0"):
        fxcache.calibrate(model, lambda: model(torch.randn(1, 4, 8), torch.ones(1)))


def test_what_cannot_be_measured() -> None:
    model, calls = tiny_trunk(blocks=3), steps_of("first", 1, count=4)
    with pytest.raises(StateError, match=r"^calibrate: run did not call the TinyTrunk$"):
        fxcache.calibrate(model, lambda: None)
    with pytest.raises(StateError, match=r"^calibrate: no two steps of one generation were recorded"):
        fxcache.calibrate(model, walk(model, calls[:2]))
    with pytest.raises(StateError, match=r"^calibrate: expected generations of one number of steps, found 3, 4$"):
        fxcache.calibrate(model, walk(model, calls + steps_of("second", 2, count=3)))
    with pytest.raises(OptionError, match=r"^degree=8: expected an integer from 1 to 7$"):
        fxcache.calibrate(model, lambda: None, degree=8)
    with pytest.raises(OptionError, match=r"^target: expected one transformer, found transformer, transformer_2"):
        both = type("Pipe", (), {"components": {"transformer": model, "transformer_2": model}})()
        fxcache.calibrate(both, lambda: None)


ENTRY = """
import torch, fxcache
from tests.integration.walks import steps_of
from tests.models.tiny_trunk import tiny_trunk

def made():
    model = tiny_trunk(blocks=3)
    def run():
        with fxcache.generation():
            for call in steps_of("run", 1, count=5):
                if call.branch == "cond":
                    model(call.x, call.t, call.c)
    return model, run

def wrong():
    return 1
"""


def test_the_command_runs_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "fxcache_entry_of_a_test.py").write_text(ENTRY)
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "fxcache_entry_of_a_test:made", "--out", "found.json", "--degree", "1"]) == 0
    printed = capsys.readouterr().out
    found = fxcache.Calibration.load("found.json")
    assert len(found.magnitude_ratios) == 5 and len(found.rescale_coefficients) == 2
    assert printed == f"{found}\nwritten: found.json\n"


def test_the_command_runs_a_pipeline(tmp_path: Path, capsys: Any) -> None:
    pipe = dit(layers=3).pipe
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "call.json").write_text(json.dumps({"class_labels": [1], "num_inference_steps": 4}))
    assert main(["calibrate", str(tmp_path / "pipe"), "--call", str(tmp_path / "call.json")]) == 0
    assert "branches of 4 steps, 3 changes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "nothing: expected the folder of a pipeline, or package.module:function"),
        (["no_such_module:f"], "no_such_module:f: No module named 'no_such_module'"),
        (["json:nothing"], "json:nothing: module 'json' has no attribute 'nothing'"),
        (["time:time"], "time:time: expected it to return a pipeline or a module, and a function that runs it"),
        (["."], ".: expected --call FILE.json with its arguments"),
    ],
)
def test_wrong_commands(arguments: list[str], sentence: str, capsys: Any) -> None:
    assert main(["calibrate", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"fxcache: {sentence}")
