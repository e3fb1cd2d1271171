"""Experience that the world model is not fitted to, for honest prediction errors."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_valuegrad.observations import FlatObservations

# Held-out data comes in blocks of consecutive steps, so that open-loop predictions can be compared with them.
BLOCK = 32


def is_held_out(steps: np.ndarray, fraction: float) -> np.ndarray:
    """Which buffer positions are kept from the world model's fit: whole blocks, spread evenly, the second the first."""
    blocks = steps // BLOCK
    return np.floor((blocks - 1) * fraction + 1) > np.floor((blocks - 2) * fraction + 1)


def draws_its_own_way(buffer: ReplayBuffer) -> bool:
    """HER does, and a user's prioritised buffer: its rows cannot be told apart, so none is held out."""
    return type(buffer).sample not in (ReplayBuffer.sample, DictReplayBuffer.sample)


def _starts(buffer: ReplayBuffer, fraction: float, length: int, most: int) -> np.ndarray:
    """Positions from which ``length`` steps lie in one held-out block, the newest first. Only as far back as ``most`` may
    need, since a full buffer is large."""
    ages = np.arange(min(buffer.size() - length + 1, round(4 * most / fraction)))
    starts = (buffer.pos - length - ages) % buffer.buffer_size
    last = starts + length - 1
    return starts[is_held_out(starts, fraction) & (starts // BLOCK == last // BLOCK) & (last < buffer.buffer_size)]


def held_out_segments(
    buffer: ReplayBuffer, flat: FlatObservations, fraction: float, length: int, most: int, env: VecNormalize | None
) -> tuple[th.Tensor, th.Tensor, th.Tensor] | None:
    """Stretches of ``length`` consecutive real steps that the world model was not fitted to.

    :return: states (length + 1, N, S), actions (length, N, A), rewards (length, N), the newest N <= ``most`` of them;
        None where there are none
    """
    if fraction == 0 or draws_its_own_way(buffer) or getattr(buffer, "optimize_memory_usage", False):
        return None
    starts = _starts(buffer, fraction, length, most)
    window = starts[:, None] + np.arange(length)
    ends = buffer.dones[window[:, :-1]].any(axis=1)
    positions, envs = (found[:most] for found in np.nonzero(~ends))
    if len(positions) == 0:
        return None
    window = window[positions].T

    def states(steps: np.ndarray, of: Any) -> th.Tensor:
        obs: Any
        if isinstance(buffer, DictReplayBuffer):
            obs = {key: values[steps, envs] for key, values in of.items()}
        else:
            obs = of[steps, envs]
        obs = env.normalize_obs(obs) if env is not None else obs
        tensors = {k: th.as_tensor(v) for k, v in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
        return flat.flatten(tensors).to(buffer.device)

    before = th.stack([states(steps, buffer.observations) for steps in window])
    after = th.stack([states(steps, buffer.next_observations) for steps in window])
    # A second learn() resets the environment without an episode's end: there the next step starts somewhere else.
    follows = (before[1:] == after[:-1]).all(dim=2).all(dim=0)
    if not follows.any():
        return None
    rewards = buffer.rewards[window, envs]
    rewards = env.normalize_reward(rewards) if env is not None else rewards
    return (
        th.cat([before[:1], after])[:, follows],
        th.as_tensor(buffer.actions[window, envs], dtype=th.float32).to(buffer.device)[:, follows],
        th.as_tensor(rewards, dtype=th.float32).to(buffer.device)[:, follows],
    )
