"""A trunk of several units: the state of all, one decision in front or one per unit, a branch for each."""

from __future__ import annotations

import pytest
from torch.fx import GraphModule

from fxcache.errors import OptionError, Refusal
from fxcache.options import Options
from fxcache.rewrite.pipeline import Rewritten, rewrite
from tests.graphs import Sketch, aten, printed
from tests.rewrite.sketches import glue, plain, two_streams, two_users


def pruned(sketch: Sketch, **options: object) -> Rewritten:
    given = {"method": "dbprune", "Fn_compute_blocks": 1, "inner_backend": "eager", **options}
    result = rewrite(sketch.gm, sketch.static, Options.from_mapping(given))
    assert isinstance(result, Rewritten), result
    return result


def calls(gm: GraphModule) -> list[str]:
    """What the graph calls of ours, and its products, in order."""
    wanted = ("fxcache::", "cond(", "mm(", "copy_(", "cat(")
    lines = printed(gm).split("fxcache_compute:")[0].splitlines()
    main = [line.strip() for line in lines if not line.startswith("    ")]
    return [line.split(" = ")[-1].split("(")[0] for line in main if any(word in line for word in wanted)]


def test_all_units_are_decided_in_front_of_everything() -> None:
    result = pruned(plain(), prune_indicator="previous")
    names = list(result.plan.placeholders)
    assert names == [
        *("control", "health", "clock", "observed"),
        *("unit_0_reference", "unit_0_cache_0", "unit_1_reference", "unit_1_cache_0"),
    ]
    assert calls(result.gm) == [
        "fxcache::decide_blocks",
        *("mm", "mm"),
        *("fxcache::residual_diff", "cond", "fxcache::commit", "fxcache::commit") * 2,
        *("cat", "copy_"),
    ]


def test_every_unit_is_decided_where_its_input_is_known() -> None:
    result = pruned(plain())
    assert "observed" not in result.plan.placeholders
    one = ("fxcache::residual_diff", "fxcache::decide_blocks", "cond", "fxcache::commit", "fxcache::commit")
    assert calls(result.gm) == ["mm", "mm", *one, *one]


def test_a_mask_looks_at_nothing() -> None:
    result = pruned(plain(), steps_computation_mask="10", steps_computation_policy="static")
    assert list(result.plan.placeholders) == ["control", "health", "clock", "unit_0_cache_0", "unit_1_cache_0"]
    assert calls(result.gm) == ["fxcache::decide_blocks", "mm", "mm", *("cond", "fxcache::commit") * 2]


def test_the_branch_of_a_unit_holds_its_own_block_only() -> None:
    text = printed(pruned(plain(), Bn_compute_blocks=1).gm)
    assert text.count("unit_0_fxcache_compute:") == 1
    assert "unit_1" not in text
    inside = text.split("unit_0_fxcache_compute:")[1].split("unit_0_fxcache_reuse:")[0]
    assert inside.count("= mm(") == 2


@pytest.mark.parametrize("make", [plain, two_users, glue, two_streams])
def test_signatures_tell_splits_apart(make: object) -> None:
    splits: list[dict[str, object]] = [{}, {"prune_group": 2}, {"non_prune_block_ids": [1]}, {"Bn_compute_blocks": 1}]
    found = {pruned(make(), **options).signature for options in splits}  # type: ignore[operator]
    assert len(found) == len(splits)


def test_a_block_that_cannot_be_cut_out_always_runs() -> None:
    """What the first block adds to is an input of the graph: there is nothing in front of it to cut at."""
    same = [pruned(plain(), Fn_compute_blocks=first) for first in (0, 1)]
    assert len({result.signature for result in same}) == 1
    assert [[plan.region.first_blocks for plan in result.plans] for result in same] == [[1, 2]] * 2


def test_units() -> None:
    """Runs of blocks that share a decision end at exempt ones."""
    options = Options(method="dbprune", Fn_compute_blocks=1, Bn_compute_blocks=1, prune_group=3)
    assert options.resolve_units(9) == [(1, 4), (4, 7), (7, 8)]
    assert options.replace(non_prune_block_ids=[3, 8]).resolve_units(9) == [(1, 3), (4, 7), (7, 8)]
    with pytest.raises(
        OptionError, match=r"non_prune_block_ids=\(9,\): expected numbers below 9, the number of blocks"
    ):
        options.replace(non_prune_block_ids=[9]).resolve_units(9)
    with pytest.raises(OptionError, match="expected to leave a block that may be pruned"):
        options.replace(non_prune_block_ids=range(1, 8)).resolve_units(9)


def test_a_graph_without_a_trunk_is_refused() -> None:
    sketch = Sketch()
    h = sketch.input("h", 6, 4)
    sketch.finish(sketch.op(aten.relu.default, h))
    result = rewrite(sketch.gm, sketch.static, Options(method="dbprune", inner_backend="eager"))
    assert isinstance(result, Refusal)
    assert "no chained stack" in result.reason
