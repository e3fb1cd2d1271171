"""MBPO."""

from typing import Any

from sb3_valuegrad.algorithms.stochastic import StochasticValueGradient, with_ensemble


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
        model_fit_freq: int | None = 250,
        model_validation_fraction: float = 0.1,
        real_ratio: float = 0.05,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            *args,
            horizon=horizon,
            model_fit_freq=model_fit_freq,
            model_validation_fraction=model_validation_fraction,
            real_ratio=real_ratio,
            policy_kwargs=with_ensemble(policy_kwargs),
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()
