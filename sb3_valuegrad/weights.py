"""Weights: over horizons, for the value expansions J_0 .. J_H to make one objective; and over experience, for its age."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


def importance_weights(log_probs: th.Tensor, behaviour: th.Tensor, most: float | None) -> th.Tensor:
    """How much likelier the actions of a stretch of experience are today, ``w = prod_t pi(a_t|s_t) / q(a_t|s_t)`` (SVG eq. 13,
    where the stretch is one action), truncated (SVG, app. D; Wawrzynski 2009).

    :param log_probs: log pi(a_t | s_t) of today's policy, (T, N)
    :param behaviour: log q(a_t | s_t) of the policy that acted, (T, N)
    :param most: no weight is larger; None: not truncated
    :return: (N,)
    """
    weights = (log_probs - behaviour).sum(0).exp()
    return weights if most is None else weights.clamp(max=most)


def overlap(weights: th.Tensor) -> th.Tensor:
    """How much of what was done would be done today: the mean of ``min(w, 1)`` over experience, whose expectation is 1 minus
    the total variation between the policy that acted and today's.

    :param weights: importance weights, (N,)
    :return: a scalar, 1 where the policies are the same
    """
    return weights.clamp(max=1).mean()


class Evidence(NamedTuple):
    """What a weighting may go by. Errors are relative: to the spread of values, or to the size of the gradient."""

    horizons: Sequence[int]
    """I, in the order in which weights are returned"""
    gamma: float
    eta: float
    """of MPG's rule"""
    progress: float
    """updates made, in units of the rule's T"""
    variance: Sequence[float]
    """of the mean first-action gradient of each J_i"""
    td_error: float
    """of the critic on replayed transitions, root mean square"""
    model_error: float
    """how far a predicted step is from the real one in ``r + gamma V(s')``, root mean square"""


def by_rule(evidence: Evidence) -> th.Tensor:
    """Eq. 10: by the number of updates alone; see :func:`rule_weights`."""
    return rule_weights(evidence.horizons, rule_lambda(evidence.eta, evidence.progress))


def by_variance(evidence: Evidence) -> th.Tensor:
    """The inverse of what is measured to be wrong with each J_i, variance and squared bias, normalised:

    ``w_i ~ 1 / (variance_i + bias_i^2)``,  ``bias_i = gamma^i td_error + (1 - gamma^i) model_error``

    The bias has the form of Theorem 2's bound (Guan et al.; MAAC's Theorem 4.1), for errors that add up evenly: of J_i the
    critic makes up gamma^i, the model the rest. So the longest horizon counts most while the critic is worse than the
    model, and horizon 0 when it is better.

    :return: (K,), sum 1, float64
    """
    discount = evidence.gamma ** th.tensor(evidence.horizons, dtype=th.float64)
    bias = discount * evidence.td_error + (1 - discount) * evidence.model_error
    errors = th.tensor(evidence.variance, dtype=th.float64) + bias.square()
    certainty = 1 / errors.clamp(min=th.finfo(errors.dtype).tiny ** 0.5)
    return certainty / certainty.sum()


# A new weighting is one function more.
WEIGHTINGS: dict[str, Callable[[Evidence], th.Tensor]] = {"rule": by_rule, "variance": by_variance}
MEASURING = ("variance",)
"""Those that look at what is measured."""
