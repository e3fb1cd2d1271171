"""Observations as the world model sees them: flat vectors."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_valuegrad.errors import UnsupportedSpaceError


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Refuse what a value gradient cannot pass through.

    :raises UnsupportedSpaceError: a ``ValueError``, for discrete or unbounded actions, and pixel or discrete observations
    """
    if not isinstance(action_space, spaces.Box):
        raise UnsupportedSpaceError(
            f"action_space={action_space}: value gradients differentiate through the action, so it must be a continuous "
            "Box. For discrete actions use DQN or PPO of stable-baselines3."
        )
    if not (np.isfinite(action_space.low).all() and np.isfinite(action_space.high).all()):
        raise UnsupportedSpaceError(
            f"action_space={action_space}: actions must have finite bounds, because the policy ends in a tanh that is "
            "scaled to them. Wrap the environment in gymnasium.wrappers.RescaleAction or declare bounds."
        )
    parts = (
        observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"observation_space": observation_space}
    )
    for key, space in parts.items():
        if is_image_space(space):
            raise UnsupportedSpaceError(
                f"{key}={space}: pixels are not supported, because the world model predicts the observation itself. Use "
                "state observations, or an encoder as an environment wrapper, or SAC with CnnPolicy."
            )
        if not isinstance(space, (spaces.Box, spaces.MultiBinary)):
            raise UnsupportedSpaceError(
                f"{key}={space}: the world model needs observations that change continuously: a Box, or a Dict of them. "
                "Wrap the environment so that it returns one (e.g. one-hot vectors)."
            )


class FlatObservations:
    """Translate between a space's batched observation tensors and flat (N, S) vectors, keeping the gradient.

    :param space: Box (any shape), MultiBinary, or a Dict of these
    """

    def __init__(self, space: spaces.Space):
        subspaces = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self.is_dict = isinstance(space, spaces.Dict)
        self.shapes = {key: tuple(subspace.shape or ()) for key, subspace in subspaces.items()}
        self.sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        self.dim = sum(self.sizes)
        self._is_flat = not self.is_dict and len(self.shapes[""]) == 1

    def flatten(self, obs: PyTorchObs) -> th.Tensor:
        """Batched observations to float32 vectors (N, S)."""
        if isinstance(obs, th.Tensor):
            return obs.float() if self._is_flat else obs.float().flatten(1)
        return th.cat([obs[key].float().flatten(1) for key in self.shapes], dim=1)

    def unflatten(self, flat: th.Tensor) -> PyTorchObs:
        """Vectors (N, S) to what the policy's networks take."""
        if self._is_flat:
            return flat
        parts = zip(self.shapes.items(), flat.split(self.sizes, dim=1), strict=True)
        obs = {key: part.view(-1, *shape) for (key, shape), part in parts}
        return obs if self.is_dict else obs[""]
