"""The comparison is fair, and counts the work that is really done."""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from torch.profiler import ProfilerActivity, profile

from benchmarks import compare
from benchmarks.comparison import contestants, grids
from benchmarks.comparison.contestants import all_contestants, chosen
from benchmarks.comparison.costs import Costs, costs_of, operations_by_letter
from benchmarks.comparison.entries import Entry, Stage
from benchmarks.comparison.grids import Frame, preset_mask
from benchmarks.comparison.measure import draw
from benchmarks.comparison.models import MODELS, twin
from benchmarks.schedules import Schedule
from tests.benchmarks.small_digits import BLOCKS, SmallDigits

STEPS = 8
MASK = Schedule("mask", STEPS, mask="11010011")
PEER = ("cache-dit",) if contestants.find_spec("cache_dit") else ()
FOLLOWERS = ("fxcache", *PEER, "diffusers-fbc", "diffusers-taylorseer-lite")


@pytest.fixture(scope="module")
def digits() -> Stage:
    model = SmallDigits()
    return Stage(model, "cpu", model.load("cpu"), "eager")


@pytest.fixture(scope="module")
def flux() -> Stage:
    model = MODELS["flux-tiny"]
    return Stage(model, "cpu", model.load("cpu"), "eager")


def opened(stage: Stage, name: str, schedule: Schedule) -> Entry:
    (contestant,) = chosen([name], ())
    entry = contestant.open(stage)
    with torch.no_grad():
        draw(entry, contestant.fit(schedule), 0, 1)
    return entry


def blocks_run(entry: Entry, schedule: Schedule) -> int:
    """Executions of a block as the profiler counts them: each has one attention."""
    with torch.no_grad():
        for _ in range(2):
            # what is traced on the way to a graph is counted as well: the second time there is nothing to trace
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                draw(entry, schedule, 0, 1)
    return sum(event.name == "aten::_scaled_dot_product_flash_attention_for_cpu" for event in profiler.events())


# --- fairness


def test_contestants_share_weights_and_nothing_else(digits: Stage) -> None:
    one, other = (twin(digits.source) for _ in range(2))
    storages = [[each.data_ptr() for each in pipe.transformer.parameters()] for pipe in (digits.source, one, other)]
    assert storages[0] == storages[1] == storages[2]
    parts = [{id(each) for each in (*pipe.transformer.modules(), pipe.scheduler)} for pipe in (one, other)]
    parts += [{id(each) for each in pipe.transformer.parameters()} for pipe in (one, other)]
    assert not parts[0] & parts[1] and not parts[2] & parts[3]


@pytest.fixture(scope="module")
def followers(digits: Stage) -> Iterator[dict[str, Entry]]:
    entries = {name: opened(digits, name, MASK) for name in FOLLOWERS}
    yield entries
    for entry in entries.values():
        entry.close()


@pytest.mark.parametrize("name", FOLLOWERS[1:])
def test_without_reuse_all_draw_the_uncached_pictures(digits: Stage, followers: dict[str, Entry], name: str) -> None:
    with torch.no_grad():
        wanted = draw(Entry(digits), Schedule("steps", 4), 3, 2)
        found = draw(followers[name], Schedule("mask", 4, mask="1111"), 3, 2)
    assert found.decisions == ("CCCC", "CCCC")
    torch.testing.assert_close(found.pictures, wanted.pictures, atol=1e-4, rtol=0)


