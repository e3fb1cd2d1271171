"""Numbers that say why a value-gradient run learns, or does not."""

from sb3_valuegrad.diagnostics.model_error import open_loop_errors

__all__ = ["open_loop_errors"]
