"""The processes: who they are, what they have been asked for, and who takes the place of one that dies."""

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from sb3_valuegrad.distributed.arguments import Settings
from sb3_valuegrad.distributed.workers import Actor, Blueprint, Buffer, Evaluator, Learner

log = logging.getLogger(__name__)

ROLES = {"actor": Actor, "buffer": Buffer, "learner": Learner, "evaluator": Evaluator}


@dataclass
class Task:
    """What a process has been asked for."""

    kind: str
    role: str
    index: int
    steps: int = 0
    """of each environment, where they are collected or stored"""
    data: Any = None
    """the numbers of updates and the buffer they learn from; where the experience is"""


class Processes:
    """All of them; each has one task at a time, buffers as many as come.

    :param blueprint: of the algorithm
    :param settings: how many of each
    :param capacity: steps that each buffer keeps, of all environments of an actor together
    """

    def __init__(self, blueprint: Blueprint, settings: Settings, capacity: int):
        self.timeout, self.capacity = settings.timeout, capacity
        self.tasks: dict[Any, Task] = {}
        self.pids: dict[tuple[str, int], int] = {}
        """by role and index"""
        self.replaced = 0
        self.sizes = [0] * settings.buffers
        """steps in each buffer, of each environment"""
        self.workers: dict[str, list[Any]] = {}
        self._blueprint = ray.put(blueprint)
        self._counts = {"buffer": settings.buffers, "actor": settings.n_actors, "learner": settings.n_learners}
        self._counts["evaluator"] = int(settings.eval_freq is not None)

    def start(self) -> None:
        """:raises ValueError: if one cannot be built"""
        for role, count in self._counts.items():
            self.workers[role] = [self._worker(role, index) for index in range(count)]
        for role, workers in self.workers.items():
            for index, worker in enumerate(workers):
                self.seen(role, index, self._first_word(role, index, worker))

    def _worker(self, role: str, index: int) -> Any:
        """A process. Ray restarts it when it dies, and repeats what it was asked for."""
        offset = 1 + list(ROLES).index(role) * 1000 + index
        more = (self.capacity,) if role == "buffer" else ()
        options = {"num_cpus": int(role == "learner"), "max_restarts": -1, "max_task_retries": -1}
        remote: Any = ray.remote(ROLES[role]).options(**options, scheduling_strategy="SPREAD")
        return remote.remote([self._blueprint], offset, *more)

    def _first_word(self, role: str, index: int, worker: Any) -> int:
        try:
            return ray.get(worker.pid.remote(), timeout=self.timeout)
        except GetTimeoutError as error:
            raise ValueError(
                f"{role} {index} was not there within timeout={self.timeout:g} s: the cluster has no free core for it, or its "
                "machine is busy, where Ray's processes wait for all others unless it was started with RAY_worker_niceness=0. "
                "Raise timeout, or free some cores"
            ) from error
        except RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{role} {index} could not be built in a process of its own: {cause}. Everything that model and "
                "environment are made of must be importable on every machine of the cluster, under the same versions"
            ) from error

    def seen(self, role: str, index: int, pid: int) -> None:
        """Who it was that reported; another process means that the first one has died."""
        before = self.pids.get((role, index))
        self.pids[role, index] = pid
        if before in (None, pid):
            return
        self.replaced += 1
        log.warning("%s %d (process %d) died and was replaced by process %d", role, index, before, pid)
        if role == "buffer":
            self.lose(index)

    def lose(self, index: int) -> None:
        """A buffer is empty."""
        if self.sizes[index] > 0:
            log.warning("buffer %d: the %d steps that it held are lost", index, self.sizes[index])
        self.sizes[index] = 0

    def replace(self, error: RayActorError) -> None:
        """The one that Ray does not restart, because somebody ended it for good."""
        for role, workers in self.workers.items():
            for index, worker in enumerate(workers):
                if worker._actor_id.hex() == error.actor_id:
                    workers[index] = self._worker(role, index)

    def idle(self, role: str) -> list[int]:
        """Those that have nothing to do."""
        busy = {task.index for task in self.tasks.values() if task.role == role}
        return [index for index in range(len(self.workers[role])) if index not in busy]

    def busy_with(self, *kinds: str) -> bool:
        """Whether somebody has a task of this kind."""
        return any(task.kind in kinds for task in self.tasks.values())

    def ask(self, task: Task, method: str, *args: Any, returns: int = 1) -> Any:
        """:return: where the result will be; of two, the first: the task is done when the second is there"""
        worker = self.workers[task.role][task.index]
        refs = getattr(worker, method).options(num_returns=returns).remote(*args)
        first, last = (refs, refs) if returns == 1 else (refs[0], refs[-1])
        self.tasks[last] = task
        return first

    def close(self) -> None:
        """End all processes."""
        for worker in [worker for workers in self.workers.values() for worker in workers]:
            with contextlib.suppress(Exception):
                ray.kill(worker)
