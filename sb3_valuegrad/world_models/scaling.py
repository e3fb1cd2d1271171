"""Running statistics that put inputs and targets on unit scale."""

import torch as th
from torch import nn


class RunningScaler(nn.Module):
    """Mean and standard deviation per column, followed over minibatches.

    The average is over everything seen until ``memory`` batches have passed, exponential from then on, so that early
    random data are forgotten slowly and the scale becomes steady. All state is float: it loads under
    ``weights_only=True``.

    :param dim: number of columns
    :param memory: time constant in batches
    """

    mean: th.Tensor
    var: th.Tensor
    std: th.Tensor
    spread: th.Tensor
    batches: th.Tensor

    def __init__(self, dim: int, memory: int = 2000):
        super().__init__()
        self.memory = memory
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("var", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))
        self.register_buffer("spread", th.ones(dim))
        self.register_buffer("batches", th.zeros(()))

    @th.no_grad()
    def update(self, rows: th.Tensor) -> None:
        """:param rows: (N, dim); a batch that is not finite is passed over"""
        var, mean = th.var_mean(rows, dim=0, correction=0)
        usable = th.isfinite(var).all() & th.isfinite(mean).all()
        self.batches += usable
        share = 1 / self.batches.clamp(1, self.memory)
        delta = mean - self.mean
        # The variance of a mixture: the parts' own plus that between their means.
        new_var = (1 - share) * self.var + share * (var + (1 - share) * delta.square())
        self.mean.copy_(th.where(usable, self.mean + share * delta, self.mean))
        self.var.copy_(th.where(usable, new_var, self.var))
        # A column that moves by no more than its rounding keeps unit scale: dividing by that would blow it up.
        moves = self.var > 1e-12 * (1 + self.mean.square())
        self.std.copy_(th.where(moves, self.var.sqrt(), 1.0))
        # And it is predicted to stay: a network's output for it is noise.
        self.spread.copy_(th.where(moves, self.std, 0.0))

    @th.no_grad()
    def refresh(self, rows: th.Tensor) -> None:
        """Forget what was seen: statistics of these rows alone, which count as batches of 256 from then on.

        :param rows: (N, dim), a whole data set
        """
        self.batches.zero_()
        self.update(rows)
        self.batches.fill_(max(len(rows) / 256, 1.0))

    def scale(self, rows: th.Tensor) -> th.Tensor:
        """To zero mean and unit deviation."""
        return (rows - self.mean) / self.std

    def unscale(self, rows: th.Tensor) -> th.Tensor:
        """Back to the data's own units; a column that never moved comes back as its constant."""
        return th.addcmul(self.mean, rows, self.spread)
