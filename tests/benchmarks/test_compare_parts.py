"""The comparison's arithmetic: traces of a GPU, bytes of state, fronts."""

from typing import Any

import pytest
import torch

from benchmarks.comparison.fronts import best_at, fastest_at, front, summary_of
from benchmarks.comparison.gpu import covered, steps_of
from benchmarks.comparison.measure import Drawn, compilation
from benchmarks.comparison.tensors import bytes_of


def event(category: str, name: str, begin: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": end - begin}


def marks(category: str, *begins: float) -> list[dict[str, Any]]:
    return [event(category, f"denoising step {i}", begin, begin + 1) for i, begin in enumerate(begins)]


def test_intervals_that_overlap_count_once() -> None:
    assert covered([(0, 4), (2, 5), (1, 3), (7, 8)]) == 6
    assert covered([]) == 0


def test_kernels_belong_to_steps_of_the_gpu_and_waits_to_those_of_the_host() -> None:
    # the host is ahead: it launches the second step at 100, and the GPU begins it at 1000
    trace = [*marks("user_annotation", 0, 100, 200), *marks("gpu_user_annotation", 10, 1000, 2000)]
    trace += [event("kernel", "a", 10, 510), event("kernel", "b", 400, 900), event("gpu_memcpy", "c", 1000, 1100)]
    trace += [event("cuda_runtime", "cudaStreamSynchronize", 150, 160), event("cuda_runtime", "cudaLaunchKernel", 1, 2)]
    trace += [{"ph": "M", "name": "process_name"}, event("kernel", "behind the last step", 2500, 2600)]
    first, second = steps_of(trace, 2)
    assert (first.busy_ms, first.kernels, first.host_syncs) == (0.89, 2, 0)
    assert (second.busy_ms, second.kernels, second.host_syncs) == (0.1, 0, 1)


def test_a_trace_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the trace has no mark of the steps \[1\]"):
        steps_of([*marks("user_annotation", 0), *marks("gpu_user_annotation", 0)], 2)


def test_times_of_steps_leave_out_the_first_and_those_where_branches_differ() -> None:
    drawn = Drawn(None, 1.0, [9.0, 1.0, 2.0, 3.0], ("CC..", "CC.C"))
    assert drawn.of("C") == [1.0] and drawn.of(".") == [2.0]


def test_bytes_of_state_count_storage_once_and_no_weights() -> None:
    class Holder:
        def __init__(self) -> None:
            self.one = torch.zeros(10, dtype=torch.float32)
            self.more = {"view": self.one[:5], "pair": (torch.zeros(3, dtype=torch.float64), None)}
            self.module, self.itself = torch.nn.Linear(4, 4), self

    assert bytes_of([Holder()]) == 40 + 24
    assert bytes_of([]) == 0


def test_compilations_are_counted() -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    compiled = torch.compile(work, backend="eager", dynamic=False)
    with compilation() as first:
        compiled(torch.zeros(2))
    assert (first.graphs, first.graph_breaks, first.recompiles) == (2, 1, 0)
    with compilation() as second:
        compiled(torch.zeros(2))
    assert (second.graphs, second.graph_breaks, second.recompiles) == (0, 0, 0)
    with compilation() as both:
        compiled(torch.zeros(3))
        compiled(torch.zeros(4))
    assert both.graphs == 4 and both.recompiles == 2


def row(method: str, group: str, speedup: float, psnr_db: float) -> dict[str, Any]:
    spread = {"median": speedup, "q20": speedup, "q80": speedup, "count": 1}
    return {
        "method": method, "group": group, "setting": "s", "psnr_db": psnr_db, "accuracy": 1.0,
        "speedup_to_inductor": spread,
    }  # fmt: skip


ROWS = [
    row("fxcache", "fxcache", 2.1, 45.0), row("fxcache", "fxcache", 3.5, 41.0), row("fxcache", "fxcache", 5.0, 29.0),
    row("fewer-steps", "plain", 3.0, 35.0), row("cache-dit", "cache-dit", 2.5, 38.0),
    row("cache-dit", "cache-dit", 2.0, 36.0), {**row("refuses", "diffusers", 9.0, 0.0), "psnr_db": None},
]  # fmt: skip


def test_a_front_has_what_no_other_row_beats() -> None:
    assert [found["psnr_db"] for found in front(ROWS[3:])] == [38.0, 35.0]


def test_the_best_that_is_fast_enough_and_the_fastest_that_is_good_enough() -> None:
    best = best_at(ROWS, 3.0)
    assert best is not None and best["psnr_db"] == 41.0
    assert best_at(ROWS, 6.0) is None
    fastest = fastest_at(ROWS, 30.0)
    assert fastest is not None and fastest["speedup_to_inductor"]["median"] == 3.5


def test_the_summary_holds_this_project_against_all_others() -> None:
    summary = summary_of(ROWS)
    at_two, at_three, at_four, at_six = summary["at_speedup"]
    assert (at_two["own"]["psnr_db"], at_two["others"]["psnr_db"]) == (45.0, 38.0)
    assert (at_three["own"]["psnr_db"], at_three["others"]["method"]) == (41.0, "fewer-steps")
    assert at_four["others"] is None and at_six["own"] is None
    assert summary["fastest"]["own"]["speedup"] == 3.5 and summary["fastest"]["others"]["speedup"] == 3.0
