"""One process that compiles a small model several times: `python cache_process.py JSON`, answers in JSON.

Each entry of the list names what to do: `fxcache` has the options (null: plain Inductor), `model` one of `MODELS`,
`dynamic` is that of `torch.compile`, and `pretend` has what to patch, by name, and the arguments of the patch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]


def sequential() -> Any:
    from tests.models.foreign import sequential_dit

    return sequential_dit(3)


def half() -> Any:
    import torch

    from tests.models.foreign import sequential_dit

    return sequential_dit(3, dtype=torch.bfloat16)


def flux() -> Any:
    from tests.models.transformers import TRANSFORMERS

    return TRANSFORMERS["flux"](1, single_layers=3)


def quantised() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = flux()
    quantize_(model.module, Int8WeightOnlyConfig())
    return model


MODELS: dict[str, Callable[[], Any]] = {"sequential": sequential, "half": half, "flux": flux, "quantised": quantised}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Play the scene once; errors are those of computed and of reused steps against eager mode."""
    import torch
    from torch._dynamo.utils import counters

    import fxcache
    from tests.integration.scenes import OPTIONS, fxcache_of, play, scene, worst
    from tests.refusals import refusals

    torch._dynamo.reset()
    counters.clear()
    model = MODELS[job.get("model", "sequential")]()
    calls = scene(model)
    eager = [model.run(call) for call in calls]
    with refusals() as said:
        if job["fxcache"] is None:
            made = play(model, torch.compile(model.module, fullgraph=True), calls)
        else:
            made = play(model, fxcache_of(model.module, job.get("dynamic"), **job["fxcache"]), calls)
    found = {name: dict(counters[name]) for name in ("inductor", "aot_autograd")}
    args, kwargs = model.split(calls[0])
    explained = fxcache.explain(model.module, *args, fxcache_options={**OPTIONS, **(job["fxcache"] or {})}, **kwargs)
    reused = [i for i, decision in enumerate(made.decisions) if decision == "."]
    return {
        "decisions": made.decisions,
        "hit": found["inductor"].get("fxgraph_cache_hit", 0),
        "miss": found["inductor"].get("fxgraph_cache_miss", 0),
        "whole": found["aot_autograd"].get("autograd_cache_hit", 0),
        "kept": found["aot_autograd"].get("autograd_cache_saved", 0),
        "computed": worst(made.computed(), made.choose(eager)),
        "reused": max((worst([made.outputs[i]], [eager[i]]) for i in reused), default=None),
        "refusals": said,
        "same": [
            [hashlib.sha256(value.float().numpy().tobytes()).hexdigest() for value in made.outputs],
            made.differences,
            fxcache.summary(model.module).to_dict(),
            str(explained),
        ],
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
