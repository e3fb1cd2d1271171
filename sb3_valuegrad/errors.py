"""Errors that say what to do: each is a ``ValueError``, and also what Stable-Baselines3 raises in its place.

So code written for SB3 that catches its error keeps working.
"""

from typing import Any

import numpy as np


class UnsupportedSpaceError(ValueError, AssertionError):
    """An observation or action space that value gradients cannot pass through; SB3 asserts."""


class MismatchError(ValueError, RuntimeError):
    """Parameters that belong to other networks; PyTorch's ``load_state_dict`` raises ``RuntimeError``."""


class FitError(ValueError):
    """A world model's fit diverged. The model, its scales and its optimizer are what they were before the fit."""


class UnreachableError(ValueError, ConnectionError):
    """No Ray cluster answers at this address; Ray's own error is a ``ConnectionError``."""


def check_count(name: str, value: Any, least: int) -> None:
    """:raises ValueError: if ``value`` is not a whole number of at least ``least``"""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
