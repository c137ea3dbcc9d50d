"""The coverage benchmark sees what is wrong, forgets no class, survives its processes; page and results agree."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import diffusers.models.transformers as package
import pytest
import torch
from torch import nn

from benchmarks import coverage, coverage_checks, coverage_page
from benchmarks.coverage_checks import CHECKS, Call, Outcome, Run, examine
from benchmarks.report import RESULTS
from tests.models.every import BUILDERS, ENTRIES, Entry, exported
from tests.models.tiny import TinyModel
from tests.processes import PYTHON

SMALL = Entry("depth_decoder")
NEWEST = hasattr(diffusers, "Flux3Transformer2DModel")
"""Whether this is diffusers 0.42 or newer, of which the committed results are."""
ONE = {"F1B0": (1, 0)}
ONES, TWOS = torch.ones(3), torch.full((3,), 2.0)
TINY = torch.ones(3) + 1e-6


def test_every_exported_class_has_an_entry_and_it_is_of_that_class():
    assert list(ENTRIES) == exported()
    assert len(ENTRIES) >= (70 if NEWEST else 60)
    for name in ("FluxTransformer2DModel", "T5FilmDecoder", "MiniMaxMusic3RVQDepthDecoder"):
        assert type(ENTRIES[name].build().module).__name__ == name
    used = [entry.builder for entry in ENTRIES.values()]
    assert len(set(used)) == len(used) and set(BUILDERS) - set(used) == ({"flux3"} if NEWEST else set())


def test_a_class_that_is_new_in_diffusers_is_reported(monkeypatch: pytest.MonkeyPatch):
    new = type("AbcTransformer", (nn.Module,), {"__module__": f"{package.__name__}.transformer_abc"})
    monkeypatch.setattr(package, "AbcTransformer", new, raising=False)
    assert "AbcTransformer" in exported()
    row = coverage.examine_class("AbcTransformer", "eager")
    assert not row["ok"]
    assert coverage_page.outcome(row) == "no config"
    report = coverage.merged({}, {"eager": {"AbcTransformer": row}}, ["AbcTransformer"], {**WHERE})
    assert "| AbcTransformer | - | - | - | **no**: no config |" in coverage_page.page(report)
    assert "1 classes: 0 cached, 0 refused with the reason, 1 not ok." in coverage_page.page(report)


def test_a_class_that_diffusers_lists_only_at_the_top_is_seen(monkeypatch: pytest.MonkeyPatch):
    new = type("AbcTransformer", (nn.Module,), {"__module__": f"{package.__name__}.transformer_abc"})
    listed: Callable[[], list[str]] = lambda: ["AbcTransformer"]  # noqa: E731
    monkeypatch.setitem(vars(diffusers), "AbcTransformer", new)
    monkeypatch.setitem(vars(diffusers), "__dir__", listed)
    assert isinstance(diffusers, ModuleType) and "AbcTransformer" in exported()


WHERE = {"versions": {"torch": "1", "diffusers": "2"}, "commit": "abc", "cpu": "Z80"}


@pytest.mark.parametrize(
    ("made", "computed", "reused", "right", "skipped"),
    [
        (("C", ONES), "ok", "decided C", "ok", "decided C"),
        ((".", ONES), "decided .", "ok", "ok", "off by 0.0e+00"),
        (("-", ONES), "decided -", "decided -", "ok", "decided -"),
        (("C", TINY), "off by 9.5e-07", "decided C", "ok", "decided C"),
        ((".", TINY), "decided .", "ok", "ok", "ok"),
        ((".", TWOS), "decided .", "off by 1.0e+00", "off by 1.0e+00", "ok"),
        ((".", torch.ones(4)), "decided .", "off by inf", "off by inf", "off by inf"),
        ((".", ONES * math.nan), "decided .", "off by inf", "off by inf", "off by inf"),
    ],
)
def test_a_call_is_judged(made: Any, computed: str, reused: str, right: str, skipped: str):
    judges = coverage_checks.computed, coverage_checks.reused, coverage_checks.right, coverage_checks.skipped
    assert tuple(judge(made, ONES) for judge in judges) == (computed, reused, right, skipped)


def test_all_tensors_of_a_result_are_compared():
    same, distance = coverage_checks.same, coverage_checks.distance
    assert same((ONES, [TWOS], 3), (ONES, [TWOS.clone()], 3)) and not same((ONES, [TWOS]), (ONES, [ONES]))
    assert not same((ONES, 3), (ONES, 4))
    assert distance((ONES, [TWOS]), (ONES, [ONES])) == pytest.approx(1.0)


def test_a_small_class_is_as_it_should_be():
    outcome = examine(SMALL, "eager", ONE)
    assert outcome.ok and outcome.trunk == "layers[4]" and (outcome.blocks, outcome.streams) == (4, 1)
    assert outcome.splits == {"F1B0": dict.fromkeys(CHECKS, "ok")}


class Counting(nn.Module):
    """Reads a number off a tensor."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * (hidden_states > 0).sum().item()


