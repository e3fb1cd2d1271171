"""The learning studies: which systems, which task, how many steps and seeds. ``learning.py`` runs them."""

from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_valuegrad.envs  # noqa: F401 (registers the fully observable tasks)


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


# SB3's own algorithms, everything at its default except what the name says.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "TD3": ("TD3", {}),
    "SAC": ("SAC", {}),
    "DDPG": ("DDPG", {"noise": 0.1}),
}


def zoo(algorithm: str, env: str, preset: str = "", **changes: Any) -> tuple[str, dict[str, Any]]:
    """One of our algorithms with what ``hyperparams/`` says for the task.

    :param preset: "paper/" for the paper's settings
    """
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_valuegrad.zoo.manager import hyperparams_file, read_entry

    entry = ExperimentManager._preprocess_schedules(read_entry(hyperparams_file(preset + algorithm.lower()), env))
    kwargs = {key: value for key, value in entry.items() if key not in ("n_timesteps", "policy")}
    return algorithm, {**kwargs, **changes}


def paper(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The paper's DVPG, DVG and DDPG: the same networks, noise, learning rates and seeds. And its DVPG with one thing
    changed: the model's inputs and targets are on unit scale, and it predicts the change of the state."""
    algorithm, scaled = zoo("DVPG", env, "paper/")
    model = {**scaled["policy_kwargs"]["world_model_kwargs"], "normalize": True, "predict_change": True, "weight_decay": 0.0}
    scaled = {**scaled, "policy_kwargs": {**scaled["policy_kwargs"], "world_model_kwargs": model}}
    return {
        "DVPG": zoo("DVPG", env, "paper/"),
        "DVG": zoo("DVG", env, "paper/"),
        "DDPG (horizon 0)": zoo("DVG", env, "paper/", horizon=0),
        "DVPG (scaled model)": (algorithm, scaled),
    }


def ensembles(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What learns with imagined steps, as ``hyperparams/`` has it, and the model-free algorithms as they ship."""
    return {
        **{name: zoo(name, env) for name in ("MAAC", "MVE", "MBPO")},
        **{name: (name, {}) for name in ("SAC", "TQC", "CrossQ")},
    }


def maac_ablations(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """MAAC with one part less (Clavera et al. 2020, Figs. 4 and 5), and with the paper's numbers where ours differ."""
    return {
        "MAAC": zoo("MAAC", env),
        "H = 0 (STEVE-SAC)": zoo("MAAC", env, horizon=0),
        "no STEVE": zoo("MAAC", env, target_estimator="td", target_horizon=0),
        "five samples": zoo("MAAC", env, n_samples=5),
        "real data only": zoo("MAAC", env, real_ratio=1.0),
        "5% real data": zoo("MAAC", env, real_ratio=0.05),
        "no entropy": zoo("MAAC", env, ent_coef=0.0),
    }


def mve_versions(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """MVE with and without TD-k, with the learned model and with the simulator itself, and DDPG: the same settings
    (Feinberg et al. 2018, Figs. 3, 4 and 6). Networks, rates and noise are the package's defaults, not the paper's."""
    oracle = dict(world_model_class="oracle", world_model_kwargs=dict(env_id=env))
    # A short horizon and small minibatches, because every imagined step is one of MuJoCo's.
    common = dict(horizon=3, batch_size=128)
    return {
        "MVE": zoo("MVE", env, **common),
        "MVE without TD-k": zoo("MVE", env, **common, td_k=False),
        "MVE with the oracle": zoo("MVE", env, **common, policy_kwargs=oracle),
        "MVE with the oracle, without TD-k": zoo("MVE", env, **common, td_k=False, policy_kwargs=oracle),
        "DDPG (H = 0)": zoo("MVE", env, **{**common, "horizon": 0}),
    }


def studies() -> dict[str, Study]:
    cheetah, hopper, swimmer = "HalfCheetah-v5", "Hopper-v5", "Swimmer-v5"
    pendulum, cart, observable = "Pendulum-v1", "InvertedPendulum-v5", "HalfCheetahObservable-v5"
    return {
        "halfcheetah": Study(
            cheetah,
            50_000,
            2_500,
            # What of it is the value gradient's, and what the networks'?
            {"DVPG": ("DVPG", {}), "DVPG's networks, horizon 0": ("DVG", {"horizon": 0}), **BASELINES},
        ),
        # How far should the default look into its model? (DVPG(1, 0.1) and horizon 0 are in the study above.)
        "halfcheetah-horizons": Study(
            cheetah,
            20_000,
            2_500,
            {
                "DVPG(3, 0.5)": ("DVPG", {"horizon": 3, "lambda_": 0.5}),
                "DVG(3)": ("DVG", {"horizon": 3}),
                "DVPG(1, 0.5)": ("DVPG", {"horizon": 1, "lambda_": 0.5}),
            },
        ),
        "halfcheetah-paper": Study(cheetah, 50_000, 2_500, paper(cheetah)),
        "pendulum": Study(
            pendulum, 5_000, 500, {"DVPG": zoo("DVPG", pendulum), "DVG": zoo("DVG", pendulum)}, eval_episodes=10
        ),
        "invertedpendulum": Study(cart, 10_000, 1_000, {"DVPG": zoo("DVPG", cart), "DVG": zoo("DVG", cart)}),
        "pendulum-ensembles": Study(pendulum, 2_500, 250, ensembles(pendulum), eval_episodes=10),
        "invertedpendulum-ensembles": Study(cart, 5_000, 500, ensembles(cart)),
        "halfcheetah-ensembles": Study(cheetah, 20_000, 2_500, ensembles(cheetah), seeds=(0, 1, 2)),
        "hopper-ensembles": Study(hopper, 30_000, 2_500, ensembles(hopper), seeds=(0, 1, 2)),
        "maac-ablations": Study(pendulum, 1_500, 250, maac_ablations(pendulum), eval_episodes=10),
        "mve": Study(observable, 10_000, 1_000, mve_versions(observable), seeds=(0, 1, 2)),
        "hopper": Study(hopper, 100_000, 5_000, {"DVPG": zoo("DVPG", hopper), **BASELINES}),
        "hopper-paper": Study(hopper, 100_000, 5_000, paper(hopper)),
        "swimmer": Study(swimmer, 100_000, 5_000, {"DVPG": zoo("DVPG", swimmer), **BASELINES}),
        "swimmer-paper": Study(swimmer, 100_000, 5_000, paper(swimmer)),
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
    kwargs = dict(given)
    env = gym.make(study.env)
    if "noise" in kwargs:
        shape = env.action_space.shape
        kwargs["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, kwargs.pop("noise")))
    for module in (sb3_valuegrad, stable_baselines3, sb3_contrib):
        if hasattr(module, name):
            return getattr(module, name)("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    raise ValueError(f"studies.py names the algorithm {name!r}, which no package here has")
