"""DVPG(lambda, K)."""

import warnings
from functools import lru_cache
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.policies import ValueGradientPolicy
from sb3_valuegrad.weights import geometric_weights


class DVPG(DeterministicValueGradient):
    """Deterministic value-policy gradient (Cai, Pan and Tang, AAAI 2020), Algorithm 2.

    The actor ascends ``(1 - lambda) sum_{k=0}^{K} lambda^k J_k`` along the first-action path (eq. 14), the critic
    learns one-step temporal differences, and the world model the same minibatch. ``lambda_=0`` or ``horizon=0`` is
    DDPG.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``ValueGradientPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizon: K, the longest imagined rollout
    :param lambda_: decay of the weights over k, in [0, 1]
    :raises ValueError: for ``lambda_`` outside [0, 1]
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
        lambda_: float = 0.1,
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
        _init_setup_model: bool = True,
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
            target_policy_noise,
            target_noise_clip,
            horizon=horizon,
            use_target_actor=use_target_actor,
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
        self.lambda_ = lambda_
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_={self.lambda_} must be in [0, 1]; the paper uses 0.1, and 0 is DDPG")
        if self.lambda_ == 1 and self.horizon > 0:
            warnings.warn("lambda_=1 gives every expansion the weight 0: the policy will not learn", stacklevel=2)

    def _expansion_weights(self) -> dict[int, float]:
        return _weights(self.lambda_, self.horizon)


@lru_cache(maxsize=64)
def _weights(lambda_: float, horizon: int) -> dict[int, float]:
    """Eq. 14; with no horizon DDPG's objective itself, not its ``1 - lambda`` fold."""
    if horizon == 0:
        return {0: 1.0}
    weights = geometric_weights(lambda_, horizon).tolist()
    return {k: weight for k, weight in enumerate(weights) if weight != 0 or k == 0}
