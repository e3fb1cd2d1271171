"""Errors that say what to do: each is a ``ValueError``, and also what Stable-Baselines3 raises in its place.

So code written for SB3 that catches its error keeps working.
"""


class UnsupportedSpaceError(ValueError, AssertionError):
    """An observation or action space that value gradients cannot pass through; SB3 asserts."""


class MismatchError(ValueError, RuntimeError):
    """Parameters that belong to other networks; PyTorch's ``load_state_dict`` raises ``RuntimeError``."""
