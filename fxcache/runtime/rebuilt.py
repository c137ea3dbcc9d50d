"""Conditioning that is made anew for every call: known again by its values, inside of a run whose end is known.

Some pipelines join, repeat or convert the text states in every step. The objects of the last step are then gone, and a
call with the same values goes on with their context. Objects that live on are never looked at: two branches with equal
prompts stay two. Outside of a known run equal values may belong to another request, so there it is not done.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from fxcache.runtime.contexts import Context, ContextKey, ModelState
from fxcache.runtime.identity import NO_VERSION, Identities

PATIENCE = 4
"""New branches after which a context whose conditioning is gone is given up: its values may never come back."""

_gone = itertools.count(1)


def find_equal(model: ModelState, key: ContextKey, conditioning: Sequence[torch.Tensor]) -> Context | None:
    """Return the context that differs from this key in conditioning that is gone and had these values.

    Least recently used first: where branches take turns, that is the right one. Waits for the device of the tensors.
    """
    gone = [context for context in model.contexts.values() if _may_go_on(context, key)]
    for context in gone:
        if context.kept is not None and context.kept.equal(conditioning):
            return context
    for context in gone:
        context.passed_over += 1
        if context.passed_over >= PATIENCE:
            model.drop(context.key)
    return None


def _may_go_on(context: Context, key: ContextKey) -> bool:
    """Whether only its conditioning, which is gone, keeps the context from being the one of this key."""
    if context.kept is None or context.busy or context.conditioning.alive:
        return False
    return context.key._replace(conditioning=key.conditioning) == key


def go_on(model: ModelState, context: Context, key: ContextKey, conditioning: Identities) -> None:
    """Let a context go on with other conditioning, as the most recently used one."""
    _rename(model, context, key)
    context.conditioning, context.passed_over = conditioning, 0


def leave(model: ModelState, key: ContextKey) -> None:
    """The conditioning of a context is gone: drop it, unless a call with the same values may come."""
    context = model.contexts.get(key)
    if context is None or context.conditioning.alive:
        return
    if context.kept is None:
        model.drop(key)
    else:  # other objects may come to have the addresses
        _rename(model, context, key._replace(conditioning=((-next(_gone), NO_VERSION),)))


def _rename(model: ModelState, context: Context, key: ContextKey) -> None:
    old, context.key = context.key, key
    model.contexts[key] = model.contexts.pop(old)
    for other in model.contexts.values():
        if other.leader is not None and other.leader[0] == old:
            other.leader = (key, other.leader[1])
