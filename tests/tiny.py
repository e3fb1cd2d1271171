"""Small models and environments: everything that the ecosystem tests need, in milliseconds."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_valuegrad import DVPG, MPG
from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm

SMALL_NETS: dict[str, Any] = {"net_arch": [16], "world_model_kwargs": {"net_arch": [16]}}


class PointEnv(gym.Env):
    """Drive a point to the origin: ``s' = s + 0.1 a``, reward ``-|s'|^2``. The observation's space is the caller's.

    :param observation_space: what ``s``, drawn from [-1, 1], is shown as: a Box of any shape, MultiBinary, or a Dict
    :param length: steps to the time limit, or to the termination
    :param terminates: end with a termination; False: with a time limit
    """

    def __init__(self, observation_space: spaces.Space | None = None, length: int = 10, terminates: bool = False):
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32) if observation_space is None else observation_space
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.length, self.terminates = length, terminates

    def _show(self, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._show(part) for key, part in space.spaces.items()}
        values = np.resize(self.state, space.shape or ())
        return (values > 0).astype(np.int8) if isinstance(space, spaces.MultiBinary) else values.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self._show(self.observation_space), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state, self.steps = self.state + 0.1 * action, self.steps + 1
        over = self.steps == self.length
        reward = -float(self.state @ self.state)
        return self._show(self.observation_space), reward, over and self.terminates, over and not self.terminates, {}


class SpoiltEnv(PointEnv):
    """A :class:`PointEnv` whose outputs turn bad at one step of its life.

    :param what: "obs", "terminal obs", "reward" or "first obs"
    :param value: what is returned then
    :param at: the step
    """

    def __init__(self, what: str, value: float, at: int = 30):
        super().__init__()
        self.what, self.value, self.at, self.life = what, value, at, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        return (np.full_like(obs, self.value) if self.what == "first obs" else obs), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        self.life += 1
        bad = self.life >= self.at
        if bad and (self.what == "obs" or (self.what == "terminal obs" and truncated)):
            obs = np.full_like(obs, self.value)
        return obs, self.value if bad and self.what == "reward" else reward, terminated, truncated, info


def tiny(env: Any = None, algorithm: type[ValueGradientAlgorithm] = DVPG, **kwargs: Any) -> Any:
    """A model with small networks that begins to learn after 20 steps. (Any: tests look into every corner of it.)"""
    env = PointEnv() if env is None else env
    space = env.observation_space if hasattr(env, "observation_space") else None
    policy = kwargs.pop("policy", "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy")
    policy_kwargs = {**SMALL_NETS, **kwargs.pop("policy_kwargs", {})}
    settings: dict[str, Any] = {"learning_starts": 20, "batch_size": 16, "buffer_size": 1000, "seed": 0, "device": "cpu"}
    settings["horizons" if algorithm is MPG else "horizon"] = (0, 2) if algorithm is MPG else 2
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **{**settings, **kwargs})


def snapshot(model: ValueGradientAlgorithm) -> dict[str, th.Tensor]:
    """Copies of all parameters, buffers and optimizer states, by name."""
    return {name: value.clone() for name, value in tensors(model.get_parameters()).items()}


def tensors(tree: Any, name: str = "") -> dict[str, th.Tensor]:
    """The tensors of nested dictionaries and lists, by path."""
    if isinstance(tree, th.Tensor):
        return {name: tree}
    if not isinstance(tree, (dict, list, tuple)):
        return {}
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {path: value for key, part in parts for path, value in tensors(part, f"{name}/{key}").items()}


def same(left: dict[str, th.Tensor], right: dict[str, th.Tensor]) -> bool:
    """Whether two snapshots have equal names and values, bit by bit."""
    return left.keys() == right.keys() and all(th.equal(left[name], right[name]) for name in left)
