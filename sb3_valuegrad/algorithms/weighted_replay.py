"""Learning from what earlier policies did: whoever acts notes how likely its actions were, and weighs them by it later."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.algorithms.svg_arguments import check_replay
from sb3_valuegrad.gaussian_policies import GaussianActor
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.trajectories import LOG_PROB, TrajectoryReplayBuffer, Windows
from sb3_valuegrad.weights import importance_weights


class WeightedReplayAlgorithm(ValueGradientAlgorithm):
    """Explores by its policy's own noise, keeps trajectories, and weighs them by the likelihood ratio of their actions.

    :param importance_weights: weigh experience by how likely its actions are today (SVG eq. 13; Alg. 4 for V)
    :param max_importance_weight: larger weights are truncated; None: they are not
    """

    buffer_class: ClassVar[type[TrajectoryReplayBuffer]] = TrajectoryReplayBuffer
    actor: GaussianActor
    replay_buffer: TrajectoryReplayBuffer

    def __init__(self, *args: Any, importance_weights: bool = True, max_importance_weight: float | None = 5.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.importance_weights = importance_weights
        self.max_importance_weight = max_importance_weight
        self._log_probs = np.zeros(0)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        check_replay(self)
        return super()._setup_learn(*args, **kwargs)

    def load_replay_buffer(self, *args: Any, **kwargs: Any) -> None:
        """SB3's ``load_replay_buffer``.

        :raises ValueError: for a buffer that does not know how likely its actions were
        """
        super().load_replay_buffer(*args, **kwargs)
        check_replay(self)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_log_probs"]

    # ---------------------------------------------------------------- acting

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The policy's own, from the first step on: for the environment, which gets it within its bounds, and as stored."""
        assert self._last_obs is not None
        obs, _ = self.policy.obs_to_tensor(self._last_obs)
        with th.no_grad():
            actions, log_probs = self.actor.action_log_prob(obs)
        self._log_probs = log_probs.cpu().numpy()
        stored = actions.cpu().numpy()
        return self.policy.unscale_action(stored.clip(-1, 1)), stored

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """The base's, with how likely the action was."""
        infos = [{**info, LOG_PROB: log_prob} for info, log_prob in zip(infos, self._log_probs, strict=True)]
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    # ---------------------------------------------------------------- weighing

    @th.no_grad()
    def _weights_of(self, obs: th.Tensor, actions: th.Tensor, behaviour: th.Tensor, within: th.Tensor) -> th.Tensor:
        """Importance weights of stretches of T actions, (N,): constants.

        :param obs: (T, N, S), flat
        :param actions: (T, N, A)
        :param behaviour: log q(a_t | s_t) of the policy that acted, (T, N)
        :param within: (T, N), 0 beyond a stretch's end
        """
        if not self.importance_weights:
            return th.ones_like(within[0])
        states = self._flat.unflatten(obs.flatten(0, 1))
        log_probs = self.actor.log_prob(states, actions.flatten(0, 1)).view_as(within)
        return importance_weights(log_probs * within, behaviour * within, self.max_importance_weight)

    def _weights_of_rows(self, batch: Batch) -> th.Tensor:
        """Importance weights of single transitions, (N,)."""
        assert batch.log_probs is not None
        obs, ones = self._flat.flatten(batch.observations)[None], th.ones_like(batch.rewards.T)
        return self._weights_of(obs, batch.actions[None], batch.log_probs[None], ones)

    def _weights_of_windows(self, windows: Windows) -> th.Tensor:
        """Importance weights of stretches of experience, (N,)."""
        real = windows.trajectory
        return self._weights_of(real.obs[:-1], real.actions, windows.log_probs, windows.within)
