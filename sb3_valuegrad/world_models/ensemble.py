"""Ensemble of Gaussian networks: what is not known of the dynamics, and what is random in them."""

from typing import Any

import torch as th
from torch import nn

from sb3_valuegrad.errors import check_count
from sb3_valuegrad.rollouts import Dynamics, renoise
from sb3_valuegrad.world_models.base import Step, Transitions
from sb3_valuegrad.world_models.gaussian import bounded, negative_log_likelihood, standard_deviation
from sb3_valuegrad.world_models.learned import LearnedWorldModel, OutcomeFunction, mean_over_rows
from sb3_valuegrad.world_models.networks import ParallelMlp

# Units of the hidden layers of the networks that predict termination.
DONE_ARCH = (64, 64)


class GaussianEnsemble(LearnedWorldModel):
    """Probabilistic ensemble (PETS, Chua et al. 2018; MBPO; MAAC, sec. 4): ``s' ~ N(mean_m(s, a), diag var_m(s, a))``.

    All networks are one batched matrix product a layer. In a rollout each row is one elite's, so a step costs what one
    network of the same size does. Samples are differentiable in states and actions (reparameterised). The reward is the
    predicted mean. The elites are the first ``n_elites`` networks; :func:`~sb3_valuegrad.world_models.fitting.fit` sorts
    the networks by their error on held-out data. A single :meth:`losses` step on a minibatch trains all networks on the
    same rows; data sets of their own (``bootstrap``) are a fit's.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param net_arch: units of each hidden layer; a learned termination has small networks of its own (64, 64)
    :param activation_fn: smooth ones (SiLU) give smoother value gradients
    :param n_members: M, number of networks
    :param n_elites: E, how many of them predict
    :param normalize: scale inputs and targets by running statistics; without it the bounds of the predicted variances,
        exp(-10) and exp(0.5), are in the data's units
    :param predict_change: the networks predict ``s' - s``; False: ``s'``
    :param weight_decay: L2 term, passed to the optimizer (AdamW decouples it, Adam does not)
    :param reward_fn: the known reward, see :class:`~sb3_valuegrad.world_models.MlpWorldModel`; None: learned
    :param termination: "learned", "none", or a known function
    :param member_draw: "step": each row's elite is drawn anew in every step; "rollout": it is kept, the rows are dealt to
        the elites in contiguous blocks of equal size
    :param deterministic: predict the mean instead of a sample
    :param bootstrap: a fit draws each network a data set of its own, with replacement; False: all see the same rows in
        the same order, and differ by their first weights
    :raises ValueError: for counts below 1, more elites than members, an unknown ``member_draw`` or ``termination``, and
        for functions whose result has the wrong shape
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        net_arch: tuple[int, ...] | list[int] = (200, 200, 200, 200),
        activation_fn: type[nn.Module] = nn.SiLU,
        n_members: int = 7,
        n_elites: int = 5,
        normalize: bool = True,
        predict_change: bool = True,
        weight_decay: float = 0.0,
        reward_fn: OutcomeFunction | None = None,
        termination: str | OutcomeFunction = "learned",
        member_draw: str = "step",
        deterministic: bool = False,
        bootstrap: bool = True,
    ):
        check_count("n_members", n_members, 1)
        check_count("n_elites", n_elites, 1)
        if n_elites > n_members:
            raise ValueError(f"n_elites={n_elites} must not be more than n_members={n_members}")
        if member_draw not in ("step", "rollout"):
            raise ValueError(f'member_draw={member_draw!r}: use "step" or "rollout"')
        super().__init__(obs_dim, action_dim, normalize, predict_change, weight_decay, reward_fn, termination)
        self.n_members, self.members = int(n_members), int(n_elites)
        self.member_draw, self.deterministic, self.bootstrap = member_draw, deterministic, bootstrap
        # Mean and log-variance of the state, mean and log-variance of the reward; log-odds of the termination.
        inputs, outputs = obs_dim + action_dim, 2 * obs_dim + 2 * int(self.learns_reward)
        self.network = ParallelMlp(self.n_members, inputs, outputs, net_arch, activation_fn)
        if self.learns_termination:
            # Not a head of the same network: the likelihood's gradient grows as the variances shrink, and on a nearly
            # deterministic system nothing of the network would be left for a head (Brier score 3.4 times the MLP model's).
            self.done_network = ParallelMlp(self.n_members, inputs, 1, DONE_ARCH, activation_fn)

    def _outputs(self, inputs: th.Tensor, members: int | None = None) -> th.Tensor:
        """Raw outputs of all heads, as :class:`ParallelMlp` takes and gives them; the termination's, the last, only where
        it counts."""
        output = self.network(inputs, members)
        return th.cat([output, self.done_network(inputs, members)], dim=2) if self.may_end else output

    def _split(self, output: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Raw outputs to the state's mean and raw log-variance (..., S), and those of the other heads (..., X)."""
        dim = self.obs_dim
        mean, log_var, others = output.split([dim, dim, output.shape[-1] - 2 * dim], dim=-1)
        return mean, log_var, others

    # ---------------------------------------------------------------- rollouts

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Next states (N, S), each of one elite, and the raw outputs of that elite's other heads (N, X)."""
        return self._transition(obs, actions, self._seats(obs))

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The real next states (N, S) as samples of one elite each: their gradient is that of its mean and, unless
        ``deterministic``, of its standard deviation."""
        mean, log_var, others = self._split(self._by_elites(self._inputs(obs, actions), self._seats(obs)))
        std = None if self.deterministic else self._state_std(log_var)
        return renoise(self._next_obs(obs, mean), std, next_obs), others

    def _seats(self, obs: th.Tensor) -> th.Tensor | None:
        """Where each row sits in the elites' blocks, as :meth:`_by_elites` takes it."""
        if self.member_draw == "step" and self.members > 1:
            return _shuffled(len(obs), self.members, obs.device)
        return _blocks(len(obs), self.members, obs.device) if len(obs) % self.members else None

    def _transition(self, obs: th.Tensor, actions: th.Tensor, seats: th.Tensor | None) -> tuple[th.Tensor, th.Tensor]:
        mean, log_var, others = self._split(self._by_elites(self._inputs(obs, actions), seats))
        if not self.deterministic:
            mean = th.addcmul(mean, standard_deviation(log_var), th.randn_like(mean))
        return self._next_obs(obs, mean), others

    def _by_elites(self, inputs: th.Tensor, seats: th.Tensor | None) -> th.Tensor:
        """Each row through one elite's network, (N, S + A) to (N, outputs).

        :param inputs: the rows
        :param seats: (N,) where each row sits in the elites' equal blocks; None: as they come, the blocks are full
        """
        if seats is None:
            blocks = inputs.view(self.members, -1, inputs.shape[1])
            return self._outputs(blocks, self.members).flatten(0, 1)
        width = -(-len(inputs) // self.members)
        # The last few seats may stay empty: some row fills in, whose output there nobody reads.
        rows = seats.new_zeros(self.members * width).index_copy_(0, seats, th.arange(len(seats), device=seats.device))
        blocks = inputs.index_select(0, rows).view(self.members, width, -1)
        return self._outputs(blocks, self.members).flatten(0, 1).index_select(0, seats)

    def by_member(self) -> Dynamics:
        """The model with its rows in equal blocks, one an elite."""
        return _ByMember(self)

    def member_rewards(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        """Every elite's reward of all rows, (E, N); of a known reward one row, (1, N)."""
        if self.reward_fn is not None:
            return self.reward_fn(obs, actions, next_obs)[None]
        output = self.network(self._inputs(obs, actions), self.members)
        return self._reward(output[..., 2 * self.obs_dim])

    def member_predictions(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        """What every network expects of all rows: next states (M, N, S), rewards and chances of termination (M, N)."""
        mean, _, others = self._split(self._outputs(self._inputs(obs, actions)))
        next_obs, count = self._next_obs(obs, mean), self.n_members
        rows = [part.expand(count, *part.shape[-2:]).flatten(0, 1) for part in (obs, actions, next_obs, others)]
        rewards, dones = self.outcome(*rows)
        dones = th.zeros_like(rewards) if dones is None else dones
        return Step(next_obs, rewards.view(count, -1), dones.view(count, -1))

    # ---------------------------------------------------------------- fitting

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Negative log-likelihoods of state (averaged over its dimensions) and reward, in scaled units where scaled, and
        the balanced cross-entropy of termination; means over rows, sums over the networks, so that each learns as it
        would alone.

        :param data: rows for all networks (N, ...), or for each its own (M, N, ...)
        """
        inputs = self._inputs(data.obs, data.actions)
        mean, log_var, others = self._split(self.network(inputs))
        state, reward = self._targets(data)
        of_state = negative_log_likelihood(mean, bounded(log_var), state).mean(-1)
        losses = {"model_state_loss": mean_over_rows(of_state, data.weights)}
        if self.learns_reward:
            of_reward = negative_log_likelihood(others[..., 0], bounded(others[..., 1]), reward)
            losses["model_reward_loss"] = mean_over_rows(of_reward, data.weights)
        if self.learns_termination:
            losses["model_done_loss"] = self._termination_loss(self.done_network(inputs)[..., 0], data)
        return losses


class _ByMember:
    """An ensemble whose rows are dealt to the elites in equal blocks, whatever its own ``member_draw``."""

    def __init__(self, model: GaussianEnsemble):
        self.model = model

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:raises ValueError: if the rows cannot be dealt evenly"""
        if len(obs) % self.model.members:
            raise ValueError(f"by_member() needs a multiple of {self.model.members} rows (the elites), not {len(obs)}")
        return self.model._transition(obs, actions, None)

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """The ensemble's own: the hint holds each row's elite's outputs."""
        return self.model.outcome(obs, actions, next_obs, hint)


def _shuffled(rows: int, members: int, device: th.device) -> th.Tensor:
    """A seat for each row, (rows,): every row has every member with the same chance, and the members have equally many,
    up to the seats that stay empty."""
    width = -(-rows // members)
    return th.randperm(members * width, device=device)[:rows]


def _blocks(rows: int, members: int, device: th.device) -> th.Tensor:
    """A seat for each row, (rows,): contiguous blocks whose sizes differ by one at most."""
    row = th.arange(rows, device=device)
    member = ((row + 1) * members - 1) // rows
    return member * -(-rows // members) + row - member * rows // members
