"""What a critic learns from when imagined steps go before its own bootstrap: MVE and STEVE.

Every algorithm of the package may use them (``target_estimator``, ``target_horizon``), whatever its policy climbs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch as th

from sb3_valuegrad.returns import steve, td_k_targets, value_expansions
from sb3_valuegrad.rollouts import Dynamics, Policy, Rollout, imagine
from sb3_valuegrad.world_models import WorldModel


class Evaluation(NamedTuple):
    """What is evaluated, on flat states."""

    policy: Policy
    """the target policy"""
    values: Callable[[th.Tensor, th.Tensor], th.Tensor]
    """states (N, S), actions (N, A) to the value by each of L target critics, (L, N)"""
    alpha: th.Tensor | None = None
    """the temperature, if the policy is worth its entropy"""


class Expansion(NamedTuple):
    """An imagined rollout with its rewards and the critics' values, entropy included."""

    rollout: Rollout
    rewards: th.Tensor
    """(H, N)"""
    values: th.Tensor
    """(L, K, N): by each critic at the times asked for"""


def expand(model: Dynamics, target: Evaluation, obs: th.Tensor, horizon: int) -> Expansion:
    """Imagine ``horizon`` steps from ``obs`` (N, S) and value the last states."""
    rollout = imagine(model, target.policy, obs, horizon)
    values = target.values(rollout.obs[-1], rollout.actions[-1])[:, None]
    return _with_entropy(target, rollout, values, slice(horizon, None))


def _expand_by_members(model: WorldModel, target: Evaluation, obs: th.Tensor, horizon: int) -> Expansion:
    """Imagine ``horizon`` steps from ``obs`` (N, S) with every member, in row blocks (members * N), and value all states.

    At time 0 they are the same for all members: one action and one value of a state serve them all.
    """
    members = model.members

    def first_action(_: th.Tensor) -> Any:
        action = target.policy(obs)
        return tuple(map(repeated, action)) if isinstance(action, tuple) else repeated(action)

    def repeated(rows: th.Tensor) -> th.Tensor:
        return rows.repeat(members, *[1] * (rows.dim() - 1))

    rollout = imagine(model.by_member(), first_action, repeated(obs), horizon, target.policy)
    first = target.values(obs, rollout.actions[0, : len(obs)]).repeat(1, members)
    later = target.values(rollout.obs[1:].flatten(0, 1), rollout.actions[1:].flatten(0, 1))
    values = th.cat([first, later], dim=1).view(len(first), horizon + 1, -1)
    return _with_entropy(target, rollout, values, slice(None))


def _with_entropy(target: Evaluation, rollout: Rollout, values: th.Tensor, times: slice) -> Expansion:
    """Rewards, and values (L, K, N) at these times, with the entropy's worth."""
    if target.alpha is None or rollout.log_probs is None:
        return Expansion(rollout, rollout.rewards, values)
    bonuses = -target.alpha * rollout.log_probs
    return Expansion(rollout, rollout.rewards + bonuses[:-1], values + bonuses[times])


def longest_expansion(
    model: Dynamics, target: Evaluation, obs: th.Tensor, horizon: int, gamma: float
) -> tuple[th.Tensor, Rollout]:
    """J_H under a policy and the smallest of its critics, (N,), and the rollout; see :func:`expand`."""
    rollout, rewards, values = expand(model, target, obs, horizon)
    return value_expansions(rewards, rollout.survival, values.amin(0), gamma, [horizon])[0], rollout


