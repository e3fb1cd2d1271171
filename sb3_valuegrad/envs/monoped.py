"""A monoped that falls from a height and must keep standing, with noise on its motors (Heess et al., *Stochastic Value
Gradients*, sec. 6.2)."""

from typing import Any

import numpy as np
import torch as th
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle

# The paper gives the length of an episode and the noise. Its body has a joint more than Gymnasium's Hopper-v5; the other
# numbers are ours.
TORQUE_NOISE = 0.05  # standard deviation, as a share of a motor's largest torque
DROP = 0.2  # m, of the foot above the ground at the start
START_SPREAD = 0.1  # rad and rad/s, at most, of each joint and of the torso
STANDING = 1.25  # m, of the torso when the leg is straight
HEIGHT_WEIGHT, TILT_WEIGHT, ACTION_WEIGHT = -1.0, -1.0, -1e-3  # of (z - 1.25)^2 (m^2), 1 - cos(tilt) and |a|^2


class MonopedEnv(HopperEnv):
    """Land on one leg and stay upright, on joints whose torques are noisy at all times.

    Body and units are those of Gymnasium's Hopper-v5, which has a joint less than the paper's monoped. Observation:
    Hopper-v5's 11 numbers (height, angles, velocities), velocities not cut off. Action: three torques, in [-1, 1], to which
    Gaussian noise is added, drawn anew in every step.

    Reward, of the next state: ``-(z - 1.25)^2 - (1 - cos tilt) - 0.001 |a|^2`` of the torso's height (m) and tilt; the paper
    prints none. Nothing terminates, so that it pays to rise again; the registered task is cut after the paper's 200 steps.

    :param torque_noise: standard deviation of the noise as a share of a motor's largest torque; the paper trains with 0.05 and
        tests with up to 0.25
    :param kwargs: Gymnasium's, of its MuJoCo environments: ``render_mode``, ``width``, ...
    :raises ValueError: for a negative ``torque_noise``
    """

    def __init__(self, torque_noise: float = TORQUE_NOISE, **kwargs: Any):
        if not torque_noise >= 0:
            raise ValueError(f"torque_noise={torque_noise} must be at least 0; with 0 there is none")
        super().__init__(**kwargs)
        EzPickle.__init__(self, torque_noise, **kwargs)  # Hopper-v5's own would be made anew with its arguments, not ours
        self.torque_noise = torque_noise
        self.observation_space = Box(-np.inf, np.inf, (11,), np.float64)
        # We cut actions off ourselves, before the noise: MuJoCo would cut the noise off, too, where an action is at its bound.
        self.model.actuator_ctrllimited[:] = False

    def reset_model(self) -> np.ndarray:
        """Nearly upright, in the air."""
        place = self.init_qpos.copy()
        place[1] += DROP
        place[2:] += self.np_random.uniform(-START_SPREAD, START_SPREAD, self.model.nq - 2)
        # Thigh and leg bend one way only.
        place[3:5] = -np.abs(place[3:5])
        speeds = np.concatenate([[0.0, 0.0], self.np_random.uniform(-START_SPREAD, START_SPREAD, self.model.nv - 2)])
        self.set_state(place, speeds)
        return self._get_obs()

    def step(self, action: np.ndarray) -> Any:
        """0.008 s."""
        action = np.clip(action, -1, 1).astype(np.float64)
        self.do_simulation(action + self.np_random.normal(0, self.torque_noise, action.shape), self.frame_skip)
        obs = self._get_obs()
        height, tilt = obs[:2]
        if self.render_mode == "human":
            self.render()
        of_state = HEIGHT_WEIGHT * (height - STANDING) ** 2 + TILT_WEIGHT * (1 - np.cos(tilt))
        reward = of_state + ACTION_WEIGHT * action @ action
        return obs, float(reward), False, False, {}

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([self.data.qpos[1:], self.data.qvel])


def monoped_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """The reward as a torch function, ``reward_fn`` of the learned world models: (N, 11), (N, 3), (N, 11) to (N,)."""
    of_state = HEIGHT_WEIGHT * (next_obs[:, 0] - STANDING).square() + TILT_WEIGHT * (1 - next_obs[:, 1].cos())
    return of_state + ACTION_WEIGHT * actions.square().sum(1)
