"""Masks of steps: those of cache-dit where they are sound, and what holds for every number of steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fxcache
from fxcache.errors import OptionError
from fxcache.steps import PRESETS

COUNTS = range(1, 201)
LONGEST = {"slow": 3, "medium": 3, "fast": 5, "ultra": 7}
"""Bin of zeros of the 28 steps, per preset."""

PEER = """
    4    1101 1101 1101 1101
    6    111001 111001 111001 111001
    8    11111011 11110101 11101001 11001001
    9    111110111 111110101 111101001 111001001
    10   1111011111 1111011011 1110100101 1101001001
    12   111101101111 111101101001 111010010011 110100100011
    15   111101101101101 111101101001001 111010010010001 110100100010001
    28   1111111101110011100110010001 1111110110001100011000110001
         1111110100010000100000100001 1111001000001000000100000001
    30   111111111111011100111001100101 111111111011000110001100011001
         111111111010001000010000010001 111111001000001000000100000001
""".split()
"""What cache-dit 1.5.3 gives: the number of steps, then the masks of the presets in their order."""


def mask(preset: str, steps: int) -> str:
    return "".join(map(str, fxcache.steps_mask(total_steps=steps, mask_policy=preset)))


def runs(text: str, digit: str) -> list[int]:
    return [len(run) for run in text.split("0" if digit == "1" else "1") if run]


def peer_cases() -> list[tuple[int, str, str]]:
    rows = [PEER[start : start + 5] for start in range(0, len(PEER), 5)]
    return [(int(steps), preset, text) for steps, *texts in rows for preset, text in zip(PRESETS, texts, strict=True)]


@pytest.mark.parametrize(("steps", "preset", "expected"), peer_cases())
def test_masks_of_the_peer(steps: int, preset: str, expected: str) -> None:
    assert mask(preset, steps) == expected


@pytest.mark.parametrize(
    ("preset", "ones", "zeros"),
    [
        ("slow", [22, 5, 5, 3, 2, 1], [2, 3, 3, 3, 1]),
        ("medium", [16, 3, 3, 3, 3, 1], [2, 5, 5, 5, 4]),
        ("fast", [11, 2, 2, 2, 2, 1], [2, 5, 7, 9, 7]),
        ("ultra", [7, 2, 2, 2, 1], [3, 9, 11, 13]),
    ],
)
def test_fifty_steps_of_the_peer(preset: str, ones: list[int], zeros: list[int]) -> None:
    assert (runs(mask(preset, 50), "1"), runs(mask(preset, 50), "0")) == (ones, zeros)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_number_of_steps_has_a_mask_that_begins_and_ends_with_a_computed_step(preset: str) -> None:
    for steps in COUNTS:
        text = mask(preset, steps)
        assert len(text) == steps and {*text} <= {"0", "1"}
        assert text[0] == text[-1] == "1"


@pytest.mark.parametrize("preset", PRESETS)
def test_no_run_of_zeros_is_longer_than_the_longest_bin(preset: str) -> None:
    for steps in COUNTS:
        # bins grow in proportion above 28 steps, by half of that at a time
        limit = LONGEST[preset] * max(1.0, 1.5 * steps / 28)
        assert max(runs(mask(preset, steps), "0"), default=0) <= limit, steps


def test_up_to_28_steps_more_steps_never_mean_fewer_computed_ones() -> None:
    for preset in PRESETS:
        counts = [mask(preset, steps).count("1") for steps in range(1, 29)]
        assert counts == sorted(counts)


def test_the_presets_are_in_the_order_of_their_speed() -> None:
    for steps in COUNTS:
        counts = [mask(preset, steps).count("1") for preset in PRESETS]
        assert counts == sorted(counts, reverse=True), steps


def test_from_four_steps_on_every_preset_saves_something() -> None:
    assert all("0" in mask(preset, steps) for preset in PRESETS for steps in COUNTS if steps >= 4)
    assert all(mask(preset, steps) == "1" * steps for preset in PRESETS for steps in (1, 2, 3))


bins = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(bins, bins, st.data())
def test_explicit_bins_alternate_and_are_cut(ones: list[int], zeros: list[int], data: st.DataObject) -> None:
    whole = fxcache.steps_mask(ones, zeros)
    assert len(whole) == sum(ones) + sum(zeros)
    text = "".join(map(str, whole))
    assert text.startswith("1" * ones[0] + "0" * zeros[0])
    assert text.count("1") == sum(ones)
    pairs = min(len(ones), len(zeros))
    assert runs(text, "1")[: pairs - 1] == ones[: pairs - 1]
    steps = data.draw(st.integers(1, len(whole)))
    assert fxcache.steps_mask(ones, zeros, steps) == whole[:steps]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 8, 28, 50, 61])
def test_computed_steps_are_spread_evenly(total: int, last: bool) -> None:
    for computed in range(1, total + 1):
        whole = "".join(map(str, fxcache.steps_mask(total_steps=total, computed_steps=computed, compute_last=last)))
        assert len(whole) == total and whole.count("1") == computed and whole.startswith("11" if computed > 2 else "1")
        gaps = [len(gap) for gap in whole[computed > 2 :].split("1")[1:]]
        if last and computed > 1:
            assert whole.endswith("1")
            gaps.pop()
        # the steps behind an open end count as a gap like any other
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_spread_masks_in_full() -> None:
    def spread(**options: Any) -> str:
        return "".join(map(str, fxcache.steps_mask(total_steps=12, **options)))

    assert spread(computed_steps=5) == "110010001001"
    assert spread(computed_steps=5, compute_last=False) == "110010010100"
    assert spread(computed_steps=2) == "100000000001" and spread(computed_steps=2, compute_last=False) == "100000100000"
    assert spread(computed_steps=1) == spread(computed_steps=1, compute_last=False) == "1" + "0" * 11


LENGTHS = "expected a list of integers >= 1; compute_bins and cache_bins go together"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "total_steps=None: expected an integer >= 1"),
        ({"total_steps": 0}, "total_steps=0: expected an integer >= 1"),
        (
            {"total_steps": 9, "mask_policy": "quick"},
            "mask_policy='quick': expected 'slow' or 'medium' or 'fast' or 'ultra'",
        ),
        ({"compute_bins": [2]}, f"cache_bins=None: {LENGTHS}"),
        ({"compute_bins": [2], "cache_bins": [0]}, f"cache_bins=[0]: {LENGTHS}"),
        ({"compute_bins": [], "cache_bins": [1]}, f"compute_bins=[]: {LENGTHS}"),
        (
            {"compute_bins": [2], "cache_bins": [1], "total_steps": 4},
            "total_steps=4: expected at most 3, the sum of the bins",
        ),
        ({"computed_steps": 3}, "total_steps=None: expected an integer >= 1"),
        ({"total_steps": 8, "computed_steps": 0}, "computed_steps=0: expected an integer >= 1"),
        ({"total_steps": 8, "computed_steps": 9}, "computed_steps=9: expected at most 8, that is total_steps"),
        (
            {"total_steps": 8, "computed_steps": 3, "compute_bins": [2], "cache_bins": [1]},
            "computed_steps=3: expected None together with compute_bins and cache_bins",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        fxcache.steps_mask(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == sentence
