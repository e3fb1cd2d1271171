"""MAAC(H), and by its arguments STEVE-SAC."""

from typing import Any

from sb3_valuegrad.algorithms.stochastic import StochasticValueGradient


class MAAC(StochasticValueGradient):
    """Model-augmented actor-critic (Clavera, Fu and Abbeel, ICLR 2020), Algorithm 1.

    The policy ascends the soft value expansion J_H along the all-action path through an ensemble that is fitted to
    convergence, from real and imagined states; the critics learn STEVE's targets (sec. 4.3). ``horizon=0`` leaves SAC's
    actor: STEVE-SAC.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``StochasticPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizon: H, imagined steps in the policy's objective
    :param target_estimator: the critic's target, see the base class; "td" is the paper's ablation without STEVE
    :param target_horizon: imagined steps in the critic's target
    """

    def __init__(
        self,
        *args: Any,
        horizon: int = 3,
        target_estimator: str = "steve",
        target_horizon: int = 2,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            *args,
            horizon=horizon,
            target_estimator=target_estimator,
            target_horizon=target_horizon,
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()
