"""Replay: one packed row a transition, and minibatches that serve critic, actor and world model."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_valuegrad.held_out import BLOCK, draws_its_own_way, fitted_blocks
from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.world_models import Transitions


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
    discounts: th.Tensor | None
    """(N, 1): what the value at next_observations is discounted by; None: gamma, the returns are one-step"""
    transitions: Transitions
    """one-step data, always"""
    log_probs: th.Tensor | None = None
    """(N,): log q(a | s) of the policy that acted, where the buffer keeps it"""
    targets: th.Tensor | None = None
    """(N, 1): what the critic learns, from the batch's first use on where it is used several times"""


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

    def gather(self, indices: th.Tensor) -> th.Tensor:
        """Rows (N, 2 S + A + 2) of flat indices (step * n_envs + env), copied, on the CPU."""
        return self._tensor.index_select(0, indices)

    def columns(self, indices: th.Tensor, env: VecNormalize | None) -> tuple[th.Tensor, ...]:
        """s (N, S), a (N, A), r (N, 1), terminated (N, 1), s' (N, S) at flat indices, on the buffer's device.

        :param env: normalises observations and rewards, if there is one
        """
        rows = self.gather(indices)
        if env is not None:
            _normalize(rows, self, env)
        return rows.to(self.device).split([self.obs_dim, self.action_dim, 1, 1, self.obs_dim], dim=1)

    def behaviour_log_probs(self, indices: th.Tensor) -> th.Tensor | None:
        """How likely the actions at flat indices were, (N,); None where nobody keeps it."""
        return None


class BatchSource(ABC):
    """In the place of a replay buffer whose experience is kept somewhere else: it hands out whole minibatches."""

    @abstractmethod
    def batch(self, batch_size: int) -> Batch:
        """What :func:`sample_batch` draws where the experience is."""


def _as_view(columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Columns of the rows as observations; a shape that is not flat needs strides of its own, never a copy."""
    if columns.shape == shape:
        return columns
    item = columns.itemsize
    inner = tuple(item * int(np.prod(shape[axis + 1 :])) for axis in range(2, len(shape)))
    return np.lib.stride_tricks.as_strided(columns, shape, (*columns.strides[:2], *inner))


def sample_batch(
    buffer: ReplayBuffer | BatchSource, batch_size: int, flat: FlatObservations, held_out: float, env: VecNormalize | None
) -> Batch:
    """Draw a minibatch from whatever replay buffer there is.

    :param buffer: SB3's, one of its subclasses, or ours; or what stands for one
    :param batch_size: N
    :param flat: flattens observations for the world model
    :param held_out: share of the buffer that is kept from the world model's fit
    :param env: normalises observations and rewards, if there is one
    """
    if isinstance(buffer, BatchSource):
        return buffer.batch(batch_size)
    if draws_its_own_way(buffer):
        samples = buffer.sample(batch_size, env=env)
        return _batch(samples, _transitions(samples, flat, None))
    if isinstance(buffer, PackedReplayBuffer):
        return _from_rows(buffer, batch_size, flat, held_out, env)
    indices = _draw(buffer, batch_size)
    samples = buffer._get_samples(indices, env=env)
    one_step = samples
    if isinstance(buffer, NStepReplayBuffer):
        # The world model learns one step whatever the critic's returns are.
        one_step = ReplayBuffer._get_samples(buffer, indices, env=env)
    return _batch(samples, _transitions(one_step, flat, _shares(buffer, th.from_numpy(indices), held_out)))


def _from_rows(
    buffer: PackedReplayBuffer, batch_size: int, flat: FlatObservations, held_out: float, env: VecNormalize | None
) -> Batch:
    # As SB3's buffers draw them: with one seed, horizon 0 makes the very updates that SB3's DDPG and TD3 make.
    indices = th.from_numpy(np.random.randint(0, buffer.size() * buffer.n_envs, size=batch_size))
    obs, actions, rewards, dones, next_obs = buffer.columns(indices, env)
    steps = indices if buffer.n_envs == 1 else indices // buffer.n_envs
    shares = _shares(buffer, steps, held_out)
    transitions = Transitions(obs, actions, rewards[:, 0], dones[:, 0], next_obs, shares)
    log_probs = buffer.behaviour_log_probs(indices)
    return Batch(flat.unflatten(obs), actions, flat.unflatten(next_obs), dones, rewards, None, transitions, log_probs)


def _normalize(rows: th.Tensor, buffer: PackedReplayBuffer, env: VecNormalize) -> None:
    """In place, on the CPU, where ``VecNormalize`` computes."""
    array, dim = rows.numpy(), buffer.obs_dim
    for part in (array[:, :dim], array[:, -dim:]):
        part[:] = np.asarray(env.normalize_obs(part.reshape(-1, *buffer.obs_shape))).reshape(len(part), dim)
    reward = dim + buffer.action_dim
    array[:, reward] = env.normalize_reward(array[:, reward])


def _draw(buffer: ReplayBuffer, batch_size: int) -> np.ndarray:
    """Positions as SB3's ``sample`` draws them."""
    if getattr(buffer, "optimize_memory_usage", False) and buffer.full:
        return (np.random.randint(1, buffer.buffer_size, size=batch_size) + buffer.pos) % buffer.buffer_size
    return np.random.randint(0, buffer.size(), size=batch_size)


def _shares(buffer: ReplayBuffer, steps: th.Tensor, held_out: float) -> th.Tensor | None:
    """Each row's share in the world model's loss."""
    if held_out == 0:
        return None
    # Looked up: to decide for each row anew costs as much as to gather it.
    counts = fitted_blocks(held_out, buffer.buffer_size // BLOCK + 1).index_select(0, steps // BLOCK)
    return counts.div_(counts.sum().clamp_(min=1)).to(buffer.device)


def _transitions(samples: Any, flat: FlatObservations, shares: th.Tensor | None) -> Transitions:
    obs, next_obs = flat.flatten(samples.observations), flat.flatten(samples.next_observations)
    return Transitions(obs, samples.actions, samples.rewards[:, 0], samples.dones[:, 0], next_obs, shares)


def _batch(samples: Any, transitions: Transitions) -> Batch:
    discounts = getattr(samples, "discounts", None)
    return Batch(
        samples.observations,
        samples.actions,
        samples.next_observations,
        samples.dones,
        samples.rewards,
        discounts,
        transitions,
    )
