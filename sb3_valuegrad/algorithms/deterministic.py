"""The deterministic family: TD3's critic under a policy that climbs value expansions."""

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.td3.policies import Actor
from torch import nn

from sb3_valuegrad.algorithms.arguments import check_choice
from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.targets import Evaluation
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.exploration import exploring, parameter_noises
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.policies import DeterministicPolicy
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.returns import constants, contiguous, value_expansions
from sb3_valuegrad.rollouts import Rollout, imagine


class DeterministicValueGradient(ValueGradientAlgorithm):
    """A deterministic policy ascends a weighted sum of value expansions J_k along the first-action path.

    A leaf gives :meth:`_expansion_weights`. With all weight on J_0 this is DDPG, or TD3, by its arguments.

    :param target_policy_noise: standard deviation of the noise on the target's action (target smoothing, TD3)
    :param target_noise_clip: bound of that noise
    :param use_target_actor: the critic's target evaluates the target actor, as in DDPG; False: the online actor, as
        the DVPG paper's pseudo-code prints it
    :param gradient_path: how the policy receives gradient: "first-action", from the first action of a rollout alone (DVG,
        DVPG, MPG); "all-actions", from every one (n-step ADP, back-propagation through time)
    :param n_samples: rollouts per start state in the policy's objective, which differ if the world model is random

    The other parameters are those of :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`. ``action_noise`` may
    also be an :class:`~sb3_valuegrad.exploration.AdaptiveParameterNoise`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DeterministicPolicy,
        # Dict observations, too: the world model sees their parts as one flat vector.
        "MultiInputPolicy": DeterministicPolicy,
    }
    policy: DeterministicPolicy
    actor: Actor
    actor_target: Actor

    def __init__(
        self,
        *args: Any,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        use_target_actor: bool = True,
        gradient_path: str = "first-action",
        n_samples: int = 1,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.use_target_actor = use_target_actor
        self.gradient_path = gradient_path
        self.n_samples = n_samples

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_choice("gradient_path", self.gradient_path, ("first-action", "all-actions"))
        check_count("n_samples", self.n_samples, 1)
        for name in ("target_policy_noise", "target_noise_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 switches target smoothing off")

    @abstractmethod
    def _expansion_weights(self) -> dict[int, float]:
        """The objective: horizon k -> weight of J_k, none of them zero."""

    def _create_aliases(self) -> None:
        self.actor_target = self.policy.actor_target
        super()._create_aliases()

    def _target_networks(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super()._target_networks(), (self.actor, self.actor_target)]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor_target"]

    # ---------------------------------------------------------------- exploration

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """SB3's. Under parameter noise perturbed actors act, and nothing is added to their actions."""
        noises = parameter_noises(action_noise)
        if not noises:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        if self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, None, n_envs)
        with exploring(self.policy, noises, self._replayed_states if self.replay_buffer.size() else None):
            self.logger.record_mean("rollout/parameter_noise_sigma", float(np.mean([noise.sigma for noise in noises])))
            return super()._sample_action(learning_starts, None, n_envs)

    def _replayed_states(self) -> PyTorchObs:
        return self._sample(self.batch_size).observations

    # ---------------------------------------------------------------- critic

    @property
    def _evaluated_actor(self) -> Actor:
        """Whose policy the critic evaluates."""
        return self.actor_target if self.use_target_actor else self.actor

    def _target_policy(self, obs: PyTorchObs) -> th.Tensor:
        """The action that the critic's target evaluates, with TD3's smoothing."""
        actions = self._evaluated_actor(obs)
        if self.target_policy_noise == 0:
            return actions
        noise = th.randn_like(actions).mul_(self.target_policy_noise)
        return (actions + noise.clamp_(-self.target_noise_clip, self.target_noise_clip)).clamp_(-1, 1)

    def _state_value(self, obs: PyTorchObs) -> th.Tensor:
        """The smallest target critic's word (TD3; DVPG Alg. 2 line 7 with one critic)."""
        values = self.critic_target(obs, self._target_policy(obs))
        return values[0] if len(values) == 1 else th.cat(values, dim=1).amin(dim=1, keepdim=True)

    def _evaluation(self) -> Evaluation:
        def policy(obs: th.Tensor) -> th.Tensor:
            return self._target_policy(self._flat.unflatten(obs))

        def value(obs: th.Tensor, _: th.Tensor) -> th.Tensor:
            return self._values(self.critic_target, obs, policy(obs))

        if self.simulator is None:
            return Evaluation(policy, partial(self._values, self.critic_target))
        # The current policy drives, and the targets value where it gets (MPG, sec. IV-B and eq. 11).
        return Evaluation(self._policy, value)

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
        obs, actions = rollout.obs, rollout.actions
        if len(horizons) < len(obs):  # a slice of everything is not free: its gradient fills a block with zeros
            rows = contiguous(horizons)
            obs, actions = obs[rows], actions[rows]
        # A features extractor shared with the critic is the actor's, and learns from the first action only.
        with frozen(self._actor_parameters if self.policy.share_features_extractor else []):
            return self.critic.q1(self._flat.unflatten(obs.flatten(0, 1)), actions.flatten(0, 1)).view(len(obs), -1)

    def _expansions(self, obs: th.Tensor, horizons: list[int]) -> th.Tensor:
        """``mean_s J_k(s)`` for each k of ``horizons``, (K,), differentiable along the gradient path; obs (N, S) flat."""
        later_policy = self._frozen_policy if self.gradient_path == "first-action" else None
        starts = obs.repeat(self.n_samples, 1) if self.n_samples > 1 and horizons[-1] > 0 else obs
        rollout = imagine(self.world_model, self._policy, starts, horizons[-1], later_policy)
        values = self._value(rollout, horizons)
        return value_expansions(rollout.rewards, rollout.survival, values, self.gamma, horizons).mean(1)

    def _objective(self, obs: th.Tensor, weights: dict[int, float]) -> tuple[th.Tensor, th.Tensor]:
        """``mean_s sum_k w_k J_k(s)``, and the means of the J_k, (K,) by rising k; obs (N, S) flat."""
        horizons = sorted(weights)
        expansions = self._expansions(obs, horizons)
        return constants(tuple(weights[k] for k in horizons), expansions.dtype, expansions.device).dot(expansions), expansions

    def _actor_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        weights = self._expansion_weights() if self._model_is_ready else {0: 1.0}
        objective, expansions = self._objective(self._flat.flatten(batch.observations), weights)
        return -objective, self._logged_of_actor(weights, expansions)

    def _logged_of_actor(self, weights: dict[int, float], expansions: th.Tensor) -> dict[str, th.Tensor]:
        """What to log of a policy step.

        :param weights: horizon k -> weight of J_k
        :param expansions: the J_k, (K,), by rising k
        """
        return {}

    def _needs_model(self) -> bool:
        return super()._needs_model() or max(self._expansion_weights()) > 0
