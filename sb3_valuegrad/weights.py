"""Weights over horizons: how the value expansions J_0 .. J_H make one objective."""

from collections.abc import Sequence

import torch as th


def geometric_weights(lambda_: float, horizon: int) -> th.Tensor:
    """DVPG's weights (eq. 14): ``(1 - lambda) lambda^k`` for k = 0..K, as float64.

    The tail beyond K is dropped, not renormalised, as in the paper: the weights sum to ``1 - lambda^(K+1)``.

    :param lambda_: the decay, in [0, 1]; 0 leaves J_0 alone, that is DDPG
    :param horizon: K, the longest expansion
    :return: (K + 1,)
    """
    return (1 - lambda_) * lambda_ ** th.arange(horizon + 1, dtype=th.float64)


def rule_lambda(eta: float, progress: float) -> float:
    """The lambda of MPG's rule: linearly from ``1 - eta`` to ``1 + eta``, then constant (Guan et al., below eq. 10).

    :param eta: in (0, 1)
    :param progress: updates made, in units of T; from 1 on lambda stays
    """
    return 1 - eta + 2 * eta * min(progress, 1.0)


def rule_weights(horizons: Sequence[int], lambda_: float) -> th.Tensor:
    """MPG's rule-based weights over horizons, as float64 (Guan et al., eq. 10 for {0, H}, App. C-A for any set I):

    ``w = softmax(1 / e)``,  ``e_i = lambda^i`` for lambda <= 1,  ``e_i = (2 - lambda)^(max I - i)`` beyond

    At first the longest horizon is trusted most, for the critic knows nothing yet; in the end horizon 0, for the model is
    wrong.

    :param horizons: I
    :param lambda_: in (0, 2)
    :return: (K,), sum 1
    """
    steps = th.tensor(horizons, dtype=th.float64)
    errors = lambda_**steps if lambda_ <= 1 else (2 - lambda_) ** (steps.max() - steps)
    return th.softmax(1 / errors.clamp(min=th.finfo(errors.dtype).tiny), dim=0)
