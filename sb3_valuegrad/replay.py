"""Replay: one packed row a transition, and minibatches that serve critic, actor and world model."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.world_models import Transitions

# Held-out data comes in blocks of consecutive steps, so that open-loop predictions can be compared with them.
BLOCK = 32


class Batch(NamedTuple):
    """A minibatch: what SB3's buffers return, and the same experience as one-step data for the world model."""

    observations: PyTorchObs
    actions: th.Tensor
    """(N, A)"""
    next_observations: PyTorchObs
    """of the n-step return's last step where returns are n-step"""
    dones: th.Tensor
    """(N, 1): terminations; time limits are 0"""
    rewards: th.Tensor
    """(N, 1): n-step returns where they are"""
    discounts: th.Tensor | float
    """(N, 1), or gamma for one-step returns"""
    transitions: Transitions
    """one-step data, always"""


class PackedReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with each transition in one float32 row ``[s, a, r, terminated, s']``.

    A minibatch is one gather instead of five, and ``[s, a]`` is a view of it. The arrays that SB3's buffer has
    (``observations``, ``actions``, ...) are views of the rows, so everything that reads or writes them keeps working.
    Parameters are those of :class:`stable_baselines3.common.buffers.ReplayBuffer`, for Box observations.
    """

    rows: np.ndarray

    def __init__(self, buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, **kwargs: Any):
        if kwargs.pop("optimize_memory_usage", False):
            raise ValueError("optimize_memory_usage=True: PackedReplayBuffer keeps s' in the row; use SB3's ReplayBuffer")
        # The parent allocates one row; ours are allocated once, below (np.zeros takes memory only where written).
        n_envs = kwargs.get("n_envs", 1)
        super().__init__(n_envs, observation_space, action_space, **kwargs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.obs_dim = int(np.prod(self.obs_shape))
        self.rows = np.zeros((self.buffer_size, n_envs, 2 * self.obs_dim + self.action_dim + 2), dtype=np.float32)
        self.dones = np.zeros((self.buffer_size, n_envs), dtype=np.float32)
        self.timeouts = np.zeros((self.buffer_size, n_envs), dtype=np.float32)
        self._create_views()

    def _create_views(self) -> None:
        size, n_envs, _ = self.rows.shape
        act, reward = self.obs_dim, self.obs_dim + self.action_dim
        self.observations = _as_view(self.rows[:, :, :act], (size, n_envs, *self.obs_shape))
        self.actions = self.rows[:, :, act:reward]
        self.rewards = self.rows[:, :, reward]
        self.next_observations = _as_view(self.rows[:, :, reward + 2 :], (size, n_envs, *self.obs_shape))
        self._tensor = th.from_numpy(self.rows).view(size * n_envs, -1)

    def __getstate__(self) -> dict[str, Any]:
        views = {"observations", "actions", "rewards", "next_observations", "_tensor"}
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._create_views()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one step of all environments, as :class:`ReplayBuffer` does."""
        pos = self.pos
        super().add(*args, **kwargs)
        # The row holds the termination: an episode's end that is no time limit.
        self.rows[pos, :, self.obs_dim + self.action_dim + 1] = self.dones[pos] * (1 - self.timeouts[pos])

    def gather(self, indices: np.ndarray) -> th.Tensor:
        """Rows (N, 2 S + A + 2) of flat indices (step * n_envs + env)."""
        return self._tensor.index_select(0, th.from_numpy(indices)).to(self.device)


def _as_view(columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Columns of the rows as observations; a shape that is not flat needs strides of its own, never a copy."""
    if columns.shape == shape:
        return columns
    item = columns.itemsize
    inner = tuple(item * int(np.prod(shape[axis + 1 :])) for axis in range(2, len(shape)))
    return np.lib.stride_tricks.as_strided(columns, shape, (*columns.strides[:2], *inner))


def is_held_out(steps: np.ndarray, fraction: float) -> np.ndarray:
    """Which buffer positions are kept from the world model's fit: whole blocks, spread evenly."""
    if fraction == 0:
        return np.zeros(len(steps), dtype=bool)
    return (steps // BLOCK) % round(1 / fraction) == 1


def _draws_its_own_way(buffer: ReplayBuffer) -> bool:
    """HER does, and a user's prioritised buffer: its rows cannot be told apart, so none is held out."""
    return type(buffer).sample not in (ReplayBuffer.sample, DictReplayBuffer.sample)


class Sampler:
    """Draws minibatches from whatever replay buffer there is.

    :param flat: flattens observations for the world model
    :param gamma: discount factor of one-step returns
    :param validation_fraction: share of the buffer held out of the world model's fit
    """

    def __init__(self, flat: FlatObservations, gamma: float, validation_fraction: float):
        self.flat = flat
        self.gamma = gamma
        self.validation_fraction = validation_fraction

    def sample(self, buffer: ReplayBuffer, batch_size: int, env: VecNormalize | None) -> Batch:
        """A minibatch of ``batch_size`` rows, normalised by ``env`` where there is one."""
        if _draws_its_own_way(buffer):
            samples = buffer.sample(batch_size, env=env)
            return self._batch(samples, self._transitions(samples, None))
        if isinstance(buffer, PackedReplayBuffer):
            return self._from_rows(buffer, batch_size, env)
        indices = self._draw(buffer, batch_size)
        samples = buffer._get_samples(indices, env=env)
        one_step = samples
        if isinstance(buffer, NStepReplayBuffer):
            # The world model learns one step whatever the critic's returns are.
            one_step = ReplayBuffer._get_samples(buffer, indices, env=env)
        weights = self._weights(indices, buffer.device)
        return self._batch(samples, self._transitions(one_step, weights))

    def _from_rows(self, buffer: PackedReplayBuffer, batch_size: int, env: VecNormalize | None) -> Batch:
        filled = buffer.buffer_size if buffer.full else buffer.pos
        indices = np.random.randint(0, filled * buffer.n_envs, size=batch_size)
        rows = buffer.gather(indices)
        reward = buffer.obs_dim + buffer.action_dim
        obs, actions = rows[:, : buffer.obs_dim], rows[:, buffer.obs_dim : reward]
        rewards, dones, next_obs = rows[:, reward : reward + 1], rows[:, reward + 1 : reward + 2], rows[:, reward + 2 :]
        if env is not None:
            shape = (batch_size, *buffer.obs_shape)
            obs, next_obs = (
                th.as_tensor(env.normalize_obs(part.cpu().numpy().reshape(shape)), dtype=th.float32)
                .to(rows)
                .view(batch_size, -1)
                for part in (obs, next_obs)
            )
            rewards = th.as_tensor(env.normalize_reward(rewards.cpu().numpy()), dtype=th.float32).to(rows)
        weights = self._weights(indices // buffer.n_envs, rows.device)
        transitions = Transitions(obs, actions, rewards[:, 0], dones[:, 0], next_obs, weights)
        unflatten = self.flat.unflatten
        return Batch(unflatten(obs), actions, unflatten(next_obs), dones, rewards, self.gamma, transitions)

    @staticmethod
    def _draw(buffer: ReplayBuffer, batch_size: int) -> np.ndarray:
        """Positions as SB3's ``sample`` draws them."""
        if getattr(buffer, "optimize_memory_usage", False) and buffer.full:
            return (np.random.randint(1, buffer.buffer_size, size=batch_size) + buffer.pos) % buffer.buffer_size
        return np.random.randint(0, buffer.size(), size=batch_size)

    def _weights(self, steps: np.ndarray, device: th.device) -> th.Tensor | None:
        if self.validation_fraction == 0:
            return None
        counts = (~is_held_out(steps, self.validation_fraction)).astype(np.float32)
        return th.from_numpy(counts / max(counts.sum(), 1.0)).to(device)

    def _transitions(self, samples: ReplayBufferSamples, weights: th.Tensor | None) -> Transitions:
        flatten = self.flat.flatten
        obs, next_obs = flatten(samples.observations), flatten(samples.next_observations)
        return Transitions(obs, samples.actions, samples.rewards[:, 0], samples.dones[:, 0], next_obs, weights)

    def _batch(self, samples: ReplayBufferSamples, transitions: Transitions) -> Batch:
        discounts = getattr(samples, "discounts", None)
        return Batch(
            samples.observations,
            samples.actions,
            samples.next_observations,
            samples.dones,
            samples.rewards,
            self.gamma if discounts is None else discounts,
            transitions,
        )


def held_out_segments(
    buffer: ReplayBuffer, flat: FlatObservations, fraction: float, length: int, most: int, env: VecNormalize | None
) -> tuple[th.Tensor, th.Tensor, th.Tensor] | None:
    """Stretches of ``length`` consecutive real steps that the world model was not fitted to.

    :return: states (length + 1, N, S), actions (length, N, A), rewards (length, N), the newest N <= ``most`` of them;
        None where there are none
    """
    if fraction == 0 or _draws_its_own_way(buffer) or getattr(buffer, "optimize_memory_usage", False):
        return None
    starts = np.arange(0, buffer.size() - length)
    # Inside one held-out block, clear of the seam between the newest and the oldest step, and of episode ends.
    starts = starts[is_held_out(starts, fraction) & (starts // BLOCK == (starts + length - 1) // BLOCK)]
    starts = starts[(starts + length <= buffer.pos) | (starts > buffer.pos)]
    # From the oldest to the newest: the position where the next step goes is the oldest.
    starts = starts[np.argsort((starts - buffer.pos) % buffer.buffer_size)]
    window = starts[:, None] + np.arange(length)
    ends = buffer.dones[window[:, :-1], :].any(axis=1) if length > 1 else np.zeros((len(starts), buffer.n_envs), dtype=bool)
    positions, envs = np.nonzero(~ends)
    if len(positions) == 0:
        return None
    positions, envs = positions[-most:], envs[-most:]
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
