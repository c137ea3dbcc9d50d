"""Graph breaks: a model that Dynamo cuts into several graphs is refused once, and only if none of them has a trunk.

Dynamo does not say which graphs make up a call of a model; it compiles them one by one while the call runs. So what is
refused of a broken model is written down, and said when its first graph runs again in another call.

A model can also be cut by hand, where its blocks were compiled one by one: then no graph can have a trunk, and what is
said is what to compile instead.
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import get_compilation_metrics
from torch.fx import GraphModule

from fxcache.errors import Refusal
from fxcache.runtime.arguments import call_serial
from fxcache.tracing import SETTINGS

_TORCH = os.path.dirname(torch.__file__)
_CONVERT = os.path.join(_TORCH, "_dynamo", "convert_frame.py")
_WRAPPER = os.path.join(_TORCH, "_dynamo", "eval_frame.py")


@dataclass(frozen=True)
class Break:
    """A place at which Dynamo has ended a graph, or given up a function."""

    reason: str
    file: str
    line: int

    @property
    def avoidable(self) -> bool:
        """Whether Dynamo names a setting that `fxcache.enable_cache` traces under."""
        return any(name in self.reason for name in SETTINGS)

    def __str__(self) -> str:
        if not self.file:
            return _first_line(self.reason)
        code = linecache.getline(self.file, self.line).strip()
        return f"{_first_line(self.reason)} at {self.file}:{self.line}" + (f" ({code})" if code else "")


class BrokenModel:
    """The graphs of one model under one set of options, as far as they have been compiled."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.known_break: Break | None = None
        self.code: CodeType | None = None
        """Of the function that was to be compiled, where that is known."""
        self.trunk_found = False
        self.refusals: list[Refusal] = []
        self.closed = False
        self.said = False

    def refusal(self) -> Refusal | None:
        """Return why no graph is cached; None where one is, or while nothing has been refused."""
        if self.trunk_found or not self.refusals:
            return None
        last, count = self.refusals[-1], len(self.refusals)
        known = _given_up(self.code) or self.known_break
        if known is None and count == 1:
            return last
        cut = f"graph breaks cut the model into at least {count} graphs, none of them with a usable trunk"
        where = f"; one of the breaks: {known}" if known else ""
        if known is not None and known.avoidable:
            where += "; fxcache.enable_cache avoids breaks of this kind, after torch._dynamo.reset()"
        return Refusal(f"{cut}: {last.reason}{where}", last.nodes)

    def watch(self, compiled: Callable[..., Any], say: Callable[[Refusal], None]) -> Callable[..., Any]:
        """Wrap a refused graph: when it runs in another call of the model, the model's refusal is said.

        Where calls are not noted, a graph that runs again counts as another call.
        """
        seen: list[int | None] = []

        def watched(*args: Any) -> Any:
            if not self.closed:
                seen.append(call_serial())
                if len(seen) > 1 and (seen[-1] is None or seen[-1] != seen[0]):
                    self.closed = True
                    refusal = self.refusal()
                    if refusal is not None:
                        say(refusal)
                        self.said = True
            return compiled(*args)

        return watched


class _Current(threading.local):
    def __init__(self) -> None:
        self.model: BrokenModel | None = None
        """Of a compilation that does not show what is compiled."""
        self.models: weakref.WeakKeyDictionary[Any, BrokenModel] = weakref.WeakKeyDictionary()


