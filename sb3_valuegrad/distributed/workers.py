"""The processes: each has a copy of the algorithm and does one thing with it. The trainer makes Ray actors of them."""

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.model_based import Losses, ModelBasedAlgorithm
from sb3_valuegrad.distributed.remote_replay import NoExperience, RemoteReplay, packed, unpacked
from sb3_valuegrad.distributed.state import WORLD_MODEL, Networks, cut, empty_buffer, experience, export, restore, store
from sb3_valuegrad.gradients import recorded_steps
from sb3_valuegrad.world_models import Transitions


@dataclass
class Blueprint:
    """What a process needs to build its copy of the algorithm, and to build it again when it is replaced."""

    algorithm: type[ValueGradientAlgorithm]
    file: bytes
    """as ``model.save`` writes it"""
    make_env: Callable[[], Any]
    seed: int | None
    timeout: float
    buffers: int

    def build(self, env: Any = None, **changes: Any) -> ValueGradientAlgorithm:
        """The algorithm, on the CPU, silent; with room for next to no experience, if nothing else is said."""
        quiet = {"tensorboard_log": None, "verbose": 0, "buffer_size": 1, **changes}
        model = self.algorithm.load(io.BytesIO(self.file), env, device="cpu", **quiet)
        model.set_logger(configure(None, []))
        return model


class Now(NamedTuple):
    """Where training is: sent with every task."""

    version: int
    """updates so far"""
    parts: dict[str, tuple[int, Any]]
    """part of the state -> its number, another whenever it has changed, and where Ray keeps it"""
    memory: dict[str, Any]
    """counters and the like, by the attribute's name"""


class Update(NamedTuple):
    """A gradient step as a learner made it."""

    number: int
    version: int
    """of the parameters that the gradients belong to: as the optimizer sent them, and the task's earlier steps on top"""
    steps: list[tuple[list[int], list[list[np.ndarray | None]]]]
    """optimizers by their place in ``_optimizers()``, and their parameters' gradients"""
    observed: list[Transitions]
    """what the world model took note of"""
    statistics: list[np.ndarray]
    """running ones (batch norm) of the networks that have targets"""
    memory: dict[str, Any]
    logged: dict[str, float]
    times: dict[str, float]
    pid: int


class Worker:
    """Keeps a copy of the algorithm up to date.

    :param kept: where Ray keeps the :class:`Blueprint`
    :param offset: of the seed, another for every process
    """

    def __init__(self, kept: list[Any], offset: int):
        th.set_num_threads(1)
        self.blueprint: Blueprint = ray.get(kept[0])
        blueprint = self.blueprint
        self.here: dict[str, int] = {}
        self.replay = RemoteReplay(blueprint.timeout, blueprint.buffers)
        self.model = self._build()
        if blueprint.seed is not None:
            # Whoever replaces a process that has died must not relive its random numbers.
            context = ray.get_runtime_context()
            again = context.get_actor_id() is not None and context.was_current_actor_reconstructed
            self.model.set_random_seed(blueprint.seed + offset + (os.getpid() * 10_000 if again else 0))

    def _build(self) -> ValueGradientAlgorithm:
        model = self.blueprint.build()
        model.replay_buffer = self.replay  # type: ignore[assignment]
        return model

    def pid(self) -> int:
        """This process."""
        return os.getpid()

    def node(self) -> str:
        """The machine it runs on, by Ray's name."""
        return str(ray.get_runtime_context().get_node_id())

    def _update(self, now: Now) -> None:
        """Fetch what is newer than what is here."""
        for part, (number, state) in now.parts.items():
            if self.here.get(part) != number:
                restore(self.model, part, ray.get(state, timeout=self.blueprint.timeout))
                self.here[part] = number
        self.model.__dict__.update(now.memory)


class Collected(NamedTuple):
    """What happened in the environments, T steps of n_envs; what is stored travels apart."""

    rewards: np.ndarray
    """(T, n_envs)"""
    dones: np.ndarray
    """(T, n_envs)"""
    infos: list[list[dict[str, Any]]]
    """where episodes ended: their returns"""
    pid: int


