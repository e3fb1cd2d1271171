"""The interface of every world model: ``s', r, done = f(s, a)``, differentiable, on flat vectors."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_valuegrad.rollouts import Dynamics, renoise


class Step(NamedTuple):
    """One model step for N rows."""

    next_obs: th.Tensor
    """(N, S)"""
    reward: th.Tensor
    """(N,)"""
    done: th.Tensor
    """(N,): chance that the episode terminates here"""

    def of_one_member(self) -> "Step":
        """With a first axis of 1, as :meth:`WorldModel.member_predictions` gives it."""
        return Step(*(part[None] for part in self))


class Transitions(NamedTuple):
    """Real one-step data for fitting a world model, flat vectors, float32."""

    obs: th.Tensor
    """(N, S)"""
    actions: th.Tensor
    """(N, A), scaled to [-1, 1]"""
    rewards: th.Tensor
    """(N,)"""
    dones: th.Tensor
    """(N,): 1 where the episode terminated; a time limit is no termination"""
    next_obs: th.Tensor
    """(N, S)"""
    weights: th.Tensor | None = None
    """(N,): shares in the loss that sum to 1, 0 for rows held out of the fit; None: all rows count the same"""


class WorldModel(nn.Module, ABC):
    """A world model is one more network of the policy, with its own optimizer.

    Observations are flat vectors and actions are scaled to [-1, 1], as the policy emits and the replay buffer stores
    them. :meth:`transition` and :meth:`outcome` together are ``f``; they are apart because a rollout needs the states
    one after the other, but the rewards only once (see :class:`sb3_valuegrad.rollouts.Dynamics`).

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    """

    optimizer: th.optim.Optimizer
    """Set by the policy where there is something to fit."""
    updates: th.Tensor
    members: int = 1
    """Predictors that differ, of an ensemble: each row of a rollout is one member's, see :meth:`by_member`."""
    n_members: int = 1
    """Networks that are fitted side by side. If there are several, the first axis of every parameter is theirs, and a fit
    sorts them: the first :attr:`members` are the best, and predict."""
    takes_raw_data: bool = False
    """Whether it knows only the environment's own observations and rewards, which ``VecNormalize`` must leave alone."""
    bootstrap: bool = False
    """Whether a fit draws each network a data set of its own, with replacement."""

    def __init__(self, obs_dim: int, action_dim: int):
        super().__init__()
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        # How often the model was fitted goes where its parameters go: an untrained one must not be trusted.
        self.register_buffer("updates", th.zeros(()))

    @cached_property
    def is_learned(self) -> bool:
        """Whether there is anything to fit. Asked once, as it walks over the network, and the policy asks in every update."""
        return any(True for _ in self.parameters())

    @abstractmethod
    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Next states (N, S), and a tensor of N rows that :meth:`outcome` can reuse (or None)."""

    @abstractmethod
    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,), and chances of termination (M,); None where termination is not modelled."""

    def cuts_off(self, obs: th.Tensor) -> th.Tensor | None:
        """Whether the task truncates an episode in these states (N, S), (N,) bool, as a time limit does by the time. None: in
        no state that the model knows of."""
        return None

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """The transition under the noise that explains the real next states (N, S): in value these, in gradient the model's
        (SVG, sec. 4.1). Here noise is added, and its size is constant; then it does not matter which it is."""
        expected, hint = self.transition(obs, actions)
        return renoise(expected, None, next_obs), hint

    @abstractmethod
    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Losses to minimise by their sum, by name (for the log); scalars."""

    def set_action_bounds(self, low: th.Tensor, high: th.Tensor) -> None:
        """Told by the policy what -1 and 1 stand for in the environment, (A,) each; for models in the environment's units."""

    def check(self, obs: th.Tensor) -> None:
        """Called before training with the first real states (N, S), for a model to refuse what it could not work with.

        :raises ValueError: naming the argument that is at fault
        """

    def observe(self, data: Transitions) -> None:
        """Take note of data before it is fitted (running statistics); called under ``no_grad``."""

    def observe_all(self, data: Transitions) -> None:
        """Take note of a whole data set in place of what was observed before; called under ``no_grad``."""
        self.observe(data)

    def by_member(self) -> Dynamics:
        """The model with its rows in equal blocks, one a member: of ``members * N`` rows the first N are the first's.

        ``imagine(model.by_member(), policy, obs.repeat(model.members, 1), H)`` asks all members about the same states.
        """
        return self

    def member_rewards(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """Every member's reward of all rows, (members, N); one row (1, N) if they agree, as they do on a known reward."""
        return self.outcome(obs, actions, next_obs, self.transition(obs, actions)[1])[0][None]

    def member_predictions(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        """What every fitted network expects of all rows, without noise: :class:`Step` with a first axis of n_members."""
        return self.step(obs, actions).of_one_member()

    def step(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        """``s', r, done = f(s, a)`` for N rows."""
        return self._step(obs, actions, *self.transition(obs, actions))

    def _step(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None) -> Step:
        """The step to next states that are known, (N, S), with the hint of :meth:`transition`."""
        reward, done = self.outcome(obs, actions, next_obs, hint)
        return Step(next_obs, reward, th.zeros_like(reward) if done is None else done)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is built from."""
        return [{"params": list(self.parameters())}]
