"""Plans in a trained model's world: how they go on, and what they are worth."""

from functools import partial

import torch as th

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.targets import Evaluation, longest_expansion
from sb3_valuegrad.planning.cross_entropy import open_loop
from sb3_valuegrad.rollouts import imagine

# Imagined rows at a time: small enough for the caches (0.68 of the time of 10 000 at once).
CHUNK = 1000
# Draws of each action that a stochastic policy's spread is measured by: it is known to about an eighth of itself.
DRAWS = 32


class ImaginedPlans:
    """A trained model as a judge of plans. Nothing here needs a gradient: whoever calls says ``no_grad``.

    :param model: a trained algorithm of this package
    :param horizon: H
    :param n_particles: rollouts of each plan in each member of the world model
    """

    def __init__(self, model: ValueGradientAlgorithm, horizon: int, n_particles: int):
        self.model, self.policy, self.world_model = model, model.policy, model.world_model
        self.horizon = horizon
        # Every plan meets every member equally often: which plan is better must not depend on whom it happened to meet.
        self.copies = n_particles * self.world_model.members
        self.values = partial(model._values, model.critic)

    def mode(self, obs: th.Tensor) -> th.Tensor:
        """The deterministic policy on flat states, (N, S) to (N, A)."""
        return self.policy._predict(self.policy.flat_observations.unflatten(obs), deterministic=True)

    def draw(self, obs: th.Tensor) -> th.Tensor:
        """A stochastic policy's action; a deterministic one's is the same every time."""
        return self.policy._predict(self.policy.flat_observations.unflatten(obs), deterministic=False)

    def completed(self, obs: th.Tensor, plans: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Plans that end before the horizon, completed by the policy where they lead; without plans, the policy's own.

        :param obs: start states (N, S)
        :param plans: (T, N, A), T <= H
        :return: plans (H, N, A), averaged over members and particles, whose states differ; and those states
            (H, members * particles, N, S)
        """
        copies = self.copies
        policy = open_loop(plans.repeat(1, copies, 1), self.mode)
        rollout = imagine(self.world_model.by_member(), policy, obs.repeat(copies, 1), self.horizon)
        actions, states = (part[:-1].unflatten(1, (copies, -1)) for part in (rollout.actions, rollout.obs))
        return actions.mean(1), states

    def spread(self, states: th.Tensor) -> th.Tensor:
        """How far the policy's draws are from its mode (root mean square), (H, M, N, S) to (H, N, A)."""
        obs = states.flatten(0, 2)
        draws = self.draw(obs.repeat(DRAWS, 1)).view(DRAWS, len(obs), -1)
        return (draws - self.mode(obs)).square().mean(0).view(*states.shape[:3], -1).mean(1).sqrt()

    def worth(self, obs: th.Tensor, plans: th.Tensor) -> th.Tensor:
        """J_H of K plans from each of N states: (N, S), (K, H, N, A) to (K, N)."""
        rivals, width = len(plans), max(1, CHUNK // self.copies)
        starts, steps = obs.repeat(rivals, 1), plans.transpose(0, 1).flatten(1, 2)
        chunks = zip(starts.split(width), steps.split(width, dim=1), strict=True)
        return th.cat([self._expansions(*chunk) for chunk in chunks]).view(rivals, -1)

    def _expansions(self, obs: th.Tensor, plans: th.Tensor) -> th.Tensor:
        """J_H of a plan from each of N states, averaged over members and particles: (N, S), (H, N, A) to (N,)."""
        copies = self.copies
        judged = Evaluation(open_loop(plans.repeat(1, copies, 1), self.mode), self.values)
        expansion, _ = longest_expansion(
            self.world_model.by_member(), judged, obs.repeat(copies, 1), self.horizon, self.model.gamma
        )
        return expansion.view(copies, -1).mean(0)
