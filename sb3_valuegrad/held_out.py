"""Experience that the world model is not fitted to, for honest prediction errors."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.world_models import Transitions

# Held-out data comes in blocks of consecutive steps, so that open-loop predictions can be compared with them.
BLOCK = 32


def is_held_out(steps: np.ndarray, fraction: float) -> np.ndarray:
    """Which buffer positions are kept from the world model's fit: whole blocks, spread evenly, the second the first."""
    blocks = steps // BLOCK
    return np.floor((blocks - 1) * fraction + 1) > np.floor((blocks - 2) * fraction + 1)


@lru_cache(maxsize=8)
def fitted_blocks(fraction: float, blocks: int) -> th.Tensor:
    """1.0 for each block of ``BLOCK`` positions that the world model is fitted to, 0.0 for those that are held out."""
    return th.from_numpy(~is_held_out(np.arange(blocks) * BLOCK, fraction)).float()


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

    before = th.stack([_states(buffer, flat, env, buffer.observations, steps, envs) for steps in window])
    after = th.stack([_states(buffer, flat, env, buffer.next_observations, steps, envs) for steps in window])
    # A second learn() resets the environment without an episode's end: there the next step starts somewhere else.
    follows = (before[1:] == after[:-1]).all(dim=2).all(dim=0)
    if not follows.any():
        return None
    rewards = buffer.rewards[window, envs]
    rewards = env.normalize_reward(rewards) if env is not None else rewards
    return (
        th.cat([before[:1], after])[:, follows],
        _tensor(buffer, buffer.actions[window, envs])[:, follows],
        _tensor(buffer, rewards)[:, follows],
    )


def stored_transitions(
    buffer: ReplayBuffer, flat: FlatObservations, env: VecNormalize | None, fraction: float
) -> tuple[Transitions, Transitions]:
    """Everything in a replay buffer as one-step data, apart what is held out.

    :param fraction: share that is held out: whole stretches, the same that minibatches leave out; single rows at random
        where the buffer draws its own way
    :return: to fit, and held out
    """
    overlaps = getattr(buffer, "optimize_memory_usage", False) and buffer.full
    # There s' of the newest step has been overwritten.
    steps = np.delete(np.arange(buffer.size()), buffer.pos) if overlaps else np.arange(buffer.size())
    steps, envs = (index.ravel() for index in np.meshgrid(steps, np.arange(buffer.n_envs), indexing="ij"))
    timeouts = buffer.timeouts[steps, envs] if getattr(buffer, "timeouts", None) is not None else 0
    rewards = buffer.rewards[steps, envs]
    following = buffer.observations if getattr(buffer, "optimize_memory_usage", False) else buffer.next_observations
    after = (steps + 1) % buffer.buffer_size if following is buffer.observations else steps
    data = Transitions(
        _states(buffer, flat, env, buffer.observations, steps, envs),
        _tensor(buffer, buffer.actions[steps, envs]),
        _tensor(buffer, env.normalize_reward(rewards) if env is not None else rewards),
        _tensor(buffer, buffer.dones[steps, envs] * (1 - timeouts)),
        _states(buffer, flat, env, following, after, envs),
    )
    held_out = np.random.random(len(steps)) < fraction if draws_its_own_way(buffer) else is_held_out(steps, fraction)
    if fraction > 0 and not held_out.any():
        # The first block that is held out is not there yet: the newest steps stand in for it.
        held_out[-max(round(fraction * len(steps)), 1) :] = True
    apart = th.as_tensor(held_out, device=buffer.device)
    return Transitions(*(part[~apart] for part in data[:5])), Transitions(*(part[apart] for part in data[:5]))


def _states(
    buffer: ReplayBuffer, flat: FlatObservations, env: VecNormalize | None, of: Any, steps: np.ndarray, envs: np.ndarray
) -> th.Tensor:
    """Stored observations at these positions, as the networks see them, flat (N, S)."""
    obs: Any
    if isinstance(buffer, DictReplayBuffer):
        obs = {key: values[steps, envs] for key, values in of.items()}
    else:
        obs = of[steps, envs]
    obs = env.normalize_obs(obs) if env is not None else obs
    tensors = {k: th.as_tensor(v) for k, v in obs.items()} if isinstance(obs, dict) else th.as_tensor(obs)
    return flat.flatten(tensors).to(buffer.device)


def _tensor(buffer: ReplayBuffer, values: np.ndarray) -> th.Tensor:
    return th.as_tensor(values, dtype=th.float32).to(buffer.device)
