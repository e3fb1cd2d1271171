"""Normal distributions with a bounded, predicted variance."""

import math

import torch as th
from torch.nn import functional as F

# Bounds of the predicted log-variances, in scaled units. A network that predicts the mean of its targets has log-variance
# 0, so there is no use for much more; below exp(-10), a standard deviation of 0.7%, noise is smaller than the error of
# the mean, and the likelihood would weigh such rows without limit. Fixed, where PETS learns them: learned bounds need a
# penalty of their own, and drift with it.
MIN_LOG_VAR, MAX_LOG_VAR = -10.0, 0.5


def bounded(log_var: th.Tensor) -> th.Tensor:
    """Softly clamped to [-10, 0.5] (exceeded by less than 3e-5): the gradient never vanishes for good (PETS, app. A.1)."""
    log_var = MAX_LOG_VAR - F.softplus(MAX_LOG_VAR - log_var)
    return MIN_LOG_VAR + F.softplus(log_var - MIN_LOG_VAR)


def standard_deviation(log_var: th.Tensor) -> th.Tensor:
    """From raw log-variances, which are bounded first."""
    return (0.5 * bounded(log_var)).exp()


def negative_log_likelihood(mean: th.Tensor, log_var: th.Tensor, target: th.Tensor) -> th.Tensor:
    """``(mean - target)^2 / (2 var) + log var / 2 + log(2 pi) / 2``, elementwise."""
    return 0.5 * ((mean - target).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))
