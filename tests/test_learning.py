"""Does it learn? Small tasks with thresholds; the studies in ``benchmarks/`` say how well."""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tiny import PointEnv

from sb3_valuegrad import DVG, DVPG, MAAC, MVE
from sb3_valuegrad.world_models import MlpWorldModel

NETS = {"net_arch": [64, 64], "world_model_kwargs": {"net_arch": [64, 64]}}


@pytest.mark.parametrize("algorithm", [DVG, DVPG, MVE])
def test_identity(algorithm: Any) -> None:
    """SB3's own learning test of its continuous algorithms, with its budget: repeat what you see, 100 times."""
    env = IdentityEnvBox(eps=0.5)
    model = algorithm("MlpPolicy", env, learning_rate=1e-3, learning_starts=100, gamma=0.95, seed=0, policy_kwargs=NETS)
    model.learn(400)
    reward: Any = evaluate_policy(model, env, n_eval_episodes=20, warn=False)[0]
    assert reward > 90


@pytest.mark.parametrize("kwargs", [{"horizon": 3}, {"horizon": 5, "lambda_": 0.5}], ids=str)
def test_drive_to_the_origin(kwargs: dict[str, Any]) -> None:
    """Where the model matters: far better than standing still, near what is possible."""
    env = Monitor(PointEnv(length=20))
    algorithm = DVPG if "lambda_" in kwargs else DVG
    model = algorithm("MlpPolicy", env, learning_starts=100, batch_size=64, seed=0, policy_kwargs=NETS, **kwargs).learn(600)
    env.reset(seed=1)
    reward: Any = evaluate_policy(model, env, n_eval_episodes=20)[0]
    # Standing still costs 2/3 a step on average, 13.3 in all; full speed to the origin, by simulation, 0.6.
    assert reward > -1


@pytest.mark.parametrize("kwargs", [{"model_fit_freq": 100, "real_ratio": 0.5}, {"model_fit_freq": None, "real_ratio": 1.0}])
def test_maac_drives_to_the_origin(kwargs: dict[str, Any]) -> None:
    """With fits to convergence and imagined data, and without."""
    env = Monitor(PointEnv(length=20))
    small = {"net_arch": [64, 64], "world_model_kwargs": {"net_arch": [32, 32], "n_members": 3, "n_elites": 2}}
    fits = {"max_epochs": 50, "batch_size": 64}
    model = MAAC("MlpPolicy", env, horizon=2, learning_rate=1e-3, learning_starts=100, batch_size=64, seed=0, ent_coef=0.01,
                 policy_kwargs=small, model_fit_kwargs=fits, **kwargs).learn(500)  # fmt: skip
    env.reset(seed=1)
    reward: Any = evaluate_policy(model, env, n_eval_episodes=20)[0]
    assert reward > -3  # see above


def test_the_world_model_learns_pendulum() -> None:
    """Prediction errors relative to how far the state moved: predicting that nothing changes has the error 1."""
    model = DVPG("MlpPolicy", "Pendulum-v1", learning_starts=400, batch_size=64, seed=0, policy_kwargs=NETS).learn(700)
    errors = model.model_errors(steps=5)
    assert errors["model_error_1"] < 0.4 and errors["model_error_5"] < 0.4 and errors["model_reward_error"] < 0.3


def test_horizon_zero_leaves_the_model_alone() -> None:
    model = DVG("MlpPolicy", PointEnv(), horizon=0, learning_starts=20, batch_size=16, policy_kwargs=NETS)
    assert isinstance(model.world_model, MlpWorldModel)
    before = {name: value.clone() for name, value in model.world_model.state_dict().items()}
    model.learn(40)
    assert model._n_model_updates == 0 and model._n_updates == 20
    assert all(th.equal(value, before[name]) for name, value in model.world_model.state_dict().items())
