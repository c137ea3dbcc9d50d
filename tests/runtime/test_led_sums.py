"""What is summed over the steps of a branch that follows another."""

from __future__ import annotations

from fxcache.runtime.attribution import Reason
from tests.runtime.loop import latents, schedule
from tests.runtime.test_guidance import FAR, NEAR, Steps, following


def test_what_a_led_branch_sums_is_what_its_leader_has_compared(attribution, cond, uncond):
    steps = Steps(following(attribution, max_accumulated_residual_diff_threshold=2.5 * NEAR))
    times = schedule(5)
    for time in times[:4]:
        x = latents()
        assert steps.call(x, time, cond, NEAR) == steps.call(x, time, uncond, FAR)
    assert steps.call(latents(), times[4], uncond, NEAR) == "C"
    assert steps.model.records()[1].reasons[Reason.MAX_ACCUMULATED] == 1