def test_the_plain_model_is_as_whole_as_the_cached_one():
    tiny = TinyModel(Counting(), lambda draw: {"hidden_states": ONES})
    torch._dynamo.utils.counters.clear()
    (out,) = coverage_checks._plain(tiny, "aot_eager", [Call(0)]).values()
    assert torch.equal(out, ONES * 3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_size_that_only_inductor_cannot_have_is_left_out_there(inner: str):
    outcome = examine(Entry("depth_decoder", one_size_inductor="why"), inner, ONE)
    sizes = {coverage_checks.SIZE, coverage_checks.BACK}
    assert outcome.ok and outcome.one_size == ("" if inner == "eager" else "why")
    assert set(outcome.splits["F1B0"]) == (set(CHECKS) if inner == "eager" else set(CHECKS) - sizes)


def reused_where_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_checks, "NEAR", coverage_checks.FAR)


def never_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_checks, "NEAR", 0)


def disturbed(which: Callable[[Call, str], bool]) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        real = Run.__call__

        def call(self: Run, call: Call) -> Any:
            (decision, out), wanted = real(self, call)
            return (decision, out + 0.1 if which(call, decision) else out), wanted

        monkeypatch.setattr(Run, "__call__", call)

    return patch


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (reused_where_it_may_not, "never reused (F1B0): decided ."),
        (never_reused, "identical call (F1B0): decided -"),
        pytest.param(
            disturbed(lambda call, decision: call.size == 0 and decision == "C"),
            "never reused (F1B0): off by",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            disturbed(lambda call, decision: call.size == 0 and decision == "."),
            "identical call (F1B0): off by",
            marks=pytest.mark.slow,
        ),
        (disturbed(lambda call, decision: call.size == 1 and decision == "."), "second size (F1B0): off by"),
    ],
)
def test_a_wrong_reuse_is_not_ok(
    fault: Callable[[pytest.MonkeyPatch], None], shown: str, monkeypatch: pytest.MonkeyPatch
):
    fault(monkeypatch)
    row = coverage.examine_class("MiniMaxMusic3RVQDepthDecoder", "eager", ["F1B0"])
    assert not row["ok"]
    assert shown in coverage_page.outcome(row)


REFUSED = {
    coverage_checks.WARNED: "ok",
    coverage_checks.ALONE: "ok",
}
FINE = {split: {"c": "ok"} for split in coverage_page.SPLITS}
LEFT = dict.fromkeys(coverage_page.SPLITS, REFUSED)


@pytest.mark.parametrize(
    ("outcome", "ok", "shown"),
    [
        (Outcome(trunk="a[4]", expected="a[4]", splits=FINE), True, "ok"),
        (Outcome(trunk="a[4]", expected="a[4]", splits={"F1B0": {"c": "ok"}}), True, "ok (F1B0 only)"),
        (
            Outcome(trunk="b[4]", expected="a[4]", splits=FINE),
            False,
            "trunk b[4] instead of a[4]",
        ),
        (Outcome(trunk="a[4]", expected="a[4]"), False, "not ok"),
        (Outcome(trunk="a[4]", expected="a[4]", splits=FINE, error="no"), False, "no"),
        (Outcome(why="w", refusal="r", splits=LEFT), True, "refused, as it should be"),
        (Outcome(refusal="r", splits=LEFT), False, "refused: r"),
        (Outcome(why="w", splits=FINE), False, "not refused"),
        (Outcome(trunk="a[4]", expected="a[4]", refusal="r", splits=LEFT), False, "refused: r"),
    ],
)
def test_a_class_is_judged(outcome: Outcome, ok: bool, shown: str):
    assert outcome.ok is ok
    row = {"ok": outcome.ok, **vars(outcome)}
    assert coverage_page.outcome(row) == shown


def test_a_refusal_has_one_warning_with_the_reason_and_changes_nothing():
    judge = coverage_checks.refused
    assert judge([(("-", ONES), ONES)], ["no trunk"], "trunk") == REFUSED
    assert judge([(("-", TINY), ONES)], ["no trunk"], "trunk")[coverage_checks.ALONE] == "not as plain"
    assert judge([(("C", ONES), ONES)], ["no trunk"], "trunk")[coverage_checks.ALONE] == "cached after all"
    for refusals in (["no trunk", "no trunk either"], ["other"], []):
        assert judge([(("-", ONES), ONES)], refusals, "trunk")[coverage_checks.WARNED] != "ok"


