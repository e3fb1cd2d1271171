"""What only a GPU shows: every kind of update runs there, and does what it does on the CPU. Skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from small_models import draw, fill, make, seeded
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, same, snapshot, tensors, tiny

from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.diagnostics import DiagnosticsCallback, gradient_existence
from sb3_valuegrad.exploration import AdaptiveParameterNoise
from sb3_valuegrad.planning import CrossEntropyPlanner
from sb3_valuegrad.world_models.fitting import fit

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="PyTorch sees no GPU")

DEVICES = ("cpu", "cuda")
ENSEMBLE: dict[str, Any] = {"world_model_class": "ensemble"}
FITTED: dict[str, Any] = {"model_fit_freq": 30, "model_fit_kwargs": {"max_epochs": 2}, "rollouts_per_step": 2}


def drift(obs: th.Tensor, action: th.Tensor) -> th.Tensor:
    return obs + 0.1 * action


def cost(obs: th.Tensor, action: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -obs.square().sum(1)


PRIOR = {"net_arch": [16], "world_model_class": "analytic", "world_model_kwargs": {"transition_fn": drift, "reward_fn": cost}}

SYSTEMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DVPG": (DVPG, {}),
    "DVPG, clipped": (DVPG, {"max_grad_norm": 0.1}),
    "DVPG, n-step": (DVPG, {"n_steps": 3}),
    "DVPG, ensemble": (
        DVPG,
        {"policy_kwargs": {**ENSEMBLE, "world_model_kwargs": {"net_arch": [8], "n_members": 3, "n_elites": 2}}},
    ),
    "DVG, all actions": (DVG, {"gradient_path": "all-actions"}),
    "DVG, parameter noise": (DVG, {"action_noise": AdaptiveParameterNoise(0.2)}),
    "MVE": (MVE, {}),
    "MVE without TD-k": (MVE, {"td_k": False}),
    "IB": (MVE, {"horizon": 0, "real_ratio": 0.2}),
    "MPG, prior": (MPG, {"policy_kwargs": PRIOR}),
    "MPG, measured weights": (MPG, {"weighting": "variance"}),
    "MAAC": (MAAC, FITTED),
    "MAAC, crossed": (MAAC, {**FITTED, "target_estimator": "steve-crossed"}),
    "MAAC, samples, real data": (MAAC, {**FITTED, "n_samples": 3, "real_ratio": 1.0, "ent_coef": 0.1}),
    "MBPO": (MBPO, {**FITTED, "horizon": 0}),
    "SVG(1)": (SVG, {"horizon": 1}),
    "SVG(0)": (SVG, {"horizon": 0}),
    "SVG(inf)": (SVG, {"horizon": None, "policy_replay": False, "train_freq": (1, "episode")}),
    "SVG, a model a dimension": (SVG, {"horizon": 2, "policy_kwargs": {"world_model_class": "per-dimension"}}),
}


def on_gpu(model: Any) -> bool:
    """Whether all that is trained, and all that is kept about it, but some counts of steps, is there."""
    found = tensors(model.get_parameters())
    return all(value.is_cuda for name, value in found.items() if value.ndim and not name.endswith("/step"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_learns_there(name: str, tmp_path: Path) -> None:
    algorithm, kwargs = SYSTEMS[name]
    model = tiny(algorithm=algorithm, device="cuda", **kwargs)
    assert model.device.type == "cuda"
    before = snapshot(model)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(70, log_interval=1)
    after = snapshot(model)
    assert on_gpu(model) and not same(before, after)
    assert all(th.isfinite(value).all() for value in after.values())

    obs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    for device in ("cuda", "cpu"):
        loaded = algorithm.load(tmp_path / "model", env=PointEnv(), device=device)
        np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], expected, atol=1e-5)
        loaded.load_replay_buffer(tmp_path / "replay")
        loaded.learn(20, reset_num_timesteps=False)
        assert loaded.device.type == device and on_gpu(loaded) == (device == "cuda")


# Without noise, so that nothing is drawn on the device.
PLAIN = {"target_policy_noise": 0.0}
DETERMINISTIC: dict[str, tuple[Any, dict[str, Any]]] = {
    "DVPG": (DVPG, {"horizon": 2, **PLAIN}),
    "DVPG, clipped": (DVPG, {"horizon": 2, "max_grad_norm": 0.1, **PLAIN}),
    "DVG, all actions": (DVG, {"horizon": 3, "gradient_path": "all-actions", **PLAIN}),
    "MVE": (MVE, {"horizon": 2, "imagined_action_noise": 0.0}),
    "MPG": (MPG, {"horizons": (0, 2), "eta": 0.1, "weighting_updates": 10, **PLAIN}),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_updates_are_the_cpus(name: str) -> None:
    """The same minibatches, ten updates: parameters differ by rounding."""
    algorithm, kwargs = DETERMINISTIC[name]
    agents = [make(algorithm, device=device, **kwargs) for device in DEVICES]
    agents[1].set_parameters(agents[0].get_parameters(), device="cuda")
    for agent in agents:
        with seeded(3):
            agent.train(10, 32)
    left, right = (tensors(agent.policy.state_dict()) for agent in agents)
    for key, value in left.items():
        th.testing.assert_close(right[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("optimizer_kwargs", [None, {"fused": False}], ids=["fused", "foreach"])
def test_a_bad_update_is_withheld_there(optimizer_kwargs: dict[str, Any] | None) -> None:
    policy_kwargs = {} if optimizer_kwargs is None else {"optimizer_kwargs": optimizer_kwargs}
    agent = make(DVPG, device="cuda", horizon=2, policy_kwargs=policy_kwargs)
    agent.train(3, 32)
    agent.replay_buffer.rewards[:] = np.nan
    before = {name: value.clone() for name, value in agent.policy.state_dict().items() if "world_model" not in name}
    with pytest.raises(ValueError, match="diverged"):
        agent.train(3, 32)
    assert all(th.equal(value, agent.policy.state_dict()[name]) for name, value in before.items() if "target" not in name)


def test_a_fit_is_the_cpus() -> None:
    """The rows' order is drawn on the CPU, so it is the same one."""
    model_kwargs = {"net_arch": [16], "n_members": 3, "n_elites": 2}
    agents = [make(MAAC, device=device, policy_kwargs={**ENSEMBLE, "world_model_kwargs": model_kwargs}) for device in DEVICES]
    agents[1].set_parameters(agents[0].get_parameters(), device="cuda")
    reports = []
    for agent in agents:
        data, validation = (draw(agent, rows, seed).transitions._replace(weights=None) for rows, seed in ((120, 0), (40, 1)))
        order = th.Generator().manual_seed(2)
        reports.append(fit(agent.world_model, data, validation, batch_size=32, max_epochs=3, patience=3, generator=order))
    th.testing.assert_close(reports[1].history.cpu(), reports[0].history, rtol=1e-3, atol=1e-4)


