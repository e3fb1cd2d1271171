"""The deterministic family: TD3's critic under a policy that climbs value expansions."""

from abc import abstractmethod
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.gradients import frozen
from sb3_valuegrad.policies import ValueGradientPolicy
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

    The other parameters are those of :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`.
    """

    def __init__(
        self,
        policy: str | type[ValueGradientPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | float | None = 0.1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 1,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        *,
        horizon: int = 1,
        use_target_actor: bool = True,
        qf_learning_rate: float | Schedule | None = 1e-3,
        model_learning_rate: float | Schedule | None = 1e-3,
        model_learning_starts: int = 0,
        model_gradient_steps: int = 1,
        model_validation_fraction: float = 0.05,
        max_grad_norm: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
    ):
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class,
            replay_buffer_kwargs,
            optimize_memory_usage,
            n_steps,
            policy_delay,
            horizon=horizon,
            qf_learning_rate=qf_learning_rate,
            model_learning_rate=model_learning_rate,
            model_learning_starts=model_learning_starts,
            model_gradient_steps=model_gradient_steps,
            model_validation_fraction=model_validation_fraction,
            max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.use_target_actor = use_target_actor

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("target_policy_noise", "target_noise_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 switches target smoothing off")

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
            discounts = self.gamma if batch.discounts is None else batch.discounts
            target = th.addcmul(batch.rewards, 1 - batch.dones, discounts * next_value)
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
        obs, actions = rollout.obs, rollout.actions
        if len(horizons) < len(obs):  # a slice of everything is not free: its gradient fills a block with zeros
            rows = contiguous(horizons)
            obs, actions = obs[rows], actions[rows]
        # A features extractor shared with the critic is the actor's, and learns from the first action only.
        with frozen(self._actor_parameters if self.policy.share_features_extractor else []):
            return self.critic.q1(self._flat.unflatten(obs.flatten(0, 1)), actions.flatten(0, 1)).view(len(obs), -1)

    def _objective(self, obs: th.Tensor, weights: dict[int, float]) -> th.Tensor:
        """``mean_s sum_k w_k J_k(s)`` along the first-action path; obs (N, S) flat."""
        horizons = sorted(weights)
        rollout = imagine(self.world_model, self._policy, obs, horizons[-1], later_policy=self._frozen_policy)
        values = self._value(rollout, horizons)
        expansions = value_expansions(rollout.rewards, rollout.alive, values, self.gamma, horizons)
        return constants(tuple(weights[k] for k in horizons), values.dtype, values.device).dot(expansions.mean(1))

    def _actor_loss(self, batch: Batch) -> th.Tensor:
        weights = self._expansion_weights() if self._model_is_ready else {0: 1.0}
        return -self._objective(self._flat.flatten(batch.observations), weights)

    def _needs_model(self) -> bool:
        return max(self._expansion_weights()) > 0
