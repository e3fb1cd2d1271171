"""An off-policy algorithm with a world model: when it is fitted, to what, and how well it predicts."""

import warnings
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TensorDict

from sb3_valuegrad.algorithms.arguments import check_choice, check_share
from sb3_valuegrad.algorithms.checked import CheckedAlgorithm
from sb3_valuegrad.diagnostics.model_error import open_loop_errors
from sb3_valuegrad.errors import FitError, check_count
from sb3_valuegrad.gradients import guarded_step
from sb3_valuegrad.held_out import BLOCK, held_out_segments, stored_transitions
from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.policies import ValueGradientPolicy
from sb3_valuegrad.replay import Batch, sample_batch
from sb3_valuegrad.world_models import Transitions, WorldModel
from sb3_valuegrad.world_models.fitting import fit

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
    simulator: WorldModel | None
    max_grad_norm: float | None
    _flat: FlatObservations

    def __init__(
        self,
        *args: Any,
        model_learning_starts: int = 0,
        model_gradient_steps: int = 1,
        model_validation_fraction: float = 0.05,
        model_fit_freq: int | None = None,
        model_fit_kwargs: dict[str, Any] | None = None,
        on_fit_error: str = "raise",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.model_learning_starts = model_learning_starts
        self.model_gradient_steps = model_gradient_steps
        self.model_validation_fraction = model_validation_fraction
        self.model_fit_freq = model_fit_freq
        self.model_fit_kwargs = model_fit_kwargs
        self.on_fit_error = on_fit_error
        self._n_model_updates = 0
        self._last_fit: int | None = None

    def _check_model_arguments(self) -> None:
        check_count("model_learning_starts", self.model_learning_starts, 0)
        check_count("model_gradient_steps", self.model_gradient_steps, 1)
        check_share("model_validation_fraction", self.model_validation_fraction, most=0.5)
        check_choice("on_fit_error", self.on_fit_error, ("raise", "keep"))
        if self.model_fit_freq is None:
            return
        check_count("model_fit_freq", self.model_fit_freq, 1)
        if self.model_validation_fraction == 0:
            raise ValueError(
                "model_validation_fraction=0.0 leaves nothing to stop a fit by; hold out, say, 0.1, or use "
                "model_fit_freq=None, which fits in step with the critic"
            )

    def _needs_model(self) -> bool:
        """Whether anything would use the world model; it is not trained otherwise."""
        return True

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """SB3's; the environment must show the world model what it can make use of."""
        env = self._vec_normalize_env
        models = [self.world_model] if self.simulator is None else [self.world_model, self.simulator]
        for model in models:
            if env is not None and (env.norm_obs or env.norm_reward) and model.takes_raw_data:
                raise ValueError(
                    f"VecNormalize changes observations or rewards, and {type(model).__name__} knows them only as the "
                    "environment gives them. Train without VecNormalize, or with a learned world model."
                )
        prepared = super()._setup_learn(*args, **kwargs)
        if self.num_timesteps == 0:
            self._last_fit = None  # steps are counted afresh
        assert self._last_obs is not None
        for model in models:
            model.check(self._flat.flatten(self.policy.obs_to_tensor(self._last_obs)[0]))
        return prepared

    # ---------------------------------------------------------------- fitting

    @property
    def _model_is_ready(self) -> bool:
        return self._n_model_updates > 0 or not self.world_model.is_learned

    def _may_fit(self) -> bool:
        if not self.world_model.is_learned or not self._needs_model():
            return False
        return self._n_model_updates > 0 or self.num_timesteps > self.model_learning_starts

    def _trains_model(self) -> bool:
        """Whether the model learns in step with the critic."""
        return self.model_fit_freq is None and self._may_fit()

    def _sample(self, batch_size: int) -> Batch:
        env, held_out = self._vec_normalize_env, self.model_validation_fraction
        return sample_batch(self.replay_buffer, batch_size, self._flat, held_out, env)

    @th.no_grad()
    def _observe(self, data: Transitions) -> None:
        """What the world model notes of rows before it learns from them."""
        self.world_model.observe(data)
        self.world_model.updates.add_(1)  # += would also register the buffer anew
        self._n_model_updates += 1

    def _model_losses(self, batch: Batch) -> dict[str, th.Tensor]:
        self._observe(batch.transitions)
        parts = self.world_model.losses(batch.transitions)
        first, *others = parts.values()
        return {**parts, "model_loss": sum(others, start=first)}

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

    def _is_fit_due(self) -> bool:
        """Whether the world model learns before the next update: to convergence, or before its first use."""
        if not self._may_fit():
            return False
        if self.model_fit_freq is None:
            return self._n_model_updates == 0
        return self._last_fit is None or self.num_timesteps - self._last_fit >= self.model_fit_freq

    def _prepare_model(self, batch_size: int, losses: Losses) -> None:
        """Before the updates: a fit that is due, or, before its first use, one update for each step that is stored."""
        if not self._is_fit_due():
            return
        if self.model_fit_freq is not None:
            self._last_fit = self.num_timesteps
            self._fit_model(losses)
            self._on_model_fit()
        else:
            for _ in range(self.replay_buffer.size() * self.model_gradient_steps):
                self._update_model(self._sample(batch_size))

    def _fit_model(self, losses: Losses) -> None:
        """Fit to convergence to everything stored.

        :raises FitError: if it diverged, unless ``on_fit_error="keep"``: then the last good model stays in use
        """
        data, validation = stored_transitions(
            self.replay_buffer, self._flat, self._vec_normalize_env, self.model_validation_fraction
        )
        settings = {"max_grad_norm": self.max_grad_norm, **(self.model_fit_kwargs or {})}
        try:
            report = fit(self.world_model, data, validation, **settings)
        except FitError as error:
            if self.on_fit_error == "raise":
                raise
            warnings.warn(f"{error} Training goes on with the model as it was.", stacklevel=2)
            return
        self._n_model_updates += report.updates
        append(losses, {"model_fit_error": report.errors.mean(), "model_fit_epochs": report.errors.new_tensor(report.epochs)})

    def _on_model_fit(self) -> None:
        """After a fit: what depends on the model is made anew."""

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
