"""How wrong is the policy gradient, by horizon? On a system where the right one is known (MAAC, sec. 5.2 and Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch as th

from sb3_valuegrad.diagnostics.figures import axes
from sb3_valuegrad.diagnostics.isolation import undisturbed
from sb3_valuegrad.diagnostics.linear_quadratic import LinearPolicy, LinearQuadratic, QuadraticCritic, double_integrator
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import Dynamics, imagine
from sb3_valuegrad.world_models import MlpWorldModel, Transitions
from sb3_valuegrad.world_models.fitting import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Critic = Callable[[th.Tensor, th.Tensor], th.Tensor]

# The study's policy: it pulls the mass back without swinging over, and is far from optimal.
DAMPED = [-1.0, -2.0]


class GradientErrors(NamedTuple):
    """L1 errors of the policy gradient at horizons 0..H, see :func:`gradient_errors`."""

    all_actions: np.ndarray
    """(H + 1,): of ``grad J_k`` along the all-action path (MAAC), against ``sum_{l<=k} gamma^l D(s_l)``"""
    first_action: np.ndarray
    """(H + 1,): of ``grad J_k`` along the first-action path (DVG, DVPG, MPG), against ``D(s_0)``"""
    all_actions_reference: np.ndarray
    """(H + 1,): L1 norms of the references of :attr:`all_actions`"""
    first_action_reference: float
    """L1 norm of the reference of :attr:`first_action`"""
    missing_tail: np.ndarray
    """(H + 1,): L1 distance from the all-action path's reference to ``grad V(s_0)``: no error, but what horizon k leaves
    out, since Q's own dependence on the policy is not differentiated"""

    def plot(self, ax: Axes | None = None, label: str = "", tail: bool = True) -> Axes:
        """Errors against the horizon (MAAC, Fig. 3).

        :param ax: where to draw; None: a new figure
        :param label: goes before the curves' names
        :param tail: also draw what the horizon leaves out
        :raises ImportError: without matplotlib
        """
        ax = axes(ax, "Error of the policy gradient", "horizon", "L1 error")
        prefix = f"{label}, " if label else ""
        ax.plot(self.all_actions, marker="o", label=f"{prefix}all actions")
        ax.plot(self.first_action, marker="s", linestyle="--", label=f"{prefix}first action")
        if tail:
            ax.plot(self.missing_tail, color="grey", linestyle=":", label="left out by the horizon")
        ax.legend()
        return ax


def gradient_errors(
    system: LinearQuadratic, gain: th.Tensor, model: Dynamics, critic: Critic, obs: th.Tensor, horizon: int = 10
) -> GradientErrors:
    """Errors of both gradient paths at each horizon, against the right references.

    With exact model and critic the all-action path gives ``sum_{l<=k} gamma^l D(s_l)``, with
    ``D(s) = grad mu(s) grad_a Q(s, mu(s))``, and the first-action path ``D(s_0)`` at every k. Neither is ``grad V(s_0)``:
    held against that, which the paper's text suggests, an exact estimator would look wrong by :attr:`missing_tail
    <GradientErrors.missing_tail>`. So the errors here are 0 where model and critic are exact.

    :param system: the true system
    :param gain: K of the policy ``u = K s``, (A, S)
    :param model: the world model that is differentiated through
    :param critic: states (N, S), actions (N, A) to values (N,)
    :param obs: start states (N, S), float64; gradients are means over them
    :param horizon: H, the longest
    :return: L1 errors, over all entries of the gain
    :raises ValueError: for a gain of another shape, or whose value is infinite
    """
    check_count("horizon", horizon, 0)
    truth = LinearPolicy(system, gain)
    steps = [system.gamma**time * truth.D(truth.states(obs, time)) for time in range(horizon + 1)]
    references = th.stack(steps).cumsum(0)
    all_actions, first_action = (
        th.stack([_gradient(model, critic, truth, obs, k, path) for k in range(horizon + 1)]) for path in (True, False)
    )
    return GradientErrors(
        _l1(all_actions - references),
        _l1(first_action - references[:1]),
        _l1(references),
        float(_l1(references)[0]),
        _l1(truth.value_gradient(obs) - references),
    )


def _l1(gradients: th.Tensor) -> np.ndarray:
    return gradients.abs().sum((1, 2)).numpy()


