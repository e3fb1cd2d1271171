"""Looking at a run without touching it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th


@contextmanager
def undisturbed(seed: int | None = None) -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards Python's, NumPy's and torch's generators are where they were.

    :param seed: torch's random numbers inside start from it; None: where they are
    """
    states = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng():
            if seed is not None:
                th.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def evaluation_mode(policy: Any) -> Iterator[None]:
    """The policy's networks in evaluation mode (dropout, batch norm), and in the mode they were in afterwards."""
    mode = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(mode)
