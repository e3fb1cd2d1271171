"""What stands in the place of a replay buffer in processes that do not keep the experience."""

from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch as th

from sb3_valuegrad.replay import Batch, BatchSource
from sb3_valuegrad.trajectories import LOG_PROB, Windows

KEPT_INFOS = ("TimeLimit.truncated", LOG_PROB)


def packed(tree: Any) -> Any:
    """Tensors as arrays, which Ray shares between processes without a copy."""
    return _mapped(tree, th.Tensor, lambda tensor: tensor.detach().cpu().numpy())


def unpacked(tree: Any, device: th.device | None = None) -> Any:
    """Arrays as tensors of their own: Ray's memory must not be written to."""
    return _mapped(tree, np.ndarray, lambda array: th.tensor(array, device=device))


def _mapped(tree: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """What is of this kind in dictionaries, lists and named tuples (torch's own pytree takes ten times as long)."""
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {name: _mapped(value, kind, function) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        parts = [_mapped(value, kind, function) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


class NoExperience(Exception):
    """The buffer is empty: it has taken the place of one that died."""


class _Stretches:
    """An order for stretches of experience; they are drawn and fetched in one call (a buffer may change in between)."""

    def __init__(self, *order: int | None):
        self.order = order
        self.steps = range(order[0] or 0)


class RemoteReplay(BatchSource):
    """Draws from a buffer in another process; notes what is to be stored there.

    :param timeout: seconds that the buffer may take
    :param buffers: how many share the experience
    """

    def __init__(self, timeout: float, buffers: int):
        self.buffers = buffers
        self.buffer: Any = None
        """handle of the :class:`~sb3_valuegrad.distributed.workers.Buffer`"""
        self.drawn: list[Batch] = []
        """minibatches that have come already, as arrays; they are used first"""
        self.stored = 0
        self.new: list[tuple[Any, ...]] = []
        self.timeout = timeout
        self.fresh = 0

    def batch(self, batch_size: int) -> Batch:
        """A minibatch.

        :raises NoExperience: if there is none
        """
        if self.drawn and len(self.drawn[0].actions) == batch_size:
            return unpacked(self.drawn.pop(0))
        (batch,), _ = self._ask("sample", batch_size)
        return unpacked(batch)

    def _ask(self, name: str, *args: Any) -> Any:
        answer = ray.get(getattr(self.buffer, name).remote(*args), timeout=self.timeout)
        if answer is None:
            raise NoExperience
        return answer

    def size(self) -> int:
        """Steps stored, of each environment."""
        return self.stored

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """As :class:`~stable_baselines3.common.buffers.ReplayBuffer`; it waits in :attr:`new` until it is sent."""
        kept = [{key: info[key] for key in KEPT_INFOS if key in info} for info in infos]
        copies = [{k: v.copy() for k, v in o.items()} if isinstance(o, dict) else o.copy() for o in (obs, next_obs)]
        self.new.append((*copies, action, reward, done, kept))

    def draw(self, count: int, most: int, newest: int | None = None) -> Any:
        """As :class:`~sb3_valuegrad.trajectories.TrajectoryReplayBuffer`."""
        share = None if newest is None else max(newest // self.buffers, 1)
        return _Stretches(count, most, share)

    def windows(self, places: _Stretches, env: None = None) -> Windows:
        """As :class:`~sb3_valuegrad.trajectories.TrajectoryReplayBuffer`."""
        return unpacked(self._ask("stretches", *places.order))
