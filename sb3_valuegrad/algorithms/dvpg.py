"""DVPG(lambda, K)."""

import warnings
from functools import lru_cache
from typing import Any

from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.weights import geometric_weights


class DVPG(DeterministicValueGradient):
    """Deterministic value-policy gradient (Cai, Pan and Tang, AAAI 2020), Algorithm 2.

    The actor ascends ``(1 - lambda) sum_{k=0}^{K} lambda^k J_k`` along the first-action path (eq. 14), the critic
    learns one-step temporal differences, and the world model the same minibatch. ``lambda_=0`` or ``horizon=0`` is
    DDPG.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``ValueGradientPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizon: K, the longest imagined rollout
    :param lambda_: decay of the weights over k, in [0, 1]
    :raises ValueError: for ``lambda_`` outside [0, 1]
    """

    def __init__(
        self,
        *args: Any,
        horizon: int = 1,
        lambda_: float = 0.1,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, horizon=horizon, **kwargs)
        self.lambda_ = lambda_
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not 0 <= self.lambda_ <= 1:
            raise ValueError(f"lambda_={self.lambda_} must be in [0, 1]; the paper uses 0.1, and 0 is DDPG")
        if self.lambda_ == 1 and self.horizon > 0:
            warnings.warn("lambda_=1 gives every expansion the weight 0: the policy will not learn", stacklevel=2)

    def _expansion_weights(self) -> dict[int, float]:
        return _weights(self.lambda_, self.horizon)


@lru_cache(maxsize=64)
def _weights(lambda_: float, horizon: int) -> dict[int, float]:
    """Eq. 14; with no horizon DDPG's objective itself, not its ``1 - lambda`` fold."""
    if horizon == 0:
        return {0: 1.0}
    weights = geometric_weights(lambda_, horizon).tolist()
    return {k: weight for k, weight in enumerate(weights) if weight != 0 or k == 0}
