"""Tasks whose observation Gymnasium cuts off: Walker2d's, Hopper's and the double pendulum's velocities at 10.

A state with a faster joint could not be told from its observation, and random actions make Walker2d's joints faster in
the first five steps. (The authors of MVE add the root's position and keep the cut in Walker2d. Up to a speed of 10 the
observations are the same.)
"""

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv as HopperV4
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv as HopperV5
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from gymnasium.envs.mujoco.walker2d_v4 import Walker2dEnv as Walker2dV4
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv as Walker2dV5
from gymnasium.spaces import Box


class FullState(MujocoEnv):
    """Observes all positions and velocities as they are."""

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


class Walker2dObservableV4(FullState, Walker2dV4):
    """Walker2d-v4 with root x, and velocities that are not cut off."""


class Walker2dObservableV5(FullState, Walker2dV5):
    """Walker2d-v5 with root x, and velocities that are not cut off."""


class HopperObservableV4(FullState, HopperV4):
    """Hopper-v4 with root x, and velocities that are not cut off."""


class HopperObservableV5(FullState, HopperV5):
    """Hopper-v5 with root x, and velocities that are not cut off."""


class InvertedDoublePendulumObservable(InvertedDoublePendulumEnv):
    """InvertedDoublePendulum-v5 with velocities that are not cut off, and without the force of the rail's end."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observation_space = Box(-np.inf, np.inf, (8,), np.float64)

    def _get_obs(self) -> np.ndarray:
        cart, angles = self.data.qpos[:1], self.data.qpos[1:]
        return np.concatenate([cart, np.sin(angles), np.cos(angles), self.data.qvel])
