"""Value expansions: what a rollout is worth, by horizon. Pure functions of tensors."""

from collections.abc import Sequence
from functools import lru_cache

import torch as th


@lru_cache(maxsize=256)
def discounts(
    gamma: float, horizons: tuple[int, ...], steps: int, dtype: th.dtype, device: th.device
) -> tuple[th.Tensor, th.Tensor]:
    """What J_k gives r_0 .. r_{steps-1}, ``gamma^t`` for t < k in row k; and what it gives Q, ``gamma^k``.

    Constants of a run, made once. In the data's own dtype: ``gamma ** th.arange(n)`` would be float32 whatever the
    data are, and cost float64 truths 1e-7.

    :return: (K, steps) and (K, 1)
    """
    rows = [[gamma**t if t < k else 0.0 for t in range(steps)] + [gamma**k] for k in horizons]
    with th.inference_mode(False):  # cached: autograd would refuse a tensor that was made in inference mode
        table = th.tensor(rows, dtype=dtype, device=device)
        return table[:, :-1], table[:, -1:]


@lru_cache(maxsize=256)
def constants(numbers: tuple[float, ...], dtype: th.dtype, device: th.device) -> th.Tensor:
    """A vector of numbers that stay the same over a run, made once."""
    with th.inference_mode(False):
        return th.tensor(numbers, dtype=dtype, device=device)


def contiguous(numbers: Sequence[int]) -> slice | list[int]:
    """An index for these rows; a slice, which copies nothing, where they are in sequence."""
    chosen = list(numbers)
    if chosen == list(range(chosen[0], chosen[0] + len(chosen))):
        return slice(chosen[0], chosen[0] + len(chosen))
    return chosen


def value_expansions(
    rewards: th.Tensor, alive: th.Tensor | None, values: th.Tensor, gamma: float, horizons: Sequence[int] | None = None
) -> th.Tensor:
    """The value expansions J_k of one rollout, the object that all systems of this package share:

    ``J_k = sum_{t<k} gamma^t c_t r_t  +  gamma^k c_k Q(s_k, a_k)``

    (DVPG eq. 12 and 14, MVE eq. 2, MAAC eq. 3, MPG eq. 8: each without the c_t, which stop the sum where the
    imagined episode has ended.)

    :param rewards: r_t, (H, N)
    :param alive: c_t, (H + 1, N); None: all 1, as nothing ends
    :param values: Q(s_k, a_k) for each k of ``horizons``, (K, N)
    :param gamma: discount factor
    :param horizons: the k asked for, each in 0..H; None: all of them, K = H + 1
    :return: J_k for each k of ``horizons``, (K, N)
    """
    steps = len(rewards)
    everything = tuple(range(steps + 1))
    chosen = everything if horizons is None else tuple(horizons)
    of_rewards, of_values = discounts(gamma, chosen, steps, values.dtype, values.device)
    if alive is None:
        return th.addmm(of_values * values, of_rewards, rewards)
    last = alive if chosen == everything else alive[contiguous(chosen)]
    return th.addmm(of_values * last * values, of_rewards, alive[:-1] * rewards)


def td_k_targets(rewards: th.Tensor, alive: th.Tensor, value: th.Tensor, gamma: float) -> th.Tensor:
    """MVE's TD-k targets: what each state of a rollout is worth by the rest of that rollout,

    ``y_H = Q'(s_H, a_H)``, ``y_t = r_t + gamma (1 - d_t) y_{t+1}``

    (MVE sec. 3.1 and Alg. 1, where gamma^H is a misprint for gamma^(H-t); d_t is not in the paper.) ``y_0`` is J_H.

    :param rewards: r_t, (H, N)
    :param alive: c_t, (H + 1, N)
    :param value: Q'(s_H, a_H), (N,)
    :param gamma: discount factor
    :return: y_0 .. y_H, (H + 1, N)
    """
    # 1 - d_t; where c_t is 0 the rollout is over, and its targets weigh nothing.
    survives = alive[1:] / alive[:-1].clamp(min=th.finfo(alive.dtype).tiny)
    targets = [value]
    for reward, survival in zip(reversed(rewards.unbind()), reversed(survives.unbind()), strict=True):
        targets.append(reward + gamma * survival * targets[-1])
    return th.stack(targets[::-1])


def steve_weights(variance: th.Tensor, most_certain: float = 2.0) -> th.Tensor:
    """STEVE's weights over horizons, ``w_k ~ 1 / Var(J_k)`` (Buckman et al. 2018, eq. 6), normalised.

    The variance among an ensemble's estimates does not see what all members share: with one critic J_0 has none at
    all, and would take all the weight. So no horizon counts as more than ``most_certain`` times as certain as the
    runner-up.

    :param variance: of the estimates at each horizon, (K, N)
    :param most_certain: bound of the ratio between the two smallest variances
    :return: (K, N), sum over K is 1
    """
    runner_up = variance.topk(min(2, len(variance)), dim=0, largest=False).values[-1]
    smallest = th.finfo(variance.dtype).tiny ** 0.5
    certainty = 1 / variance.maximum(runner_up / most_certain).clamp(min=smallest)
    return certainty / certainty.sum(0)


def steve(expansions: th.Tensor, estimates: th.Tensor | None = None) -> th.Tensor:
    """Stochastic ensemble value expansion: the mean over members of each J_k, weighted over k by its certainty.

    :param expansions: J_k by each of E members, (K, E, N); with one member there is no variance to weigh by, and the
        longest expansion is returned, as in MVE
    :param estimates: what to take the mean of, (K, F, N), where only the certainty is the members' word; None: the same
    :return: (N,)
    """
    means = (expansions if estimates is None else estimates).mean(1)
    if expansions.shape[1] == 1:
        return means[-1]
    return (steve_weights(expansions.var(1, correction=0)) * means).sum(0)
