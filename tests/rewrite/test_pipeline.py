"""All passes in their order, on graphs made by hand; see `test_models` for traced ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from fxcache.errors import FxcacheError, Refusal
from fxcache.options import Options
from fxcache.rewrite import pipeline
from fxcache.rewrite.instruments import PassError
from fxcache.rewrite.pipeline import PASSES, Rewritten, copy_graph, rewrite
from fxcache.rewrite.plan import Plan
from tests.graphs import Sketch, aten, new_state, printed
from tests.rewrite.sketches import SKETCHES, dynamic, plain

OPTIONS = Options(Fn_compute_blocks=1, inner_backend="eager")


def rewritten(sketch: Sketch, options: Options = OPTIONS) -> Rewritten:
    result = rewrite(sketch.gm, sketch.static, options)
    assert isinstance(result, Rewritten), result
    return result


@pytest.mark.parametrize("build", SKETCHES)
def test_the_original_stays_as_it_is(build: Callable[[], Sketch]) -> None:
    sketch = build()
    old, code = printed(sketch.gm), sketch.gm.code
    result = rewritten(sketch)
    assert (printed(sketch.gm), sketch.gm.code) == (old, code)
    assert list(sketch.gm.named_children()) == []
    values = sketch.values()
    for got, wanted in zip(result.gm(*values, *new_state(result.plan)), sketch.gm(*values), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("failing", range(len(PASSES)))
def test_the_original_survives_a_failing_pass(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gm: GraphModule, plan: Plan) -> int:
        raise ZeroDivisionError("half way")

    sketch = plain()
    old = printed(sketch.gm)
    monkeypatch.setattr(pipeline, "PASSES", (*PASSES[: failing + 1], fails))
    with pytest.raises(ZeroDivisionError, match="half way") as caught:
        rewrite(sketch.gm, sketch.static, OPTIONS)
    assert getattr(caught.value, "__notes__", ["in pass fails of fxcache"]) == ["in pass fails of fxcache"]
    assert printed(sketch.gm) == old
    assert list(sketch.gm.named_children()) == []


def test_a_malformed_graph_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def swaps(gm: GraphModule, plan: Plan) -> int:
        first, *_, last = (node for node in gm.graph.nodes if node.op == "call_function")
        first.append(last)
        return 1

    sketch = plain()
    monkeypatch.setattr(pipeline, "PASSES", (swaps,))
    with pytest.raises(PassError, match="pass swaps left a malformed graph") as caught:
        rewrite(sketch.gm, sketch.static, OPTIONS)
    assert isinstance(caught.value, FxcacheError)


def test_a_node_without_a_fake_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(gm: GraphModule, plan: Plan) -> int:
        with gm.graph.inserting_before(plan.region.middle[0]):
            gm.graph.call_function(aten.relu.default, (plan.region.middle[0].args[0],))
        return 1

    sketch = plain()
    monkeypatch.setattr(pipeline, "PASSES", (forgets,))
    with pytest.raises(PassError, match="pass forgets left node relu_default without a fake value"):
        rewrite(sketch.gm, sketch.static, OPTIONS)


def test_a_refusal_is_handed_on() -> None:
    sketch = Sketch()
    sketch.finish(sketch.op(aten.relu.default, sketch.input("h", 6, 4)))
    result = rewrite(sketch.gm, sketch.static, OPTIONS)
    assert isinstance(result, Refusal)
    assert str(result) == "no chained stack of repeated blocks (the graph names no modules)"


def test_records_name_the_passes_with_their_counts() -> None:
    result = rewritten(plain())
    assert [(record.name, record.changes) for record in result.records] == [
        ("gather_references", 0),
        ("carry_along", 0),
        ("outline_middle", 8),
        ("thread_state", 5),
        ("insert_cond", 1),
        ("keep_precision", 0),
        ("pin_layouts", 0),
        ("commit_state", 2),
    ]
    assert all(record.milliseconds >= 0 for record in result.records)
    graphs = [module for module in result.gm.modules() if isinstance(module, GraphModule)]
    assert len(graphs) == 3  # with both branches
    assert all(each.code == GraphModule(each, copy.deepcopy(each.graph)).code for each in graphs)


def test_state_of_the_rewritten_graph() -> None:
    result = rewritten(dynamic())
    assert [(spec.name, spec.dtype) for spec in result.state] == [
        ("reference", torch.float32),
        ("cache_0", torch.float32),
    ]
    names = [node.name for node in result.gm.graph.find_nodes(op="placeholder")][-5:]
    assert names == [f"fxcache_{name}" for name in ("control", "health", "clock", "reference", "cache_0")]


def test_graphs_are_dumped_before_and_after_every_pass(tmp_path: Path) -> None:
    rewritten(plain(), OPTIONS.replace(dump_dir=str(tmp_path)))
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{number:02d}_{one.__name__}.{when}.py" for number, one in enumerate(PASSES) for when in ("before", "after")
    )
    assert "fxcache_reuse" in (folder / "04_insert_cond.after.py").read_text()
    assert "fxcache_reuse" not in (folder / "04_insert_cond.before.py").read_text()


def test_a_copy_keeps_the_metadata_but_not_the_nodes() -> None:
    sketch = plain()
    copied = copy_graph(sketch.gm)
    assert printed(copied) == printed(sketch.gm)
    pairs = zip(copied.graph.nodes, sketch.graph.nodes, strict=True)
    assert all(a is not b and a.meta.get("nn_module_stack") == b.meta.get("nn_module_stack") for a, b in pairs)
