"""SB3's actor-critic policies with a world model as one more network."""

import math
import pickle
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.sac.policies import Actor as SquashedActor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.layers import run_layers
from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.world_models import WorldModel, get_world_model_class

LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))
FUSED_OPTIMIZERS = (th.optim.Adam, th.optim.AdamW)


# Layers that do the same in training and evaluation mode.
MODELESS = tuple(f"torch.nn.modules.{kind}" for kind in ("linear", "activation", "container", "normalization", "flatten"))


def _has_modes(network: nn.Module) -> bool:
    """Whether a layer depends on the mode, like dropout, or is the user's, so that it may."""
    ours = ("stable_baselines3.", "sb3_valuegrad.", *MODELESS)
    layers = list(network.modules())
    return any(
        isinstance(layer, (nn.RReLU, nn.MultiheadAttention)) or not type(layer).__module__.startswith(ours) for layer in layers
    )


class _PlainFeatures(BaseModel):
    """Vectors that are features already skip SB3's preprocessing, which costs as much as a small layer."""

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        is_plain = isinstance(obs, th.Tensor) and obs.dtype == th.float32 and obs.dim() == 2
        if is_plain and type(features_extractor) is FlattenExtractor and isinstance(self.observation_space, spaces.Box):
            return obs  # type: ignore[return-value]
        return super().extract_features(obs, features_extractor)


class MuActor(_PlainFeatures, Actor):
    """SB3's deterministic actor."""

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """The action mu(s), (N, A), in [-1, 1]."""
        return run_layers(self.mu, self.extract_features(obs, self.features_extractor))


