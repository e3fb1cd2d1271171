"""Numbers, and pictures of them, that say why a value-gradient run learns, or does not."""

from sb3_valuegrad.diagnostics.critic_calibration import CriticCalibration, critic_calibration
from sb3_valuegrad.diagnostics.experience import NothingToMeasureError
from sb3_valuegrad.diagnostics.model_error import ModelError, model_error, open_loop_errors

__all__ = [
    "CriticCalibration",
    "ModelError",
    "NothingToMeasureError",
    "critic_calibration",
    "model_error",
    "open_loop_errors",
]
