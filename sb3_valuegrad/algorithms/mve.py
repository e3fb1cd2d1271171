"""MVE(H)."""

from typing import Any

import torch as th

from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.algorithms.imagination import ImaginingAlgorithm
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.rollouts import Policy


class MVE(ImaginingAlgorithm, DeterministicValueGradient):
    """Model-based value expansion (Feinberg et al. 2018), Algorithm 1, MVE-DDPG.

    The critic's target is the value expansion J_H under the target actor and the target critic (eq. 2), and with the
    TD-k trick the critic learns on every imagined state, too. The actor is DDPG's: it climbs J_0. The world model is
    never differentiated through. ``horizon=0`` is DDPG; with ``real_ratio=0.2`` it is the paper's baseline IB, or MA-DDPG
    (Kalweit and Boedecker 2017), which learns from four imagined transitions beside each real one.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``DeterministicPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizon: H, imagined steps in the critic's target
    :param td_k: the TD-k trick; False: only the real transition is learned from
    :param imagined_action_noise: standard deviation of the noise on the target actor's actions, imagined ones included
        (TD3's target smoothing). Without it TD-k can push the policy off its own actions where rewards are negative
    :raises ValueError: for a horizon below 0
    """

    derived_arguments = ("target_estimator", "target_horizon", "target_policy_noise")

    def __init__(
        self,
        *args: Any,
        horizon: int = 3,
        td_k: bool = True,
        imagined_action_noise: float = 0.2,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        for name in self.derived_arguments:
            if name in kwargs:
                raise ValueError(
                    f"{name}={kwargs[name]!r} follows from horizon, td_k and imagined_action_noise in MVE; for other "
                    "combinations use DVG(horizon=0), which takes it"
                )
        super().__init__(*args, horizon=horizon, **kwargs)
        self.td_k = td_k
        self.imagined_action_noise = imagined_action_noise
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        check_count("horizon", self.horizon, 0)
        if not self.imagined_action_noise >= 0:
            raise ValueError(f"imagined_action_noise={self.imagined_action_noise} must not be negative; 0 adds none")
        # Here, not in the constructor: a loaded model may come with other arguments than it was saved with.
        self.target_horizon = self.horizon
        self.target_estimator = "td" if self.horizon == 0 else "td-k" if self.td_k else "mve"
        self.target_policy_noise = self.imagined_action_noise
        super()._check_arguments()

    def _expansion_weights(self) -> dict[int, float]:
        return {0: 1.0}

    def _behaviour(self) -> Policy:
        def policy(obs: th.Tensor) -> th.Tensor:
            actions = self._policy(obs)
            return (actions + self.imagined_action_noise * th.randn_like(actions)).clamp(-1, 1)

        return policy
