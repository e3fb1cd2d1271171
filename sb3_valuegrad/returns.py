"""Value expansions: what a rollout is worth, by horizon. Pure functions of tensors."""

from collections.abc import Sequence

import torch as th


def discounts(gamma: float, length: int, like: th.Tensor) -> th.Tensor:
    """``gamma^0 .. gamma^(length-1)`` as a column (length, 1), in the dtype and on the device of ``like``.

    The dtype matters: ``gamma ** th.arange(n)`` is float32 whatever the data are, and costs float64 truths 1e-7.
    """
    return (gamma ** th.arange(length, dtype=like.dtype, device=like.device))[:, None]


def value_expansions(
    rewards: th.Tensor, alive: th.Tensor, values: th.Tensor, gamma: float, horizons: Sequence[int] | None = None
) -> th.Tensor:
    """The value expansions J_k of one rollout, the object that all systems of this package share:

    ``J_k = sum_{t<k} gamma^t c_t r_t  +  gamma^k c_k Q(s_k, a_k)``

    (DVPG eq. 12 and 14, MVE eq. 2, MAAC eq. 3, MPG eq. 8: each without the c_t, which stop the sum where the
    imagined episode has ended.)

    :param rewards: r_t, (H, N)
    :param alive: c_t, (H + 1, N)
    :param values: Q(s_k, a_k) for each k of ``horizons``, (K, N)
    :param gamma: discount factor
    :param horizons: the k asked for, each in 0..H; None: all of them, K = H + 1
    :return: J_k for each k of ``horizons``, (K, N)
    """
    weights = discounts(gamma, len(alive), values) * alive
    collected = th.cat([th.zeros_like(values[:1]), (weights[:-1] * rewards).cumsum(0)])
    everything = list(range(len(alive)))
    chosen = everything if horizons is None else list(horizons)
    if chosen == everything:
        return collected + weights * values
    return collected[chosen] + weights[chosen] * values
