"""Exploration by noise on the actor's parameters (Plappert et al. 2018)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_valuegrad.errors import check_count


class AdaptiveParameterNoise(ActionNoise):
    """Adaptive parameter-space noise (Plappert et al. 2018): a perturbed copy of the actor acts for a whole episode.

    Pass it as ``action_noise`` to an algorithm of the deterministic family. At the start of an episode all parameters
    get Gaussian noise of standard deviation sigma, those of normalisation layers excepted. Every ``interval`` steps sigma
    is adapted (Sec. 3 of the paper), so that the actions differ by about ``delta``::

        sigma <- factor * sigma  if d(pi, pi~) <= delta,  sigma / factor otherwise

    Several environments have a perturbation and a sigma each.

    :param delta: wanted distance of the actions, scaled to [-1, 1], see :func:`action_distance`
    :param factor: by which sigma grows or shrinks
    :param sigma: the first one; None: ``delta``
    :param interval: environment steps from one adaptation to the next
    :raises ValueError: for arguments out of range, and where an algorithm takes it for noise to be added to actions
    """

    def __init__(self, delta: float = 0.2, factor: float = 1.01, sigma: float | None = None, interval: int = 50):
        super().__init__()
        sigma = delta if sigma is None else sigma
        for name, value, least in (("delta", delta, 0), ("factor", factor, 1), ("sigma", sigma, 0)):
            if not value > least:
                raise ValueError(f"{name}={value} must be greater than {least}")
        check_count("interval", interval, 1)
        self.delta, self.factor, self.sigma, self.interval = delta, factor, sigma, interval
        self._steps = 0
        self._acting: nn.Module | None = None

    def __call__(self) -> np.ndarray:
        """Not what SB3's noise objects do: there is nothing to add to an action."""
        raise ValueError(
            f"action_noise={self!r} perturbs the parameters of a deterministic actor; it works with the deterministic family "
            "(DVG, DVPG, MVE). Other algorithms explore by their own policy's randomness, or by SB3's ActionNoise objects."
        )

    def __repr__(self) -> str:
        return f"AdaptiveParameterNoise(delta={self.delta}, factor={self.factor}, sigma={self.sigma:.4g})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the perturbed actor: an episode is not saved either."""
        return {**self.__dict__, "_acting": None}

    def reset(self) -> None:
        """At the end of an episode; the next one gets another perturbation."""
        self._acting = None

    def actor(self, actor: nn.Module, states: Callable[[], PyTorchObs] | None) -> nn.Module:
        """Who acts at this step.

        :param actor: the actor that learns
        :param states: replayed observations, asked for where sigma is adapted; None: there are none yet
        """
        self._steps += 1
        if self._steps % self.interval == 0 and states is not None:
            self.adapt(actor, states())
        if self._acting is None:
            self._acting = perturbed(actor, self.sigma)
        return self._acting

    def adapt(self, actor: nn.Module, obs: PyTorchObs) -> None:
        """Adapt sigma by a fresh perturbation: the one that acts is of an actor that has learned since."""
        distance = action_distance(actor, perturbed(actor, self.sigma), obs)
        self.sigma = self.sigma * self.factor if distance <= self.delta else self.sigma / self.factor


class _EachItsOwn(nn.Module):
    """One actor for each row of the observations."""

    def __init__(self, actors: list[nn.Module]):
        super().__init__()
        self.actors = nn.ModuleList(actors)

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        return th.cat([actor(_row(obs, index)) for index, actor in enumerate(self.actors)])

    def set_training_mode(self, mode: bool) -> None:
        """As SB3's networks have it."""
        self.train(mode)


def _row(obs: PyTorchObs, index: int) -> PyTorchObs:
    return obs[index : index + 1] if isinstance(obs, th.Tensor) else {k: part[index : index + 1] for k, part in obs.items()}


@th.no_grad()
def perturbed(actor: nn.Module, sigma: float) -> nn.Module:
    """A copy of the actor whose parameters have Gaussian noise of standard deviation ``sigma``.

    Normalisation layers keep theirs (App. B of the paper: they make one sigma right for all layers).
    """
    copied = copy.deepcopy(actor)
    for layer in copied.modules():
        if not isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)):
            for parameter in layer.parameters(recurse=False):
                parameter.add_(th.randn_like(parameter), alpha=sigma)
    return copied


@th.no_grad()
def action_distance(actor: nn.Module, other: nn.Module, obs: PyTorchObs) -> float:
    """``d = sqrt(1/A sum_i E_s[(pi(s)_i - pi~(s)_i)^2])`` (Plappert et al. 2018, App. C, DDPG).

    :param actor: observations to actions (N, A)
    :param other: the same
    :param obs: the states, a batch of N observations
    """
    return float((actor(obs) - other(obs)).square().mean().sqrt())


def parameter_noises(noise: ActionNoise | None) -> list[AdaptiveParameterNoise]:
    """The parameter noise of each environment; empty if ``noise`` is of another kind."""
    noises = noise.noises if isinstance(noise, VectorizedActionNoise) else [noise]
    return [each for each in noises if isinstance(each, AdaptiveParameterNoise)]


@contextmanager
def exploring(policy: Any, noises: list[AdaptiveParameterNoise], states: Callable[[], PyTorchObs] | None) -> Iterator[None]:
    """While this lasts, perturbed actors act for the policy, one an environment.

    :param policy: with an ``actor``
    :param noises: of each environment
    :param states: replayed observations; None: there are none yet
    """
    actor = policy.actor
    actors = [noise.actor(actor, states) for noise in noises]
    policy.actor = actors[0] if len(actors) == 1 else _EachItsOwn(actors)
    try:
        yield
    finally:
        policy.actor = actor
