"""Does the value gradient exist? Corollary 1 of the DVPG paper, by the learned model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th

from sb3_valuegrad.diagnostics.experience import world_model_of
from sb3_valuegrad.diagnostics.figures import axes
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.rollouts import Policy
from sb3_valuegrad.world_models import WorldModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class GradientExistence(NamedTuple):
    """``gamma^k C`` of k = 1..K steps from N states, see :func:`gradient_existence`; each array (K, N)."""

    norm: np.ndarray
    """the larger one of its norms ``||.||_inf`` and ``||.||_1``: what the corollary demands to be below 1"""
    smaller_norm: np.ndarray
    """the smaller one of the two, which suffices"""
    spectral_radius: np.ndarray
    """below 1 is the exact condition, where the k steps are a loop"""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Medians over the states against the number of steps; below the dotted line the gradient exists.

        :param ax: where to draw; None: a new figure
        :raises ImportError: without matplotlib
        """
        ax = axes(ax, "Existence of the value gradient", "steps k", "of $\\gamma^k C$, median")
        steps = np.arange(1, len(self.norm) + 1)
        for label, numbers in zip(("larger norm", "smaller norm", "spectral radius"), self, strict=True):
            ax.plot(steps, np.median(numbers, axis=1), marker="o", label=label)
        ax.axhline(1.0, color="black", linestyle=":")
        ax.legend()
        return ax


def gradient_existence(agent: Any, horizon: int = 20, most: int = 64) -> GradientExistence:
    """``gamma^k C`` with ``C = prod_{i<k} dT(s_i, mu(s_i)) / ds_i`` along the policy's rollouts in the world model.

    DVPG (Cai, Pan and Tang, AAAI 2020), Corollary 1: around a loop of k states the value gradient exists if
    ``gamma^k max(||C||_inf, ||C||_1) < 1``. Either norm suffices, and the exact condition is a spectral radius below 1.
    Continuous states seldom close a loop: the numbers say how a gradient grows or fades over k steps. Growth with k means
    that no horizon is long enough, and a smaller gamma is called for.

    :param agent: an algorithm of this package with a deterministic policy that has trained, with its replay buffer
    :param horizon: K, number of steps
    :param most: N, number of start states, drawn from the replay buffer
    :return: norms and spectral radius by number of steps and start state
    :raises ValueError: if the policy is stochastic, or there is no world model
    :raises NothingToMeasureError: a ``ValueError``, if the model was never fitted
    """
    check_count("horizon", horizon, 1)
    check_count("most", most, 1)
    model = world_model_of(agent)
    if hasattr(agent.actor, "action_log_prob"):
        raise ValueError(
            f"agent={type(agent).__name__} has a stochastic policy; the corollary is about deterministic ones, such as DVPG's"
        )
    flat = agent.policy.flat_observations
    obs = flat.flatten(agent.replay_buffer.sample(most, env=agent.get_vec_normalize_env()).observations)
    return existence_along(model, lambda states: agent.actor(flat.unflatten(states)), obs, float(agent.gamma), horizon)


def existence_along(model: WorldModel, policy: Policy, obs: th.Tensor, gamma: float, horizon: int) -> GradientExistence:
    """The same for any differentiable model and deterministic policy.

    :param model: the world model; of an ensemble the elites' mean counts
    :param policy: states (N, S) to actions (N, A)
    :param obs: start states (N, S)
    :param gamma: discount factor
    :param horizon: K, number of steps
    """

    def follow(states: th.Tensor) -> th.Tensor:
        actions = policy(states)
        assert isinstance(actions, th.Tensor)
        return model.member_predictions(states, actions).next_obs[: model.members].mean(0)

    product = th.eye(obs.shape[1], dtype=obs.dtype, device=obs.device).expand(len(obs), -1, -1)
    numbers = []
    for _ in range(horizon):
        # Rows do not mix, so the derivative of their sum holds each row's own.
        jacobian = th.autograd.functional.jacobian(lambda states: follow(states).sum(0), obs).transpose(0, 1)
        with th.no_grad():
            product = gamma * jacobian @ product
            obs = follow(obs)
        by_row, by_column = (th.linalg.matrix_norm(product, order) for order in (float("inf"), 1))
        radius = th.linalg.eigvals(product).abs().amax(1)
        numbers.append(th.stack([th.maximum(by_row, by_column), th.minimum(by_row, by_column), radius]))
    return GradientExistence(*th.stack(numbers, dim=1).cpu().numpy())