def test_what_the_plain_model_cannot_do_either_is_said(monkeypatch: pytest.MonkeyPatch):
    def call(self: TinyModel, arguments: Any, module: Any = None) -> Any:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(TinyModel, "call", call)
    seen = examine(Entry("depth_decoder"), "eager", ONE)
    assert seen.error.startswith("RuntimeError: without fxcache as well: ValueError: too many values to unpack")


def test_behind_a_second_size_the_plain_answers_are_those_of_then():
    start, other = coverage_checks.START, coverage_checks.OTHER
    wanted = {(start, False): ONES, (start, True): TINY, (other, True): ONES}
    run = Run(ENTRIES["MiniMaxMusic3RVQDepthDecoder"].build(), "eager", (1, 0), wanted)
    with torch.no_grad():
        assert [run(call)[1] is ONES for call in (start, other, start)] == [True, True, False]


@pytest.mark.slow
def test_a_lost_process_costs_one_row():
    script = Path(__file__).with_name("coverage_stand_ins.py")
    done = subprocess.run([*PYTHON, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    for inner, rows in content["found"].items():
        assert rows["Lost"]["error"] == "the process ended with code 7" and not rows["Lost"]["ok"]
        assert rows["Stuck"]["error"] == "no answer in 20 s" and not rows["Stuck"]["ok"]
        for name in ("First", "Second", "Third"):
            assert rows[name] | {"process": 0} == {"ok": True, "name": name, "inner": inner, "process": 0}
    processes = {rows[name]["process"] for rows in content["found"].values() for name in ("First", "Second", "Third")}
    assert len(processes) == 5
    assert content["kept"][1] == {"eager": ["First", "Lost"], "inductor": []}


def test_rows_of_other_classes_and_compilers_are_kept_and_all_say_where_they_come_from():
    row: dict[str, Any] = {"ok": True, "commit": "old", "cpu": "6502"}
    about = {"versions": WHERE["versions"]}
    kept = {"eager": {**about, "rows": {"A": row, "Gone": row}}, "inductor": {**about, "rows": {"A": row}}}
    report = coverage.merged(kept, {"eager": {"B": {"ok": True}}}, ["A", "B"], WHERE)
    assert report["eager"] == {**about, "rows": {"A": row, "B": {"ok": True, "commit": "abc", "cpu": "Z80"}}}
    assert report["inductor"] == kept["inductor"]
    assert report["classes"] == ["A", "B"]
    assert coverage_page.origins(report["eager"]["rows"]) == "commit old on 6502: 1; commit abc on Z80: 1"
    assert coverage_page.origins(report["inductor"]["rows"]) == "commit old on 6502"


def test_rows_of_other_versions_do_not_stand_beside_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = {"classes": [], "eager": {"versions": {"torch": "1.0"}, "rows": {"Old": {"ok": True, "commit": "abc"}}}}
    target = tmp_path / "coverage.json"
    target.write_text(json.dumps(old))
    asked = ["--json", str(target), "--inner-backend", "eager", "--models", "DiTTransformer2DModel"]
    with pytest.raises(SystemExit):
        coverage.main(asked)
    here = metadata.version("torch")
    said = f"--models: torch {here}, and the rows of the others under eager are of 1.0; expected another"
    assert said in capsys.readouterr().err
    assert json.loads(target.read_text()) == old
    assert not coverage.other_versions(old, ["inductor"], {"versions": {"torch": "2.0"}})


def test_the_committed_page_is_that_of_the_committed_results():
    report = json.loads((RESULTS / "coverage-cpu.json").read_text())
    assert coverage_page.PAGE.read_text() == coverage_page.page(report), "python -m benchmarks.coverage --only-page"


NOT_OK = {"eager": (), "inductor": ("Kandinsky6SRTransformer3DModel",)}
"""The page says what is wrong with it: the plain model does not compile."""


@pytest.mark.skipif(not NEWEST, reason="the results are of a newer diffusers")
def test_the_committed_results_are_of_the_exported_classes_and_all_else_is_well():
    report = json.loads((RESULTS / "coverage-cpu.json").read_text())
    assert report["classes"] == exported()
    text = coverage_page.PAGE.read_text()
    assert all(f"| {name} |" in text for name in exported())
    for inner in coverage.INNER:
        for name, row in report[inner].get("rows", {}).items():
            assert row["builder"] == ENTRIES[name].builder
            assert row["ok"] != (name in NOT_OK[inner]), coverage_page.outcome(row)
            assert bool(row["refusal"]) == bool(ENTRIES[name].refused)


def test_what_is_said_to_be_stored_late_must_not_be_stored_at_once():
    seen = examine(Entry("depth_decoder", late=("F1B0",)), "eager", ONE)
    assert not seen.ok
    assert seen.splits["F1B0"][coverage_checks.REAL] == seen.splits["F1B0"][coverage_checks.SIZE] == "decided ."