class QCritic(_PlainFeatures, ContinuousCritic):
    """SB3's critic, differentiable in the observation, optionally with LayerNorm.

    ``ContinuousCritic.q1_forward`` extracts features under ``no_grad``: right for DDPG, where the observation is data,
    and silently wrong for a value gradient, which passes through the imagined observation.

    :param layer_norm: LayerNorm before each activation; the other parameters are SB3's
    """

    def __init__(self, *args: Any, layer_norm: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if layer_norm:
            self._build(kwargs["features_dim"] + get_action_dim(kwargs["action_space"]), kwargs, layer_norm)

    def _build(self, input_dim: int, kwargs: dict[str, Any], layer_norm: bool) -> None:
        """Networks of our own in the place of SB3's; the arguments are the constructor's."""
        norm: list[type[nn.Module]] = [nn.LayerNorm] if layer_norm else []
        for index in range(self.n_critics):
            layers = create_mlp(input_dim, 1, kwargs["net_arch"], kwargs["activation_fn"], post_linear_modules=norm)
            self.q_networks[index] = nn.Sequential(*layers)
            self.add_module(f"qf{index}", self.q_networks[index])

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Every critic's value (N, 1), with the gradient in observation and action. A features extractor shared with the actor
        learns from the actor's loss only."""
        with frozen(self.features_extractor.parameters() if self.share_features_extractor else ()):
            features = self.extract_features(obs, self.features_extractor)
        inputs = th.cat([features, actions], dim=1)
        return tuple(run_layers(network, inputs) for network in self.q_networks)

    def q1(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """The first critic's value (N,), with the gradient in observation and action."""
        features = self.extract_features(obs, self.features_extractor)
        return run_layers(self.q_networks[0], th.cat([features, actions], dim=1)).squeeze(1)


class SquashedGaussianActor(_PlainFeatures, SquashedActor):
    """SB3's actor of SAC; its samples without the distribution objects, which cost as much as a layer and wait for values
    to check them."""

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Mean and log-deviation before the tanh, (N, A); no further arguments."""
        latent = run_layers(self.latent_pi, self.extract_features(obs, self.features_extractor))
        log_std = self.log_std(latent)  # type: ignore[operator]
        return self.mu(latent), th.clamp(log_std, LOG_STD_MIN, LOG_STD_MAX), {}

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """A sample ``a = tanh(u)``, ``u ~ N(mean, std^2)`` by reparameterisation, (N, A), and its log-probability (N,),
        ``sum(log N(u) - log(1 - a^2 + 1e-6))``; both SB3's own, gradients included, to the bit."""
        mean, log_std, _ = self.get_action_dist_params(obs)
        std = log_std.exp()
        unsquashed = mean + th.randn_like(mean) * std
        actions = th.tanh(unsquashed)
        log_prob = -((unsquashed - mean) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2PI
        return actions, log_prob.sum(dim=1) - th.log(1 - actions**2 + 1e-6).sum(dim=1)


class ValueGradientPolicy(BasePolicy):
    """What turns one of SB3's actor-critic policies into one with a world model: a network more, with its optimizer.

    SB3's policy arguments, with what learns best as defaults, plus:

    :param features_extractor_class: None: SB3's own for the space (flatten, or combine the parts of a Dict)
    :param optimizer_class: of all networks, the world model included
    :param optimizer_kwargs: its arguments, without the learning rate; Adam and AdamW are fused unless they say otherwise
    :param layer_norm: LayerNorm in the critics
    :param world_model_class: alias ("mlp", "ensemble", "per-dimension", "oracle", "analytic") or subclass of
        :class:`~sb3_valuegrad.world_models.WorldModel`
    :param world_model_kwargs: its arguments
    :param simulator_class: by what the critic's target imagines in the world model's place, and there the current policy acts:
        "oracle", "analytic", or another :class:`~sb3_valuegrad.world_models.WorldModel` with nothing to be learned; None:
        the world model. So a policy may climb a prior while its critic learns what really follows (MPG-v1)
    :param simulator_kwargs: its arguments
    :raises ValueError: for an unknown world model, and a simulator that would have to be learned
    """

    actor: Any
    critic: Any
    critic_target: Any
    critic_kwargs: dict[str, Any]
    world_model: WorldModel
    simulator: WorldModel | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        layer_norm: bool = True,
        world_model_class: str | type[WorldModel] = "mlp",
        world_model_kwargs: dict[str, Any] | None = None,
        simulator_class: str | type[WorldModel] | None = None,
        simulator_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        # One kernel for all parameters; it also takes the mask that withholds a non-finite update.
        optimizer_kwargs = dict(optimizer_kwargs or {})
        if optimizer_class in FUSED_OPTIMIZERS and not optimizer_kwargs.keys() & {"fused", "foreach", "differentiable"}:
            optimizer_kwargs["fused"] = True
        if features_extractor_class is None:
            features_extractor_class = CombinedExtractor if isinstance(observation_space, spaces.Dict) else FlattenExtractor
        self.layer_norm = layer_norm
        self.world_model_class = world_model_class
        self.world_model_kwargs = dict(world_model_kwargs or {})
        self.simulator_class = simulator_class
        self.simulator_kwargs = dict(simulator_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[256, 256] if net_arch is None else net_arch,
            activation_fn=activation_fn,
            features_extractor_class=features_extractor_class,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.flat_observations = FlatObservations(self.observation_space)
        self.world_model = self._make_model(get_world_model_class(self.world_model_class), self.world_model_kwargs)
        self.simulator = self._make_simulator()
        self._has_modes = any(_has_modes(network) for network in (self.actor, self.critic, self.world_model))
        if self.world_model.is_learned:
            self.world_model.optimizer = self.optimizer_class(
                self.world_model.parameter_groups(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def _make_model(self, model_class: type[WorldModel], kwargs: dict[str, Any]) -> WorldModel:
        model = model_class(self.flat_observations.dim, get_action_dim(self.action_space), **kwargs).to(self.device)
        assert isinstance(self.action_space, spaces.Box)
        low, high = (th.as_tensor(bound).flatten() for bound in (self.action_space.low, self.action_space.high))
        model.set_action_bounds(low.to(self.device), high.to(self.device))
        return model

    def _make_simulator(self) -> WorldModel | None:
        """:raises ValueError: for arguments without a class, and for a model that would have to be learned"""
        if self.simulator_class is None:
            if self.simulator_kwargs:
                raise ValueError(
                    f"simulator_kwargs={self.simulator_kwargs} without a simulator_class: the task itself is "
                    'simulator_class="oracle"'
                )
            return None
        simulator = self._make_model(get_world_model_class(self.simulator_class, "simulator_class"), self.simulator_kwargs)
        if simulator.is_learned:
            raise ValueError(
                f"simulator_class={self.simulator_class!r} would have to be learned, and only world_model_class is. Give "
                '"oracle" (the task itself) or "analytic" (functions); without a simulator the critic\'s target imagines by '
                "the world model."
            )
        return simulator

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> QCritic:
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return QCritic(**critic_kwargs, layer_norm=self.layer_norm).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            layer_norm=self.layer_norm,
            world_model_class=self.world_model_class,
            world_model_kwargs=self.world_model_kwargs,
            simulator_class=self.simulator_class,
            simulator_kwargs=self.simulator_kwargs,
        )
        return data

    def save(self, path: str) -> None:
        """SB3's ``save``.

        :raises ValueError: if an argument of the policy cannot be pickled, such as a lambda in ``world_model_kwargs``
        """
        try:
            super().save(path)
        except (pickle.PicklingError, AttributeError) as error:
            raise ValueError(
                f"policy_kwargs hold something that cannot be saved by an import path ({error}). Define functions and classes "
                "in a module that can be imported; model.save() stores the code of others."
            ) from error

    def set_training_mode(self, mode: bool) -> None:
        """Called around every update: a walk over all layers, which is skipped where no layer would notice."""
        self.training = mode
        if self._has_modes:
            super().set_training_mode(mode)
            self.world_model.train(mode)


class DeterministicPolicy(ValueGradientPolicy, TD3Policy):
    """TD3's policy (actor, critics, their targets) with a world model."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> MuActor:
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return MuActor(**actor_kwargs).to(self.device)


class StochasticPolicy(ValueGradientPolicy, SACPolicy):
    """SAC's policy (actor, critics, their targets) with a world model."""

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SquashedGaussianActor:
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return SquashedGaussianActor(**actor_kwargs).to(self.device)
