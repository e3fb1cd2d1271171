"""The deterministic family: TD3's critic under a policy that climbs value expansions."""

from abc import abstractmethod
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from torch.nn import functional as F

from sb3_valuegrad.algorithms.base import Losses, ValueGradientAlgorithm, contiguous
from sb3_valuegrad.algorithms.gradients import frozen
from sb3_valuegrad.policies import ValueGradientPolicy
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import Rollout, imagine


class DeterministicValueGradient(ValueGradientAlgorithm):
    """A deterministic policy ascends a weighted sum of value expansions J_k along the first-action path.

    A leaf gives :meth:`_expansion_weights`. With all weight on J_0 this is DDPG, or TD3, by its arguments.

    :param target_policy_noise: standard deviation of the noise on the target's action (target smoothing, TD3)
    :param target_noise_clip: bound of that noise
    :param use_target_actor: the critic's target evaluates the target actor, as in DDPG; False: the online actor, as
        the DVPG paper's pseudo-code prints it
    :param kwargs: see :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`
    """

    def __init__(
        self,
        policy: str | type[ValueGradientPolicy],
        env: GymEnv | str | None,
        *args: Any,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        use_target_actor: bool = True,
        **kwargs: Any,
    ):
        super().__init__(policy, env, *args, **kwargs)
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.use_target_actor = use_target_actor

    @abstractmethod
    def _expansion_weights(self) -> dict[int, float]:
        """The objective: horizon k -> weight of J_k, none of them zero."""

    # ---------------------------------------------------------------- critic

    def _target_action(self, batch: Batch) -> th.Tensor:
        actor = self.actor_target if self.use_target_actor else self.actor
        actions = actor(batch.next_observations)
        if self.target_policy_noise == 0:
            return actions
        noise = th.randn_like(actions).mul_(self.target_policy_noise)
        return (actions + noise.clamp_(-self.target_noise_clip, self.target_noise_clip)).clamp_(-1, 1)

    def _critic_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """One-step temporal differences (DVPG Alg. 2 line 7), over the smallest target critic (TD3)."""
        with th.no_grad():
            next_values = self.critic_target(batch.next_observations, self._target_action(batch))
            next_value = next_values[0] if len(next_values) == 1 else th.cat(next_values, dim=1).amin(dim=1, keepdim=True)
            target = batch.rewards + (1 - batch.dones) * batch.discounts * next_value
        values = self.critic(batch.observations, batch.actions)
        losses = [F.mse_loss(value, target) for value in values]
        return sum(losses[1:], start=losses[0]), {"q_abs_mean": values[0].detach().abs().mean()}

    # ---------------------------------------------------------------- actor

    def _policy(self, obs: th.Tensor) -> th.Tensor:
        """mu_theta on flat states."""
        return self.actor(self._flat.unflatten(obs))

    def _frozen_policy(self, obs: th.Tensor) -> th.Tensor:
        """The same policy with its parameters' gradient stopped; the derivative in the state is kept."""
        with frozen(self._actor_parameters):
            return self._policy(obs)

    def _value(self, rollout: Rollout, horizons: list[int]) -> th.Tensor:
        """Q(s_k, a_k) for each k of ``horizons``, (K, N), by one evaluation of the first critic."""
        rows = contiguous(horizons)
        obs, actions = rollout.obs[rows], rollout.actions[rows]
        # A features extractor shared with the critic is the actor's, and learns from the first action only.
        with frozen(self._actor_parameters if self.policy.share_features_extractor else []):
            return self.critic.q1(self._flat.unflatten(obs.flatten(0, 1)), actions.flatten(0, 1)).view(len(obs), -1)

    def _objective(self, obs: th.Tensor, weights: dict[int, float]) -> th.Tensor:
        """``mean_s sum_k w_k J_k(s)`` along the first-action path; obs (N, S) flat."""
        horizons = sorted(weights)
        rollout = imagine(self.world_model, self._policy, obs, horizons[-1], later_policy=self._frozen_policy)
        values = self._value(rollout, horizons)
        expansions = value_expansions(rollout.rewards, rollout.alive, values, self.gamma, horizons)
        return (expansions.new_tensor([weights[k] for k in horizons]) @ expansions).mean()

    def _actor_loss(self, batch: Batch) -> th.Tensor:
        weights = self._expansion_weights() if self._model_is_ready else {0: 1.0}
        with frozen(self._other_parameters):
            return -self._objective(self._flat.flatten(batch.observations), weights)

    def _needs_model(self) -> bool:
        return max(self._expansion_weights()) > 0


__all__ = ["DeterministicValueGradient", "Losses"]
