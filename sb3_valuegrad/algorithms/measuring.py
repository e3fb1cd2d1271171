"""What is wrong with each value expansion, as far as it can be measured: MPG's weights may go by it."""

from typing import Any, NamedTuple

import torch as th

from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import imagine


class Errors(NamedTuple):
    """Relative errors, see :class:`sb3_valuegrad.weights.Evidence`."""

    variance: list[float]
    td_error: float
    model_error: float

    def blended(self, newer: "Errors", share: float) -> "Errors":
        """A running mean, in which the newer ones count with ``share``."""
        old, new = [*self.variance, *self[1:]], [*newer.variance, *newer[1:]]
        *variance, td_error, model_error = (left + share * (right - left) for left, right in zip(old, new, strict=True))
        return Errors(variance, td_error, model_error)


def measure(agent: DeterministicValueGradient, batch: Batch, horizons: list[int]) -> Errors:
    """Errors on a minibatch; nothing is trained.

    :param agent: whose policy, critics and world model
    :param batch: replayed experience
    :param horizons: of the gradients whose variance is asked for
    """
    variance = gradient_variance(agent, agent._flat.flatten(batch.observations), horizons)
    with th.no_grad():
        td_error, model_error = value_errors(agent, batch)
    return Errors(variance.tolist(), td_error.item(), model_error.item())


def gradient_variance(agent: Any, obs: th.Tensor, horizons: list[int]) -> th.Tensor:
    """Variance of the mean of ``grad_{a_0} J_i`` for each horizon, in units of its squared length (mean over the horizons).

    It is estimated from the spread between the members of the world model, or between the minibatch's halves where there is
    one model.

    :param obs: (N, S)
    :return: (K,)
    """
    model = agent.world_model
    groups = model.members if model.members > 1 else 2
    if model.members > 1:
        model, obs = model.by_member(), obs.repeat(groups, 1)
    obs = obs[: len(obs) // groups * groups]
    order = sorted(horizons)
    with frozen([*agent._actor_parameters, *agent._other_parameters]):
        first = agent._policy(obs).requires_grad_()
        rollout = imagine(model, lambda _: first, obs, order[-1], later_policy=agent._policy)
        expansions = value_expansions(rollout.rewards, rollout.alive, agent._value(rollout, order), agent.gamma, order)
        gradients = [th.autograd.grad(expansion.sum(), first, retain_graph=True)[0] for expansion in expansions]
    means = th.stack(gradients).view(len(order), groups, -1, first.shape[1]).mean(2)
    variance = means.var(1).sum(-1) / groups
    size = means.mean(1).square().sum(-1).mean().clamp(min=th.finfo(means.dtype).tiny)
    return (variance / size)[[order.index(i) for i in horizons]]


def value_errors(agent: Any, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
    """Root mean squares of the first critic's temporal difference, and of the world model's error in one step's target
    ``r + gamma V'(s')``; both in standard deviations of the target."""
    data = batch.transitions

    def value(obs: th.Tensor) -> th.Tensor:
        return agent._values(agent.critic_target, obs, agent._evaluated_actor(agent._flat.unflatten(obs))).amin(0)

    predicted = agent.world_model.step(data.obs, data.actions)
    target = data.rewards + agent.gamma * (1 - data.dones) * value(data.next_obs)
    imagined = predicted.reward + agent.gamma * (1 - predicted.done) * value(predicted.next_obs)
    estimate = agent._values(agent.critic, data.obs, data.actions)[0]
    spread = target.std().clamp(min=th.finfo(target.dtype).tiny ** 0.5)
    return (estimate - target).square().mean().sqrt() / spread, (imagined - target).square().mean().sqrt() / spread
