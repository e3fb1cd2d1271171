"""DVG(k), and by its arguments DVGF(k), DDPG and DDPG(model)."""

from typing import Any

import torch as th

from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.algorithms.model_based import Losses
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.rollouts import Rollout, imagine


class DVG(DeterministicValueGradient):
    """Deterministic value gradient (Cai, Pan and Tang, AAAI 2020), Algorithm 1.

    The actor ascends ``J_k``, k = ``horizon``, along the first-action path (eqs. 10-12). Settings of it:

    - DDPG: ``horizon=0``;
    - DVGF(k), the finite-horizon baseline of Fig. 2: ``bootstrap=False``, rewards 0..k-1 only;
    - DDPG(model), Algorithm 3: ``horizon=0, fictitious_samples=K, fictitious_updates=a``: after every episode K states
      are imagined under the current policy, the actor alone takes a steps of DDPG on them, and they are forgotten.

    :param policy: "MlpPolicy", "MultiInputPolicy" or a subclass of ``ValueGradientPolicy``
    :param env: Gymnasium environment, its id, or a vector environment
    :param horizon: k, the number of imagined steps
    :param bootstrap: end the expansion with the critic's value; False leaves it out
    :param fictitious_samples: imagined states per episode for the actor
    :param fictitious_updates: actor steps per episode on them
    :raises ValueError: for ``bootstrap=False`` without a horizon, or only one of the ``fictitious_`` arguments
    """

    def __init__(
        self,
        *args: Any,
        horizon: int = 1,
        bootstrap: bool = True,
        fictitious_samples: int = 0,
        fictitious_updates: int = 0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        super().__init__(*args, horizon=horizon, **kwargs)
        self.bootstrap = bootstrap
        self.fictitious_samples = fictitious_samples
        self.fictitious_updates = fictitious_updates
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count("fictitious_samples", self.fictitious_samples, 0)
        check_count("fictitious_updates", self.fictitious_updates, 0)
        if not self.bootstrap and self.horizon == 0:
            raise ValueError("bootstrap=False with horizon=0 leaves nothing to maximise; DVGF needs a horizon of at least 1")
        if bool(self.fictitious_samples) != bool(self.fictitious_updates):
            raise ValueError(
                f"fictitious_samples={self.fictitious_samples} and fictitious_updates={self.fictitious_updates} belong "
                "together: give both (DDPG(model), Algorithm 3) or neither"
            )

    def _expansion_weights(self) -> dict[int, float]:
        return {self.horizon: 1.0}

    def _value(self, rollout: Rollout, horizons: list[int]) -> th.Tensor:
        if self.bootstrap or horizons == [0]:
            return super()._value(rollout, horizons)
        return rollout.rewards.new_zeros(len(horizons), rollout.rewards.shape[1])

    def _needs_model(self) -> bool:
        return super()._needs_model() or self.fictitious_samples > 0

    # ---------------------------------------------------------------- DDPG(model), Algorithm 3

    def _on_episode_end(self, losses: Losses) -> None:
        if self.fictitious_samples == 0 or not self._model_is_ready:
            return
        states = self._fictitious_states()
        for _ in range(self.fictitious_updates):
            chosen = states[th.randint(len(states), (self.batch_size,), device=states.device)]
            logged = self._update_actor(lambda: (-self._objective(chosen, {0: 1.0})[0], {}))  # noqa: B023 (called at once)
            for name, value in logged.items():
                losses[f"fictitious_{name}"].append(value.detach())

    @th.no_grad()
    def _fictitious_states(self) -> th.Tensor:
        """``fictitious_samples`` states that the current policy visits in the model, from replayed starts."""
        length = -(-self.fictitious_samples // self.batch_size)
        start = self._flat.flatten(self._sample(self.batch_size).observations)
        return imagine(self.world_model, self._policy, start, length).obs[1:].flatten(0, 1)[: self.fictitious_samples]
