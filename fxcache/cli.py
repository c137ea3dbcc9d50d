"""The command line: ``python -m fxcache options``, ``explain CLASS``, ``calibrate TARGET`` and ``metrics METRIC``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from fxcache.errors import FxcacheError, OptionError
from fxcache.metrics_command import add_command as add_metrics
from fxcache.option_table import options_table
from fxcache.options import Options
from fxcache.version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 with one line on stderr when something is wrong."""
    parser = _parser()
    arguments, words = parser.parse_known_args(argv)
    if words and ("options" not in arguments or any(word.startswith("-") for word in words)):
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    if words:  # before Python 3.12, words that follow a flag are not taken by OPTION=VALUE
        arguments.options = [*arguments.options, *words]
    try:
        text = arguments.run(arguments)
    except (FxcacheError, OSError) as error:
        print(f"fxcache: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fxcache", description="Look at what fxcache would do.")
    parser.add_argument("--version", action="version", version=f"fxcache {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    options = commands.add_parser("options", help="list every option with its type, default and meaning")
    options.add_argument("--json", action="store_true", help="print JSON")
    options.set_defaults(run=_options)

    explain = commands.add_parser(
        "explain", help="trunk, regions and predicted gain of a diffusers class, or the refusal"
    )
    explain.add_argument(
        "model", metavar="CLASS", help="class of diffusers, or package.module:Class; built on the meta device"
    )
    explain.add_argument("--config", metavar="FILE.json", help="arguments of the class; without it, its defaults")
    explain.add_argument(
        "--inputs",
        metavar="FILE.json",
        help="inputs that cannot be guessed: a shape, a shape and a dtype, or a value, such as "
        '{"hidden_states": [1, 4096, 64], "labels": {"shape": [1], "dtype": "int64"}, "height": {"value": 64}}',
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="such as Fn_compute_blocks=1 trunk=a,b")
    explain.set_defaults(run=_explain)

    calibrate = commands.add_parser(
        "calibrate", help="measure a model, uncached: masks of steps, the coefficients of TeaCache, MagCache's ratios"
    )
    calibrate.add_argument(
        "target",
        metavar="TARGET",
        help="folder of a diffusers pipeline, or package.module:function, which returns a pipeline or a module and a "
        "function that runs it",
    )
    calibrate.add_argument("--call", metavar="FILE.json", help="arguments that the pipeline is called with")
    calibrate.add_argument("--degree", type=int, default=4, help="of the polynomial, 1 to 7 (default: 4)")
    calibrate.add_argument("--out", metavar="FILE.json", help="where to save what was measured")
    calibrate.set_defaults(run=_calibrate)

    add_metrics(commands)
    return parser


def _options(arguments: argparse.Namespace) -> str:
    rows = options_table()
    if arguments.json:
        return json.dumps([row._asdict() for row in rows], indent=2)
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    entries = []
    for row in rows:
        meaning = textwrap.fill(row.meaning, width, initial_indent="    ", subsequent_indent="    ")
        entries.append(f"{row.name}: {row.type} = {row.default}\n{meaning}")
    return "\n".join(entries)


def _explain(arguments: argparse.Namespace) -> str:
    options = Options.from_mapping(_parse_options(arguments.options))
    config = None if arguments.config is None else _read_object("--config", arguments.config)
    given = {} if arguments.inputs is None else {"inputs": _read_object("--inputs", arguments.inputs)}
    from fxcache.explain import explain_class  # imports diffusers and takes seconds; `options` must not wait for it

    explanation = explain_class(arguments.model, config, options, **given)
    return json.dumps(explanation.to_dict(), indent=2) if arguments.json else str(explanation)


def _calibrate(arguments: argparse.Namespace) -> str:
    call = None if arguments.call is None else _read_object("--call", arguments.call)
    from fxcache.calibration import calibrate
    from fxcache.calibration.entry import open_entry

    found = calibrate(*open_entry(arguments.target, call), degree=arguments.degree)
    if arguments.out is None:
        return str(found)
    found.save(arguments.out)
    return f"{found}\nwritten: {arguments.out}"


def _parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` words: a value is JSON if it can be, else a string; ``trunk`` takes names with commas."""
    given: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (name and sign):
            raise OptionError(f"{word!r}: expected OPTION=VALUE, such as Fn_compute_blocks=1")
        if name in given:
            raise OptionError(f"{name}={text}: given twice")
        if name == "trunk" and not text.startswith("["):
            given[name] = [part.strip() for part in text.split(",")]
            continue
        try:
            given[name] = json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
        except json.JSONDecodeError:
            given[name] = text
    return given


def _read_object(flag: str, path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise OptionError(f"{flag} {path}: expected JSON, {error}") from error
    if not isinstance(found, dict):
        raise OptionError(f"{flag} {path}: expected a JSON object, found {type(found).__name__}")
    return found
