"""Numbers, and pictures of them, that say why a value-gradient run learns, or does not."""

from sb3_valuegrad.diagnostics.callback import DiagnosticsCallback
from sb3_valuegrad.diagnostics.critic_calibration import CriticCalibration, critic_calibration
from sb3_valuegrad.diagnostics.ensemble_calibration import EnsembleCalibration, ensemble_calibration, interval_coverage
from sb3_valuegrad.diagnostics.experience import NothingToMeasureError
from sb3_valuegrad.diagnostics.gradient_error import (
    GradientErrors,
    gradient_error_study,
    gradient_errors,
    plot_gradient_error_study,
)
from sb3_valuegrad.diagnostics.gradient_existence import GradientExistence, existence_along, gradient_existence
from sb3_valuegrad.diagnostics.model_error import ModelError, model_error, open_loop_errors

__all__ = [
    "CriticCalibration",
    "DiagnosticsCallback",
    "EnsembleCalibration",
    "GradientErrors",
    "GradientExistence",
    "ModelError",
    "NothingToMeasureError",
    "critic_calibration",
    "ensemble_calibration",
    "existence_along",
    "gradient_error_study",
    "gradient_errors",
    "gradient_existence",
    "interval_coverage",
    "model_error",
    "open_loop_errors",
    "plot_gradient_error_study",
]
