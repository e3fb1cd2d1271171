"""MBPO."""

from typing import Any

from sb3_valuegrad.algorithms.stochastic import StochasticValueGradient


class MBPO(StochasticValueGradient):
    """Model-based policy optimization (Janner et al. 2019): SAC that learns from imagined transitions, branched from
    replayed states, of an ensemble that is fitted to convergence. It neither differentiates through its model nor expands
    values: it is :class:`~sb3_valuegrad.MAAC` with ``horizon=0, target_estimator="td", target_horizon=0``, under the name
    by which it is known. Only defaults are set here.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``StochasticPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    """

    def __init__(
        self,
        *args: Any,
        horizon: int = 0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, horizon=horizon, **kwargs)
        if _init_setup_model:
            self._setup_model()
