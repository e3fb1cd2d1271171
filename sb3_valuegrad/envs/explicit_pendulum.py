"""MuJoCo's inverted pendulum with a reward that is a formula (Guan et al., *Mixed Policy Gradient*, App. B-B)."""

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

FURTHEST_TILT = 0.2  # rad, InvertedPendulum-v5's


class ExplicitInvertedPendulum(InvertedPendulumEnv):
    """InvertedPendulum-v5 with ``r = -(0.01 x^2 + theta^2 + 0.1 x_dot^2 + 0.1 theta_dot^2)`` of the next state (eq. 18).

    Observation: x (m), theta (rad), their rates. Action: in [-3, 3], of which each unit is a force of 100 N on the cart. The
    paper calls a return of -2 in 100 steps the least that works. Nothing terminates; a pole that tilts by more than 0.2 rad
    (where InvertedPendulum-v5 terminates) truncates the episode, for the reason given in
    :class:`~sb3_valuegrad.envs.path_tracking.PathTrackingEnv`.

    :param early_reset: take back a pole that tilts so far, as in training; False: all episodes have the same length, as in the
        paper's evaluations
    :param kwargs: InvertedPendulum-v5's
    """

    def __init__(self, early_reset: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.early_reset = early_reset

    def cuts_off(self, observations: np.ndarray) -> np.ndarray:
        """Whether an episode is truncated in these states (N, 4), (N,) bool, for the oracle."""
        return (np.abs(observations[:, 1]) > FURTHEST_TILT) & self.early_reset

    def step(self, action: np.ndarray) -> Any:
        """0.04 s; ``info["off_track"]`` says whether the pole tilts too far."""
        obs, _, off_track, _, _ = super().step(action)
        x, theta, x_dot, theta_dot = obs
        reward = -float(0.01 * x**2 + theta**2 + 0.1 * x_dot**2 + 0.1 * theta_dot**2)
        return obs, reward, False, self.early_reset and off_track, {"off_track": off_track}
