"""The call that reads like ``learn()``, and what it does: tasks go out, results come in, dead processes are replaced."""

import inspect
import logging
import random
import time
from collections import deque
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch as th
from ray.exceptions import RayActorError, RayError, RayTaskError
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.distributed.arguments import Settings, blueprint_of, check
from sb3_valuegrad.distributed.cluster import answers, check_cores, connected
from sb3_valuegrad.distributed.optimizer import Optimizer
from sb3_valuegrad.distributed.pace import Pace
from sb3_valuegrad.distributed.processes import Processes, Task
from sb3_valuegrad.distributed.state import experience, store
from sb3_valuegrad.distributed.workers import Blueprint, Collected, Update

log = logging.getLogger(__name__)

SelfAlgorithm = TypeVar("SelfAlgorithm", bound=ValueGradientAlgorithm)

# Steps of each environment that an actor makes in one go, while the policy learns and before.
STEPS, FIRST_STEPS = 16, 100
# Seconds from one look at the cluster's head to the next.
WATCH_SECONDS = 2.0


def learn(
    model: SelfAlgorithm,
    total_timesteps: int,
    callback: MaybeCallback = None,
    log_interval: int | None = 4,
    tb_log_name: str | None = None,
    reset_num_timesteps: bool = True,
    progress_bar: bool = False,
    **settings: Any,
) -> SelfAlgorithm:
    """``model.learn(...)``, with the work shared among processes.

    The updates are the model's own: a learner makes an ordinary gradient step on its copy, and this process makes the same
    step with its gradients. There are as many updates per step as ``train_freq`` and ``gradient_steps`` say.

    :param model: trained in place; its settings decide what is learned
    :param total_timesteps: and the other positional arguments: as SB3's ``learn``. Callbacks are called here, once for each
        step that an actor reports; ``model`` is up to date then, but for its replay buffer, which comes back at the end
    :param settings: see :class:`~sb3_valuegrad.distributed.arguments.Settings`
    :return: the model
    :raises ValueError: for arguments out of range, algorithms that cannot learn this way, an address that does not answer
    :raises RuntimeError: if the cluster's head is gone or nothing happens any more; it names the last checkpoint
    """
    chosen = Settings(**settings)
    check(model, chosen)
    blueprint = blueprint_of(model, chosen)
    threads = th.get_num_threads()
    with connected(chosen.address):
        check_cores(chosen.n_learners)
        th.set_num_threads(1)
        trainer = Trainer(model, blueprint, chosen)
        try:
            total, called = model._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name or type(model).__name__, progress_bar
            )
            trainer.run(total, called, log_interval)
        finally:
            th.set_num_threads(threads)
            trainer.processes.close()
    return model


_own, _more = inspect.signature(learn), inspect.signature(Settings)
_positional = [parameter for parameter in _own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
_keyword_only = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in _more.parameters.values()]
# For help() and editors.
learn.__signature__ = _own.replace(parameters=[*_positional, *_keyword_only])  # type: ignore[attr-defined]


