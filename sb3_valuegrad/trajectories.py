"""Replay of real trajectories: stretches of consecutive steps, and how likely their actions were when they were taken."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_valuegrad.replay import PackedReplayBuffer
from sb3_valuegrad.rollouts import Trajectory

LOG_PROB = "behaviour_log_prob"
"""Where an info dictionary tells how likely the action was, log q(a | s), for actions scaled to [-1, 1]."""


class Places(NamedTuple):
    """Where stretches of experience begin in a buffer, and how long they are."""

    steps: np.ndarray
    """(N,): position of the first step"""
    envs: np.ndarray
    """(N,): environment"""
    lengths: np.ndarray
    """(N,): steps, each at least 1"""


class Windows(NamedTuple):
    """``N`` stretches of at most ``H`` real steps, time first. What lies beyond a stretch's end repeats its last step."""

    trajectory: Trajectory
    """obs (H + 1, N, S), actions (H, N, A), rewards (H, N), terminations (H, N)"""
    log_probs: th.Tensor
    """(H, N): log q(a_t | s_t) of the policy that acted; NaN where nobody said"""
    within: th.Tensor
    """(H, N): 1.0 up to the stretch's end, 0.0 beyond"""
    lengths: list[int]
    """of each stretch, in 1..H"""


class TrajectoryReplayBuffer(PackedReplayBuffer):
    """A :class:`~sb3_valuegrad.replay.PackedReplayBuffer` that knows which of its steps follow one another.

    A stretch never goes past a termination, a time limit, the newest step, or a reset that the buffer was not told about
    (there the next observation stored is not the one that this step led to). :meth:`add` keeps ``infos[i]``'s
    ``"behaviour_log_prob"``. Parameters are those of :class:`~sb3_valuegrad.replay.PackedReplayBuffer`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        shape = (self.buffer_size, self.n_envs)
        self.log_probs = np.full(shape, np.nan, dtype=np.float32)
        # 1 where the step that is stored next does not go on from here.
        self.ends = np.zeros(shape, dtype=bool)
        self.fresh = 0
        """Steps that have been added since somebody set this to 0."""

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments."""
        pos, before, is_first = self.pos, (self.pos - 1) % self.buffer_size, self.size() == 0
        super().add(obs, next_obs, action, reward, done, infos)
        self.log_probs[pos] = [info.get(LOG_PROB, np.nan) for info in infos]
        self.ends[pos] = self.dones[pos] > 0
        if not is_first and before != pos:
            jumps = self.observations[pos] != self.next_observations[before]
            self.ends[before] |= jumps.reshape(self.n_envs, -1).any(axis=1)
        self.fresh += 1

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.fresh = 0

    @property
    def is_between_episodes(self) -> bool:
        """Whether the newest step ended an episode in every environment."""
        return bool(self.ends[self.pos - 1].all())

    def behaviour_log_probs(self, indices: th.Tensor) -> th.Tensor:
        """log q(a | s) at flat indices, (N,), on the buffer's device."""
        return th.from_numpy(self.log_probs).view(-1).index_select(0, indices).to(self.device)

    # ---------------------------------------------------------------- where stretches are

    def draw(self, count: int, most: int, newest: int | None = None) -> Places:
        """Random stretches of up to ``most`` steps: every stored step is as likely as any other to be the first.

        :param count: N
        :param most: H
        :param newest: begin in the newest steps only; where they are no more than ``count``, each of them begins one
        """
        if newest is None:
            flat = np.random.randint(0, self.size() * self.n_envs, size=count)
            return self._places(flat // self.n_envs, flat % self.n_envs, most)
        among = min(newest, self.size()) * self.n_envs
        flat = np.arange(among) if among <= count else np.random.randint(0, among, size=count)
        return self._places((self.pos - 1 - flat // self.n_envs) % self.buffer_size, flat % self.n_envs, most)

    def _places(self, steps: np.ndarray, envs: np.ndarray, most: int) -> Places:
        reached = (steps[:, None] + np.arange(most)) % self.buffer_size
        stops = self.ends[reached, envs[:, None]] | (reached == (self.pos - 1) % self.buffer_size)
        return Places(steps, envs, np.where(stops.any(axis=1), stops.argmax(axis=1) + 1, most))

    def check_holds(self, newest: int) -> None:
        """:raises ValueError: if some of the newest steps have been overwritten"""
        if newest > self.size():
            raise ValueError(
                f"buffer_size={self.buffer_size * self.n_envs} does not hold the last {newest} steps, which are needed whole; "
                "give a buffer_size of several episodes, and the environment a time limit "
                "(gymnasium.make(..., max_episode_steps=...)) if its episodes do not end"
            )

    def episodes(self, newest: int) -> Places:
        """The whole episodes among the newest steps of each environment; those that are not over are left out.

        :param newest: steps; an episode begins at the first of them
        :raises ValueError: if the buffer does not hold as many any more
        """
        self.check_holds(newest)
        order = (self.pos - newest + np.arange(newest)) % self.buffer_size
        found = []
        for env in range(self.n_envs):
            last = np.flatnonzero(self.ends[order, env])
            first = np.concatenate([[0], last[:-1] + 1])
            is_whole = self.dones[order[last], env] > 0
            found.append(
                (order[first[: len(last)]][is_whole], np.full(is_whole.sum(), env), (last - first[: len(last)] + 1)[is_whole])
            )
        return Places(*(np.concatenate(part) for part in zip(*found, strict=True)))

    # ---------------------------------------------------------------- what is there

    def windows(self, places: Places, env: VecNormalize | None = None) -> Windows:
        """The stretches at these places, H the longest one's length.

        :param places: N of them
        :param env: normalises observations and rewards, if there is one
        """
        count, horizon = len(places.steps), int(places.lengths.max())
        offsets = np.arange(horizon)[:, None]
        inside = offsets < places.lengths
        steps = (places.steps + np.minimum(offsets, places.lengths - 1)) % self.buffer_size
        indices = th.from_numpy(steps * self.n_envs + places.envs).flatten()
        parts = self.columns(indices, env)
        obs, actions, rewards, dones, next_obs = (part.unflatten(0, (horizon, count)) for part in parts)
        states = th.cat([obs[:1], next_obs])
        return Windows(
            Trajectory(states, actions, rewards[..., 0], dones[..., 0]),
            self.behaviour_log_probs(indices).view(horizon, count),
            th.from_numpy(inside).to(self.device, th.float32),
            places.lengths.tolist(),
        )
