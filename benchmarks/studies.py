"""The learning studies: which systems, which task, how many steps and seeds. ``learning.py`` runs them."""

from dataclasses import dataclass, field
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn


@dataclass
class Study:
    """
    :param env: Gymnasium id
    :param steps: environment steps of each run
    :param eval_freq: environment steps between two evaluations
    :param systems: name in the results -> (algorithm, its keyword arguments); ``noise`` is the standard deviation
        of Gaussian action noise
    :param seeds: seeds of the training runs
    :param eval_episodes: episodes of one evaluation, the same starts each time
    """

    env: str
    steps: int
    eval_freq: int
    systems: dict[str, tuple[str, dict[str, Any]]]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    eval_episodes: int = 5
    common: dict[str, Any] = field(default_factory=dict)


# SB3's own algorithms, everything at its default except what the name says.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "TD3": ("TD3", {}),
    "SAC": ("SAC", {}),
    "DDPG": ("DDPG", {"noise": 0.1}),
    "TD3 noise 0.1": ("TD3", {"noise": 0.1}),
}

# The DVPG paper's setting (App. C), with equal networks, noise and learning rates for all three.
PAPER_NETWORKS: dict[str, Any] = dict(
    net_arch=[64, 64],
    activation_fn=nn.ReLU,
    n_critics=1,
    layer_norm=False,
    world_model_kwargs=dict(
        net_arch=[64, 64],
        activation_fn=nn.ReLU,
        share_network=False,
        normalize=False,
        predict_change=False,
        weight_decay=1e-4,
        termination="none",
    ),
)
PAPER: dict[str, Any] = dict(
    learning_rate=1e-4,
    batch_size=128,
    target_policy_noise=0.0,
    action_noise=0.1,
    model_validation_fraction=0.0,
    policy_kwargs=PAPER_NETWORKS,
)
OURS: dict[str, tuple[str, dict[str, Any]]] = {"DVPG": ("DVPG", {}), "DVG(3)": ("DVG", {"horizon": 3})}

STUDIES: dict[str, Study] = {
    "halfcheetah": Study("HalfCheetah-v5", 50_000, 2_500, {"DVPG": OURS["DVPG"], **BASELINES}),
    "halfcheetah-paper": Study(
        "HalfCheetah-v5",
        50_000,
        2_500,
        {"DVPG(0.1, 1)": ("DVPG", {}), "DVG(1)": ("DVG", {}), "DDPG (horizon 0)": ("DVG", {"horizon": 0})},
        common=PAPER,
    ),
}


def make_model(study: Study, system: str, seed: int) -> BaseAlgorithm:
    """The algorithm of one run, ready to learn."""
    import gymnasium as gym
    import numpy as np
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    import sb3_valuegrad

    name, given = study.systems[system]
    kwargs = {**study.common, **given}
    env = gym.make(study.env)
    if "noise" in kwargs:
        shape = env.action_space.shape
        kwargs["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, kwargs.pop("noise")))
    for module in (sb3_valuegrad, stable_baselines3, sb3_contrib):
        if hasattr(module, name):
            return getattr(module, name)("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    raise ValueError(f"studies.py names the algorithm {name!r}, which no package here has")
