"""Models that are spread over processes: all ranks decide as one, and as one process that has the whole model does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.integration.ranks import RANKS, SPREADS, Case, Seen, generate, work
from tests.processes import made_once, on_ranks

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.timeout(1200),
]
TIMEOUT_S = 1000
"""The ranks of all cases take minutes, several times as many on a busy machine."""

SHARED: dict[str, Any] = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.35}
EAGER: dict[str, Any] = {**SHARED, "inner_backend": "eager"}
KINDS: dict[str, dict[str, Any]] = {
    "regression": {"calibrator": "regression"},
    "dmd": {"calibrator": "dmd"},
    "dbprune": {"method": "dbprune"},
    "easycache": {"method": "easycache"},
}
QUICK = ("regression", "dbprune")
CASES = {
    **{spread: Case(spread, EAGER) for spread in SPREADS},
    **{kind: Case("flux, ulysses", {**EAGER, **KINDS[kind]}) for kind in QUICK},
    "inductor": Case("flux, ulysses", SHARED),
    "reset": Case("flux, ulysses", {**EAGER, "residual_diff_threshold": 0.9}, "reset"),
    "reset, dbprune": Case("flux, ulysses", {**EAGER, **KINDS["dbprune"], "residual_diff_threshold": 0.9}, "reset"),
    "not a number": Case("flux, ulysses", {**EAGER, "residual_diff_threshold": 0.9}, "not a number"),
}


SLOW = {
    "inductor, tensors": Case("mixed, tensors", SHARED),
    **{kind: Case("flux, ulysses", {**EAGER, **given}) for kind, given in KINDS.items() if kind not in QUICK},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Seen, ...]]:
    cases = list(CASES.values())
    ranks = made_once(tmp_path_factory, "ranks", lambda place: on_ranks(work, cases, place, timeout_s=TIMEOUT_S))
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


def whole(name: str) -> Seen:
    """The same run of one process, operator by operator."""
    torch._dynamo.reset()
    case = {**CASES, **SLOW}[name]
    return generate(Case(case.spread, {**case.options, "inner_backend": "eager"}), spread=False)


def close(left: Seen, right: Seen) -> bool:
    pairs = zip(left.outputs, right.outputs, strict=True)
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)


@pytest.mark.parametrize("spread", SPREADS)
def test_ranks_decide_as_one_process_does(spread: str, seen: dict[str, tuple[Seen, ...]]) -> None:
    wanted = whole(spread)
    (decisions,) = wanted.decisions
    assert {"C", "."} == set(decisions)
    for rank in seen[spread]:
        assert rank.decisions == wanted.decisions and close(rank, wanted)
        for mine, difference in zip(rank.differences, wanted.differences, strict=True):
            assert mine == (None if difference is None else pytest.approx(difference, rel=1e-3))
        for step, letter in enumerate(decisions):
            if letter == "C":
                assert torch.equal(rank.outputs[step], rank.plain[step])


def decided_as_one(name: str, ranks: Sequence[Seen]) -> None:
    wanted = whole(name)
    assert set("".join(wanted.decisions)) & {".", "m"}
    assert len(ranks) == RANKS
    for rank in ranks:
        assert rank.decisions == wanted.decisions and close(rank, wanted)


@pytest.mark.parametrize("name", [*QUICK, "inductor"])
def test_every_way_to_decide(name: str, seen: dict[str, tuple[Seen, ...]]) -> None:
    decided_as_one(name, seen[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_way_to_decide_that_takes_long(name: str, tmp_path: Path) -> None:
    decided_as_one(name, [found for (found,) in on_ranks(work, [SLOW[name]], tmp_path, timeout_s=TIMEOUT_S)])


@pytest.mark.parametrize("name", ["reset", "reset, dbprune"])
def test_a_rank_that_has_lost_its_state_is_not_left_alone(name: str, seen: dict[str, tuple[Seen, ...]]) -> None:
    first, second = seen[name]
    assert first.decisions == ["CC...CC..."] and first.reasons[6] == "computed by another rank"
    assert second.decisions == ["CC...", "CC..."]
    assert close(first, second)


def test_a_number_that_is_none_on_one_rank(seen: dict[str, tuple[Seen, ...]]) -> None:
    first, second = seen["not a number"]
    assert first.decisions == second.decisions
    assert all(torch.isfinite(output).all() for output in first.outputs[6:])
    assert first.decisions[0][4:6] == ".C"
