"""Fitting a world model to convergence: epochs over a data set, watched on held-out data."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch as th

from sb3_valuegrad.errors import FitError, check_count
from sb3_valuegrad.gradients import guarded_step
from sb3_valuegrad.world_models.base import Transitions, WorldModel
from sb3_valuegrad.world_models.validation import HeldOutError

Progress = Callable[[int, th.Tensor], None]

# An epoch counts if it takes this share off a member's error (MBPO's threshold).
IMPROVEMENT = 0.01


class FitReport(NamedTuple):
    """What a fit did."""

    epochs: int
    updates: int
    """minibatches"""
    errors: th.Tensor
    """(n_members,): each network's error on the held-out data, the smallest first, in the networks' new order;
    see :class:`HeldOutError`"""
    history: th.Tensor
    """(epochs + 1, n_members): errors before the fit and after each epoch, same order"""


def fit(
    model: WorldModel,
    data: Transitions,
    validation: Transitions,
    batch_size: int = 256,
    patience: int = 5,
    max_epochs: int = 1000,
    max_grad_norm: float | None = None,
    generator: th.Generator | None = None,
    progress: Progress | None = None,
) -> FitReport:
    """Fit a model to a data set until its error on held-out data no longer falls (MBPO, app. C; MAAC, alg. 1, line 5).

    The scales and the rate of terminations are those of the data set. Each network of an ensemble keeps the parameters
    with which its held-out error was the least, those of before the fit among them, and the networks are sorted by it, so
    that the elites are the best. The optimizer is the model's own and keeps its state.

    :param model: fitted in place; its ``optimizer`` must be set
    :param data: one-step experience, N rows
    :param validation: other experience, which decides when to stop and what to keep
    :param batch_size: rows in a minibatch (of each network, with ``model.bootstrap``)
    :param patience: epochs without an improvement of any network by 1%, after which the fit ends
    :param max_epochs: the fit ends after so many in any case
    :param max_grad_norm: clip the gradient of all parameters together to this norm; None: do not
    :param generator: random numbers for the minibatches, on the CPU; None: torch's global ones
    :param progress: called after each epoch with its number and the errors (n_members,)
    :return: what was done
    :raises ValueError: for counts below 1, data sets without rows, rows with weights, a model that has no optimizer
    :raises FitError: a ``ValueError``, if a loss or a held-out error is not finite; then the model, its scales and its
        optimizer are what they were before
    """
    for name, count in {"batch_size": batch_size, "patience": patience, "max_epochs": max_epochs}.items():
        check_count(name, count, 1)
    _check_data(model, data, validation)
    before = copy.deepcopy((model.state_dict(), model.optimizer.state_dict()))
    try:
        return _Fit(model, data, validation, generator).run(batch_size, patience, max_epochs, max_grad_norm, progress)
    except FitError:
        model.load_state_dict(before[0])
        model.optimizer.load_state_dict(before[1])
        raise


def _check_data(model: WorldModel, data: Transitions, validation: Transitions) -> None:
    if not model.is_learned or getattr(model, "optimizer", None) is None:
        raise ValueError(f"model={type(model).__name__} has nothing to fit, or no optimizer: set model.optimizer first")
    for name, rows in {"data": data, "validation": validation}.items():
        if len(rows.obs) == 0:
            raise ValueError(f"{name} has no rows; collect more experience first, or hold out another share of it")
        if rows.weights is not None:
            raise ValueError(
                f"{name}.weights must be None: all rows of a data set count the same; leave out those that do not"
            )


class _Fit:
    """One call of :func:`fit`."""

    def __init__(self, model: WorldModel, data: Transitions, validation: Transitions, generator: th.Generator | None):
        self.model, self.data, self.generator = model, data, generator
        self.held_out_error = HeldOutError(data, validation)
        self.parameters = [parameter.detach() for parameter in model.parameters()]
        self.resampled: th.Tensor | None = None
        if model.bootstrap and model.n_members > 1:
            rows = len(data.obs)
            self.resampled = th.randint(rows, (model.n_members, rows), generator=generator)

    def run(
        self, batch_size: int, patience: int, max_epochs: int, max_grad_norm: float | None, progress: Progress | None
    ) -> FitReport:
        with th.no_grad():
            self.model.observe_all(self.data)
        updates, waited = 0, 0
        history = [self._errors(0)]
        best, milestone = history[0], history[0]
        kept = [parameter.clone() for parameter in self.parameters]
        for epoch in range(1, max_epochs + 1):
            updates += self._epoch(epoch, batch_size, max_grad_norm)
            errors = self._errors(epoch)
            history.append(errors)
            self._keep(kept, errors < best)
            best = th.minimum(best, errors)
            improved = errors < (1 - IMPROVEMENT) * milestone
            milestone = th.where(improved, errors, milestone)
            waited = 0 if improved.any() else waited + 1
            if progress is not None:
                progress(epoch, errors)
            if waited == patience:
                break
        order = best.argsort(stable=True)
        self._restore(kept, order)
        return FitReport(epoch, updates, best[order], th.stack(history)[:, order])

    def _epoch(self, epoch: int, batch_size: int, max_grad_norm: float | None) -> int:
        """Train on every row once; the losses are read at the end.

        :return: number of minibatches
        """
        total, count = th.zeros((), device=self.data.obs.device), 0
        for rows in self._minibatches(batch_size):
            batch = Transitions(*(part[rows] for part in self.data[:5]))
            loss = th.stack(list(self.model.losses(batch).values())).sum()
            norms, _ = guarded_step(loss, [self.model.optimizer], max_grad_norm)
            total += loss.detach() + norms[0]
            count += 1
        self.model.updates += count
        if not math.isfinite(total):
            raise FitError(
                f"The world model's loss or its gradient is {total.item()} in epoch {epoch} of its fit: it has diverged, or "
                "the data are not finite. The model is what it was before the fit. Lower model_learning_rate, or set "
                "max_grad_norm."
            )
        return count

    def _minibatches(self, batch_size: int) -> Iterator[th.Tensor]:
        """Indices (B,), or of each network its own (M, B): shuffled, in parts of nearly equal size."""
        rows = len(self.data.obs)
        if self.resampled is None:
            order = th.randperm(rows, generator=self.generator)
        else:
            shuffle = th.rand(self.resampled.shape, generator=self.generator).argsort(1)
            order = self.resampled.gather(1, shuffle)
        yield from order.to(self.data.obs.device).tensor_split(-(-rows // batch_size), dim=-1)

    def _errors(self, epoch: int) -> th.Tensor:
        errors = self.held_out_error(self.model)
        if not th.isfinite(errors).all():
            raise FitError(
                f"The world model's errors on held-out data are {errors.tolist()} after epoch {epoch} of its fit: it has "
                "diverged, or the data are not finite. The model is what it was before the fit. Lower model_learning_rate, "
                "or set max_grad_norm."
            )
        return errors

    # In an ensemble the first axis of a parameter is the members'.

    def _keep(self, kept: list[th.Tensor], better: th.Tensor) -> None:
        """Take note of the parameters of the networks that are better than before."""
        for old, new in zip(kept, self.parameters, strict=True):
            if self.model.n_members == 1:
                old.copy_(th.where(better, new, old))
            else:
                old[better] = new[better]

    def _restore(self, kept: list[th.Tensor], order: th.Tensor) -> None:
        """Best parameters into the networks, best networks first, and the optimizer's state with them."""
        many = self.model.n_members > 1
        for parameter, best in zip(self.model.parameters(), kept, strict=True):
            parameter.detach().copy_(best[order] if many else best)
            state = self.model.optimizer.state.get(parameter, {})
            for moment in state.values():
                if many and isinstance(moment, th.Tensor) and moment.shape == parameter.shape:
                    moment.copy_(moment[order])
