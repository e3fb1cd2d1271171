"""SVG's networks: a Gaussian policy whose noise can be inferred from its actions, and a critic of states."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import nn

from sb3_valuegrad.layers import run_layers
from sb3_valuegrad.policies import LOG_SQRT_2PI, QCritic, SquashedGaussianActor, StochasticPolicy
from sb3_valuegrad.rollouts import renoise

# atanh of a float32 action beyond this is rounding; here it is 7.3.
BOUND = 1 - 1e-6


class GaussianActor(SquashedGaussianActor):
    """``a = mu(s) + sigma(s) eta``, ``eta ~ N(0, 1)`` (SVG, sec. 4.1), then a tanh or not.

    :param squash: ``a = tanh(mu + sigma eta)``, which stays within the bounds; False: plain, and the environment gets the
        action cut off at its bounds
    :param noise_std: sigma, before the tanh; where it is learned, at first
    :param learn_noise: sigma depends on the state and is learned; False: it is constant
    """

    def __init__(self, *args: Any, squash: bool = True, noise_std: float = 0.5, learn_noise: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.squash, self.learn_noise = squash, learn_noise
        log_std = math.log(noise_std)
        if learn_noise:
            assert isinstance(self.log_std, nn.Linear)
            nn.init.constant_(self.log_std.bias, log_std)
        else:
            del self.log_std
            self.register_buffer("log_std", th.full((get_action_dim(self.action_space),), log_std))

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Mean and log-deviation before the tanh, (N, A); no further arguments."""
        latent = run_layers(self.latent_pi, self.extract_features(obs, self.features_extractor))
        mean = self.mu(latent)
        if not self.learn_noise:
            return mean, self.log_std.expand_as(mean), {}
        return mean, th.clamp(self.log_std(latent), LOG_STD_MIN, LOG_STD_MAX), {}  # type: ignore[operator]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """A sample by reparameterisation, or the most likely action before the tanh, (N, A)."""
        mean, log_std, _ = self.get_action_dist_params(obs)
        return self._squashed(mean if deterministic else th.addcmul(mean, log_std.exp(), th.randn_like(mean)))

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """A sample (N, A), and its log-probability (N,)."""
        actions = self(obs)
        return actions, self.log_prob(obs, actions)

    def log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """log pi(a | s), (N,), for actions as they are stored."""
        mean, log_std, _ = self.get_action_dist_params(obs)
        noise = (self._unsquashed(actions) - mean) / log_std.exp()
        log_prob = (-0.5 * noise.square() - log_std - LOG_SQRT_2PI).sum(1)
        return log_prob - th.log(1 - actions.square() + 1e-6).sum(1) if self.squash else log_prob

    def renoised(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """``pi(s, eta)`` at the noise that explains real actions (N, A): in value these (SVG, Alg. 1 line 11)."""
        mean, log_std, _ = self.get_action_dist_params(obs)
        return self._squashed(renoise(mean, log_std.exp(), self._unsquashed(actions)))

    def _squashed(self, actions: th.Tensor) -> th.Tensor:
        return th.tanh(actions) if self.squash else actions

    def _unsquashed(self, actions: th.Tensor) -> th.Tensor:
        return th.atanh(actions.clamp(-BOUND, BOUND)) if self.squash else actions


def gaussian_kl(mean: th.Tensor, log_std: th.Tensor, other_mean: th.Tensor, other_log_std: th.Tensor) -> th.Tensor:
    """KL divergence of diagonal Gaussians, ``KL[N(mean, std^2) || N(other_mean, other_std^2)]``, (N, A) each to (N,). That of
    their tanh's is the same."""
    variance_ratio = (2 * (log_std - other_log_std)).exp()
    distance = ((mean - other_mean) / other_log_std.exp()).square()
    return (0.5 * (variance_ratio + distance - 1) + other_log_std - log_std).sum(1)


class VCritic(QCritic):
    """A critic of states: V(s), for whoever also hands it an action.

    :param layer_norm: LayerNorm before each activation; the other parameters are SB3's critic's
    """

    def __init__(self, *args: Any, layer_norm: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._build(kwargs["features_dim"], kwargs, layer_norm)

    def forward(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> tuple[th.Tensor, ...]:
        """Every critic's value (N, 1); the actions do not matter."""
        features = self.extract_features(obs, self.features_extractor)
        return tuple(run_layers(network, features) for network in self.q_networks)

    def q1(self, obs: PyTorchObs, actions: th.Tensor | None = None) -> th.Tensor:
        """The first critic's value (N,), with the gradient in the observation."""
        return run_layers(self.q_networks[0], self.extract_features(obs, self.features_extractor)).squeeze(1)


class GaussianPolicy(StochasticPolicy):
    """A Gaussian policy with critics of states, or of states and actions, and a world model.

    :param squash: see :class:`GaussianActor`
    :param noise_std: see :class:`GaussianActor`
    :param learn_noise: see :class:`GaussianActor`
    :param state_values: critics of states, V(s); False: Q(s, a). The algorithm says which it needs

    The other parameters are those of :class:`~sb3_valuegrad.policies.ValueGradientPolicy`.

    :raises ValueError: for a ``noise_std`` that is not positive, and for a shared features extractor
    """

    def __init__(
        self,
        *args: Any,
        squash: bool = True,
        noise_std: float = 0.5,
        learn_noise: bool = False,
        state_values: bool = True,
        **kwargs: Any,
    ):
        if not noise_std > 0:
            raise ValueError(f"noise_std={noise_std} must be positive: a policy's noise is inferred by dividing by it")
        if kwargs.get("share_features_extractor"):
            raise ValueError(
                "share_features_extractor=True: the value gradient goes through the critic's features, which would be the "
                "policy's; use False"
            )
        self.noise_kwargs: dict[str, Any] = {"squash": squash, "noise_std": noise_std, "learn_noise": learn_noise}
        self.state_values = state_values
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> GaussianActor:
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return GaussianActor(**actor_kwargs, **self.noise_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> QCritic:
        if not self.state_values:
            return super().make_critic(features_extractor)
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return VCritic(**critic_kwargs, layer_norm=self.layer_norm).to(self.device)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Within the bounds also where nothing squashes the action."""
        return super()._predict(observation, deterministic).clamp(-1, 1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.noise_kwargs, "state_values": self.state_values}
