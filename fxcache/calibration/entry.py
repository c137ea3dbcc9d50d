"""What the command line names: the folder of a pipeline of diffusers, or a function that gives target and run."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxcache.errors import OptionError

__all__ = ["open_entry"]

_EXAMPLE = '{"prompt": "a lighthouse", "num_inference_steps": 28}'
Run = Callable[[], object]


def open_entry(name: str, call: Mapping[str, Any] | None) -> tuple[object, Run]:
    """Return what to calibrate and what to run for ``package.module:function`` or the folder of a pipeline.

    The function takes no arguments and returns the two; modules are looked for in the working directory too. A pipeline
    is called with ``call``; nothing is downloaded. Raises OptionError for what is neither.
    """
    if Path(name).is_dir():
        return _pipeline(name, call)
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise OptionError(f"{name}: expected the folder of a pipeline, or package.module:function")
    if call is not None:
        raise OptionError(f"--call: expected only with the folder of a pipeline; {function} says itself what to run")
    with _working_directory_last():
        try:
            made = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise OptionError(f"{name}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
        raise OptionError(f"{name}: expected it to return a pipeline or a module, and a function that runs it")
    return made


@contextmanager
def _working_directory_last() -> Iterator[None]:
    # last: nothing that is installed may be shadowed by what happens to lie there
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _pipeline(folder: str, call: Mapping[str, Any] | None) -> tuple[object, Run]:
    if call is None:
        raise OptionError(f"{folder}: expected --call FILE.json with its arguments, such as {_EXAMPLE}")
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return pipeline, lambda: pipeline(**call)
