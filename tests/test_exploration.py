"""Noise on the actor's parameters, and how it adapts."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from tiny import PointEnv, same, snapshot, tiny
from torch import nn

from sb3_valuegrad import DVPG, MAAC, MVE
from sb3_valuegrad.exploration import AdaptiveParameterNoise, action_distance, perturbed


def linear(dim: int = 1, out: int = 2) -> nn.Module:
    return nn.Linear(dim, out, bias=False)


def test_distance_is_the_papers() -> None:
    actor, other, obs = linear(), linear(), th.tensor([[1.0], [3.0]])
    with th.no_grad():
        actor.weight.copy_(th.tensor([[1.0], [0.0]]))  # type: ignore[operator]
        other.weight.copy_(th.tensor([[3.0], [1.0]]))  # type: ignore[operator]
    # Differences of 2 s and 1 s: sqrt((E[(2 s)^2] + E[s^2]) / 2) = sqrt(5 E[s^2] / 2), E[s^2] = 5.
    assert action_distance(actor, other, obs) == pytest.approx(np.sqrt(12.5))


def test_perturbation_has_the_wanted_size_and_spares_normalisation() -> None:
    actor = nn.Sequential(nn.Linear(50, 100), nn.LayerNorm(100), nn.Linear(100, 50))
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    other = perturbed(actor, 0.3)
    assert same(before, dict(actor.state_dict()))
    for name, value in other.state_dict().items():
        change = value - before[name]
        if name.startswith("1."):
            assert not change.any()
        else:
            assert change.square().mean().sqrt() == pytest.approx(0.3, rel=0.4)


@pytest.mark.parametrize(("delta", "wanted"), [(1e6, 2.0), (1e-6, 0.5)])
def test_sigma_grows_while_actions_are_close_and_shrinks_otherwise(delta: float, wanted: float) -> None:
    noise = AdaptiveParameterNoise(delta, factor=2.0, sigma=1.0)
    noise.adapt(linear(), th.ones(8, 1))
    assert noise.sigma == wanted


def test_sigma_settles_where_actions_differ_by_delta() -> None:
    noise, actor, obs = AdaptiveParameterNoise(0.2, factor=1.05, sigma=5.0), linear(20, 30), th.randn(64, 20)
    for _ in range(200):
        noise.adapt(actor, obs)
    distances = [action_distance(actor, perturbed(actor, noise.sigma), obs) for _ in range(20)]
    assert np.mean(distances) == pytest.approx(0.2, rel=0.15)


def test_an_episode_has_one_perturbation_and_the_next_another() -> None:
    noise, actor = AdaptiveParameterNoise(interval=1000), linear()
    first = noise.actor(actor, None)
    assert noise.actor(actor, None) is first
    noise.reset()
    second = noise.actor(actor, None)
    assert second is not first
    assert action_distance(first, second, th.ones(4, 1)) > 0


def test_adapts_every_interval_once_there_are_states() -> None:
    noise, actor = AdaptiveParameterNoise(1e6, factor=2.0, sigma=1.0, interval=3), linear()
    sigmas = []
    for step in range(9):
        noise.actor(actor, None if step < 4 else lambda: th.ones(8, 1))
        sigmas.append(noise.sigma)
    assert sigmas == [1, 1, 1, 1, 1, 2, 2, 2, 4]


class Recorder(PointEnv):
    """Remembers what was done to it."""

    def __init__(self) -> None:
        super().__init__(length=10)
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def step(self, action: np.ndarray) -> Any:
        self.seen.append((self.state.astype(np.float32), action))
        return super().step(action)


def test_the_perturbed_actor_acts_and_the_learned_one_predicts() -> None:
    env = Recorder()
    model = tiny(env, action_noise=AdaptiveParameterNoise(0.2), learning_starts=20, gradient_steps=0)
    actor = copy.deepcopy(model.actor)
    model.learn(40)
    obs, actions = (np.array(column) for column in zip(*env.seen, strict=True))
    own, _ = model.predict(obs, deterministic=True)
    assert model.policy.actor is model.actor and same(dict(actor.state_dict()), dict(model.actor.state_dict()))
    episodes = []
    for start in (20, 30):
        rows = slice(start, start + 10)
        assert not np.allclose(actions[rows], own[rows], atol=1e-3)
        episodes.append(actions[rows] - own[rows])
    assert not np.allclose(episodes[0], episodes[1], atol=1e-3)
    assert abs(actions).max() <= 2.0


def test_acts_without_noise_on_top() -> None:
    env = Recorder()
    model = tiny(env, action_noise=AdaptiveParameterNoise(0.2), learning_starts=20, gradient_steps=0).learn(35)
    acting = model.action_noise.actor(model.actor, None)
    for obs, action in env.seen[30:]:
        with th.no_grad():
            wanted = model.policy.unscale_action(acting(th.as_tensor(obs)[None]).numpy())[0]
        assert np.allclose(action, wanted, atol=1e-6)


@pytest.mark.parametrize("algorithm", [DVPG, MVE])
def test_learns_with_it(algorithm: Any) -> None:
    noise = AdaptiveParameterNoise(0.2, interval=8)
    model = tiny(algorithm=algorithm, action_noise=noise)
    before = snapshot(model)
    model.learn(60)
    assert not same(before, snapshot(model))
    # 40 steps after the warm-up make five adaptations, an odd number.
    assert 0.2 / 1.0101**5 < noise.sigma < 0.2 * 1.0101**5 and noise.sigma != pytest.approx(0.2, rel=1e-3)


def test_several_environments_have_a_perturbation_each() -> None:
    env = make_vec_env(PointEnv, n_envs=3, seed=0)
    model = tiny(env, action_noise=AdaptiveParameterNoise(0.5, interval=4), train_freq=1, gradient_steps=-1).learn(90)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    noises: Any = model.action_noise.noises
    obs = th.zeros(1, 2)
    actions = th.cat([noise.actor(model.actor, None)(obs) for noise in noises])
    assert len(actions.unique(dim=0)) == 3
    model._last_obs = np.zeros((3, 2), np.float32)
    _, chosen = model._sample_action(0, model.action_noise, 3)
    assert np.allclose(chosen, actions.detach().numpy(), atol=1e-6)


def test_dict_observations_and_dropout_modes() -> None:
    from gymnasium import spaces

    parts = spaces.Dict({"a": spaces.Box(-10, 10, (2,), np.float32), "b": spaces.Box(-10, 10, (1,), np.float32)})
    env = make_vec_env(lambda: PointEnv(parts), n_envs=2, seed=0)
    policy_kwargs = {"activation_fn": nn.RReLU}
    tiny(env, policy="MultiInputPolicy", policy_kwargs=policy_kwargs, action_noise=AdaptiveParameterNoise(0.2)).learn(60)


def test_is_saved_with_its_sigma_and_continues(tmp_path: Path) -> None:
    model = tiny(action_noise=AdaptiveParameterNoise(0.2, interval=5)).learn(60)
    model.save(tmp_path / "model")
    loaded = DVPG.load(tmp_path / "model", env=PointEnv())
    assert loaded.action_noise.sigma == model.action_noise.sigma  # type: ignore[union-attr]
    loaded.learn(30, reset_num_timesteps=False)
    assert pickle.loads(pickle.dumps(model.action_noise))._acting is None


def test_other_noise_is_as_it_was() -> None:
    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.1))
    assert same(snapshot(tiny(action_noise=noise).learn(40)), snapshot(tiny(action_noise=0.1).learn(40)))


@pytest.mark.parametrize(
    "build",
    [
        lambda noise: tiny(algorithm=MAAC, action_noise=noise),
        lambda noise: TD3("MlpPolicy", PointEnv(), action_noise=noise, learning_starts=0, device="cpu"),
    ],
)
def test_refused_where_noise_is_added_to_actions(build: Any) -> None:
    with pytest.raises(ValueError, match="deterministic family"):
        build(AdaptiveParameterNoise()).learn(5)


@pytest.mark.parametrize("arguments", [{"delta": 0.0}, {"delta": -1.0}, {"factor": 1.0}, {"sigma": 0.0}, {"interval": 0}])
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name}="):
        AdaptiveParameterNoise(**arguments)
