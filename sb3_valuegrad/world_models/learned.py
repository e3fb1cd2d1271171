"""What all learned world models share: a known or learned reward and termination, and running scales."""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_valuegrad.world_models.base import Transitions, WorldModel
from sb3_valuegrad.world_models.functions import tried
from sb3_valuegrad.world_models.gaussian import standard_deviation
from sb3_valuegrad.world_models.scaling import RunningScaler

OutcomeFunction = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]


class LearnedWorldModel(WorldModel):
    """Reward and termination are known functions or further heads of the network; targets are the change of the state.

    A leaf builds the network, with :attr:`extra_heads` outputs beside those for the state, and answers for
    :meth:`transition` and :meth:`losses`. The tensor that its ``transition`` hands to :meth:`outcome` holds the raw
    outputs of the other heads by row: the reward's first and the termination's last, where they are learned.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param normalize: scale inputs and targets by running statistics
    :param predict_change: the network predicts ``s' - s``; False: ``s'``
    :param weight_decay: L2 term, passed to the optimizer (AdamW decouples it, Adam does not)
    :param reward_fn: the known reward, see :class:`~sb3_valuegrad.world_models.MlpWorldModel`; None: learned
    :param termination: "learned", "none", or a known function
    :raises ValueError: for an unknown ``termination`` and for functions whose result has the wrong shape
    """

    seen_dones: th.Tensor
    seen_rows: th.Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        normalize: bool,
        predict_change: bool,
        weight_decay: float,
        reward_fn: OutcomeFunction | None,
        termination: str | OutcomeFunction,
    ):
        super().__init__(obs_dim, action_dim)
        if isinstance(termination, str) and termination not in ("learned", "none"):
            raise ValueError(f'termination={termination!r}: use "learned", "none" or a torch function')
        self.normalize, self.predict_change, self.weight_decay = normalize, predict_change, weight_decay
        self.reward_fn = self._checked("reward_fn", reward_fn)
        self.termination_fn = None if isinstance(termination, str) else self._checked("termination", termination)
        self.learns_reward = reward_fn is None
        self.learns_termination = termination == "learned"
        self.extra_heads = int(self.learns_reward) + int(self.learns_termination)
        # Whether any termination may have been seen. Known in Python only after a whole data set: to ask ``seen_dones`` in
        # every step would make an accelerator wait.
        self.may_end = self.learns_termination
        if normalize:
            self.input_scaler = RunningScaler(obs_dim + action_dim)
            self.state_scaler = RunningScaler(obs_dim)
            self.reward_scaler = RunningScaler(1)
        # Counts of terminations and rows seen, as floats.
        self.register_buffer("seen_dones", th.zeros(()))
        self.register_buffer("seen_rows", th.zeros(()))

    def _checked(self, name: str, function: OutcomeFunction | None) -> OutcomeFunction | None:
        """Try a given function on three rows before anything is trained with it."""
        if function is None:
            return None
        rows = 3
        arguments = {"obs": self.obs_dim, "actions": self.action_dim, "next_obs": self.obs_dim}
        with th.no_grad():
            tried(f"{name}={function!r}", function, {what: th.zeros(rows, dim) for what, dim in arguments.items()}, (rows,))
        return function

    def _inputs(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        inputs = th.cat([obs, actions], dim=-1)
        return self.input_scaler.scale(inputs) if self.normalize else inputs

    def _next_obs(self, obs: th.Tensor, output: th.Tensor) -> th.Tensor:
        """States from the network's output for them, which may be scaled and a change."""
        if self.normalize:
            output = self.state_scaler.unscale(output)
        return obs + output if self.predict_change else output

    def _state_std(self, log_var: th.Tensor) -> th.Tensor:
        """Standard deviations of the state, in its own units, from raw log-variances."""
        std = standard_deviation(log_var)
        if not self.normalize:
            return std
        # A column that never moved has no scale; noise on it is of constant size.
        spread = self.state_scaler.spread
        return th.where(spread > 0, std * spread, th.ones_like(std))

    def _reward(self, output: th.Tensor) -> th.Tensor:
        return self.reward_scaler.unscale(output) if self.normalize else output

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,) and chances of termination (M,); None for these while no termination was seen."""
        heads = () if hint is None else hint.unbind(1)
        if self.reward_fn is not None:
            rewards = self.reward_fn(obs, actions, next_obs)
        else:
            rewards = self._reward(heads[0])
        if self.termination_fn is not None:
            return rewards, self.termination_fn(obs, actions, next_obs).to(rewards.dtype)
        return rewards, self._termination(heads[-1]) if self.may_end else None

    def _termination(self, logits: th.Tensor) -> th.Tensor:
        """The chance of termination. The loss balances the classes, so the log-odds are shifted back to the rate that
        was seen; before any was seen the chance is zero, not half."""
        of_done, of_alive = self._class_weights()
        return th.sigmoid(logits - (of_done / of_alive).log()) * (self.seen_dones > 0)

    def _class_weights(self) -> tuple[th.Tensor, th.Tensor]:
        """Weights in the loss of a terminating row and of another one: equal in sum, up to a factor of 200 a row."""
        rate = (self.seen_dones / self.seen_rows.clamp(min=1)).clamp(0.0025, 0.9975)
        return 0.5 / rate, 0.5 / (1 - rate)

    def observe(self, data: Transitions) -> None:
        """Running scales, and the rate of terminations."""
        for scaler, rows in self._scaled(data):
            scaler.update(rows)
        if self.learns_termination:
            self.seen_dones += data.dones.sum()
            self.seen_rows += len(data.dones)
            self.may_end = True

    def observe_all(self, data: Transitions) -> None:
        """The scales of a whole data set, and its rate of terminations, in place of the running ones."""
        for scaler, rows in self._scaled(data):
            scaler.refresh(rows)
        if self.learns_termination:
            self.seen_dones.copy_(data.dones.sum())
            self.seen_rows.fill_(len(data.dones))
            self.may_end = bool(data.dones.any())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.may_end = self.learns_termination

    def _scaled(self, data: Transitions) -> list[tuple[RunningScaler, th.Tensor]]:
        """What is put on unit scale, and by which scaler."""
        if not self.normalize:
            return []
        inputs, rewards = th.cat([data.obs, data.actions], dim=1), data.rewards[:, None]
        return [(self.input_scaler, inputs), (self.state_scaler, self._state_target(data)), (self.reward_scaler, rewards)]

    def _state_target(self, data: Transitions) -> th.Tensor:
        return data.next_obs - data.obs if self.predict_change else data.next_obs

    def _targets(self, data: Transitions) -> tuple[th.Tensor, th.Tensor]:
        """What the network's outputs for state (..., S) and reward (...,) should be."""
        state, reward = self._state_target(data), data.rewards
        if self.normalize:
            return self.state_scaler.scale(state), self.reward_scaler.scale(reward)
        return state, reward

    def _termination_loss(self, logits: th.Tensor, data: Transitions) -> th.Tensor:
        """Cross-entropy in which both classes weigh the same over the data seen; zero while no termination was seen.

        :param logits: (N,), or (M, N) of the members of an ensemble, over which the loss is summed
        """
        of_done, of_alive = self._class_weights()
        balance = th.where(data.dones > 0, of_done, of_alive)
        dones = data.dones.expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, dones, reduction="none") * balance
        return mean_over_rows(loss, data.weights) * (self.seen_dones > 0)

    def parameter_groups(self) -> list[dict[str, object]]:
        """One group; the L2 term is the optimizer's weight decay."""
        group: dict[str, object] = {"params": list(self.parameters())}
        if self.weight_decay:
            group["weight_decay"] = self.weight_decay
        return [group]


def mean_over_rows(losses: th.Tensor, weights: th.Tensor | None) -> th.Tensor:
    """Losses of rows (N,), or of members and rows (M, N), averaged over the rows that count and summed over the members."""
    means = losses.mean(-1) if weights is None else losses @ weights
    return means if means.dim() == 0 else means.sum()