def _gradient(
    model: Dynamics, critic: Critic, policy: LinearPolicy, obs: th.Tensor, horizon: int, all_actions: bool
) -> th.Tensor:
    """``grad_K J_H``, mean over rows: (A, S)."""
    gain = policy.K.clone().requires_grad_()
    later = None if all_actions else lambda states: states @ policy.K.T
    rollout = imagine(model, lambda states: states @ gain.T, obs, horizon, later)
    values = critic(rollout.obs[-1], rollout.actions[-1])[None]
    expansion = value_expansions(rollout.rewards, rollout.alive, values, policy.system.gamma, [horizon])
    return th.autograd.grad(expansion.mean(), gain)[0]


# ---------------------------------------------------------------- MAAC's Figure 3


def gradient_error_study(
    horizon: int = 15, model_rows: int = 300, critic_error: float = 0.3, n_critics: int = 8, seed: int = 0
) -> dict[str, GradientErrors]:
    """MAAC's Figure 3, with the right references: the double integrator, its own dynamics and learned ones, wrong critics.

    A critic's error is weighted by gamma^H and fades with the horizon, the model's adds up.

    :param horizon: H, the longest
    :param model_rows: transitions that the world model is fitted to; more of them make a better model
    :param critic_error: a critic's error: Gaussian, of so much of the mean size of P in the value ``-s' P s``
    :param n_critics: the errors are means over so many wrong critics
    :param seed: of data, model and critics; global random numbers are left alone
    :return: errors by "true dynamics" and "learned dynamics"
    :raises ValueError: for arguments out of range
    """
    check_count("model_rows", model_rows, 10)
    check_count("n_critics", n_critics, 1)
    if not critic_error >= 0:
        raise ValueError(f"critic_error={critic_error} must not be negative; 0 is the exact critic")
    system, gain = double_integrator(), th.tensor([DAMPED], dtype=th.float64)
    random = th.Generator().manual_seed(seed)
    critics = [_wrong_critic(LinearPolicy(system, gain), critic_error, random) for _ in range(n_critics)]
    obs = th.randn(64, len(system.A), generator=random, dtype=th.float64)
    models: dict[str, Dynamics] = {"true dynamics": system, "learned dynamics": fitted_model(system, model_rows, seed)}
    return {
        name: _mean([gradient_errors(system, gain, model, critic, obs, horizon) for critic in critics])
        for name, model in models.items()
    }


def _wrong_critic(truth: LinearPolicy, error: float, random: th.Generator) -> QuadraticCritic:
    noise = th.randn(truth.P.shape, generator=random, dtype=th.float64)
    return QuadraticCritic(truth.system, truth.P + error * truth.P.abs().mean() * (noise + noise.T) / 2)


def _mean(errors: list[GradientErrors]) -> GradientErrors:
    parts = [np.mean(part, axis=0) for part in zip(*errors, strict=True)]
    return GradientErrors(*parts)


def plot_gradient_error_study(errors: dict[str, GradientErrors], ax: Axes | None = None) -> Axes:
    """All curves of a study in one picture.

    :param errors: of :func:`gradient_error_study`
    :param ax: where to draw; None: a new figure
    :raises ImportError: without matplotlib
    """
    for index, (name, found) in enumerate(errors.items()):
        ax = found.plot(ax, name, tail=index == len(errors) - 1)
    assert ax is not None
    return ax


def fitted_model(system: LinearQuadratic, rows: int, seed: int = 0, max_epochs: int = 60) -> MlpWorldModel:
    """A network (one layer of 32) fitted to a linear-quadratic system, whose reward it knows, in float64.

    :param system: where the data come from: states and actions drawn from N(0, 1)
    :param rows: transitions, a tenth of them held out
    :param seed: of data and network
    :param max_epochs: of the fit
    """
    states, actions = system.B.shape
    with undisturbed(seed):
        obs, action = th.randn(rows, states, dtype=th.float64), th.randn(rows, actions, dtype=th.float64)
        model = MlpWorldModel(states, actions, (32,), reward_fn=_as_reward_fn(system), termination="none").double()
        model.optimizer = th.optim.Adam(model.parameter_groups(), lr=1e-2)
        parts = obs, action, system.reward(obs, action), th.zeros(rows, dtype=th.float64), system.transition(obs, action)[0]
        held_out, data = (Transitions(*(part[share] for part in parts)) for share in _shares(rows))
        fit(model, data, held_out, batch_size=128, max_epochs=max_epochs)
    return model


def _shares(rows: int) -> tuple[slice, slice]:
    return slice(0, rows // 10), slice(rows // 10, None)


def _as_reward_fn(system: LinearQuadratic) -> Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]:
    return lambda obs, actions, next_obs: system.reward(obs.to(system.A), actions.to(system.A))
