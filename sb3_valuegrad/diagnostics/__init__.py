"""Numbers, and pictures of them, that say why a value-gradient run learns, or does not."""

from sb3_valuegrad.diagnostics.experience import NothingToMeasureError
from sb3_valuegrad.diagnostics.model_error import ModelError, model_error, open_loop_errors

__all__ = ["ModelError", "NothingToMeasureError", "model_error", "open_loop_errors"]
