"""Decisions of several ranks: each is what `decide` says of the sums on every rank, and yes only if all say yes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import fxcache.calibrators  # noqa: F401  (registers the forecasters)
from fxcache.kernels import (
    BLOCK_CONTROL_SIZE,
    CONTROL_SIZE,
    Ask,
    BlockControl,
    Control,
    decide_blocks_reference,
    decide_reference,
)
from tests.graphs import tell
from tests.processes import on_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

RANKS, CASES, UNITS = 4, 60, 4


def control_of(dice: random.Random) -> Tensor:
    control = torch.zeros(CONTROL_SIZE, dtype=torch.float64)
    mode = dice.choices([Ask.DECIDE, Ask.REUSE, Ask.COMPUTE], [8, 1, 1])[0]
    tell(control, mode=mode, store=1.0, threshold=0.1, count=1.0, slots=0.0, now=3.0, times=2.0)
    return control


def sums_of(dice: random.Random) -> list[float]:
    return [dice.choice([0.02, 0.05, 0.12, 0.2]), 1.0]


def one_case(number: int) -> list[dict[str, Any]]:
    """What every rank is told and has observed."""
    dice = random.Random(number)
    sick = dice.random() < 0.1
    return [
        {
            "observation": torch.tensor(sums_of(dice)),
            "health": torch.full((2, 1), float("nan") if sick and rank == 1 else 0.0),
            "control": control_of(dice),
        }
        for rank in range(RANKS)
    ]


def units_case(number: int) -> list[dict[str, Any]]:
    """The same with a row per unit."""
    dice = random.Random(number)
    cases = []
    for _ in range(RANKS):
        control = torch.zeros(UNITS, BLOCK_CONTROL_SIZE, dtype=torch.float64)
        for row in control:
            row[:CONTROL_SIZE] = control_of(dice)
            row[BlockControl.GROWTH] = 1.0
        observed = torch.tensor([sums_of(dice) for _ in range(UNITS)])
        cases.append({"observation": observed, "health": torch.zeros(2 * UNITS, 1), "control": control})
    return cases


def decide(case: dict[str, Any], groups: Sequence[str] = ()) -> tuple[list[Any], list[float]]:
    control = case["control"].clone()
    given = (case["observation"], [], case["health"], torch.zeros(3), control)
    made = decide_reference(*given, singles=(0, 1), groups=groups)
    return [each.tolist() for each in made], control.tolist()


def decide_units(case: dict[str, Any], groups: Sequence[str] = ()) -> tuple[list[Any], list[list[float]]]:
    control = case["control"].clone()
    rows = [row // 2 for row in range(2 * UNITS)]
    given = (case["observation"], [], case["health"], torch.zeros(3), control, 0, UNITS, rows, range(2 * UNITS), ())
    made = decide_blocks_reference(*given, groups=groups)
    return [each.tolist() for each in made], control.tolist()


def work(rank: int, _: None) -> dict[str, Any]:
    """One process: all cases, as this rank has them."""
    groups = [dist.group.WORLD.group_name]  # type: ignore[union-attr]
    mesh = init_device_mesh("cpu", (2, 2))
    of_mesh = [mesh.get_group(dim).group_name for dim in range(2)]
    return {
        "one": [decide(one_case(number)[rank], groups) for number in range(CASES)],
        "mesh": [decide(one_case(number)[rank], of_mesh) for number in range(CASES)],
        "units": [decide_units(units_case(number)[rank], groups) for number in range(CASES)],
    }


def alone(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases with the sums over all ranks in the place of what each has observed."""
    total = sum(case["observation"].double() for case in cases)
    return [{**case, "observation": total} for case in cases]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(work, None, tmp_path_factory.mktemp("ranks"), RANKS)


@pytest.mark.parametrize("groups", ["one", "mesh"])
def test_a_step_is_reused_if_every_rank_would(groups: str, together: list[dict[str, Any]]) -> None:
    outvoted = reused = 0
    for number in range(CASES):
        wanted = [decide(case) for case in alone(one_case(number))]
        reuse = all(verdict[0] for verdict, _ in wanted)
        reused += reuse
        for rank, (verdict, control) in enumerate(wanted):
            (found, slot, first, _), seen = together[rank][groups][number]
            assert found == reuse and seen[Control.REUSED] == reuse
            assert slot == first == (-1 if reuse else 0)
            assert seen[Control.OUTVOTED] == (verdict[0] and not reuse)
            assert seen[Control.DIFFERENCE] == pytest.approx(control[Control.DIFFERENCE], nan_ok=True)
            outvoted += int(seen[Control.OUTVOTED])
    assert outvoted > 5 and 5 < reused < CASES - 5


def test_every_unit_is_decided_for_itself(together: list[dict[str, Any]]) -> None:
    mixed = 0
    for number in range(CASES):
        wanted = [decide_units(case) for case in alone(units_case(number))]
        reuse = [all(votes) for votes in zip(*(verdict[0] for verdict, _ in wanted), strict=True)]
        mixed += len(set(reuse)) == 2
        for rank, (verdict, _) in enumerate(wanted):
            (found, slots, firsts, _), seen = together[rank]["units"][number]
            assert found == reuse and slots == firsts == [-1 if skip else 0 for skip in reuse]
            assert [bool(row[Control.REUSED]) for row in seen] == reuse
            voted = [yes and not skip for yes, skip in zip(verdict[0], reuse, strict=True)]
            assert [bool(row[Control.OUTVOTED]) for row in seen] == voted
    assert mixed > 5


def test_a_rank_that_does_not_come_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="rank 1 stays away"):
        on_ranks(stay_away, None, tmp_path, 2)


def stay_away(rank: int, _: None) -> None:
    """One rank fails where the other waits for its vote."""
    if rank == 1:
        raise RuntimeError("rank 1 stays away")
    decide(one_case(0)[0], [dist.group.WORLD.group_name])  # type: ignore[union-attr]
