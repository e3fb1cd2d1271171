"""The stochastic family: SAC's critic and temperature around a policy that climbs value expansions."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.imagination import ImaginingAlgorithm
from sb3_valuegrad.algorithms.targets import Evaluation, longest_expansion
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.gradients import guarded_step
from sb3_valuegrad.policies import StochasticPolicy
from sb3_valuegrad.rollouts import Policy


class StochasticValueGradient(ImaginingAlgorithm, ValueGradientAlgorithm):
    """A squashed Gaussian policy ascends the soft value expansion J_H along the all-action path, sampled by
    reparameterisation, under SAC's temperature. ``horizon=0`` is SAC. By default the world model is an ensemble that is
    fitted to convergence, and most of a minibatch is imagined in it (MBPO's and MAAC's setting).

    :param action_noise: exploration noise on top of the policy's own; None: none
    :param ent_coef: SAC's entropy coefficient: a number, "auto" (learned), or "auto_0.1" (learned, from 0.1)
    :param target_entropy: what "auto" aims at, in nats; "auto": minus the number of actions
    :param target_update_interval: critic updates per target update
    :param n_samples: sampled rollouts per start state in the policy's objective

    The other parameters are those of :class:`~sb3_valuegrad.algorithms.imagination.ImaginingAlgorithm` and
    :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`.
    """

    critic_loss_scale: ClassVar[float] = 0.5
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": StochasticPolicy,
        "MultiInputPolicy": StochasticPolicy,
    }
    actor: Actor

    def __init__(
        self,
        *args: Any,
        action_noise: ActionNoise | float | None = None,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        target_update_interval: int = 1,
        n_samples: int = 1,
        model_fit_freq: int | None = 250,
        model_validation_fraction: float = 0.1,
        real_ratio: float = 0.05,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        # Its world model is an ensemble, unless the policy's arguments say otherwise.
        policy_kwargs = {"world_model_class": "ensemble", **(policy_kwargs or {})}
        # A dictionary, because mypy cannot see that *args end before these.
        own: dict[str, Any] = {
            "action_noise": action_noise,
            "model_fit_freq": model_fit_freq,
            "model_validation_fraction": model_validation_fraction,
            "real_ratio": real_ratio,
            "policy_kwargs": policy_kwargs,
        }
        super().__init__(*args, **kwargs, **own)
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.target_update_interval = target_update_interval
        self.n_samples = n_samples
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Adam | None = None

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count("target_update_interval", self.target_update_interval, 1)
        check_count("n_samples", self.n_samples, 1)
        if self.target_entropy != "auto":
            _number("target_entropy", self.target_entropy, '"auto" is minus the number of actions')
        if _initial_ent_coef(self.ent_coef) <= 0 and isinstance(self.ent_coef, str):
            raise ValueError(f'ent_coef={self.ent_coef!r}: it is learned as its logarithm, so "auto_X" needs X > 0')

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.target_entropy == "auto":
            self.target_entropy = -float(get_action_dim(self.action_space))
        self.target_entropy = float(self.target_entropy)
        ent_coef = th.full((1,), _initial_ent_coef(self.ent_coef), device=self.device)
        self.ent_coef_tensor = ent_coef
        self.log_ent_coef = self.ent_coef_optimizer = None
        if isinstance(self.ent_coef, str) and self.ent_coef.startswith("auto"):
            self.log_ent_coef = ent_coef.log().requires_grad_()
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1), fused=True)

    def _optimizers(self) -> dict[str, tuple[th.optim.Optimizer, Schedule]]:
        optimizers = super()._optimizers()
        if self.ent_coef_optimizer is not None:
            optimizers["ent_coef_learning_rate"] = (self.ent_coef_optimizer, self.lr_schedule)
        return optimizers

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        if self.ent_coef_optimizer is None:
            return names, [*variables, "ent_coef_tensor"]
        return [*names, "ent_coef_optimizer"], [*variables, "log_ent_coef"]

    def _needs_model(self) -> bool:
        return super()._needs_model() or self.horizon > 0

    # ---------------------------------------------------------------- critic

    def _alpha(self) -> th.Tensor:
        """The temperature, (1,), a constant to whoever uses it."""
        return self.ent_coef_tensor if self.log_ent_coef is None else self.log_ent_coef.detach().exp()

    def _policy(self, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """A sample of pi_theta on flat states, and its log-probability."""
        return self.actor.action_log_prob(self._flat.unflatten(obs))

    def _state_value(self, obs: PyTorchObs) -> th.Tensor:
        """SAC's soft value of a state, (N, 1): the smallest target critic's, less the temperature times log pi."""
        actions, log_probs = self.actor.action_log_prob(obs)
        values = th.cat(self.critic_target(obs, actions), dim=1).amin(dim=1, keepdim=True)
        return values - self._alpha() * log_probs[:, None]

    def _behaviour(self) -> Policy:
        return self._policy

    def _evaluation(self) -> Evaluation:
        return Evaluation(self._policy, partial(self._values, self.critic_target), self._alpha())

    # ---------------------------------------------------------------- actor

    def _objective(self, obs: th.Tensor, horizon: int) -> tuple[th.Tensor, th.Tensor]:
        """The mean soft J_H along the all-action path, ``r_t - alpha log pi(a_t|s_t)`` in the place of the reward (with
        H = 0 it is SAC's); and the mean log-probability of the first action.

        :param obs: start states (N, S), flat
        """
        evaluation = Evaluation(self._policy, partial(self._values, self.critic), self._alpha())
        starts = obs.repeat(self.n_samples, 1)
        expansion, rollout = longest_expansion(self.world_model, evaluation, starts, horizon, self.gamma)
        assert rollout.log_probs is not None
        return expansion.mean(), rollout.log_probs[0].mean()

    def _actor_loss(self, batch: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        horizon = self.horizon if self._model_is_ready else 0
        objective, log_prob = self._objective(self._flat.flatten(batch.observations), horizon)
        return -objective, {"entropy": -log_prob}

    def _update_actor(
        self, loss_of: Callable[[], tuple[th.Tensor | None, dict[str, th.Tensor]]], after: th.Tensor | None = None
    ) -> dict[str, th.Tensor]:
        """The policy's step, then the temperature's (SAC v2, eq. 18) from the same samples."""
        logged = super()._update_actor(loss_of, after)
        logged["ent_coef"] = self._alpha()[0]
        if self.log_ent_coef is not None and self.ent_coef_optimizer is not None:
            excess = logged["entropy"].detach() - float(self.target_entropy)
            loss = (self.log_ent_coef * excess).sum()
            guarded_step(loss, [self.ent_coef_optimizer], after=after)
            logged["ent_coef_loss"] = loss
        return logged

    def _update_targets(self) -> None:
        if self._n_updates % self.target_update_interval == 0:
            super()._update_targets()


def _number(name: str, value: Any, way_out: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be a number; {way_out}") from None


def _initial_ent_coef(ent_coef: str | float) -> float:
    """SB3's words: a number, "auto" (from 1), "auto_X" (from X)."""
    if ent_coef == "auto":
        return 1.0
    if isinstance(ent_coef, str) and ent_coef.startswith("auto_"):
        return _number("ent_coef", ent_coef.removeprefix("auto_"), f'given was {ent_coef!r}; write, say, "auto_0.1"')
    return _number("ent_coef", ent_coef, '"auto" and "auto_0.1" (learned, from 0.1) are the alternatives')
