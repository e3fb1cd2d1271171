"""The latest parameters: gradients come in, are taken or dropped, and new parameters go out (MPG, sec. IV-C)."""

import time
from collections import defaultdict
from typing import Any

import ray
import torch as th

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.distributed.remote_replay import unpacked
from sb3_valuegrad.distributed.state import POLICY, WORLD_MODEL, export, restore
from sb3_valuegrad.distributed.workers import Now, Prepared, Update
from sb3_valuegrad.gradients import step_along

COUNTERS = ("num_timesteps", "_current_progress_remaining", "_n_model_updates", "_last_fit")


class Optimizer:
    """Takes the gradient steps that learners made, with the model's own optimizers and targets.

    :param model: is updated in place
    :param max_staleness: updates that may be made between a gradient's parameters and its use
    """

    def __init__(self, model: ValueGradientAlgorithm, max_staleness: int):
        self.model, self.max_staleness = model, max_staleness
        self.version = 0
        """updates so far"""
        self.dropped = 0
        self.imagined: tuple[int, Any] | None = None
        self._first = model._n_updates
        self._puts = 0
        self._published: dict[str, tuple[int, Any]] = {}
        self._changed = {POLICY, WORLD_MODEL}
        self.staleness: list[int] = []
        self.times: dict[str, list[float]] = defaultdict(list)
        self.logged: dict[str, list[float]] = defaultdict(list)

    def now(self) -> Now:
        """The newest state, for a task; it is put where all can fetch it, once."""
        for part in list(self._changed):
            start = time.perf_counter()
            self._puts += 1
            self._published[part] = (self._puts, ray.put(export(self.model, part)))
            self._changed.discard(part)
            self.times["publish"].append(time.perf_counter() - start)
        names = (*COUNTERS, *self.model.update_memory)
        return Now(self.version, dict(self._published), {name: getattr(self.model, name) for name in names})

    def take(self, updates: list[Update]) -> int:
        """Make these updates, which follow one another.

        :return: how many were made. If one comes too late, the others are dropped with it: they were made on top of it
        """
        for place, update in enumerate(updates):
            staleness = self.version - update.version
            for name, seconds in update.times.items():
                self.times[name].append(seconds)
            if staleness > self.max_staleness:
                self.dropped += len(updates) - place
                return place
            self.staleness.append(staleness)
            start = time.perf_counter()
            self._apply(update)
            self.version += 1
            self.model._n_updates = self._first + self.version
            self._changed |= {POLICY, WORLD_MODEL} if update.observed else {POLICY}
            self.times["apply"].append(time.perf_counter() - start)
            for name, value in update.logged.items():
                self.logged[name].append(value)
        return len(updates)

    def _apply(self, update: Update) -> None:
        model = self.model
        model._update_learning_rates()
        optimizers = [optimizer for optimizer, _ in model._optimizers().values()]
        for data in unpacked(update.observed, model.device):
            model._observe(data)
        withheld = None
        for places, gradients in update.steps:
            _, withheld = step_along([optimizers[place] for place in places], unpacked(gradients, model.device), withheld)
        with th.no_grad():
            for statistic, value in zip(model._online_statistics, update.statistics, strict=True):
                statistic.copy_(th.tensor(value))
        model.__dict__.update(update.memory)
        model._n_updates = update.number
        if model._is_policys_turn():
            model._update_targets()

    def take_fit(self, fit: Prepared) -> None:
        """Take over a world model that was fitted, and what was imagined in it."""
        restore(self.model, WORLD_MODEL, fit.world_model)
        self.model.__dict__.update(fit.memory)
        self._changed.add(WORLD_MODEL)
        if fit.imagined is not None:
            self.model.imagined.load_state_dict(unpacked(fit.imagined))  # type: ignore[attr-defined]
            self.imagined = (self.model._n_model_updates, ray.put(fit.imagined))
        for name, value in fit.logged.items():
            self.logged[name].append(value)
