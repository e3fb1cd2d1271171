"""Small agents on Pendulum-v1 with made-up experience, for tests that look at single updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm


class LinearFeatures(BaseFeaturesExtractor):
    """A features extractor with something to learn."""

    def __init__(self, observation_space: Any, features_dim: int = 8):
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Linear(observation_space.shape[0], features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """NumPy's and torch's random numbers from here, and as they were afterwards."""
    state = np.random.get_state()
    with th.random.fork_rng():
        np.random.seed(seed)
        th.manual_seed(seed)
        yield
    np.random.set_state(state)


def fill(agent: OffPolicyAlgorithm, rows: int = 200, terminations: float = 0.1, seed: int = 0) -> None:
    """The same experience for every agent that asks."""
    random = np.random.default_rng(seed)
    assert agent.replay_buffer is not None
    for _ in range(rows):
        obs = random.normal(size=(1, 3)).astype(np.float32)
        action = random.uniform(-1, 1, size=(1, 1)).astype(np.float32)
        next_obs = 0.9 * obs + 0.3 * action + 0.1 * random.normal(size=(1, 3)).astype(np.float32)
        reward, done = -np.square(obs).sum(1) + action[:, 0], random.random(1) < terminations
        agent.replay_buffer.add(obs, next_obs, action, reward, done, [{}])
    agent.num_timesteps = rows


def make(algorithm: type[OffPolicyAlgorithm], **kwargs: Any) -> Any:
    """An agent with small networks, experience, and a logger that writes nowhere."""
    policy_kwargs = {"net_arch": [16, 16], **kwargs.pop("policy_kwargs", {})}
    if issubclass(algorithm, ValueGradientAlgorithm):
        policy_kwargs = {"world_model_kwargs": {"net_arch": [16, 16]}, **policy_kwargs}
    arguments: dict[str, Any] = {"buffer_size": 300, "batch_size": 32, "seed": 0, "device": "cpu", **kwargs}
    agent = algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **arguments)
    agent.set_logger(configure(None, []))
    fill(agent)
    return agent


def with_model(algorithm: type[ValueGradientAlgorithm], **kwargs: Any) -> Any:
    """An agent whose world model has learned a little, terminations included."""
    agent = make(algorithm, **kwargs)
    with seeded(5):
        for _ in range(20):
            agent._update_model(agent._sample(64))
    assert agent._model_is_ready and agent.world_model.seen_dones > 0
    return agent


def draw(agent: ValueGradientAlgorithm, size: int = 32, seed: int = 1) -> Any:
    with seeded(seed):
        return agent._sample(size)


def snapshot(module: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, th.Tensor]) -> set[str]:
    """Names of the tensors that are not what they were."""
    return {name for name, value in module.state_dict().items() if not th.equal(value, before[name])}