_current = _Current()
_cut_by_hand: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that were told what to compile instead of their blocks."""


def broken_model(gm: GraphModule, owner: object) -> BrokenModel | None:
    """Return the broken model that Dynamo's graph is a part of; None for the only graph of a model.

    ``owner`` is an object that all graphs of one ``torch.compile`` share.
    """
    reason = getattr(gm, "compile_subgraph_reason", None)
    known = None
    if reason is not None and reason.graph_break:
        place = next((one for one in reversed(reason.user_stack) if not one.filename.startswith(_TORCH)), None)
        known = Break(reason.reason, place.filename if place else "", (place.lineno or 0) if place else 0)
    compiled = next((compiled for _, compiled in _entered()), None)
    model = _current.model if compiled is None else _current.models.get(compiled)
    settled = model is not None and compiled is not None and (model.said or model.trunk_found)
    if model is None or model.owner is not owner or (model.closed and not settled):
        if known is None and not _inside_another_frame():
            return None
        model = BrokenModel(owner)
        if compiled is None:
            _current.model = model
        else:
            _current.models[compiled] = model
    function = inspect.unwrap(getattr(compiled, "forward", compiled)) if callable(compiled) else None
    model.code = getattr(function, "__code__", None)
    model.known_break = model.known_break or known
    return model


def _first_line(reason: str) -> str:
    return reason.partition("\n")[0]


def _given_up(code: CodeType | None) -> Break | None:
    """Return why Dynamo runs the function that was to be compiled as it stands, and compiles what it calls.

    It does so for a break inside a loop, as that over the blocks. Such a break belongs to no graph.
    """
    if code is None:
        return None
    place = (code.co_filename, code.co_name, code.co_firstlineno)
    for entry in reversed(get_compilation_metrics()):
        if (entry.co_filename, entry.co_name, entry.co_firstlineno) == place:
            file = entry.fail_user_frame_filename
            if not entry.fail_reason or not file or file.startswith(_TORCH):
                return None
            return Break(entry.fail_reason, file, entry.fail_user_frame_lineno or 0)
    return None


def cut_by_hand(refusal: Refusal) -> tuple[Refusal, bool]:
    """Return what to say instead of a refusal, if it is of a part that was compiled alone, and whether it is new."""
    for frame, compiled in _entered():
        for model in _modules_around(frame):
            stack = _blocks_compiled_alone(model) if any(part is compiled for part in model.modules()) else None
            if stack is None or model is compiled:
                continue
            new = model not in _cut_by_hand
            _cut_by_hand.add(model)
            return Refusal(
                f"the blocks in {stack} of {type(model).__name__} are compiled one by one, and reuse needs all of them "
                "in one graph. Compile the whole model instead, with fxcache.enable_cache(pipe) or "
                'transformer.compile(backend="fxcache")'
            ), new
    return refusal, True


def _blocks_compiled_alone(model: nn.Module) -> str | None:
    """Return the path of a list of modules in which several of one kind are compiled each by itself."""
    path: str
    for path, holder in model.named_modules():
        if isinstance(holder, nn.ModuleList):
            compiled = [child for child in holder if child._compiled_call_impl or hasattr(child, "_orig_mod")]
            kinds = [type(getattr(child, "_orig_mod", child)) for child in compiled]
            if len(kinds) > len(set(kinds)):
                return path
    return None


def _modules_around(frame: FrameType) -> Iterator[nn.Module]:
    """Modules whose methods are running around a frame, innermost first."""
    outer: FrameType | None = frame.f_back
    while outer is not None:
        module = outer.f_locals.get("self")
        if isinstance(module, nn.Module):
            yield module
        outer = outer.f_back


def _entered() -> Iterator[tuple[FrameType, object]]:
    """What Dynamo compiles now, innermost first: the frame in which it was entered, and the module or function."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _WRAPPER and callable(compiled := frame.f_locals.get("fn")):
            compiled = inspect.unwrap(compiled)
            yield frame, getattr(compiled, "__self__", compiled)
        frame = frame.f_back


def _inside_another_frame() -> bool:
    """Return whether Dynamo compiles a function that the compiled function calls, or the rest of one behind a break.

    Then some function of the user runs between what ``torch.compile`` returned and the compilation of this graph.
    """
    frame, converting, users = sys._getframe(1), False, False
    while (outer := frame.f_back) is not None:
        frame, file = outer, outer.f_code.co_filename
        if file == _CONVERT:
            converting, users = True, False
        elif file == _WRAPPER:
            return users
        elif converting and not file.startswith(_TORCH):
            users = True
    return False
