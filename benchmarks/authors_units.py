"""Path tracking in the units of the MPG authors' code, which the paper does not mention: x in multiples of the path's period
(ours: of 100 m), and rewards in hundredths. Both are small numbers for networks: what depends on x is learned late.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_valuegrad.envs.path_tracking import X_UNIT, PathTrackingEnv, PathTrackingVectorEnv
from sb3_valuegrad.envs.priors import PRIORS, vehicle_reward, vehicle_step
from sb3_valuegrad.envs.vehicle import PATH_PERIOD

ENV, REWARD_UNIT = "PathTrackingAuthorsUnits-v0", 100.0
OBSERVATION_UNITS = [1.0, 1.0, 1.0, 1.0, 1.0, PATH_PERIOD / X_UNIT]
UNITS = np.array(OBSERVATION_UNITS, dtype=np.float32)


class AuthorsUnits(PathTrackingEnv):
    """One vehicle.

    :param reward_unit: 1 for evaluations, so that returns compare
    :param kwargs: PathTracking-v0's
    """

    def __init__(self, reward_unit: float = REWARD_UNIT, **kwargs: Any):
        super().__init__(**kwargs)
        self.reward_unit = reward_unit

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = super().reset(**kwargs)
        return obs / UNITS, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return (obs / UNITS, reward / self.reward_unit, *rest)

    @staticmethod
    def step_from(observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        next_obs, rewards, terminated = PathTrackingEnv.step_from(observations * UNITS, actions)
        return next_obs / UNITS, rewards / REWARD_UNIT, terminated

    def cuts_off(self, observations: np.ndarray) -> np.ndarray:
        return super().cuts_off(observations * UNITS)


class AuthorsUnitsVectorEnv(PathTrackingVectorEnv):
    """Vehicles side by side."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = super().reset(**kwargs)
        return obs / UNITS, info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, rewards, terminated, truncated, info = super().step(actions)
        if "final_obs" in info:
            info["final_obs"] = info["final_obs"] / UNITS
        return obs / UNITS, rewards / REWARD_UNIT, terminated, truncated, info


def prior_step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """The prior model of ``sb3_valuegrad.envs.priors``."""
    units = obs.new_tensor(OBSERVATION_UNITS)
    return vehicle_step(obs * units, actions) / units


def prior_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Of the state before the step, which the reward does not ask for x."""
    return vehicle_reward(obs, actions, next_obs) / REWARD_UNIT


PRIOR = {**PRIORS["PathTracking-v0"], "transition_fn": prior_step, "reward_fn": prior_reward}

gym.register(ENV, AuthorsUnits, max_episode_steps=200, vector_entry_point=AuthorsUnitsVectorEnv)
