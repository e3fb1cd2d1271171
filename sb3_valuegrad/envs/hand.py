"""The hand and the ball (Heess et al., *Stochastic Value Gradients*, sec. 6.1 and app. D): one reward counts, at the end."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_valuegrad.envs.distances import distance

# The paper gives the time step, the length and the form of the reward; the other numbers are ours. The ball swings 1.6 times
# in an episode. With a spring of 20 N/m it swung seven times: to time its last swing a policy must turn round every 0.7 s, and
# even with the true model the policies learned to stand between origin and target, where the sum of the distances is flat.
TIME_STEP, STEPS = 0.01, 1000  # s
MASS, STIFFNESS, GRAVITY = 1.0, 1.0, 1.0  # kg, N/m, m/s^2
FORCE_NOISE = 1.0  # N, standard deviation of each component, anew in every step
ACTION_WEIGHT, FINAL_WEIGHT = -1e-3, -10.0  # alpha_1, alpha_2 of eq. 15
REST = np.array([0.0, -MASS * GRAVITY / STIFFNESS])  # where the ball hangs still below a hand at the origin
TARGETS = REST + np.array([[-1.0, 0.0], [1.0, 0.0]])


class Seen(NamedTuple):
    """The parts of an observation, by columns."""

    hand: slice = slice(0, 2)
    ball: slice = slice(2, 4)
    ball_velocity: slice = slice(4, 6)
    target: slice = slice(6, 8)
    time: slice = slice(8, 9)


SEEN = Seen()


class HandEnv(gym.Env):
    """Move a hand in a vertical plane; a ball hangs from it by a spring, is pulled down and pushed about at random. After
    10 s the hand should be at the origin and the ball at its target, one of two.

    Observation: hand (m), ball (m), velocity of the ball (m/s), target (m), two numbers each; time as a share of the episode.
    Action: the hand's velocity, in [-1, 1]^2 m/s. Reward (eq. 15): ``alpha_1 |a|^2`` until the last step, and there
    ``alpha_2 (|hand| + |ball - target|)``. The episode then terminates: nothing comes after it.

    Masses, forces and weights are not in the paper; they are constants of this module.

    :param steps: length of an episode, of 0.01 s each
    :param force_noise: standard deviation of the random force, N
    :raises ValueError: for ``steps`` below 1
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's form)

    def __init__(self, steps: int = STEPS, force_noise: float = FORCE_NOISE):
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        self.observation_space = spaces.Box(-np.inf, np.inf, (9,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.steps, self.force_noise = steps, force_noise
        self.hand, self.ball, self.velocity, self.target = np.zeros((4, 2))
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The ball hangs still below the hand, which is somewhere within 0.1 m of the origin; a target is drawn."""
        super().reset(seed=seed)
        self.hand = self.np_random.uniform(-0.1, 0.1, 2)
        self.ball, self.velocity = self.hand + REST, np.zeros(2)
        self.target, self.time = TARGETS[self.np_random.integers(2)], 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """0.01 s; semi-implicit Euler."""
        action = np.clip(action, -1, 1).astype(np.float64)
        force = STIFFNESS * (self.hand - self.ball) + self.np_random.normal(0, self.force_noise, 2)
        self.velocity = self.velocity + TIME_STEP * (force / MASS - np.array([0.0, GRAVITY]))
        self.ball = self.ball + TIME_STEP * self.velocity
        self.hand = self.hand + TIME_STEP * action
        self.time += 1
        over = self.time >= self.steps
        missed = np.linalg.norm(self.hand) + np.linalg.norm(self.ball - self.target)
        reward = FINAL_WEIGHT * missed if over else ACTION_WEIGHT * action @ action
        return self._observe(), float(reward), over, False, {}

    def _observe(self) -> np.ndarray:
        time = np.array([self.time / self.steps])
        parts = [self.hand, self.ball, self.velocity, self.target, time]
        return np.concatenate(parts).astype(np.float32)


def hand_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Eq. 15 as a torch function, ``reward_fn`` of the learned world models: (N, 9), (N, 2), (N, 9) to (N,)."""
    missed = distance(next_obs[:, SEEN.hand]) + distance(next_obs[:, SEEN.ball] - next_obs[:, SEEN.target])
    return th.where(_is_last(next_obs), FINAL_WEIGHT * missed, ACTION_WEIGHT * actions.square().sum(1))


def hand_is_over(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Whether the episode is over, ``termination`` of the learned world models: to (N,)."""
    return _is_last(next_obs).to(obs.dtype)


def _is_last(next_obs: th.Tensor) -> th.Tensor:
    """Whether a step ends at time 1: within half a step of a thousand it cannot be another. (N,)"""
    return next_obs[:, SEEN.time].squeeze(1) > 1 - 0.5 / STEPS
