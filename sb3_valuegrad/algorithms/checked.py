"""SB3's off-policy algorithm that refuses what it could not learn from, before it is stored."""

import copy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, TensorDict

from sb3_valuegrad.algorithms.arguments import full_signature
from sb3_valuegrad.errors import MismatchError

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="CheckedAlgorithm")


class CheckedAlgorithm(OffPolicyAlgorithm):
    """Errors that say what is wrong and the way out, for policies, experience and saved parameters that do not fit."""

    replay_buffer: ReplayBuffer
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {}
    # A parent's arguments that a leaf sets by its own, and does not take.
    derived_arguments: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.__signature__ = full_signature(cls, cls.derived_arguments)  # type: ignore[attr-defined]

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"policy={policy_name!r} is unknown; use one of {list(self.policy_aliases)}. Pixels (CnnPolicy) are not "
                "supported: the world model predicts the observation itself."
            )
        return super()._get_policy_from_name(policy_name)

    # ---------------------------------------------------------------- experience

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """SB3's, which resets the environment; its first observation must be finite as well."""
        prepared = super()._setup_learn(*args, **kwargs)
        self._check_finite(self._last_obs)  # type: ignore[arg-type]
        return prepared

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Refuse experience that would poison the buffer and the world model's statistics, then store it."""
        self._check_finite({"reward": reward})
        self._check_finite(new_obs)
        for index in np.flatnonzero(dones):
            # There new_obs is the next episode's first; the last of this one is what will be stored.
            if infos[index].get("terminal_observation") is not None:
                self._check_finite(infos[index]["terminal_observation"])
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _check_finite(self, values: np.ndarray | dict[str, np.ndarray]) -> None:
        """:param values: an observation, or numbers by name"""
        for name, value in (values if isinstance(values, dict) else {"observation": values}).items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"The environment returned a non-finite {name} at step {self.num_timesteps}: {value}. Nothing was "
                    "learned from it; check the environment (stable_baselines3.common.vec_env.VecCheckNan finds the place)."
                )

    # ---------------------------------------------------------------- SB3's methods, with our names and errors

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """SB3's ``learn``; the TensorBoard run is named after the class."""
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """SB3's ``set_parameters``.

        :raises MismatchError: a ``ValueError``, if the parameters belong to other networks (say, another world model)
        """
        before = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except (RuntimeError, ValueError) as error:
            # PyTorch has copied by now what did fit.
            super().set_parameters(before, device=device)  # type: ignore[arg-type]
            part = "world model" if "world_model" in str(error) else "policy"
            raise MismatchError(
                f"load_path_or_dict does not fit this model's {part}: build the model with the policy_kwargs it was saved "
                f"with (world_model_class and world_model_kwargs are among them). The cause: {error}"
            ) from error