class Actor(Worker):
    """Collects experience with the policy as it is, exploration included, in environments of its own."""

    def _build(self) -> ValueGradientAlgorithm:
        model = self.blueprint.build(self.blueprint.make_env())
        counted = model.num_timesteps
        model._setup_learn(0, reset_num_timesteps=False)  # it resets the environments
        model.num_timesteps = counted
        model.replay_buffer = self.replay  # type: ignore[assignment]
        return model

    def collect(self, now: Now, steps: int, buffer: Any, stored: int, total_timesteps: int) -> tuple[Any, Collected]:
        """``steps`` steps of each environment.

        :return: arguments of ``ReplayBuffer.add``, step by step, and what happened
        """
        model = self.model
        self._update(now)
        model._total_timesteps = total_timesteps
        self.replay.buffer, self.replay.stored, self.replay.new = buffer, stored, []
        watched = _Watch()
        watched.init_callback(model)
        assert model.env is not None
        model.collect_rollouts(
            model.env,
            watched,
            TrainFreq(steps, TrainFrequencyUnit.STEP),
            self.replay,  # type: ignore[arg-type]
            model.action_noise,
            model.learning_starts,
            log_interval=None,
        )
        return (os.getpid(), self.replay.new), watched.collected()


class _Watch(BaseCallback):
    """Notes each step of a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[np.ndarray] = []
        self.dones: list[np.ndarray] = []
        self.infos: list[list[dict[str, Any]]] = []

    def _on_step(self) -> bool:
        self.rewards.append(np.array(self.locals["rewards"]))
        self.dones.append(np.array(self.locals["dones"]))
        kept = ("episode", "is_success", "TimeLimit.truncated")
        self.infos.append([{key: info[key] for key in kept if key in info} for info in self.locals["infos"]])
        return True

    def collected(self) -> Collected:
        return Collected(np.stack(self.rewards), np.stack(self.dones), self.infos, os.getpid())


class Buffer(Worker):
    """Keeps a share of the experience, and draws minibatches from it."""

    def __init__(self, kept: list[Any], offset: int, capacity: int):
        self.capacity = capacity
        super().__init__(kept, offset)
        self.source: int | None = None

    def start_from(self, content: dict[str, np.ndarray]) -> int:
        """Experience from before; whoever replaces this process does not have it.

        :return: steps stored, of each environment
        """
        store(self.model.replay_buffer, [content])
        return self.model.replay_buffer.size()

    def _build(self) -> ValueGradientAlgorithm:
        return self.blueprint.build(buffer_size=self.capacity)

    def add(self, chunk: tuple[int, list[tuple[Any, ...]]]) -> tuple[int, int]:
        """Store what an actor has collected.

        :return: steps stored by now, of each environment; this process
        """
        source, steps = chunk
        buffer = self.model.replay_buffer
        if source != self.source:  # its steps do not go on from the last one's
            cut(buffer)
            self.source = source
        for step in steps:
            buffer.add(*step)
        return buffer.size(), os.getpid()

    def sample(self, batch_size: int, count: int = 1) -> Any:
        """Minibatches as arrays, and the seconds that each took; None while there is nothing."""
        if self.model.replay_buffer.size() == 0:
            return None
        start = time.perf_counter()
        batches = [packed(ModelBasedAlgorithm._sample(self.model, batch_size)) for _ in range(count)]
        return batches, (time.perf_counter() - start) / count

    def stretches(self, count: int, most: int, newest: int | None) -> Any:
        """Stretches of experience (SVG) as arrays; None while there is nothing."""
        buffer: Any = self.model.replay_buffer
        if buffer.size() == 0:
            return None
        return packed(buffer.windows(buffer.draw(count, most, newest)))

    def content(self) -> dict[str, np.ndarray]:
        """All that is stored."""
        return experience(self.model.replay_buffer)

    def model_errors(self, now: Now) -> dict[str, float]:
        """The world model's prediction errors on what it is not fitted to."""
        self._update(now)
        return self.model.model_errors()


