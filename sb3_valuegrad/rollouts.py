"""Rollouts: where a policy leads inside a differentiable world model, and the real way once more with its gradient.

Tensors in, tensors out. Nothing here knows a network, an optimizer or an algorithm, and nothing here detaches:
whoever calls decides which parameters receive gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch as th

# States (N, S) to actions (N, A), or to actions and their log-probabilities (N,).
Policy = Callable[[th.Tensor], th.Tensor | tuple[th.Tensor, th.Tensor]]


class Rollout(NamedTuple):
    """``H`` steps from ``N`` start states, time first: row ``t`` is time ``t``."""

    obs: th.Tensor
    """(H + 1, N, S): s_0 as given, s_1 .. s_H imagined."""
    actions: th.Tensor
    """(H + 1, N, A): a_H only feeds the bootstrap."""
    rewards: th.Tensor
    """(H, N)"""
    alive: th.Tensor
    """(H + 1, N): c_t, the chance that nothing ended before time t; c_0 = 1."""
    log_probs: th.Tensor | None = None
    """(H + 1, N): log pi(a_t | s_t), if the policy gives it."""
    endless: bool = False
    """Whether the model knows no termination: then ``alive`` is 1."""

    @property
    def survival(self) -> th.Tensor | None:
        """``alive``, or None where nothing ends, which spares the products with ones."""
        return None if self.endless else self.alive


class Dynamics(Protocol):
    """What a rollout needs of a world model.

    The next state is asked for step by step. Rewards and terminations are asked for once, for all steps together:
    a network that serves only them is then evaluated in one batch instead of ``H``.
    """

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, Any]:
        """``(N, S), (N, A)`` to the next states ``(N, S)`` and whatever tensor :meth:`outcome` can reuse, or None."""

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """``(M, S), (M, A), (M, S)`` to rewards ``(M,)`` and the chances of termination ``(M,)``; None: never."""


class Trajectory(NamedTuple):
    """``H`` real steps of ``N`` trajectories, time first."""

    obs: th.Tensor
    """(H + 1, N, S)"""
    actions: th.Tensor
    """(H, N, A), or (H + 1, N, A) where the last feeds a bootstrap"""
    rewards: th.Tensor
    """(H, N)"""
    dones: th.Tensor
    """(H, N): 1 where the episode terminated; a time limit is no termination"""


class NoisyDynamics(Protocol):
    """What :func:`follow` needs of a world model; ``outcome`` is that of :class:`Dynamics`."""

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, Any]:
        """The transition under the noise that explains the real next states, see :func:`renoise`."""

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """As in :class:`Dynamics`."""


def imagine(model: Dynamics, policy: Policy, obs: th.Tensor, horizon: int, later_policy: Policy | None = None) -> Rollout:
    """Roll the policy through the model: ``s_{t+1}, r_t, d_t = f(s_t, a_t)`` and ``c_{t+1} = c_t (1 - d_t)``.

    Two gradient paths go through the same rollout:

    - all-action path (MAAC, n-step ADP): leave ``later_policy`` out, and ``a_t = policy(s_t)`` for every t;
    - first-action path (DVG, DVPG, MPG): ``a_0 = policy(s_0)``, and ``a_t = later_policy(s_t)`` for t >= 1, where
      ``later_policy`` is the same policy with its parameters' gradient stopped (its derivative in the state is kept).

    :param model: the world model
    :param policy: states (N, S) to actions (N, A), or to actions and their log-probabilities (N,)
    :param obs: start states s_0, (N, S)
    :param horizon: H, the number of imagined steps; 0 is legal and imagines nothing
    :param later_policy: the policy from time 1 on; None: ``policy``
    :return: the rollout, differentiable in everything
    """
    later_policy = policy if later_policy is None else later_policy
    action, log_prob = _act(policy, obs)
    states, actions, log_probs, hints = [obs], [action], [log_prob], []
    for _ in range(horizon):
        next_obs, hint = model.transition(states[-1], actions[-1])
        action, log_prob = _act(later_policy, next_obs)
        states.append(next_obs)
        actions.append(action)
        log_probs.append(log_prob)
        hints.append(hint)
    rewards, dones = _outcomes(model, states, actions, hints)
    endless = dones is None
    alive = obs.new_ones(horizon + 1, len(obs)) if dones is None else _survival(dones)
    all_log_probs = None if log_prob is None else th.stack(log_probs)
    return Rollout(th.stack(states), th.stack(actions), rewards, alive, all_log_probs, endless)


def renoise(mean: th.Tensor, std: th.Tensor | None, observed: th.Tensor) -> th.Tensor:
    """``mean + std * noise`` under the noise that explains what was observed, ``noise = (observed - mean) / std`` (SVG,
    sec. 4.1; the noise of a Gaussian is determined by the data, so that eqs. 11 and 12 have nothing to sample).

    In value this is ``observed``, however wrong the mean is; its gradient is that of mean and standard deviation.

    :param mean: (..., D)
    :param std: (..., D), positive; None: whatever it is, it is constant, and leaves the gradient as the mean's
    :param observed: (..., D)
    """
    if std is None:
        return mean + (observed - mean).detach()
    return mean + std * ((observed - mean) / std).detach()


def follow(model: NoisyDynamics, policy: Callable[[th.Tensor, th.Tensor], th.Tensor], trajectory: Trajectory) -> Rollout:
    """Go a real trajectory once more under the noise that explains it, ``a_t = pi(s_t, eta_t)`` and
    ``s_{t+1} = f(s_t, a_t, xi_t)`` (SVG, sec. 4.1, Alg. 1 lines 11-13).

    In value the rollout is the trajectory, rewards and terminations included; its gradient is the policy's and the model's,
    along every action. The noise is inferred where the rollout is, so that rounding does not add up.

    :param model: the world model
    :param policy: (states (N, S), real actions (N, A)) to the policy's actions (N, A) under the noise that explains them
    :param trajectory: what really happened
    :return: the rollout, differentiable in model and policy; it has as many actions as the trajectory
    """
    states, actions, hints = [trajectory.obs[0]], [], []
    for time, action in enumerate(trajectory.actions):
        actions.append(policy(states[-1], action))
        if time < len(trajectory.rewards):
            next_obs, hint = model.renoised(states[-1], actions[-1], trajectory.obs[time + 1])
            states.append(next_obs)
            hints.append(hint)
    rewards, dones = _outcomes(model, states, actions, hints)
    dones = trajectory.dones if dones is None else renoise(dones, None, trajectory.dones)
    alive = _survival(dones) if hints else th.ones_like(states[0][None, :, 0])
    return Rollout(th.stack(states), th.stack(actions), renoise(rewards, None, trajectory.rewards), alive)


def _act(policy: Policy, obs: th.Tensor) -> tuple[th.Tensor, Any]:
    """Actions and their log-probabilities, None if the policy gives none."""
    result = policy(obs)
    return result if isinstance(result, tuple) else (result, None)


def _outcomes(
    model: Dynamics | NoisyDynamics, states: list[th.Tensor], actions: list[th.Tensor], hints: list[Any]
) -> tuple[th.Tensor, th.Tensor | None]:
    """Rewards and chances of termination (H, N), None where nothing can end, of all steps together."""
    obs, horizon = states[0], len(hints)
    if horizon == 0:
        return obs.new_zeros(0, len(obs)), None
    # Joined from the steps, not cut out of stacks: the gradient of a slice fills a whole stack with zeros.
    hint = None if hints[0] is None else _join(hints)
    rewards, dones = model.outcome(_join(states[:-1]), _join(actions[:horizon]), _join(states[1:]), hint)
    return rewards.view(horizon, -1), None if dones is None else dones.view(horizon, -1)


def _join(steps: list[th.Tensor]) -> th.Tensor:
    return steps[0] if len(steps) == 1 else th.cat(steps)


def _survival(dones: th.Tensor) -> th.Tensor:
    """Chances of termination (H, N) to c_0 .. c_H. A loop, not ``cumprod``: that one's gradient inspects the values."""
    alive = [th.ones_like(dones[0])]
    for survives in (1 - dones).unbind():
        alive.append(alive[-1] * survives)
    return th.stack(alive)
