"""A linear system with quadratic reward under a linear policy: value and policy gradient in closed form.

s' = A s + B u,   r = -(s' M s + u' R u),   u = K s
V(s) = -s' P s,   P = M + K' R K + gamma (A + B K)' P (A + B K)
Q(s, a) = r(s, a) + gamma V(A s + B a)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch as th


def quadratic(matrix: th.Tensor, rows: th.Tensor) -> th.Tensor:
    """``x' matrix x`` for each row x; (..., n) to (...)."""
    return ((rows @ matrix) * rows).sum(-1)


@dataclass(frozen=True)
class LinearQuadratic:
    """The system as a world model (:class:`sb3_valuegrad.rollouts.Dynamics`), in float64.

    :param A: of the states, (S, S)
    :param B: of the actions, (S, A)
    :param M: cost of the states, symmetric, (S, S)
    :param R: cost of the actions, symmetric, (A, A)
    :param gamma: discount factor
    """

    A: th.Tensor
    B: th.Tensor
    M: th.Tensor
    R: th.Tensor
    gamma: float

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        """``A s + B a``, (N, S)."""
        return obs @ self.A.T + actions @ self.B.T, None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, None]:
        """Rewards (N,); it never ends."""
        return self.reward(obs, actions), None

    def reward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """``-(s' M s + a' R a)``, (...,)."""
        return -quadratic(self.M, obs) - quadratic(self.R, actions)


def double_integrator(time_step: float = 0.2, gamma: float = 0.95) -> LinearQuadratic:
    """A unit mass pushed by a force: position and velocity, both to be driven to 0 (MAAC, sec. 5.2).

    The paper gives neither the time step nor the cost; these are ours: ``x^2 + v^2 / 10 + u^2 / 10``.
    """
    rows = [[1.0, time_step], [0.0, 1.0]], [[0.5 * time_step**2], [time_step]], [[1.0, 0.0], [0.0, 0.1]], [[0.1]]
    A, B, M, R = (th.tensor(matrix, dtype=th.float64) for matrix in rows)
    return LinearQuadratic(A, B, M, R, gamma)


class LinearPolicy:
    """What the policy ``u = K s`` is worth in a system.

    :param system: the system
    :param K: the gain, (A, S)
    :raises ValueError: if the gain has another shape, or its discounted value is infinite
    """

    def __init__(self, system: LinearQuadratic, K: th.Tensor):
        self.system, self.K = system, K.to(system.A)
        if self.K.shape != system.B.T.shape:
            raise ValueError(f"gain has shape {tuple(K.shape)}, and must be (A, S) = {tuple(system.B.T.shape)}")
        self.closed_loop = system.A + system.B @ self.K
        radius = th.linalg.eigvals(self.closed_loop).abs().max().item()
        if system.gamma * radius**2 >= 1:
            raise ValueError(
                f"gain={K.tolist()} makes the closed loop grow by {radius:.3g} a step, so that with gamma={system.gamma} its "
                "value is infinite; use a gain that stabilises the system, or a smaller gamma"
            )
        self.P = self._lyapunov(self.closed_loop.T, system.M + self.K.T @ system.R @ self.K)
        # grad_a Q(s, K s) = G s
        self.G = -2 * (system.R @ self.K + system.gamma * system.B.T @ self.P @ self.closed_loop)

    def _lyapunov(self, a: th.Tensor, q: th.Tensor) -> th.Tensor:
        """The X with ``X = gamma a X a' + q``, by ``(1 - gamma a (x) a) vec X = vec q``: for a handful of states."""
        operator = th.eye(q.numel(), dtype=q.dtype) - self.system.gamma * th.kron(a, a)
        return th.linalg.solve(operator, q.flatten()).view_as(q)

    def V(self, obs: th.Tensor) -> th.Tensor:
        """Value of states (..., S)."""
        return -quadratic(self.P, obs)

    def Q(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Value of actions (..., A) in states (..., S)."""
        return QuadraticCritic(self.system, self.P)(obs, actions)

    def D(self, obs: th.Tensor) -> th.Tensor:
        """``grad_K mu(s) grad_a Q(s, mu(s))``, mean over rows (N, S): (A, S)."""
        return self.G @ obs.T @ obs / len(obs)

    def states(self, obs: th.Tensor, time: int) -> th.Tensor:
        """Where the policy is after ``time`` steps, (N, S)."""
        return obs @ th.linalg.matrix_power(self.closed_loop, time).T

    def value_gradient(self, obs: th.Tensor) -> th.Tensor:
        """``grad_K V = sum_l gamma^l D(s_l)``, mean over rows (N, S): (A, S)."""
        return self.G @ self._lyapunov(self.closed_loop, obs.T @ obs / len(obs))


class QuadraticCritic:
    """``Q(s, a) = r(s, a) - gamma s'' P s''``, with ``s'' = A s + B a``: exact for the policy's own P, else a wrong critic.

    :param system: the system
    :param P: of the value ``-s' P s``, (S, S)
    """

    def __init__(self, system: LinearQuadratic, P: th.Tensor):
        self.system, self.P = system, P

    def __call__(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """(..., S), (..., A) to (...)."""
        next_obs, _ = self.system.transition(obs, actions)
        return self.system.reward(obs, actions) - self.system.gamma * quadratic(self.P, next_obs)
