"""One process that compiles a small model several times: `python -P cache_process.py JSON`, answers in JSON.

Each entry of the list names what to do: `fxcache` has the options (null: plain Inductor), `pretend` has what to patch,
by name, and the arguments of the patch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Play the scene once; errors are those of computed and of reused steps against eager mode."""
    import torch
    from torch._dynamo.utils import counters

    from tests.integration.scenes import fxcache_of, play, scene, worst
    from tests.models.foreign import sequential_dit

    torch._dynamo.reset()
    counters.clear()
    model = sequential_dit(3)
    calls = scene(model)
    eager = [model.run(call) for call in calls]
    if job["fxcache"] is None:
        made = play(model, torch.compile(model.module, fullgraph=True), calls)
    else:
        made = play(model, fxcache_of(model.module, **job["fxcache"]), calls)
    reused = [i for i, decision in enumerate(made.decisions) if decision == "."]
    return {
        "decisions": made.decisions,
        "hit": counters["inductor"]["fxgraph_cache_hit"],
        "miss": counters["inductor"]["fxgraph_cache_miss"],
        "whole": counters["aot_autograd"]["autograd_cache_hit"],
        "computed": worst(made.computed(), made.choose(eager)),
        "reused": max((worst([made.outputs[i]], [eager[i]]) for i in reused), default=None),
    }


def main() -> None:
    sys.path.append(str(ROOT))
    answers = []
    for job in json.loads(sys.argv[1]):
        with contextlib.ExitStack() as pretences:
            for target, value in job.get("pretend", {}).items():
                pretences.enter_context(mock.patch(target, **value))
            answers.append(run(job))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