def test_a_planner_and_the_diagnostics_run_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for algorithm, kwargs in ((DVPG, {}), (MAAC, FITTED)):
        agent = tiny(algorithm=algorithm, device="cuda", gamma=0.9, **kwargs)
        callback = DiagnosticsCallback(PointEnv(), freq=100, n_episodes=1, horizon=4, folder=tmp_path)
        agent.learn(230, callback=callback)
        assert all(np.isfinite(value) for value in callback.history[-1].values())
        planner = CrossEntropyPlanner(agent, 3, n_samples=20, n_elites=4, n_iterations=2, seed=0)
        obs, _ = PointEnv().reset(seed=0)
        actions = [planner.predict(obs, deterministic=True)[0] for planner in (planner, planner)]
        assert all(agent.action_space.contains(action) for action in actions)
    assert np.isfinite(gradient_existence(tiny(device="cuda").learn(60), 3).norm).all()


def test_normalised_observations_there() -> None:
    env = VecNormalize(DummyVecEnv([PointEnv, PointEnv]))
    model = tiny(env, device="cuda")
    model.learn(100)
    assert on_gpu(model)


def test_made_up_experience_is_the_same() -> None:
    """What the comparisons above rest on."""
    agents = [make(DVPG, device=device) for device in DEVICES]
    for agent in agents:
        fill(agent, 10)
    left, right = (agent.replay_buffer.rows for agent in agents)
    np.testing.assert_array_equal(left, right)
