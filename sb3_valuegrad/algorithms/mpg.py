"""MPG."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_valuegrad.algorithms.arguments import check_choice
from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.algorithms.measuring import Errors, measure
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.weights import MEASURING, WEIGHTINGS, Evidence

# How much a new measurement counts in the running mean.
NEW_SHARE = 0.2


class MPG(DeterministicValueGradient):
    """Mixed policy gradient (Guan et al.), Algorithm 1: the data's and the model's gradient, weighted by turns.

    The actor ascends ``sum_{i in I} w_i J_i`` along the first-action path (eqs. 8 and 9; App. C-A), with the rule's weights
    (eq. 10): at first J_H counts, then J_0. The model is a prior: torch functions that are roughly right
    (``world_model_class="analytic"``), or a learned one, the default. The critic's target (eq. 11):

    - MPG-v2, clipped double Q: the default;
    - MPG-v1, n-step, from the replay buffer: ``n_steps=25, target_policy_noise=0.0, policy_kwargs=dict(n_critics=1)``;
    - MPG-v1 as in the paper, n steps under the current policy: instead of ``n_steps`` ``target_estimator="mve",
      target_horizon=n - 1, batch_reuse=10``, and in ``policy_kwargs`` a ``simulator_class``.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``DeterministicPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizons: I, the horizons that are mixed; 0, the data's gradient, is one of them
    :param weighting: how: "rule" (eq. 10), or "variance": by what is measured to be wrong with each J_i
        (:func:`~sb3_valuegrad.weights.by_variance`)
    :param eta: the rule's eta, in (0, 1): its lambda goes from 1 - eta to 1 + eta
    :param weighting_updates: the rule's T, critic updates over which it does so
    :param measure_freq: critic updates from one measurement to the next, where the weighting measures
    :param min_weight: a J_i that weighs less is left out, and its rollout saved; the paper leaves none out
    :raises ValueError: for ``horizons`` without 0, ``eta`` outside (0, 1), or ``weighting_updates`` below 1
    """

    derived_arguments = ("horizon",)
    update_memory = ("_errors", "_measured_at")

    def __init__(
        self,
        *args: Any,
        horizons: Sequence[int] = (0, 25),
        weighting: str = "rule",
        eta: float = 0.1,
        weighting_updates: int = 9000,
        measure_freq: int = 100,
        min_weight: float = 1e-4,
        policy_delay: int = 2,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        if "horizon" in kwargs:
            raise ValueError(
                f"horizon={kwargs['horizon']!r} is the longest of horizons in MPG: give horizons=(0, {kwargs['horizon']})"
            )
        super().__init__(*args, **{"policy_delay": policy_delay, **kwargs})
        self.horizons = horizons
        self.weighting = weighting
        self.eta = eta
        self.weighting_updates = weighting_updates
        self.measure_freq = measure_freq
        self.min_weight = min_weight
        # The running means, and the update they were last brought up to date at.
        self._errors: Errors | None = None
        self._measured_at = 0
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        _check_horizons(self.horizons)
        # Here, not in the constructor: a loaded model may come with other arguments than it was saved with.
        self.horizon = max(self.horizons)
        if self._errors is not None and len(self._errors[0]) != len(self.horizons):
            self._errors = None  # they were measured for others
        super()._check_arguments()
        check_choice("weighting", self.weighting, tuple(WEIGHTINGS))
        check_count("weighting_updates", self.weighting_updates, 1)
        check_count("measure_freq", self.measure_freq, 1)
        if not 0 < self.eta < 1:
            raise ValueError(f"eta={self.eta} must be between 0 and 1; the paper uses 0.1")
        if not 0 <= self.min_weight < 1 / len(self.horizons):
            raise ValueError(f"min_weight={self.min_weight} must be in [0, 1 / {len(self.horizons)}): one J_i has to be left")

    def _needs_model(self) -> bool:
        """Also while the weights leave it out: they may come back to it."""
        return self.horizon > 0 or super()._needs_model()

    def _weights(self) -> dict[int, float]:
        """Horizon i -> w_i, at this update."""
        errors = Errors([], 0.0, 0.0)
        if self.weighting in MEASURING:
            if self._errors is None:  # nothing has been measured
                return {0: 1.0}
            errors = Errors(*self._errors)  # a list after loading
        progress = self._n_updates / self.weighting_updates
        evidence = Evidence(self.horizons, self.gamma, self.eta, progress, *errors)
        return dict(zip(self.horizons, WEIGHTINGS[self.weighting](evidence).tolist(), strict=True))

    def _measure(self, batch: Batch) -> None:
        errors = measure(self, batch, list(self.horizons))
        self._errors = errors if self._errors is None else Errors(*self._errors).blended(errors, NEW_SHARE)
        self._measured_at = self._n_updates

    def _actor_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        if self.weighting in MEASURING and self._model_is_ready:
            if self._errors is None or self._n_updates - self._measured_at >= self.measure_freq:
                self._measure(batch)
        return super()._actor_loss(batch)

    def _expansion_weights(self) -> dict[int, float]:
        return {horizon: weight for horizon, weight in self._weights().items() if weight > self.min_weight}

    def _logged_of_actor(self, weights: dict[int, float], expansions: th.Tensor) -> dict[str, th.Tensor]:
        """The weights; the J_i; the share of each ``|w_i J_i|`` in their sum; and what was measured."""
        values = dict(zip(sorted(weights), expansions.detach(), strict=True))
        parts = {i: weights[i] * value.abs() for i, value in values.items()}
        total = th.stack(list(parts.values())).sum()
        logged = {f"J{i}": value for i, value in values.items()}
        for i in self.horizons:
            logged[f"weight_J{i}"] = expansions.new_tensor(weights.get(i, 0.0))
            logged[f"share_J{i}"] = parts[i] / total if i in parts else expansions.new_zeros(())
        if self._errors is not None:
            errors = Errors(*self._errors)
            measured = {f"variance_J{i}": value for i, value in zip(self.horizons, errors.variance, strict=True)}
            measured |= {"td_error": errors.td_error, "model_value_error": errors.model_error}
            logged |= {name: expansions.new_tensor(value) for name, value in measured.items()}
        return logged


def _check_horizons(horizons: Any) -> None:
    """:raises ValueError: if they are not different whole numbers with 0 among them"""
    rules = f"horizons={horizons!r} must be a list or tuple of different whole numbers with 0, the data's gradient, among them"
    if not isinstance(horizons, (list, tuple)):
        raise ValueError(f"{rules}: such as (0, 25)")
    for horizon in horizons:
        if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 0:
            raise ValueError(f"{rules}; {horizon!r} is no number of steps")
    if 0 not in horizons or len(set(horizons)) < len(horizons):
        raise ValueError(f"{rules}: {sorted({0, *horizons})}")