class Learner(Worker):
    """Makes gradient steps on its copy, and hands over their gradients."""

    def __init__(self, kept: list[Any], offset: int):
        super().__init__(kept, offset)
        self.observed: list[Transitions] = []
        self.imagined = 0
        observe = self.model._observe

        def note(data: Transitions) -> None:
            self.observed.append(data)
            observe(data)

        setattr(self.model, "_observe", note)  # noqa: B010

    def updates(self, now: Now, numbers: list[tuple[int, bool]], drawn: Any, buffer: Any, imagined: Any) -> list[Update]:
        """Gradient steps one after the other; the optimizer takes them, too, with these gradients.

        :param numbers: of the updates, and whether each is the first of a ``train()``
        :param drawn: a minibatch for each that needs a new one, see :meth:`Buffer.sample`
        :param buffer: where more can be had
        :param imagined: version and content of the imagined transitions, where they are made after a fit
        :return: none if there was no experience
        :raises ValueError: if a loss is not finite
        """
        if drawn is None:
            return []
        start = time.perf_counter()
        self._update(now)
        self._take_imagined(imagined)
        self.replay.buffer, self.replay.drawn = buffer, list(drawn[0])
        self.model.policy.set_training_mode(True)
        self.model._update_learning_rates()
        transfer = (time.perf_counter() - start) / len(numbers)
        # The steps are made here, too: then the copy is no version of the optimizer's.
        self.here = {}
        made = []
        try:
            for later, (number, imagines) in enumerate(numbers):
                update = self._one_update(number, imagines)
                update.times.update(sample=drawn[1], transfer=transfer)
                made.append(update._replace(version=now.version + later))
        except NoExperience:
            return []
        if not update.observed:
            self.here[WORLD_MODEL] = now.parts[WORLD_MODEL][0]
        return made

    def _one_update(self, number: int, imagines: bool) -> Update:
        model, self.observed = self.model, []
        start = time.perf_counter()
        losses: Losses = defaultdict(list)
        model.logger.name_to_value.clear()
        if imagines:
            model._last_fit = model.num_timesteps  # fits are for `prepare`
            model._prepare_model(model.batch_size, losses)
        model._n_updates = number
        with recorded_steps() as steps:
            model._gradient_step(model.batch_size, losses)
        model._record(losses)
        optimizers = [optimizer for optimizer, _ in model._optimizers().values()]
        return Update(
            number,
            0,
            [([_place(optimizers, o) for o in step.optimizers], packed(step.gradients)) for step in steps],
            packed(self.observed),
            packed([statistic.clone() for statistic in model._online_statistics]),
            {name: getattr(model, name) for name in model.update_memory},
            {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")},
            {"gradient": time.perf_counter() - start},
            os.getpid(),
        )

    def _take_imagined(self, imagined: Any) -> None:
        if imagined is not None and imagined[0] != self.imagined:
            self.imagined = imagined[0]
            self.model.imagined.load_state_dict(unpacked(ray.get(imagined[1], timeout=self.blueprint.timeout)))  # type: ignore[attr-defined]

    def prepare(self, now: Now, *contents: dict[str, np.ndarray]) -> "Prepared":
        """The world model's fit, to all experience, and what follows from it; by value.

        :param contents: what the buffers hold
        """
        model = self.model
        self._update(now)
        whole = empty_buffer(model, sum(len(content["dones"]) for content in contents) * model.n_envs)
        store(whole, list(contents))
        losses: Losses = defaultdict(list)
        model.replay_buffer = whole
        try:
            model._update_learning_rates()
            # Not the leaf's own: what it imagines before its updates is the learners' affair.
            ModelBasedAlgorithm._prepare_model(model, model.batch_size, losses)
        finally:
            model.replay_buffer = self.replay  # type: ignore[assignment]
        if losses:
            model._record(losses)
        self.here = {}
        state = export(model, WORLD_MODEL)
        imagined = getattr(model, "imagined", None)
        kept = packed(imagined.state_dict()) if imagined is not None and len(imagined) > 0 else None
        memory = {name: getattr(model, name) for name in ("_n_model_updates", "_last_fit")}
        return Prepared(state, kept, memory, dict(model.logger.name_to_value), os.getpid())


class Prepared(NamedTuple):
    """A fit's result."""

    world_model: Networks
    imagined: Any
    memory: dict[str, Any]
    logged: dict[str, float]
    pid: int


def _place(optimizers: list[th.optim.Optimizer], wanted: th.optim.Optimizer) -> int:
    return next(place for place, optimizer in enumerate(optimizers) if optimizer is wanted)


class Evaluator(Worker):
    """Plays whole episodes with the policy, without exploration."""

    def _build(self) -> ValueGradientAlgorithm:
        return self.blueprint.build(self.blueprint.make_env())

    def evaluate(self, now: Now, episodes: int) -> tuple[float, float, int]:
        """Mean and standard deviation of the returns; this process."""
        self._update(now)
        env = self.model.get_env()
        assert env is not None
        returns = evaluate_policy(self.model, env, episodes, return_episode_rewards=True)[0]
        return float(np.mean(returns)), float(np.std(returns)), os.getpid()