class _UntilCutOff:
    """A model that knows where the task truncates its episodes (:meth:`WorldModel.cuts_off`).

    What the target takes such a state to be worth stands for all that comes after, as in SB3's on-policy algorithms at a time
    limit: it is added to the reward of the step that leads there, and then nothing more comes.
    """

    def __init__(self, model: WorldModel, target: Evaluation, gamma: float):
        self.model, self.target, self.gamma = model, target, gamma
        self.transition = model.transition

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,), and chances that the episode is over (M,)."""
        rewards, dones = self.model.outcome(obs, actions, next_obs, hint)
        rows = _cut_off_rows(self.model, next_obs)
        if len(rows) == 0:
            return rewards, dones
        dones = th.zeros_like(rewards) if dones is None else dones
        rest = (1 - dones[rows]) * state_value(self.model, self.target, next_obs[rows])
        return rewards.index_add(0, rows, self.gamma * rest), dones.index_fill(0, rows, 1.0)


def _cut_off_rows(model: WorldModel, obs: th.Tensor) -> th.Tensor:
    """In which of the states (N, S) the task truncates an episode, (M,)."""
    cut = model.cuts_off(obs)
    return th.empty(0, dtype=th.long, device=obs.device) if cut is None else cut.nonzero()[:, 0]


def state_value(model: Dynamics, target: Evaluation, obs: th.Tensor) -> th.Tensor:
    """J_0 under the smallest of the critics, (N,)."""
    return longest_expansion(model, target, obs, 0, 1.0)[0]


def mve_value(model: WorldModel, target: Evaluation, obs: th.Tensor, horizon: int, gamma: float) -> th.Tensor:
    """J_H over the target policy and the smallest target critic (MVE eq. 2; clipped double Q), (N,); J_k where the episode is
    truncated k steps on."""
    value = longest_expansion(_UntilCutOff(model, target, gamma), target, obs, horizon, gamma)[0]
    rows = _cut_off_rows(model, obs)
    return value if len(rows) == 0 else value.index_copy(0, rows, state_value(model, target, obs[rows]))


def td_k_examples(
    model: WorldModel, target: Evaluation, obs: th.Tensor, horizon: int, gamma: float
) -> tuple[Rollout, th.Tensor]:
    """The rollout whose states become training examples, and their targets y_0 .. y_H, (H + 1, N) (MVE Alg. 1)."""
    rollout, rewards, values = expand(model, target, obs, horizon)
    return rollout, td_k_targets(rewards, rollout.alive, values.amin(0)[0], gamma)


def steve_value(
    model: WorldModel, target: Evaluation, obs: th.Tensor, horizon: int, gamma: float, crossed: bool = False
) -> th.Tensor:
    """STEVE: the mean over members of each J_k, under the smaller of the critics, weighted by the variance among all
    combinations of a member and a critic (Buckman et al. 2018; clipped double Q, without which the mean of two critics
    overestimates what the policy climbs). With horizon 0 it is the one-step target's own value. (N,)

    :param crossed: combine the states of one member with the rewards of every other, too, as the paper does with reward
        networks of their own. Ours come from the same network as the states, so that this costs ``members`` times as much
    """
    rows = len(obs)
    rollout, rewards, values = _expand_by_members(model, target, obs, horizon)
    of_values = _expansions(th.zeros_like(rewards)[None], rollout.survival, values, gamma)
    all_rewards = _crossed_rewards(model, rollout, rewards) if crossed else rewards[None]
    of_rewards = _expansions(all_rewards, rollout.survival, th.zeros_like(values[:1]), gamma)
    # (H + 1, rewards' members, critics, states' members, N): every combination is one estimate.
    expansions = (of_rewards[:, :, None] + of_values[:, None]).unflatten(-1, (-1, rows))
    return steve(expansions.flatten(1, 3), expansions.amin(2).flatten(1, 2))


def _expansions(rewards: th.Tensor, alive: th.Tensor | None, values: th.Tensor, gamma: float) -> th.Tensor:
    """J_0 .. J_H of several versions of rewards (V, H, N) or values (V, H + 1, N): (H + 1, V, N)."""
    versions = max(len(rewards), len(values))

    def by_column(version: th.Tensor) -> th.Tensor:
        return version.expand(versions, *version.shape[1:]).transpose(0, 1).flatten(1)

    survival = None if alive is None else by_column(alive[None])
    wide = value_expansions(by_column(rewards), survival, by_column(values), gamma)
    return wide.view(len(wide), versions, -1)


def _crossed_rewards(model: WorldModel, rollout: Rollout, rewards: th.Tensor) -> th.Tensor:
    """What each member says that each step of each member's rollout earns, entropy included: (R, H, N)."""
    horizon = len(rewards)
    if horizon == 0 or model.members == 1:
        return rewards[None]
    obs, actions, next_obs = (part.flatten(0, 1) for part in (rollout.obs[:-1], rollout.actions[:-1], rollout.obs[1:]))
    crossed = model.member_rewards(obs, actions, next_obs).view(-1, *rewards.shape)
    return crossed + (rewards - rollout.rewards)


# What the critic's target takes the next state to be worth, by ``target_estimator``; "td" is the target critic's own word.
ESTIMATES: dict[str, Callable[..., th.Tensor]] = {
    "mve": mve_value,
    "td-k": mve_value,
    "steve": steve_value,
    "steve-crossed": partial(steve_value, crossed=True),
}
ESTIMATORS = ("td", *ESTIMATES)
