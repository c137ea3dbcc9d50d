"""Graph breaks: a model that Dynamo cuts into several graphs is refused once, and only if none of them has a trunk.

Dynamo does not say which graphs make up a call of a model; it compiles them one by one while the call runs. So what is
refused of a broken model is written down, and said when its first graph runs for the second time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from fxcache.errors import Refusal

_TORCH = os.path.dirname(torch.__file__)
_CONVERT = os.path.join(_TORCH, "_dynamo", "convert_frame.py")
_WRAPPER = os.path.join(_TORCH, "_dynamo", "eval_frame.py")


class BrokenModel:
    """The graphs of one model under one set of options, as far as they have been compiled."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.known_break: str | None = None
        self.trunk_found = False
        self.refusals: list[Refusal] = []
        self.closed = False

    def refusal(self) -> Refusal | None:
        """Return why no graph is cached; None where one is, or while nothing has been refused."""
        if self.trunk_found or not self.refusals:
            return None
        last, count = self.refusals[-1], len(self.refusals)
        if self.known_break is None and count == 1:
            return last
        cut = f"graph breaks cut the model into at least {count} graphs, none of them with a usable trunk"
        where = f"; one of the breaks: {self.known_break}" if self.known_break else ""
        return Refusal(f"{cut}: {last.reason}{where}", last.nodes)

    def watch(self, compiled: Callable[..., Any], say: Callable[[Refusal], None]) -> Callable[..., Any]:
        """Wrap a refused graph: when it runs again, a whole call has passed, and the model's refusal is said."""
        calls = 0

        def watched(*args: Any) -> Any:
            nonlocal calls
            if not self.closed:
                calls += 1
                if calls == 2:
                    self.closed = True
                    refusal = self.refusal()
                    if refusal is not None:
                        say(refusal)
            return compiled(*args)

        return watched


class _Current(threading.local):
    model: BrokenModel | None = None


_current = _Current()


def broken_model(gm: GraphModule, owner: object) -> BrokenModel | None:
    """Return the broken model that Dynamo's graph is a part of; None for the only graph of a model.

    ``owner`` is an object that all graphs of one ``torch.compile`` share.
    """
    reason = getattr(gm, "compile_subgraph_reason", None)
    known = None
    if reason is not None and reason.graph_break:
        known = reason.reason.partition("\n")[0]
        if reason.user_stack:
            known += f" at {reason.user_stack[-1].filename}:{reason.user_stack[-1].lineno}"
    model = _current.model
    if model is None or model.owner is not owner or model.closed:
        if known is None and not _inside_another_frame():
            return None
        model = _current.model = BrokenModel(owner)
    model.known_break = model.known_break or known
    return model


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
