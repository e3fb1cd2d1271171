"""Does an ensemble know how uncertain it is?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th

from sb3_valuegrad.diagnostics.experience import held_out_experience, world_model_of
from sb3_valuegrad.diagnostics.figures import axes
from sb3_valuegrad.world_models import GaussianEnsemble
from sb3_valuegrad.world_models.gaussian import standard_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = tuple(level / 20 for level in range(1, 20))


class EnsembleCalibration(NamedTuple):
    """How often real outcomes fell into the predicted intervals, see :func:`ensemble_calibration`."""

    levels: np.ndarray
    """(L,): nominal shares"""
    coverage: np.ndarray
    """(L, S): shares of the outcomes inside the central interval of each level, by dimension of the state; NaN where it
    never changes"""
    pit: np.ndarray
    """(N, S): the predicted distribution function at each outcome; uniform in [0, 1] if the predictions are right"""

    @property
    def mean_coverage(self) -> np.ndarray:
        """(L,): over the dimensions that change."""
        return np.nanmean(self.coverage, axis=1)

    @property
    def error(self) -> float:
        """Mean distance of coverage and level, over levels and dimensions: 0 is right, 0.5 as wrong as can be."""
        return float(np.nanmean(np.abs(self.coverage - self.levels[:, None])))

    @property
    def confidence(self) -> float:
        """Mean of level less coverage: above 0 the intervals are too narrow (overconfident), below 0 too wide."""
        return float(np.nanmean(self.levels[:, None] - self.coverage))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Coverage over level, each dimension and their mean; right predictions lie on the dotted line.

        :param ax: where to draw; None: a new figure
        :raises ImportError: without matplotlib
        """
        ax = axes(ax, "Calibration of the ensemble", "predicted share inside", "observed share inside")
        ax.plot(self.levels, self.coverage, color="grey", alpha=0.4, linewidth=0.8)
        ax.plot(self.levels, self.mean_coverage, color="C0", label="mean over the state's dimensions")
        ax.plot([0, 1], [0, 1], color="black", linestyle=":")
        ax.legend()
        return ax


def ensemble_calibration(agent: Any, levels: Sequence[float] = LEVELS, most: int = 4096) -> EnsembleCalibration:
    """Share of the next states held out of the fit that lie inside the ensemble's central intervals.

    The ensemble predicts the mixture of its elites' normal distributions, as it samples them; the distribution function of
    that mixture at the outcome (probability integral transform) is within (1 -+ p) / 2 for the central interval of level p.

    :param agent: an algorithm of this package with ``world_model_class="ensemble"`` that has trained, with its replay
        buffer
    :param levels: nominal shares L, each strictly between 0 and 1
    :param most: at most so many transitions, the newest
    :return: coverage by level and dimension, with ``mean_coverage``, ``error``, ``confidence``
    :raises ValueError: if the world model is no ensemble, or predicts its mean only; if nothing is held out as the
        algorithm is set up, or a level is out of range
    :raises NothingToMeasureError: a ``ValueError``, if nothing has been fitted or held out yet
    """
    model = world_model_of(agent)
    if not isinstance(model, GaussianEnsemble):
        raise ValueError(
            f"world_model_class={type(model).__name__} predicts no distribution; train with "
            'policy_kwargs=dict(world_model_class="ensemble")'
        )
    states, actions, _ = held_out_experience(agent, 1, most)
    mean, std = predicted_distributions(model, states[0], actions[0])
    return interval_coverage(mean, std, states[1], levels)


@th.no_grad()
def predicted_distributions(model: GaussianEnsemble, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Mean and standard deviation of the next state by each elite, (E, N, S) both.

    :param model: the ensemble
    :param obs: states (N, S)
    :param actions: actions (N, A), scaled to [-1, 1]
    """
    mean, log_var, _ = model._split(model._outputs(model._inputs(obs, actions), model.members))
    std = standard_deviation(log_var)
    return model._next_obs(obs, mean), std * model.state_scaler.spread if model.normalize else std


def interval_coverage(
    mean: th.Tensor, std: th.Tensor, outcomes: th.Tensor, levels: Sequence[float] = LEVELS
) -> EnsembleCalibration:
    """Coverage of the central intervals of an equal mixture of normal distributions.

    :param mean: by each of E members, (E, N, S)
    :param std: as ``mean``; a dimension whose deviation is 0 everywhere is left out
    :param outcomes: (N, S)
    :param levels: nominal shares L, each strictly between 0 and 1
    :raises ValueError: for levels out of range
    """
    shares = np.asarray(levels, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not ((shares > 0) & (shares < 1)).all():
        raise ValueError(f"levels={levels!r} must be numbers strictly between 0 and 1, such as (0.5, 0.9)")
    mean, std, outcomes = mean.double(), std.double(), outcomes.double()
    # ndtr is the distribution function of N(0, 1).
    pit = th.special.ndtr((outcomes - mean) / std).mean(0).cpu().numpy()
    pit[:, (std == 0).all(1).all(0).cpu().numpy()] = np.nan
    inside = np.abs(2 * pit - 1)[None] <= shares[:, None, None]
    coverage = np.where(np.isnan(pit).all(0), np.nan, inside.mean(1))
    return EnsembleCalibration(shares, coverage, pit)
