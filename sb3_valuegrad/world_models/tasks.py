"""Gymnasium tasks that the oracle steps: how they are made, and whether what steps them does what they do."""

from collections.abc import Callable
from typing import Any, cast

import gymnasium as gym
import numpy as np

CHECKED_STEPS = 50

# Rows of observations (N, S) and actions (N, A) to next observations (N, S), rewards (N,) and terminations (N,).
StepFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def make_task(env_id: str, env_kwargs: dict[str, Any]) -> gym.Env:
    """The environment.

    :raises ValueError: if Gymnasium cannot make it
    :raises ImportError: if it needs a simulator that is not installed
    """
    try:
        return gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(
            f'env_id={env_id!r} needs a simulator that is missing: {error}. For MuJoCo: pip install "sb3-valuegrad[mujoco]"'
        ) from error
    except gym.error.Error as error:
        raise ValueError(
            f"env_id={env_id!r} cannot be made: {error} If another module registers it, import that one, or name it in the "
            'id: "sb3_valuegrad.envs:HalfCheetahObservable-v5".'
        ) from error


def unscaled(actions: np.ndarray, space: Any) -> np.ndarray:
    """Actions in [-1, 1] to the task's units, as SB3's policies do it."""
    return space.low + 0.5 * (actions + 1) * (space.high - space.low)


def differences(step: StepFunction, env_id: str, env_kwargs: dict[str, Any], tolerance: float) -> list[str]:
    """What comes out otherwise than in random steps of the task itself, by name.

    :param step: takes actions in [-1, 1]
    :param tolerance: of numbers, relative and absolute
    """
    obs, actions, *real = _experience(env_id, env_kwargs)
    # Last things first: in the right order a row would find what the one before it left behind.
    mine = [part[::-1] for part in step(obs[::-1], actions[::-1])]
    names = ("next observation", "reward", "termination")
    return [
        name
        for name, left, right in zip(names, mine, real, strict=True)
        if not np.allclose(left, right, rtol=tolerance, atol=tolerance)
    ]


def _experience(env_id: str, env_kwargs: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Random steps of the task: observations, actions in [-1, 1], next observations, rewards, terminations."""
    env, random = make_task(env_id, env_kwargs), np.random.default_rng(0)
    obs, rows = env.reset(seed=0)[0], []
    for _ in range(CHECKED_STEPS):
        action = random.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(unscaled(action, env.action_space))
        rows.append((obs, action, next_obs, reward, terminated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    env.close()
    return tuple(np.array(column) for column in zip(*rows, strict=True))


class RestoredTask:
    """Steps a task whose environment says itself what follows an observation, for many rows at once.

    Its class has a method ``step_from(observations (N, S), actions (N, A))``, in its own units, which returns the next
    observations (N, S), the rewards (N,) and whether the episode terminated (N,).

    :param env_id: of the task, as for ``gymnasium.make``
    :param env_kwargs: of the task
    :raises ValueError: if observations or actions are not flat, or a trial shows that a step depends on more than them
    """

    # Observations are float32 as a rule; the state that they were rounded from is gone.
    TOLERANCE = 1e-4

    def __init__(self, env_id: str, env_kwargs: dict[str, Any]):
        self.arguments = (env_id, env_kwargs)
        self.env = cast(Any, make_task(env_id, env_kwargs).unwrapped)
        shapes = [self.env.observation_space.shape, self.env.action_space.shape]
        if not all(shape is not None and len(shape) == 1 for shape in shapes):
            raise ValueError(
                f"env_id={env_id!r} has observations and actions of shapes {shapes}; step_from is for flat ones. Flatten them "
                "in the environment, or use a learned world model."
            )
        (self.obs_dim,), (self.action_dim,) = shapes
        differing = differences(self.step, env_id, env_kwargs, self.TOLERANCE)
        if differing:
            raise ValueError(
                f"env_id={env_id!r}: the {' and the '.join(differing)} of {CHECKED_STEPS} steps by step_from did not come out "
                "as in the task. step_from must restore everything from the observation that step makes use of; what no "
                "observation shows, put into it, or use a learned world model."
            )

    def __reduce__(self) -> tuple[type["RestoredTask"], tuple[Any, ...]]:
        """A copy, or what is unpickled, is made afresh, as MuJoCo's is."""
        return RestoredTask, self.arguments

    def step(self, obs: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of the task for N rows; actions (N, A) are scaled to [-1, 1]."""
        next_obs, rewards, terminated = self.env.step_from(obs, unscaled(actions, self.env.action_space))
        return next_obs, rewards, terminated
