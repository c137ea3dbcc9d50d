"""The table of models that have been called: found by their parameter objects, gone when these are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from fxcache.options import Options
from fxcache.runtime.contexts import Context, ContextKey, ModelState
from fxcache.runtime.generation import Run
from fxcache.runtime.identity import Identities, Kept, is_plain
from fxcache.runtime.interface import GraphInfo
from fxcache.runtime.mailbox import Mailbox
from fxcache.runtime.rebuilt import find_equal, go_on, leave

Message = Callable[["ModelTable"], None]


class ModelTable:
    """Models, weakly: a model, a context or a run that ends takes what was kept for it along.

    Everything but `post` is called while `mailbox` is held.
    """

    def __init__(self) -> None:
        self._models: dict[object, ModelState] = {}
        self._changes: list[_Change] = []
        self._watched: set[int] = set()
        self.mailbox: Mailbox[Message] = Mailbox(lambda message: message(self))

    def find(self, info: GraphInfo, parameters: tuple[torch.Tensor, ...]) -> ModelState:
        """Return the model with these very parameter objects, or without any, that of this graph."""
        key: object = (tuple(map(id, parameters)) or id(info), info.options)
        model = self._models.get(key)
        if model is not None and (not parameters or model.parameters.refs[0]() is parameters[0]):
            return model
        gone = self._callback(lambda table: table._forget(key))
        model = self._models[key] = ModelState(info.options, Identities(parameters, gone))
        for change in self._changes:
            if change.base == model.base and change.concerns(parameters):
                model.follow(change.options)
        if not parameters:
            weakref.finalize(info, gone, None).atexit = False
        return model

    def context(
        self, model: ModelState, info: GraphInfo, key: ContextKey, run: Run, conditioning: Sequence[torch.Tensor]
    ) -> Context:
        """Return the model's context for this key, a new one if need be.

        In a run whose end is known, conditioning that is made anew for every call goes on with the context of that
        with the same values, if that is gone.
        """
        context = model.find(key)
        if context is None:
            reference = weakref.ref(model)
            gone = self._callback(lambda _: _leave(reference, key))
            watched = Identities(conditioning, gone)
            context = find_equal(model, key, conditioning)
            if context is None:
                threshold = model.options.effective_threshold
                context = Context(key, info, threshold, run.label, model.label(key), watched)
                model.add(context)
                self._watch(run)
            else:
                go_on(model, context, key, watched)
            can_be_kept = run.bounded and conditioning and all(map(is_plain, conditioning))
            context.kept = Kept(conditioning) if can_be_kept else None
        return context

    def change(self, parameters: tuple[torch.Tensor, ...], base: Options, options: Options) -> None:
        """Let graphs of these parameters that were compiled under `base` follow `options`, also those still to come."""
        self._changes = [
            change
            for change in self._changes
            if change.alive and not (change.base == base and change.concerns(parameters))
        ]
        if base != options:
            self._changes.append(_Change(Identities(parameters), base, options))
        for model in self.having(parameters):
            if model.base == base:
                model.follow(options)

    def having(self, parameters: Iterable[torch.Tensor] | None) -> list[ModelState]:
        """Return the models with any of these parameters; None: all."""
        if parameters is None:
            return list(self._models.values())
        wanted = {id(parameter) for parameter in parameters}
        return [model for model in self._models.values() if not wanted.isdisjoint(model.ids)]

    def forget(self, model: ModelState) -> None:
        """Drop a model with everything kept for it."""
        for key in [key for key, other in self._models.items() if other is model]:
            self._forget(key)

    def forget_changes(self, parameters: tuple[torch.Tensor, ...] | None) -> None:
        """Let graphs of these parameters (None: all) follow what was compiled in."""
        self._changes = [
            change for change in self._changes if parameters is not None and not change.concerns(parameters)
        ]

    def _forget(self, key: object) -> None:
        model = self._models.pop(key, None)
        if model is not None:
            model.drop_where(lambda _: True)

    def _watch(self, run: Run) -> None:
        if run.serial in self._watched:
            return
        self._watched.add(run.serial)
        serial = run.serial
        ended = self._callback(lambda table: table._end_run(serial))
        run.watch(ended)

    def _end_run(self, serial: int) -> None:
        self._watched.discard(serial)
        for model in self._models.values():
            model.drop_where(lambda context: context.key.run == serial)

    def _callback(self, message: Message) -> Callable[[object], None]:
        """Return a callback that posts `message` and does not keep this table alive."""
        reference = weakref.ref(self)

        def post(_: object) -> None:
            table = reference()
            if table is not None:
                table.mailbox.post(message)

        return post


@dataclass(frozen=True)
class _Change:
    """Options in place of those that were compiled in."""

    parameters: Identities
    base: Options
    options: Options

    @property
    def alive(self) -> bool:
        return any(reference() is not None for reference in self.parameters.refs)

    def concerns(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether it was made for any of these parameters."""
        own = {id(parameter) for reference in self.parameters.refs if (parameter := reference()) is not None}
        return not own.isdisjoint(map(id, parameters))


def _leave(reference: weakref.ref[ModelState], key: ContextKey) -> None:
    model = reference()
    if model is not None:
        leave(model, key)
