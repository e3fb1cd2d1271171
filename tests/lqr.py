"""A linear-quadratic system: value, action value and policy gradient in closed form, to hold the estimators against.

s' = A s + B u,   r = -(s' M s + u' R u),   u = K s  (K is not the optimal gain)
V(s) = -s' P s,   P = M + K' R K + gamma (A + B K)' P (A + B K)
Q(s, a) = r(s, a) + gamma V(A s + B a)
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.linalg
import torch as th
from gymnasium import spaces

from sb3_valuegrad.diagnostics import linear_quadratic
from sb3_valuegrad.diagnostics.linear_quadratic import quadratic
from sb3_valuegrad.rollouts import Policy


class LinearQuadratic(linear_quadratic.LinearQuadratic):
    """The package's system, with its optimal policy. What a policy is worth is worked out apart from the package, below."""

    def optimal_gain(self) -> th.Tensor:
        """The gain that the discounted Riccati equation gives."""
        root = self.gamma**0.5
        A, B, M, R = (matrix.numpy() for matrix in (self.A, self.B, self.M, self.R))
        P = scipy.linalg.solve_discrete_are(root * A, root * B, M, R)
        return th.from_numpy(-np.linalg.solve(R + self.gamma * B.T @ P @ B, self.gamma * B.T @ P @ A))


def linear(K: th.Tensor) -> Policy:
    """The policy u = K s."""
    return lambda obs: obs @ K.T


class Truth:
    """What a gain K is worth in a system."""

    def __init__(self, system: LinearQuadratic, K: th.Tensor):
        self.system, self.K = system, K
        self.closed_loop = system.A + system.B @ K
        cost = system.M + K.T @ system.R @ K
        self.P = self._lyapunov(self.closed_loop.T, cost)
        # grad_a Q(s, K s) = G s
        self.G = -2 * (system.R @ K + system.gamma * system.B.T @ self.P @ self.closed_loop)

    def _lyapunov(self, a: th.Tensor, q: th.Tensor) -> th.Tensor:
        """X = gamma a X a' + q"""
        return th.from_numpy(scipy.linalg.solve_discrete_lyapunov(self.system.gamma**0.5 * a.numpy(), q.numpy()))

    def V(self, obs: th.Tensor) -> th.Tensor:
        return -quadratic(self.P, obs)

    def Q(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        next_obs, _ = self.system.transition(obs, actions)
        return self.system.reward(obs, actions) + self.system.gamma * self.V(next_obs)

    def D(self, obs: th.Tensor) -> th.Tensor:
        """``grad pi(s) grad_a Q(s, pi(s))`` in the gain, mean over rows: (A, S)."""
        return self.G @ obs.T @ obs / len(obs)

    def states(self, obs: th.Tensor, time: int) -> th.Tensor:
        """Where the policy is after ``time`` steps."""
        return obs @ th.linalg.matrix_power(self.closed_loop, time).T

    def dV_dK(self, obs: th.Tensor) -> th.Tensor:
        """The whole policy gradient ``sum_l gamma^l D(s_l)``, mean over rows: (A, S)."""
        return self.G @ self._lyapunov(self.closed_loop, obs.T @ obs / len(obs))


def make_system(gamma: float = 0.95) -> LinearQuadratic:
    """Three states, two actions, stable but coupled."""
    rows = [[0.9, 0.2, 0.0], [-0.1, 0.8, 0.3], [0.1, 0.0, 0.7]], [[0.1, 0.0], [0.5, -0.2], [0.0, 0.8]]
    A, B = (th.tensor(matrix, dtype=th.float64) for matrix in rows)
    M = th.tensor([[1.0, 0.1, 0.0], [0.1, 0.5, 0.0], [0.0, 0.0, 0.8]], dtype=th.float64)
    R = th.tensor([[0.3, 0.05], [0.05, 0.2]], dtype=th.float64)
    return LinearQuadratic(A, B, M, R, gamma)


def make_gain() -> th.Tensor:
    """Stabilising, and far from optimal."""
    return th.tensor([[-0.2, -0.3, 0.1], [0.05, 0.1, -0.4]], dtype=th.float64)


def start_states(count: int = 7, dim: int = 3, seed: int = 0) -> th.Tensor:
    return th.randn(count, dim, generator=th.Generator().manual_seed(seed), dtype=th.float64)


@dataclass(frozen=True)
class WrongModel:
    """A nonlinear model that has little to do with the system, and that terminates with a chance that it computes."""

    W: th.Tensor
    terminates: bool = True

    @classmethod
    def make(cls, obs_dim: int = 3, action_dim: int = 2, terminates: bool = True) -> "WrongModel":
        generator = th.Generator().manual_seed(1)
        return cls(th.randn(obs_dim + 2, obs_dim + action_dim, generator=generator, dtype=th.float64), terminates)

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        output = th.cat([obs, actions], dim=1) @ self.W.T
        return obs + 0.5 * th.tanh(output[:, :-2]), output[:, -2:]

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor | None]:
        rewards = th.sin(hint[:, 0]) - 0.3 * next_obs.square().sum(1)
        return rewards, th.sigmoid(hint[:, 1]) if self.terminates else None


def wrong_critic(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """No one's value; (..., S), (..., A) to (...)."""
    return th.cos(obs.sum(-1)) + (obs[..., 0] * actions[..., -1]).tanh() - actions.square().sum(-1)


class LinearQuadraticEnv(gym.Env):
    """A small linear-quadratic task: two states, one action in [-1, 1] that the optimal policy never saturates."""

    GAMMA = 0.9
    A = np.array([[1.0, 0.2], [-0.1, 0.95]])
    B = np.array([[0.0], [0.4]])
    M = np.diag([1.0, 0.3])
    R = np.array([[1.0]])
    STEPS = 25

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10.0, 10.0, (2,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.state = np.zeros(2)
        self.time = 0

    @classmethod
    def system(cls) -> LinearQuadratic:
        A, B, M, R = (th.from_numpy(matrix) for matrix in (cls.A, cls.B, cls.M, cls.R))
        return LinearQuadratic(A, B, M, R, cls.GAMMA)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.time = self.np_random.uniform(-0.7, 0.7, 2), 0
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.clip(action, -1, 1).astype(np.float64)
        reward = -(self.state @ self.M @ self.state + action @ self.R @ action)
        self.state = self.A @ self.state + self.B @ action
        self.time += 1
        return self.state.astype(np.float32), float(reward), False, self.time >= self.STEPS, {}
