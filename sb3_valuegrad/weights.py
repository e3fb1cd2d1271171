"""Weights over horizons: how the value expansions J_0 .. J_H make one objective."""

import torch as th


def geometric_weights(lambda_: float, horizon: int) -> th.Tensor:
    """DVPG's weights (eq. 14): ``(1 - lambda) lambda^k`` for k = 0..K, as float64.

    The tail beyond K is dropped, not renormalised, as in the paper: the weights sum to ``1 - lambda^(K+1)``.

    :param lambda_: the decay, in [0, 1]; 0 leaves J_0 alone, that is DDPG
    :param horizon: K, the longest expansion
    :return: (K + 1,)
    """
    return (1 - lambda_) * lambda_ ** th.arange(horizon + 1, dtype=th.float64)
