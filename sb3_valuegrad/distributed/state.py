"""What is sent between processes, by value: networks with their optimizers, the experience in a replay buffer."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm

POLICY, WORLD_MODEL = "policy", "world model"
"""The two parts of an algorithm's state: the world model's is the larger one, and often stays as it is."""


class Networks(NamedTuple):
    """One part of an algorithm's state, as arrays."""

    tensors: list[np.ndarray]
    """parameters, statistics and other variables, in the algorithm's own order"""
    moments: list[dict[str, np.ndarray]]
    """what the optimizers keep, parameter by parameter"""
    may_end: bool | None
    """the world model's own word on whether episodes end"""


def _tensors(model: ValueGradientAlgorithm, part: str) -> list[th.Tensor]:
    inside = [*model.world_model.parameters(), *model.world_model.buffers()]
    if part == WORLD_MODEL:
        return inside
    its = {id(tensor) for tensor in inside}
    everything = [*model.policy.parameters(), *model.policy.buffers()]
    variables = [getattr(model, name) for name in model._get_torch_save_params()[1]]
    return [tensor for tensor in everything if id(tensor) not in its] + variables


def _optimized(model: ValueGradientAlgorithm, part: str) -> list[tuple[th.optim.Optimizer, th.Tensor]]:
    """Each optimizer with each of its parameters."""
    optimizers = {name: optimizer for name, (optimizer, _) in model._optimizers().items()}
    of_model = optimizers.pop("model_learning_rate", None)
    chosen = list(optimizers.values()) if part == POLICY else [of_model] if of_model is not None else []
    return [(o, parameter) for o in chosen for group in o.param_groups for parameter in group["params"]]


def export(model: ValueGradientAlgorithm, part: str) -> Networks:
    """The part's state. On the CPU the arrays are the networks' own memory: send them before they change."""
    moments = [{k: _array(v) for k, v in o.state.get(p, {}).items()} for o, p in _optimized(model, part)]
    may_end = getattr(model.world_model, "may_end", None) if part == WORLD_MODEL else None
    return Networks([_array(tensor) for tensor in _tensors(model, part)], moments, may_end)


def _array(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


@th.no_grad()
def restore(model: ValueGradientAlgorithm, part: str, state: Networks) -> None:
    """Take over what :func:`export` gave."""
    for tensor, array in zip(_tensors(model, part), state.tensors, strict=True):
        tensor.copy_(th.tensor(array))
    for (optimizer, parameter), moments in zip(_optimized(model, part), state.moments, strict=True):
        kept = optimizer.state[parameter]
        for name, array in moments.items():
            if name in kept:
                kept[name].copy_(th.tensor(array))
            else:  # it has not made a step yet
                kept[name] = th.tensor(array, device=parameter.device if array.ndim or _counts_there(optimizer) else "cpu")
    if state.may_end is not None:
        model.world_model.may_end = state.may_end  # type: ignore[assignment]


def _counts_there(optimizer: th.optim.Optimizer) -> bool:
    """Whether an optimizer keeps its counts of steps where its parameters are, and not on the CPU."""
    return bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))


# ---------------------------------------------------------------- experience


def _columns(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """Every array with one row a step, by name; a dictionary's (Dict observations) by ``name/key``."""
    found: dict[str, Any] = {}
    for name, value in vars(buffer).items():
        found |= {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    size, rows = buffer.buffer_size, getattr(buffer, "rows", None)
    arrays = {
        name: part for name, part in found.items() if isinstance(part, np.ndarray) and part.ndim > 1 and len(part) == size
    }
    # The columns of a packed buffer are views of its rows.
    return {k: v for k, v in arrays.items() if rows is None or v is rows or not np.may_share_memory(v, rows)}


def empty_buffer(model: ValueGradientAlgorithm, capacity: int) -> ReplayBuffer:
    """A replay buffer like the model's own, on the CPU.

    :param capacity: steps, of all environments together
    """
    kind, spaces = model.replay_buffer_class, (model.observation_space, model.action_space)
    assert kind is not None
    return kind(max(capacity, model.n_envs), *spaces, device="cpu", n_envs=model.n_envs, **model.replay_buffer_kwargs)


def experience(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """A copy of all that is stored, the oldest first."""
    order = (np.arange(buffer.size()) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    return {name: array[order] for name, array in _columns(buffer).items()}


def store(buffer: ReplayBuffer, parts: list[dict[str, np.ndarray]]) -> None:
    """Forget what is in the buffer, and keep the newest of these parts, one after the other; each ends with a cut."""
    buffer.reset()
    for part in parts:
        length = min(len(part["dones"]), buffer.buffer_size)
        places = (buffer.pos + np.arange(length)) % buffer.buffer_size
        if length == 0:
            continue
        for name, array in _columns(buffer).items():
            array[places] = part[name][len(part[name]) - length :]
        buffer.full = buffer.full or buffer.pos + length >= buffer.buffer_size
        buffer.pos = (buffer.pos + length) % buffer.buffer_size
        cut(buffer)


def cut(buffer: ReplayBuffer) -> None:
    """What is stored next does not go on from the newest step: as if a time limit had ended its episode there."""
    if buffer.size() == 0:
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    goes_on = buffer.dones[last] == 0
    buffer.timeouts[last] = np.where(goes_on, 1, buffer.timeouts[last])
    buffer.dones[last] = 1
    if hasattr(buffer, "ends"):  # TrajectoryReplayBuffer
        buffer.ends[last] = True