class Trainer:
    """Runs the processes around one :class:`~sb3_valuegrad.distributed.optimizer.Optimizer`."""

    def __init__(self, model: ValueGradientAlgorithm, blueprint: Blueprint, settings: Settings):
        self.model, self.settings = model, settings
        self.optimizer = Optimizer(model, settings.staleness_bound)
        self.processes = Processes(blueprint, settings, max(model.buffer_size // settings.buffers, model.n_envs))
        self.ahead: dict[int, tuple[Any, int]] = {}
        self.random = random.Random(model.seed)
        self._head: str = ray.get_runtime_context().gcs_address
        self._watched = self._progress = self._logged_at = time.monotonic()
        self._logged_updates = 0
        self._wants_errors = model._needs_model()

    @property
    def _buffers(self) -> list[Any]:
        return self.processes.workers["buffer"]

    def _start(self) -> None:
        self.processes.start()
        if self.model.replay_buffer.size() > 0:
            parts = _shares(experience(self.model.replay_buffer), len(self._buffers))
            tasks = [buffer.start_from.remote(part) for buffer, part in zip(self._buffers, parts, strict=True)]
            self.processes.sizes = ray.get(tasks, timeout=self.settings.timeout)

    # ---------------------------------------------------------------- the loop

    def run(self, total_timesteps: int, callback: Any, log_interval: int | None) -> None:
        """Train until so many steps and their updates have been made, or the callback stops."""
        model = self.model
        self.total, self.callback, self.log_interval = total_timesteps, callback, log_interval
        self.pace = Pace(model)
        self.first, self.assigned, self.again = model._n_updates, 0, deque[int]()
        self.collecting, self.stored, self.stopped = 0, model.num_timesteps, False
        self._next_evaluation = self._next_checkpoint = model.num_timesteps
        callback.on_training_start({"self": model, "total_timesteps": total_timesteps, "trainer": self}, globals())
        try:
            self._start()
            while not self._is_finished():
                self._assign()
                self._receive()
            self._finish()
        except _Interrupted as error:
            raise RuntimeError(f"{error} The model as it was is in {self._checkpoint()}") from error.__cause__
        if self.settings.checkpoint_path is None:
            self.settings.checkpoint_file.unlink(missing_ok=True)
        callback.on_training_end()

    def _is_finished(self) -> bool:
        if self.stopped:
            return True
        enough = self.stored >= self.total and self.assigned >= self._due() and not self.again
        return enough and not self.processes.busy_with("updates", "prepared")

    def _due(self) -> int:
        return self.pace.due(self.stored)

    # ---------------------------------------------------------------- tasks

    def _assign(self) -> None:
        for index in self.processes.idle("actor"):
            self._ask_actor(index)
        for index in self.processes.idle("learner"):
            self._ask_learner(index)
        frequency = self.settings.eval_freq
        if frequency is not None and self.model.num_timesteps >= self._next_evaluation and self.processes.idle("evaluator"):
            self._next_evaluation = self.model.num_timesteps + frequency
            task = Task("evaluation", "evaluator", 0)
            self.processes.ask(task, "evaluate", self.optimizer.now(), self.settings.n_eval_episodes)
        if self._wants_errors and self.model._model_is_ready:
            self._wants_errors = False
            self.processes.ask(Task("errors", "buffer", 0), "model_errors", self.optimizer.now())

    def _ask_actor(self, index: int) -> None:
        """Collect, unless the learners are behind: each actor may be one task ahead of them."""
        model = self.model
        made = model.num_timesteps + self.collecting
        ahead = self.pace.due(made) - self.assigned
        per_task = self.pace.due(made + STEPS * model.n_envs) - self.pace.due(made)
        is_ahead = ahead > self._in_hand() + self.settings.n_actors * per_task
        if made >= self.total or (is_ahead and sum(self.processes.sizes) > 0):
            return
        before = -(-(model.learning_starts - made) // model.n_envs)
        steps = min(max(before, STEPS), FIRST_STEPS, -(-(self.total - made) // model.n_envs))
        self.collecting += steps * model.n_envs
        which = index % self.settings.buffers
        task = Task("collected", "actor", index, steps)
        arguments = (self.optimizer.now(), steps, self._buffers[which], self.processes.sizes[which], self.total)
        task.data = self.processes.ask(task, "collect", *arguments, returns=2)

    def _in_hand(self) -> int:
        """Updates that the learners can take on at once."""
        return self.settings.n_learners * self.settings.updates_per_task

    def _ask_learner(self, index: int) -> None:
        """The next update that is due, or first the world model's fit."""
        if self.assigned >= self._due() and not self.again:
            return
        if sum(self.processes.sizes) == 0:
            self._wait_for_experience()
            return
        model, preparing = self.model, self.processes.busy_with("prepared")
        if not preparing and model._is_fit_due():
            contents = [buffer.content.remote() for buffer in self._buffers]
            self.processes.ask(Task("prepared", "learner", index), "prepare", self.optimizer.now(), *contents)
            return
        if preparing and (self.optimizer.max_staleness == 0 or not model._model_is_ready):
            return
        count = min(self.settings.updates_per_task, len(self.again) + self._due() - self.assigned)
        numbers = [self.again.popleft() if self.again else self._next_number() for _ in range(count)]
        fresh = [(number, (number - self.first - 1) % self.pace.at_once == 0) for number in numbers]
        needed = sum((number - 1) % model.batch_reuse == 0 for number in numbers)
        batches, which = self._drawn(needed) if needed else (([], 0.0), self._some_buffer())
        arguments = (self.optimizer.now(), fresh, batches, self._buffers[which], self.optimizer.imagined)
        self.processes.ask(Task("updates", "learner", index, data=(numbers, which)), "updates", *arguments)

    def _wait_for_experience(self) -> None:
        """There was some, but it is lost. Without more to come the remaining updates cannot be made."""
        if self.model.num_timesteps < self.total or self.processes.busy_with("collected", "stored"):
            return
        log.warning("%d updates were not made: the experience that they needed is lost", self._due() - self.optimizer.version)
        self.assigned = self._due()
        self.again.clear()

    def _next_number(self) -> int:
        self.assigned += 1
        return self.first + self.assigned

    def _drawn(self, count: int) -> tuple[Any, int]:
        """Minibatches, which a buffer draws, and which one; those of the next task are drawn ahead."""
        found = self.ahead.pop(count, None) or self._draw(count)
        self.ahead[count] = self._draw(count)
        return found

    def _some_buffer(self) -> int:
        """One of them, so that every stored step is as likely as any other."""
        sizes = self.processes.sizes
        return self.random.choices(range(len(sizes)), sizes)[0] if len(sizes) > 1 and sum(sizes) > 0 else 0

    def _draw(self, count: int) -> tuple[Any, int]:
        which = self._some_buffer()
        return self._buffers[which].sample.remote(self.model.batch_size, count), which

    # ---------------------------------------------------------------- results

    def _receive(self) -> None:
        """Wait for a result, and take all that have come."""
        waiting = list(self.processes.tasks)
        ready, _ = ray.wait(waiting, num_returns=1, timeout=WATCH_SECONDS)
        if ready:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for ref in ready:
            task = self.processes.tasks.pop(ref)
            try:
                result = ray.get(ref, timeout=self.settings.timeout)
            except RayTaskError as error:
                if not isinstance(error.cause, RayError):
                    raise error.cause from error
                self._retry(task, error.cause)
            except RayError as error:
                self._retry(task, error)
            else:
                self._progress = time.monotonic()
                getattr(self, f"_on_{task.kind}")(task, result)
        self._watch()

    def _retry(self, task: Task, error: Exception) -> None:
        """It failed because a process died: somebody else will do it."""
        log.warning("%s %d: %s", task.role, task.index, error)
        if isinstance(error, RayActorError):
            self.processes.replace(error)
        if task.kind == "updates":
            self.again.extend(task.data[0])
        elif task.kind == "collected":
            self.collecting -= task.steps * self.model.n_envs
        elif task.kind == "stored":  # it is lost with the buffer
            self.stored += task.steps * self.model.n_envs

    def _watch(self) -> None:
        """:raises _Interrupted: if the head is gone, or nothing happens any more"""
        now = time.monotonic()
        fitting = self.processes.busy_with("prepared")
        if fitting:
            self._progress = now
        if now - self._watched > WATCH_SECONDS:
            self._watched = now
            if not answers(self._head):
                raise _Interrupted(f"The cluster's head at {self._head} does not answer any more.")
        if now - self._progress > self.settings.timeout:
            asked = sorted({f"{task.role} {task.index}" for task in self.processes.tasks.values()})
            raise _Interrupted(f"Nothing was heard of {', '.join(asked) or 'anybody'} for {self.settings.timeout:g} s.")

    def _on_collected(self, task: Task, seen: Collected) -> None:
        self.processes.seen("actor", task.index, seen.pid)
        self.collecting -= task.steps * self.model.n_envs
        which = task.index % self.settings.buffers
        self.processes.ask(Task("stored", "buffer", which, task.steps), "add", task.data)
        self._report(seen)

    def _on_stored(self, task: Task, result: tuple[int, int]) -> None:
        size, pid = result
        self.processes.seen("buffer", task.index, pid)
        self.processes.sizes[task.index] = size
        self.stored += task.steps * self.model.n_envs

    def _on_updates(self, task: Task, updates: list[Update]) -> None:
        numbers, which = task.data
        if updates:
            self.processes.seen("learner", task.index, updates[0].pid)
        else:  # the buffer was empty: it has been replaced
            self.processes.lose(which)
        self.again.extend(numbers[self.optimizer.take(updates) :])

    def _on_prepared(self, task: Task, fit: Any) -> None:
        self.processes.seen("learner", task.index, fit.pid)
        self.optimizer.take_fit(fit)

    def _on_evaluation(self, task: Task, result: tuple[float, float, int]) -> None:
        mean, std, pid = result
        self.processes.seen("evaluator", task.index, pid)
        self.model.logger.record("eval/mean_reward", mean)
        self.model.logger.record("eval/std_reward", std)

    def _on_errors(self, task: Task, errors: dict[str, float]) -> None:
        for name, value in errors.items():
            self.model.logger.record(f"train/{name}", value)

    # ---------------------------------------------------------------- what the user sees

    def _report(self, seen: Collected) -> None:
        """To the callback and the log, as SB3's ``collect_rollouts`` does."""
        model = self.model
        self.callback.on_rollout_start()
        for rewards, dones, infos in zip(seen.rewards, seen.dones, seen.infos, strict=True):
            model.num_timesteps += model.n_envs
            self.callback.update_locals({"self": model, "rewards": rewards, "dones": dones, "infos": infos})
            if not self.callback.on_step():
                self.stopped = True
                return
            model._update_info_buffer(infos, dones)
            model._update_current_progress_remaining(model.num_timesteps, self.total)
            for _ in range(int(dones.sum())):
                model._episode_num += 1
                self.pace.count_episode(model.num_timesteps)
                if self.log_interval is not None and model._episode_num % self.log_interval == 0:
                    self._log()
        self.callback.on_rollout_end()
        if model.num_timesteps >= self._next_checkpoint:
            self._next_checkpoint = model.num_timesteps + self.settings.checkpoint_freq
            self._checkpoint()

    def _log(self) -> None:
        optimizer, record, now = self.optimizer, self.model.logger.record, time.monotonic()
        updates, seconds = optimizer.version - self._logged_updates, now - self._logged_at
        self._logged_updates, self._logged_at = optimizer.version, now
        record("async/updates_per_second", updates / max(seconds, 1e-9))
        if optimizer.staleness:
            record("async/staleness_mean", float(np.mean(optimizer.staleness)))
            record("async/staleness_max", max(optimizer.staleness))
        record("async/dropped", optimizer.dropped)
        record("async/replaced", self.processes.replaced)
        for stage, times in optimizer.times.items():
            record(f"async/{stage}_ms", 1000 * float(np.mean(times)))
        for name, values in optimizer.logged.items():
            record(name, float(np.mean(values)))
        record("train/n_updates", self.model._n_updates, exclude="tensorboard")
        self._wants_errors = self.model._needs_model()
        for kept in (optimizer.staleness, optimizer.times, optimizer.logged):
            kept.clear()
        OffPolicyAlgorithm.dump_logs(self.model)

    def _checkpoint(self) -> Path:
        """:return: the file"""
        path = self.settings.checkpoint_file
        self.model.save(path)
        return path

    def _finish(self) -> None:
        """Bring the experience home."""
        contents = [buffer.content.remote() for buffer in self._buffers]
        try:
            parts = ray.get(contents, timeout=self.settings.timeout)
        except RayError as error:
            raise _Interrupted(f"The replay buffers' content could not be fetched: {error}") from error
        store(self.model.replay_buffer, parts)
        if left := list(self.processes.tasks):  # what is ended in the middle of a task is reported by Ray
            ray.wait(left, num_returns=len(left), timeout=1)


class _Interrupted(Exception):
    """Training cannot go on."""


def _shares(content: dict[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    """Stretches of about the same length, one for each buffer."""
    split = {name: np.array_split(part, count) for name, part in content.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(count)]
