"""Diagnostics while a model trains, in its log and as pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_valuegrad.diagnostics.critic_calibration import CriticCalibration, critic_calibration
from sb3_valuegrad.diagnostics.ensemble_calibration import EnsembleCalibration, ensemble_calibration
from sb3_valuegrad.diagnostics.experience import NothingToMeasureError, check_holds_out
from sb3_valuegrad.diagnostics.figures import new_figure
from sb3_valuegrad.diagnostics.isolation import undisturbed
from sb3_valuegrad.diagnostics.model_error import ModelError, model_error
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.held_out import BLOCK
from sb3_valuegrad.world_models import GaussianEnsemble

# What to call, and the numbers of what it returns by their names in the log.
Measurement = tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]


class DiagnosticsCallback(BaseCallback):
    """Records ``diagnostics/...`` in the model's log every ``freq`` steps.

    ``model_error_1`` and ``model_error_K``, ``reward_error_1`` and ``reward_error_K`` of a world model;
    ``ensemble_error`` and ``ensemble_confidence`` of an ensemble; with an ``eval_env``, ``q_bias``, ``q_error`` and
    ``q_correlation`` of the critic. What cannot be measured yet is left out until it can.

    The run does not notice: networks, random numbers and the training environment are as they would be without it. The
    numbers are written with the algorithm's next log; :attr:`history` keeps all of them.

    :param eval_env: where the policy is played to measure its critic, a Gymnasium environment or a ``VecEnv``, not the
        one that is trained in; None: the critic is not measured
    :param freq: environment steps from one measurement to the next
    :param n_episodes: how many episodes are played
    :param horizon: K, length of the open-loop prediction, 1 to 32
    :param max_bootstrap: of :func:`critic_calibration`: how much of a return may be the critic's own word. Where no step
        is left by it, the critic is not measured, with a warning
    :param folder: where pictures go, as ``<diagnostic>_<steps>.png``; None: no pictures
    :param verbose: 1: print where pictures were written
    :raises ValueError: for arguments out of range
    :raises ImportError: for pictures without matplotlib
    """

    history: list[dict[str, float]]
    """One entry a measurement: "timesteps", and the numbers by their names in the log."""

    def __init__(
        self,
        eval_env: gym.Env | VecEnv | None = None,
        freq: int = 10_000,
        n_episodes: int = 5,
        horizon: int = 10,
        max_bootstrap: float = 0.5,
        folder: str | Path | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        for name, count in {"freq": freq, "n_episodes": n_episodes, "horizon": horizon}.items():
            check_count(name, count, 1)
        if horizon > BLOCK:
            raise ValueError(f"horizon={horizon} must be at most {BLOCK}, the length of a held-out stretch")
        self.eval_env, self.freq, self.n_episodes, self.horizon = eval_env, freq, n_episodes, horizon
        self.max_bootstrap = max_bootstrap
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            new_figure()  # now, not after the first ten thousand steps
        self.history = []
        self._measured_at = 0

    def _init_callback(self) -> None:
        """:raises ValueError: if there is nothing to measure, or the evaluation would reset the training"""
        if self.eval_env is None and not hasattr(self.model, "world_model"):
            raise ValueError(
                f"{type(self.model).__name__} has no world model, and eval_env=None: there is nothing to measure. Pass an "
                "eval_env to measure its critic"
            )
        if self.eval_env is None:
            check_holds_out(self.model)
        elif _is_within(self.eval_env, self.model.get_env()):
            raise ValueError("eval_env is the environment that is trained in, and would be reset: make another one")
        self._measured_at = self.model.num_timesteps

    def _on_step(self) -> bool:
        if self.model.num_timesteps - self._measured_at >= self.freq:
            self._measured_at = self.model.num_timesteps
            self.measure()
        return True

    def measure(self) -> dict[str, float]:
        """Measure now: record, draw, and return the numbers by their names in the log."""
        numbers: dict[str, float] = {}
        with undisturbed():
            for name, (diagnose, read) in self._diagnostics().items():
                try:
                    found = diagnose()
                except NothingToMeasureError as error:
                    if name == "critic_calibration":  # time alone will not mend it
                        warnings.warn(str(error), stacklevel=2)
                    continue
                numbers.update(read(found))
                self._draw(name, found)
        for key, value in numbers.items():
            self.logger.record(f"diagnostics/{key}", value)
        self.history.append({"timesteps": self.model.num_timesteps, **numbers})
        return numbers

    def _diagnostics(self) -> dict[str, Measurement]:
        """What suits the model, by name."""
        model, env, chosen = self.model, self.eval_env, dict[str, Measurement]()
        world_model = getattr(model, "world_model", None)
        if world_model is not None and _holds_out(model):
            chosen["model_error"] = (lambda: model_error(model, self.horizon), self._of_model)
        if isinstance(world_model, GaussianEnsemble) and "model_error" in chosen:
            chosen["ensemble_calibration"] = (lambda: ensemble_calibration(model), _of_ensemble)
        if env is not None:
            share = self.max_bootstrap
            chosen["critic_calibration"] = (lambda: critic_calibration(model, env, self.n_episodes, share), _of_critic)
        return chosen

    def _of_model(self, found: ModelError) -> dict[str, float]:
        steps = sorted({1, self.horizon})
        states = {f"model_error_{step}": float(found.state[step - 1]) for step in steps}
        return {**states, **{f"reward_error_{step}": float(found.reward[step - 1]) for step in steps}}

    def _draw(self, name: str, found: Any) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        figure = new_figure()
        found.plot(figure.subplots())
        path = self.folder / f"{name}_{self.model.num_timesteps}.png"
        figure.savefig(path)
        if self.verbose > 0:
            print(f"Wrote {path}")


def _holds_out(agent: Any) -> bool:
    try:
        check_holds_out(agent)
    except NothingToMeasureError:
        return True
    except ValueError:
        return False
    return True


def _is_within(env: gym.Env | VecEnv, vec_env: VecEnv | None) -> bool:
    """Whether to reset the one is to reset the other. (Environments in other processes cannot be looked at.)"""
    if vec_env is None or isinstance(env, VecEnv):
        return vec_env is not None and env.unwrapped is vec_env.unwrapped
    return any(inner.unwrapped is env.unwrapped for inner in getattr(vec_env.unwrapped, "envs", []))


def _of_ensemble(found: EnsembleCalibration) -> dict[str, float]:
    return {"ensemble_error": found.error, "ensemble_confidence": found.confidence}


def _of_critic(found: CriticCalibration) -> dict[str, float]:
    return {"q_bias": found.bias, "q_error": found.error, "q_correlation": found.correlation}
