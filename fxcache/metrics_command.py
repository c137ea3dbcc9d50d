"""``python -m fxcache metrics``: arguments, and what is printed. Imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fxcache.errors import OptionError
from fxcache.version import __version__

if TYPE_CHECKING:
    from fxcache.metrics import Media, MetricResult

__all__ = ["METRICS", "add_command"]

PAIRED = ("psnr", "ssim", "mse", "lpips", "fid")
"""Need both -i1 and -i2."""
PROMPTED = ("clip_score", "image_reward")
"""Judge -i1 and -i2 each for itself, with prompts."""
METRICS = (*PAIRED, *PROMPTED)
WEIGHTED = ("lpips", "fid", *PROMPTED)
"""Take --weights."""
_LIBRARIES = ("torch", "torchmetrics", "torchvision", "torch-fidelity", "transformers", "image-reward", "pillow", "av")


def add_command(commands: Any) -> None:
    """Add `metrics` to the commands."""
    parser = commands.add_parser(
        "metrics",
        help="compare pictures or videos with others, or with their prompts",
        description="Compare pictures, folders or videos (frame by frame). Folders are paired by the names of files.",
    )
    parser.add_argument(
        "metrics", nargs="+", metavar="METRIC", help=f"{', '.join(METRICS)}, or all: those that can be computed here"
    )
    parser.add_argument("-i1", "--first", metavar="PATH", help="picture, video or folder, such as the uncached one")
    parser.add_argument("-i2", "--second", metavar="PATH", help="what is compared with it")
    parser.add_argument("--prompt", metavar="TEXT", help="for clip_score and image_reward: one prompt for all pictures")
    parser.add_argument(
        "--prompts", metavar="FILE", help="one prompt per line, in the order of the names; default: a .txt beside each"
    )
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[METRIC=]PATH",
        help="trained weights; with METRIC= where several metrics take some; may be repeated",
    )
    parser.add_argument("--download", action="store_true", help="let a library download weights that are missing")
    parser.add_argument("--net", default="alex", help="network of lpips: alex, vgg or squeeze (default: alex)")
    parser.add_argument("--device", default="cpu", help="where networks run, such as cuda (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON, with the value of every pair")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> str:
    wanted = _wanted(arguments.metrics)
    weights = _weights(arguments.weights, wanted)
    _check_arguments(arguments, wanted)
    from fxcache.metrics import UnavailableError, open_media
    from fxcache.metrics.prompts import read_prompts

    paths = {"-i1": arguments.first, "-i2": arguments.second}
    media = [open_media(path, option) for option, path in paths.items() if path is not None]
    prompts = arguments.prompt if arguments.prompts is None else read_prompts(arguments.prompts, "--prompts")
    results: list[tuple[Media | None, MetricResult]] = []
    left_out: dict[str, str] = {}
    for name in wanted:
        compute = _computation(name, arguments, weights)
        try:
            if name in PROMPTED:
                results += [(one, compute(one, prompts)) for one in media]
            elif len(media) < 2:
                raise UnavailableError(f"{name} compares two arguments: expected both -i1 and -i2")
            else:
                results.append((None, compute(*media)))
        except UnavailableError as error:
            if "all" not in arguments.metrics:
                raise
            left_out[name] = str(error)
    if not results:
        raise UnavailableError(f"no metric can be computed: {'; '.join(left_out.values())}")
    return _as_json(arguments, results, left_out) if arguments.json else _as_text(results, left_out)


def _wanted(words: Sequence[str]) -> list[str]:
    for word in words:
        if word not in (*METRICS, "all"):
            raise OptionError.of("METRIC", word, f"{', '.join(METRICS)} or all")
    return list(METRICS) if "all" in words else list(dict.fromkeys(words))


def _weights(words: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    takers = [name for name in wanted if name in WEIGHTED]
    found: dict[str, str] = {}
    for word in words:
        name, sign, path = word.partition("=")
        if not (sign and name in WEIGHTED):
            if len(takers) != 1:
                raise OptionError.of("--weights", word, f"METRIC=PATH with one of {', '.join(WEIGHTED)}")
            name, path = takers[0], word
        if name not in wanted:
            raise OptionError.of("--weights", word, f"one of the metrics asked for: {', '.join(wanted)}")
        if name in found:
            raise OptionError.of("--weights", word, f"one path for {name}; {found[name]!r} was given before")
        found[name] = path
    return found


def _check_arguments(arguments: argparse.Namespace, wanted: Sequence[str]) -> None:
    if arguments.first is None and arguments.second is None:
        raise OptionError("-i1 and -i2: expected the paths of two pictures, videos or folders, found none")
    if arguments.prompt is not None and arguments.prompts is not None:
        raise OptionError.of("--prompts", arguments.prompts, "not together with --prompt")
    if (arguments.prompt or arguments.prompts) and not set(wanted) & set(PROMPTED):
        option = "--prompt" if arguments.prompts is None else "--prompts"
        raise OptionError.of(option, arguments.prompt or arguments.prompts, f"one of {', '.join(PROMPTED)} as METRIC")
    if arguments.net != "alex" and "lpips" not in wanted:
        raise OptionError.of("--net", arguments.net, "lpips as METRIC")
    import torch

    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError.of(
            "--device", arguments.device, f"a device of torch that is here, such as cpu ({reason})"
        ) from None


def _computation(name: str, arguments: argparse.Namespace, weights: dict[str, str]) -> Callable[..., MetricResult]:
    from functools import partial

    import fxcache.metrics

    given: dict[str, Any] = {"progress": None}  # where stderr is a terminal
    if name in WEIGHTED:
        given |= {"weights": weights.get(name), "download": arguments.download, "device": arguments.device}
    if name == "lpips":
        given["net"] = arguments.net
    return partial(getattr(fxcache.metrics, name), **given)


def _as_text(results: Sequence[tuple[Media | None, MetricResult]], left_out: dict[str, str]) -> str:
    rows = [
        (
            result.metric if media is None else f"{result.metric} of {media.label.partition('=')[0]}",
            f"{result.value:.6g} {result.unit}".rstrip(),
            "higher is better" if result.higher_is_better else "lower is better",
            result.about(),
        )
        for media, result in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])) for row in rows
    ]
    return "\n".join([*lines, *(f"not computed: {reason}" for reason in left_out.values())])


def _as_json(
    arguments: argparse.Namespace, results: Sequence[tuple[Media | None, MetricResult]], left_out: dict[str, str]
) -> str:
    paths = {"-i1": arguments.first, "-i2": arguments.second}
    found = {
        "fxcache": __version__,
        "versions": {library: _version(library) for library in _LIBRARIES},
        "first": arguments.first,
        "second": arguments.second,
        "results": [
            {**({} if media is None else {"of": paths[media.label.partition("=")[0]]}), **result.to_dict()}
            for media, result in results
        ],
        "not_computed": left_out,
    }
    return json.dumps(found, indent=2, allow_nan=False)


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