def test_the_same_method_draws_the_same_pictures_whoever_has_written_it(followers: dict[str, Entry]) -> None:
    with torch.no_grad():
        found = {name: draw(followers[name], MASK, 3, 2).pictures for name in ("fxcache", *PEER, "diffusers-fbc")}
    for pictures in found.values():
        torch.testing.assert_close(pictures, found["fxcache"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", FOLLOWERS)
def test_the_steps_of_a_mask_are_computed_and_no_others(followers: dict[str, Entry], name: str) -> None:
    (contestant,) = chosen([name], ())
    schedule = contestant.fit(MASK)
    # computed steps run all blocks, the others those that always run, in both branches
    assert blocks_run(followers[name], schedule) == 2 * (5 * BLOCKS + 3 * schedule.first_blocks)
    assert followers[name].decisions() == ("CC.C..CC",) * 2


def test_a_generation_is_not_told_by_an_earlier_one(followers: dict[str, Entry]) -> None:
    with torch.no_grad():
        draw(followers["fxcache"], MASK, 0, 1)
    followers["fxcache"].begin(MASK)
    with pytest.raises(RuntimeError, match=r"expected 2 branches of 8 steps, found \(\)"):
        followers["fxcache"].decisions()


def test_few_steps_keep_a_quarter_of_the_blocks_at_either_end(digits: Stage) -> None:
    given = type("Given", (), {"steps": 4, "few_step": True})()
    frame = compare.frame_of(given, digits.model, digits)
    assert frame == Frame(4, 1, 1)
    for name in ("fxcache", *PEER):
        schedule = preset_mask("medium", frame)
        assert schedule.mask == "1101"
        entry = opened(digits, name, schedule)
        assert blocks_run(entry, schedule) == 2 * (3 * BLOCKS + 2)
        entry.close()


@pytest.mark.parametrize(
    ("name", "decisions"), [("interval", "C..C..CC"), ("teacache", None), ("teacache-fitted", None), ("magcache", None)]
)
def test_other_methods_reuse_without_a_block(digits: Stage, name: str, decisions: str | None) -> None:
    (contestant,) = chosen([f"fxcache-{name}"], ())
    assert contestant.grid is not None
    schedule = contestant.fit(contestant.grid(Frame(STEPS))[1 if decisions else -1])
    entry = opened(digits, contestant.name, schedule)
    count = blocks_run(entry, schedule)
    found = entry.decisions()
    entry.close()
    assert decisions is None or found == (decisions,) * 2
    assert all("." in branch for branch in found)
    assert count == BLOCKS * sum(branch.count("C") for branch in found)


@pytest.mark.parametrize("ending", ["", "-groups", "-previous", "-taylorseer1"])
def test_pruned_blocks_are_those_that_do_not_run(digits: Stage, ending: str) -> None:
    schedule = Schedule("threshold", STEPS, threshold=0.3, warmup_steps=3)
    entry = opened(digits, f"fxcache-dbprune{ending}", schedule)
    count, skipped = blocks_run(entry, schedule), entry.skipped_blocks()
    entry.close()
    assert skipped is not None and 0 < skipped < 2 * (STEPS - 3) * (BLOCKS - 1)
    assert count == pytest.approx(2 * STEPS * BLOCKS - skipped)


def test_another_schedule_than_that_of_the_mask_is_an_error(flux: Stage) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"expected the steps CC\.C\.\.CC in .*, found CCCCCCCC"):
        draw(Entry(flux), MASK, 0, 1)


@pytest.mark.parametrize("steps", [8, 28, 50])
def test_the_presets_are_those_of_cache_dit(steps: int) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    for preset in grids.PRESETS:
        wanted = cache_dit.steps_mask(total_steps=steps, mask_policy=preset)
        assert preset_mask(preset, Frame(steps)).mask == "".join(map(str, wanted))


def test_everybody_has_as_many_settings() -> None:
    frame = Frame(50)
    # masks: the presets, one per number of steps that the baseline takes, and of few steps one that is open at its end
    opened = [share for share in grids.SHARES if share <= grids.OPEN_UP_TO]
    counts = {"steps": len(grids.SHARES), "mask": len(grids.PRESETS) + len(grids.SHARES) + len(opened)}
    for contestant in all_contestants():
        if contestant.grid is not None:
            families = [schedule.family for schedule in contestant.grid(frame)]
            measured = contestant.name.startswith("fxcache-measured")
            for family in set(families):
                wanted = counts["steps"] if measured else counts.get(family, 6)
                assert families.count(family) == wanted, contestant.name


# --- work


def test_operations_are_those_that_run(digits: Stage) -> None:
    costs = costs_of(digits.model, digits.source)
    assert len(costs.blocks) == BLOCKS and 0.9 * costs.call < sum(costs.blocks) < costs.call
    for name in (*PEER, "diffusers-fbc"):
        (contestant,) = chosen([name], ())
        schedule = contestant.fit(MASK)
        entry = opened(digits, name, MASK)
        with torch.no_grad():
            by_letter = operations_by_letter(entry, schedule)
        entry.close()
        assert by_letter["C"] == costs.call
        assert 2 * (5 * by_letter["C"] + 3 * by_letter["."]) == costs.of(schedule, ("CC.C..CC",) * 2)


def test_operations_by_hand() -> None:
    costs = Costs(100, (10, 20, 30, 20))
    schedule = Schedule("mask", 3, 1, "101", last_blocks=1)
    assert costs.of(schedule, ("C.C",)) == 300 - (20 + 30)
    assert costs.of(schedule, ("C.C",), skipped_blocks=3) == 300 - 3 * 25
    with pytest.raises(ValueError, match=r"expected steps that are computed or reused as a whole"):
        costs.of(schedule, ("CmC",))


def test_the_operations_of_a_linear_layer_and_of_attention() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.comparison.costs import _MORE

    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter, torch.no_grad():
        torch.nn.Linear(8, 4)(torch.ones(2, 8))
        torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 2, 16, 8))
    assert counter.get_total_flops() == 2 * 2 * 8 * 4 + 2 * 2 * (2 * 16 * 16 * 8)
