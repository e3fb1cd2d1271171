"""An off-policy algorithm with a world model: when it is fitted, to what, and how well it predicts."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import TensorDict

from sb3_valuegrad.algorithms.arguments import check_count, check_share
from sb3_valuegrad.algorithms.checked import CheckedAlgorithm
from sb3_valuegrad.diagnostics.model_error import open_loop_errors
from sb3_valuegrad.gradients import guarded_step
from sb3_valuegrad.held_out import BLOCK, held_out_segments
from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.policies import ValueGradientPolicy
from sb3_valuegrad.replay import Batch, sample_batch
from sb3_valuegrad.world_models import WorldModel

Losses = dict[str, list[th.Tensor]]


def append(losses: Losses, values: dict[str, th.Tensor]) -> None:
    """Add to what :meth:`train` will read and log when it is done."""
    for name, value in values.items():
        losses[name].append(value.detach())


class ModelBasedAlgorithm(CheckedAlgorithm):
    """Owns the world model's schedule. The model always learns from one-step data.

    The parameters are described in :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`.
    """

    policy: ValueGradientPolicy
    world_model: WorldModel
    max_grad_norm: float | None
    _flat: FlatObservations

    def __init__(
        self,
        *args: Any,
        model_learning_starts: int = 0,
        model_gradient_steps: int = 1,
        model_validation_fraction: float = 0.05,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.model_learning_starts = model_learning_starts
        self.model_gradient_steps = model_gradient_steps
        self.model_validation_fraction = model_validation_fraction
        self._n_model_updates = 0

    def _check_model_arguments(self) -> None:
        check_count("model_learning_starts", self.model_learning_starts, 0)
        check_count("model_gradient_steps", self.model_gradient_steps, 1)
        check_share("model_validation_fraction", self.model_validation_fraction, most=0.5)

    def _needs_model(self) -> bool:
        """Whether anything would use the world model; it is not trained otherwise."""
        return True

    # ---------------------------------------------------------------- fitting

    @property
    def _model_is_ready(self) -> bool:
        return not self.world_model.is_learned or self._n_model_updates > 0

    def _trains_model(self) -> bool:
        has_begun = self._n_model_updates > 0 or self.num_timesteps > self.model_learning_starts
        return has_begun and self.world_model.is_learned and self._needs_model()

    def _sample(self, batch_size: int) -> Batch:
        env, held_out = self._vec_normalize_env, self.model_validation_fraction
        return sample_batch(self.replay_buffer, batch_size, self._flat, held_out, env)

    def _model_losses(self, batch: Batch) -> dict[str, th.Tensor]:
        with th.no_grad():
            self.world_model.observe(batch.transitions)
            self.world_model.updates += 1
        self._n_model_updates += 1
        parts = self.world_model.losses(batch.transitions)
        return {**parts, "model_loss": sum(parts.values(), start=th.zeros((), device=self.device))}

    def _update_model(self, batch: Batch) -> dict[str, th.Tensor]:
        """One step of the world model alone."""
        logged = self._model_losses(batch)
        (norm,), _ = guarded_step(logged["model_loss"], [self.world_model.optimizer], self.max_grad_norm)
        return {**logged, "model_grad_norm": norm}

    def _update_with_model(
        self, batch: Batch, loss: th.Tensor, optimizer: th.optim.Optimizer, losses: Losses
    ) -> tuple[th.Tensor, th.Tensor]:
        """A step on ``loss`` and, where the model is trained, on the model's own from the same minibatch: they share no
        parameter, so one backward pass serves both.

        :return: norm of the gradient of ``loss``; whether the update was withheld
        """
        if not self._trains_model():
            (norm,), withheld = guarded_step(loss, [optimizer], self.max_grad_norm)
            return norm, withheld
        logged = self._model_losses(batch)
        optimizers = [optimizer, self.world_model.optimizer]
        (norm, model_norm), withheld = guarded_step(loss + logged["model_loss"], optimizers, self.max_grad_norm)
        append(losses, {**logged, "model_grad_norm": model_norm})
        for _ in range(self.model_gradient_steps - 1):
            append(losses, self._update_model(self._sample(len(batch.actions))))
        return norm, withheld

    def _warm_up_model(self, batch_size: int) -> None:
        """Before its first use the world model makes one update for each step that is stored."""
        if self._n_model_updates == 0 and self._trains_model():
            for _ in range(self.replay_buffer.size() * self.model_gradient_steps):
                self._update_model(self._sample(batch_size))

    # ---------------------------------------------------------------- what the user sees

    def dump_logs(self) -> None:
        """Write the log, with the world model's prediction error on held-out data."""
        if self._needs_model() and self._model_is_ready:
            for name, value in self.model_errors().items():
                self.logger.record(f"train/{name}", value)
        super().dump_logs()

    def model_errors(self, steps: int = 5, most: int = 512) -> dict[str, float]:
        """Prediction error of the world model on held-out transitions: one step, and ``steps`` steps open loop.

        :param steps: length of the open-loop prediction, 1 to 32
        :param most: at most so many stretches of experience, the newest
        :return: see :func:`~sb3_valuegrad.diagnostics.open_loop_errors`; empty while nothing has been held out
        """
        if not 1 <= steps <= BLOCK:
            raise ValueError(f"steps={steps} must be between 1 and {BLOCK}, the length of a held-out stretch")
        held_out = held_out_segments(
            self.replay_buffer, self._flat, self.model_validation_fraction, steps, most, self._vec_normalize_env
        )
        if held_out is None:
            return {}
        state, reward = open_loop_errors(self.world_model, *held_out)
        names = {"model_error_1": state[0], f"model_error_{steps}": state[-1], "model_reward_error": reward[0]}
        return {name: value.item() for name, value in names.items()}

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """SB3's ``set_parameters``, see :meth:`CheckedAlgorithm.set_parameters`."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        self._n_model_updates = int(self.world_model.updates)
