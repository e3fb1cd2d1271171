"""What :func:`~sb3_valuegrad.distributed.learn` takes beside SB3's arguments, and what it refuses."""

import io
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.distributed.workers import Blueprint
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.replay import PackedReplayBuffer
from sb3_valuegrad.trajectories import TrajectoryReplayBuffer

BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, PackedReplayBuffer, TrajectoryReplayBuffer)


@dataclass
class Settings:
    """How the work is shared.

    :param n_actors: processes that collect experience, each in environments of its own (as many as the model has)
    :param n_learners: processes that compute gradients, each on one core
    :param n_buffers: processes that keep experience, each its share of ``buffer_size``; None: one an actor
    :param max_staleness: a gradient is dropped if more updates than this were made since its parameters were sent; None:
        twice as many as the learners have in hand. One learner's are never stale: that is synchronous learning
    :param updates_per_task: gradient steps that a learner makes one after the other before it hands them over and fetches new
        parameters: more of them cost less of the time for transfers, and are staler where there are several learners
    :param env: Gymnasium id, or a function that makes what an actor steps (an environment or SB3's ``VecEnv``); None: what
        the model's environment was made from
    :param address: ``host:port`` of a Ray cluster's head, which this machine belongs to; None: this machine alone
    :param eval_freq: environment steps from one evaluation to the next, in a process of its own; None: none
    :param n_eval_episodes: episodes of each
    :param checkpoint_path: file that the model is saved to; None: one in a temporary folder
    :param checkpoint_freq: environment steps from one time to the next
    :param timeout: seconds without any result after which training stops with an error; the world model's fits apart
    """

    n_actors: int = 1
    n_learners: int = 2
    n_buffers: int | None = None
    max_staleness: int | None = None
    updates_per_task: int = 4
    env: str | Callable[[], gym.Env | VecEnv] | None = None
    address: str | None = None
    eval_freq: int | None = None
    n_eval_episodes: int = 5
    checkpoint_path: str | Path | None = None
    checkpoint_freq: int = 10_000
    timeout: float = 120.0
    checkpoint_file: Path = field(init=False)

    def __post_init__(self) -> None:
        """:raises ValueError: naming the argument, its value and the way out"""
        for name in ("n_actors", "n_learners", "updates_per_task", "n_eval_episodes", "checkpoint_freq"):
            check_count(name, getattr(self, name), 1)
        for name, least in {"n_buffers": 1, "max_staleness": 0, "eval_freq": 1}.items():
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if self.buffers > self.n_actors:
            raise ValueError(f"n_buffers={self.n_buffers} is more than n_actors={self.n_actors}: some would stay empty")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout} must be positive, in seconds")
        default = Path(tempfile.gettempdir(), f"sb3_valuegrad_{os.getpid()}_{id(self):x}")
        path = Path(self.checkpoint_path or default).absolute()
        self.checkpoint_file = path if path.suffix else path.with_suffix(".zip")  # as SB3 names it

    @property
    def buffers(self) -> int:
        """How many."""
        return self.n_actors if self.n_buffers is None else self.n_buffers

    @property
    def staleness_bound(self) -> int:
        """In updates."""
        return 2 * self.n_learners * self.updates_per_task if self.max_staleness is None else self.max_staleness


def check(model: Any, settings: Settings) -> None:
    """:raises ValueError: for a model that cannot learn this way, saying why and the way out"""
    if not isinstance(model, ValueGradientAlgorithm):
        raise ValueError(f"model={type(model).__name__} is none of this package's algorithms; use its own learn()")
    if model.env is None:
        raise ValueError("model has no environment; give it one with model.set_env(...)")
    reason = _reason_against(model)
    if reason is not None:
        raise ValueError(f"{type(model).__name__} cannot learn asynchronously here: {reason}")
    kind: Any = model.replay_buffer_class
    if kind not in BUFFERS or model.optimize_memory_usage:
        raise ValueError(
            f"replay_buffer_class={kind.__name__} with optimize_memory_usage={model.optimize_memory_usage} cannot be kept in "
            f"other processes; use one of {[known.__name__ for known in BUFFERS]}, and optimize_memory_usage=False"
        )
    if kind in (NStepReplayBuffer, TrajectoryReplayBuffer) and settings.buffers < settings.n_actors:
        raise ValueError(
            f"n_buffers={settings.n_buffers} with n_actors={settings.n_actors}: {kind.__name__} replays stretches of "
            "experience, and those of several actors would cut each other short; use one buffer an actor (n_buffers=None)"
        )


def _reason_against(model: Any) -> str | None:
    """Why not, and the way out."""
    if model._vec_normalize_env is not None:
        return (
            "VecNormalize's running statistics would differ from actor to actor; scale observations in an environment "
            "wrapper with fixed numbers (the learned world models have scales of their own), or use model.learn()"
        )
    if getattr(model, "fictitious_samples", 0) > 0:
        return "DDPG(model) learns after each episode from states imagined then; use fictitious_samples=0, or model.learn()"
    if not getattr(model, "policy_replay", True):
        return (
            "policy_replay=False learns from experience of the newest policy alone, and an actor's policy is older than "
            "that; use policy_replay=True and a finite horizon, or model.learn()"
        )
    if getattr(model, "policy_gradient_steps", None) is not None:
        return "policy_gradient_steps come after whole episodes; use policy_gradient_steps=None, or model.learn()"
    return None


def blueprint_of(model: ValueGradientAlgorithm, settings: Settings) -> Blueprint:
    """What the processes build their copies from.

    :raises ValueError: if the environment cannot be made again, or another one came out
    """
    file = io.BytesIO()
    model.save(file)
    make_env = _maker(model, settings.env)
    env = make_env()
    try:
        spaces = env.observation_space, env.action_space
        single = env.num_envs if isinstance(env, VecEnv) else 1
    finally:
        env.close()
    if spaces != (model.observation_space, model.action_space) or single != model.n_envs:
        raise ValueError(
            f"env={settings.env!r} makes {single} environment(s) with spaces {spaces}, but the model was built for "
            f"{model.n_envs} with {(model.observation_space, model.action_space)}"
        )
    return Blueprint(type(model), file.getvalue(), make_env, model.seed, settings.timeout, settings.buffers)


def _maker(model: ValueGradientAlgorithm, env: str | Callable[[], Any] | None) -> Callable[[], Any]:
    if callable(env):
        return env
    if env is not None:
        try:
            return partial(_make, [gym.spec(env)] * model.n_envs)  # the other processes may not have registered it
        except gym.error.Error as error:
            raise ValueError(f"env={env!r} is no id of Gymnasium: {error}") from error
    envs = model.env.envs if isinstance(model.env, DummyVecEnv) else []
    specs = [(one.env if isinstance(one, Monitor) else one).spec for one in envs]
    try:
        if not specs or None in specs:
            raise ValueError("it was not made by gymnasium.make")
        maker = partial(_make, specs)
        maker().close()
    except Exception as error:
        raise ValueError(
            f"env=None: the model's environment cannot be made again in other processes ({error}); give env=, its "
            "Gymnasium id or a function that makes it"
        ) from error
    return maker


def _make(specs: list[Any]) -> VecEnv:
    return DummyVecEnv([partial(_monitored, spec) for spec in specs])


def _monitored(spec: Any) -> Monitor:
    return Monitor(gym.make(spec))
