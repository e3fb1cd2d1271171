"""What membership of Stable-Baselines3's ecosystem means, point by point, by value."""

import copy
import inspect
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, same, snapshot, tensors, tiny
from torch import nn

from sb3_valuegrad import DVG, DVPG, MPG, SVG
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.replay import PackedReplayBuffer
from sb3_valuegrad.world_models import WorldModel

DICT_SPACE = spaces.Dict({"place": spaces.Box(-10, 10, (2,), np.float32), "grid": spaces.Box(-10, 10, (2, 3), np.float32)})


SPACES = [
    spaces.Box(-10, 10, (2, 3), np.float32),
    spaces.Box(-10, 10, (3,), np.float64),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 2]),
]


def _falling(rate: float) -> Callable[[float], float]:
    """A schedule: in proportion to the remaining progress."""
    return lambda left: rate * left


def several(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: PointEnv(**kwargs) for _ in range(n_envs)])


# ---------------------------------------------------------------- 1, 2: arguments, saving and loading


def test_every_argument_is_stored_under_its_own_name() -> None:
    given: dict[str, Any] = {
        "learning_rate": 1e-4, "buffer_size": 500, "learning_starts": 7, "batch_size": 8, "tau": 0.1, "gamma": 0.9,
        "gradient_steps": 2, "policy_delay": 2, "qf_learning_rate": 2e-4, "model_learning_rate": 3e-4,
        "model_learning_starts": 3, "model_gradient_steps": 2, "model_validation_fraction": 0.1, "max_grad_norm": 5.0,
        "target_policy_noise": 0.3, "target_noise_clip": 0.4, "use_target_actor": False, "horizon": 3, "seed": 4,
        "verbose": 0, "tensorboard_log": None,
    }  # fmt: skip
    for model in (tiny(lambda_=0.4, **given), tiny(algorithm=DVG, fictitious_samples=4, fictitious_updates=2, **given)):
        stored = {name: getattr(model, name) for name in given}
        assert stored == given
    assert model.fictitious_samples == 4 and model.fictitious_updates == 2 and model.bootstrap is True


@pytest.mark.parametrize("algorithm", [DVG, DVPG, MPG, SVG])
def test_save_and_load_carry_the_world_model(algorithm: Any, tmp_path: Path) -> None:
    model = tiny(algorithm=algorithm, model_gradient_steps=2).learn(40)
    before = snapshot(model)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")  # without an environment
    assert same(snapshot(loaded), before)
    assert loaded._n_model_updates == model._n_model_updates > 40 and loaded._n_updates == model._n_updates
    assert loaded.world_model is loaded.policy.world_model
    obs = np.ones((5, 2), dtype=np.float32)
    loaded_actions, actions = (each.predict(obs, deterministic=True)[0] for each in (loaded, model))
    np.testing.assert_array_equal(loaded_actions, actions)
    # What is saved is complete: weights, normaliser, counts, and the optimizer's moments, none at its initial value.
    names = {"network.0.weight", "input_scaler.mean", "state_scaler.std", "input_scaler.batches", "seen_rows"}
    fresh = snapshot(tiny(algorithm=algorithm))
    for name in names:
        path = f"/policy/world_model.{name}"
        assert not th.equal(before[path], fresh[path]), name
    assert any(path.startswith("/world_model.optimizer/state/") and path.endswith("exp_avg") for path in before)


def test_saved_tensors_are_float_and_load_under_weights_only(tmp_path: Path) -> None:
    model = tiny().learn(30)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = [name for name in archive.namelist() if name.endswith(".pth")]
        assert {"policy.pth", "world_model.optimizer.pth"} <= set(parts)
        for part in parts:
            for name, value in tensors(th.load(io.BytesIO(archive.read(part)), weights_only=True)).items():
                assert value.is_floating_point(), name


def test_get_and_set_parameters_round_trip() -> None:
    model, other = tiny().learn(30), tiny(seed=1).learn(25)
    assert not same(snapshot(model), snapshot(other))
    other.set_parameters(model.get_parameters())
    assert same(snapshot(model), snapshot(other))
    # exact_match knows the world model's optimizer.
    parameters = model.get_parameters()
    del parameters["world_model.optimizer"]
    with pytest.raises(ValueError, match=r"world_model\.optimizer"):
        other.set_parameters(parameters)
    other.set_parameters(parameters, exact_match=False)


def test_policy_save_and_load_carry_the_world_model(tmp_path: Path) -> None:
    model = tiny(policy_kwargs={"layer_norm": False, "world_model_kwargs": {"net_arch": [8, 8], "normalize": True}}).learn(30)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth")
    assert same(tensors(loaded.state_dict()), tensors(model.policy.state_dict()))
    obs, actions = th.ones(4, 2), th.zeros(4, 2)
    for left, right in zip(loaded.world_model.step(obs, actions), model.world_model.step(obs, actions), strict=True):
        assert th.equal(left, right)


def test_setup_model_twice_keeps_the_arguments() -> None:
    model = tiny(action_noise=0.2, n_steps=3)
    shapes = {name: value.shape for name, value in tensors(model.get_parameters()).items()}
    model._setup_model()
    assert {name: value.shape for name, value in tensors(model.get_parameters()).items()} == shapes
    assert model.world_model is model.policy.world_model and model.actor is model.policy.actor
    assert isinstance(model.action_noise, NormalActionNoise)
    model.learn(30)


def test_arguments_of_rl_zoos_enjoy(tmp_path: Path) -> None:
    tiny().learn(30).save(tmp_path / "model")
    odd = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    env: Any = DummyVecEnv([PointEnv])
    for algorithm_kwargs in ({}, {"optimize_memory_usage": False}):
        model = DVPG.load(
            tmp_path / "model", env=env, custom_objects=odd, device="cpu", buffer_size=1, seed=0, **algorithm_kwargs
        )
        assert model.replay_buffer.buffer_size == 1
        assert env.action_space.contains(model.predict(env.reset())[0][0])


def test_schedules_are_saved(tmp_path: Path) -> None:
    schedules: dict[str, Any] = {name: _falling(rate) for name, rate in RATES.items()}
    tiny(**schedules).learn(30).save(tmp_path / "model")
    loaded = DVPG.load(tmp_path / "model", env=PointEnv())
    loaded.learn(25)
    assert loaded.model_lr_schedule(0.5) == pytest.approx(0.5 * RATES["model_learning_rate"])


RATES = {"learning_rate": 1e-4, "qf_learning_rate": 2e-4, "model_learning_rate": 3e-4}


@pytest.mark.parametrize("form", ["float", "schedule", "none"])
def test_learning_rates(form: str) -> None:
    rates: dict[str, Any] = dict(RATES)
    if form == "schedule":
        rates = {name: _falling(rate) for name, rate in RATES.items()}
    if form == "none":
        rates = {"learning_rate": 1e-4, "qf_learning_rate": None, "model_learning_rate": None}
    model = tiny(**rates)
    optimizers = {
        "learning_rate": model.actor,
        "qf_learning_rate": model.critic,
        "model_learning_rate": model.world_model,
    }
    model.learn(40)
    for name, network in optimizers.items():
        expected = 1e-4 if form == "none" else RATES[name]
        used = network.optimizer.param_groups[0]["lr"]
        # The last update is at the last step: nothing of the progress remains.
        assert used == pytest.approx(0.0 if form == "schedule" else expected, abs=1e-12)
        assert model.logger.name_to_value[f"train/{name}"] == used
    if form == "schedule":
        model.learn(40, reset_num_timesteps=False)
        assert model.model_lr_schedule(0.25) == pytest.approx(0.25 * 3e-4)


# ---------------------------------------------------------------- 5: replay buffer, resuming, determinism


@pytest.mark.parametrize("as_file", [True, False])
def test_replay_buffer_is_saved_and_stays_packed(as_file: bool, tmp_path: Path) -> None:
    model = tiny().learn(30)
    path: Any = tmp_path / "buffer.pkl" if as_file else io.BytesIO()
    model.save_replay_buffer(path)
    if not as_file:
        path.seek(0)
    other = tiny()
    other.load_replay_buffer(path)
    left, right = model.replay_buffer, other.replay_buffer
    assert isinstance(right, PackedReplayBuffer) and right.pos == left.pos == 30
    np.testing.assert_array_equal(left.rows, right.rows)
    np.testing.assert_array_equal(left.dones, right.dones)
    for name in ("observations", "actions", "rewards", "next_observations"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert np.shares_memory(getattr(right, name), right.rows)
    right.rewards[3, 0] = 42.0
    row = right.gather(th.tensor([3]))[0]
    assert row[right.obs_dim + right.action_dim] == 42.0
    other.learn(30)


def test_resuming_equals_not_stopping(tmp_path: Path) -> None:
    """Train, save model and buffer, load both, train on: every tensor as if nothing had happened."""
    model = tiny(DummyVecEnv([PointEnv])).learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    resumed = DVPG.load(tmp_path / "model", env=DummyVecEnv([PointEnv]))
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    assert resumed._n_model_updates == model._n_model_updates
    for each in (model, resumed):
        each.set_random_seed(3)
        each.set_logger(Logger(None, []))
        each.train(gradient_steps=5, batch_size=16)
    assert same(snapshot(model), snapshot(resumed))


def test_resumed_run_continues(tmp_path: Path) -> None:
    model = tiny().learn(50)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    resumed = DVPG.load(tmp_path / "model", env=PointEnv())
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    updates, model_updates = resumed._n_updates, resumed._n_model_updates
    resumed.learn(30, reset_num_timesteps=False)
    assert resumed.num_timesteps == 80 and resumed.replay_buffer.pos == 80
    # No second warm-up, and no second random phase.
    assert resumed._n_updates == updates + 30 and resumed._n_model_updates == model_updates + 30


@pytest.mark.parametrize("algorithm", [DVG, DVPG, MPG, SVG])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_seeded_runs_repeat_exactly(algorithm: Any, n_envs: int) -> None:
    runs = [snapshot(tiny(several(n_envs), algorithm, seed=seed).learn(60)) for seed in (7, 7, 8)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# ---------------------------------------------------------------- 3: environments and spaces


def test_several_environments() -> None:
    model = tiny(several(3), gradient_steps=-1).learn(90)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    assert model.replay_buffer.n_envs == 3 and model.replay_buffer.pos == 30
    # Training begins after more than 20 steps, at 21: 24 rounds of 3 updates. The model makes up for 7 rounds.
    assert model._n_updates == 3 * 24
    assert model._n_model_updates == 3 * 24 + 21 // 3


def test_vec_normalize(tmp_path: Path) -> None:
    env: Any = VecNormalize(several(2, length=7), norm_obs=True, norm_reward=True)
    model = tiny(env).learn(60)
    buffer = model.replay_buffer
    # Stored raw, normalised when sampled.
    assert np.abs(buffer.rewards[: buffer.pos]).max() > 0
    np.random.seed(0)
    batch = model._sample(64)
    np.random.seed(0)
    indices = np.random.randint(0, buffer.pos * 2, size=64)
    steps, envs = indices // 2, indices % 2
    expected = env.normalize_obs(buffer.observations[steps, envs])
    np.testing.assert_allclose(batch.observations.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(batch.transitions.obs.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        batch.transitions.next_obs.numpy(), env.normalize_obs(buffer.next_observations[steps, envs]), rtol=1e-5
    )
    np.testing.assert_allclose(batch.transitions.rewards.numpy(), env.normalize_reward(buffer.rewards[steps, envs]), rtol=1e-5)
    assert set(model.model_errors(steps=2)) <= {"model_error_1", "model_error_2", "model_reward_error"}


def test_dict_observations() -> None:
    model = tiny(several(2, observation_space=DICT_SPACE)).learn(60)
    assert isinstance(model.replay_buffer, DictReplayBuffer)
    assert model.world_model.obs_dim == 8 and model._n_model_updates > 0
    batch = model._sample(8)
    flat = model._flat.flatten(batch.observations)
    assert flat.shape == (8, 8) and th.equal(batch.transitions.obs, flat)
    for key, part in model._flat.unflatten(flat).items():
        assert th.equal(part, batch.observations[key])


def test_dict_observations_with_vec_normalize() -> None:
    env = VecNormalize(several(2, observation_space=DICT_SPACE), norm_obs_keys=["place"])
    model = tiny(env, policy="MultiInputPolicy").learn(60)
    assert all(th.isfinite(value).all() for value in snapshot(model).values())


@pytest.mark.parametrize("n_envs", [1, 2])
def test_hindsight_replay(n_envs: int, tmp_path: Path) -> None:
    def make() -> DummyVecEnv:
        return DummyVecEnv([lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=4) for _ in range(n_envs)])

    her: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    model = tiny(make(), policy="MultiInputPolicy", **her).learn(60)
    assert model.world_model.obs_dim == 12 and model._n_model_updates > 0
    assert model._sample(8).transitions.weights is None
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = DVPG.load(tmp_path / "model", env=make())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert same(snapshot(loaded), snapshot(model))
    loaded.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces(space: spaces.Space, tmp_path: Path) -> None:
    model = tiny(PointEnv(space)).learn(40)
    assert model.world_model.obs_dim == int(np.prod(space.shape or ()))
    model.save(tmp_path / "model")
    assert same(snapshot(DVPG.load(tmp_path / "model")), snapshot(model))
    assert model.model_errors(steps=2).keys() == {"model_error_1", "model_error_2", "model_reward_error"}


# ---------------------------------------------------------------- 3: replay buffers, n-step returns


def _one_step(buffer: ReplayBuffer) -> set[tuple[float, ...]]:
    """Every stored transition as numbers."""
    rows = [buffer.observations, buffer.actions, buffer.rewards[..., None], buffer.next_observations]
    filled = np.concatenate([row[: buffer.size()] for row in rows], axis=-1).reshape(buffer.size() * buffer.n_envs, -1)
    return {tuple(row) for row in filled.astype(np.float32).tolist()}


@pytest.mark.parametrize("as_class", [False, True])
def test_n_step_returns_are_the_critics_alone(as_class: bool) -> None:
    gamma = 0.9
    if as_class:
        kwargs: dict[str, Any] = {
            "replay_buffer_class": NStepReplayBuffer,
            "replay_buffer_kwargs": {"n_steps": 3, "gamma": gamma},
        }
    else:
        kwargs = {"n_steps": 3}
    model = tiny(PointEnv(length=8), gamma=gamma, model_validation_fraction=0.0, **kwargs).learn(60)
    buffer = model.replay_buffer
    assert isinstance(buffer, NStepReplayBuffer)
    batch = model._sample(100)
    stored = _one_step(buffer)
    parts = batch.transitions
    rows = th.cat([parts.obs, parts.actions, parts.rewards[:, None], parts.next_obs], dim=1)
    assert {tuple(row) for row in rows.tolist()} <= stored
    # The critic's part, against returns by hand.
    starts = {tuple(obs): step for step, obs in enumerate(buffer.observations[:60, 0].tolist())}
    for obs, reward, discount, next_obs in zip(*(each.tolist() for each in (
        batch.observations, batch.rewards, batch.discounts, batch.next_observations)), strict=True):  # fmt: skip
        step = starts[tuple(obs)]
        last = next(k for k in (step, step + 1, step + 2) if k == step + 2 or buffer.dones[k, 0] or k == 59)
        rewards = buffer.rewards[step : last + 1, 0]
        assert reward[0] == pytest.approx(float((rewards * gamma ** np.arange(len(rewards))).sum()), rel=1e-5)
        assert discount[0] == pytest.approx(gamma ** len(rewards), rel=1e-5)
        assert next_obs == buffer.next_observations[last, 0].tolist()


@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_sb3s_own_replay_buffer(optimize_memory_usage: bool) -> None:
    kwargs: dict[str, Any] = {"replay_buffer_class": ReplayBuffer}
    if optimize_memory_usage:
        kwargs = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = tiny(several(2), buffer_size=60, model_validation_fraction=0.0, **kwargs).learn(90)
    buffer = model.replay_buffer
    assert type(buffer) is ReplayBuffer and buffer.full
    if not optimize_memory_usage:
        parts = model._sample(100).transitions
        rows = th.cat([parts.obs, parts.actions, parts.rewards[:, None], parts.next_obs], dim=1)
        assert {tuple(row) for row in rows.tolist()} <= _one_step(buffer)
    else:
        # The seam between the newest and the oldest step is no transition, so s' - s is small wherever s' is no reset.
        parts = model._sample(500).transitions
        moved = (parts.next_obs - parts.obs).abs().amax(1)[parts.dones == 0]
        assert moved.max() <= 0.2 + 1e-6


class DoublingBuffer(ReplayBuffer):
    """A user's buffer with a ``sample`` of its own: rewards count twice."""

    def sample(self, batch_size: int, env: Any = None) -> Any:
        samples = super().sample(batch_size, env)
        return samples._replace(rewards=2 * samples.rewards)


def test_a_buffer_with_its_own_sample_is_asked() -> None:
    model = tiny(replay_buffer_class=DoublingBuffer).learn(40)
    rewards = model._sample(50).rewards[:, 0].numpy()
    assert np.isin(rewards, 2 * model.replay_buffer.rewards[:40, 0]).all()


# ---------------------------------------------------------------- 3: schedules of updates, noise


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps", "updates"),
    [(4, 1, 8), ((4, "step"), 3, 24), ((2, "episode"), 1, 2), ((1, "episode"), -1, 30), (5, -1, 30), (1, 0, 0)],
)
def test_n_updates_counts_critic_updates(train_freq: Any, gradient_steps: int, updates: int) -> None:
    model = tiny(train_freq=train_freq, gradient_steps=gradient_steps, policy_delay=2, model_gradient_steps=3).learn(50)
    assert model._n_updates == updates
    if updates:
        steps = model.critic.optimizer.state_dict()["state"][0]["step"]
        assert steps == updates and model.actor.optimizer.state_dict()["state"][0]["step"] == updates // 2
        assert model._n_model_updates == model.world_model.optimizer.state_dict()["state"][0]["step"]


@pytest.mark.parametrize("noise", [None, 0.0, 0.3, 1, NormalActionNoise(np.zeros(2), np.full(2, 0.2)),
                                   OrnsteinUhlenbeckActionNoise(np.zeros(2), np.full(2, 0.2))], ids=str)  # fmt: skip
@pytest.mark.parametrize("n_envs", [1, 2])
def test_action_noise(noise: Any, n_envs: int) -> None:
    model = tiny(several(n_envs), action_noise=noise, learning_starts=0, train_freq=10, gradient_steps=1)
    model.learn(30)
    stored = th.from_numpy(model.replay_buffer.actions[0])
    if noise is None:
        assert model.action_noise is None
    elif isinstance(noise, (int, float)):
        base = model.action_noise.base_noise if n_envs > 1 else model.action_noise
        np.testing.assert_array_equal(base._sigma, np.full(2, float(noise)))
    assert stored.abs().max() <= 1


def test_a_vectorized_noise_is_kept() -> None:
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(2), np.full(2, 0.2)), 3)
    assert tiny(several(3), action_noise=noise).learn(30).action_noise is noise


# ---------------------------------------------------------------- 3: policies


class SmallExtractor(BaseFeaturesExtractor):
    """A features extractor with parameters."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 8):
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_features_extractors(share: bool, shape: tuple[int, ...], tmp_path: Path) -> None:
    policy_kwargs = {"features_extractor_class": SmallExtractor, "share_features_extractor": share}
    model = tiny(PointEnv(spaces.Box(-10, 10, shape, np.float32)), policy_kwargs=policy_kwargs)
    before = snapshot(model)
    model.learn(30)
    after = snapshot(model)
    assert (model.actor.features_extractor is model.critic.features_extractor) == share
    for owner in ("actor", "critic", "actor_target", "critic_target"):
        name = f"/policy/{owner}.features_extractor.net.1.weight"
        assert not th.equal(before[name], after[name]), owner
    model.save(tmp_path / "model")
    assert same(snapshot(DVPG.load(tmp_path / "model")), after)


def test_a_shared_extractor_is_the_actors_alone() -> None:
    """The critic's loss leaves it, and so does the value at imagined states; the actor's first action moves it."""
    model = tiny(policy_kwargs={"features_extractor_class": SmallExtractor, "share_features_extractor": True}).learn(25)
    extractor = list(model.actor.features_extractor.parameters())
    batch = model._sample(16)
    model._critic_loss(batch)[0].backward()
    assert all(parameter.grad is None for parameter in extractor)
    model.policy.zero_grad()
    with frozen(model._other_parameters):
        loss = model._actor_loss(batch)[0]
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in extractor)
    assert all(parameter.grad is None for parameter in model._other_parameters)


@pytest.mark.parametrize("share", [False, True])
def test_values_have_a_gradient_in_the_state(share: bool) -> None:
    """Through the features, too, whoever's they are: it is what a value gradient is made of."""
    model = tiny(policy_kwargs={"features_extractor_class": SmallExtractor, "share_features_extractor": share})
    obs, actions = th.randn(4, 2, requires_grad=True), th.zeros(4, model.action_space.shape[0])
    critic = model.critic
    features = critic.features_extractor.net[1].weight
    (of_state,) = th.autograd.grad(critic(obs, actions)[0].sum(), obs)
    (expected,) = th.autograd.grad(critic.q1(obs, actions).sum(), obs)
    assert th.equal(of_state, expected) and expected.abs().sum() > 0
    assert features.requires_grad
    (learned,) = th.autograd.grad(critic(obs, actions)[0].sum(), features, allow_unused=True)
    assert (learned is None) == share


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
def test_optimizers(optimizer: type[th.optim.Optimizer], tmp_path: Path) -> None:
    model = tiny(policy_kwargs={"optimizer_class": optimizer, "optimizer_kwargs": {"weight_decay": 1e-4}})
    before = snapshot(model)
    model.learn(30)
    after = snapshot(model)
    assert all(type(net.optimizer) is optimizer for net in (model.actor, model.critic, model.world_model))
    for name in ("actor.mu.0.weight", "critic.qf0.0.weight", "world_model.network.0.weight"):
        assert not th.equal(before[f"/policy/{name}"], after[f"/policy/{name}"])
    model.save(tmp_path / "model")
    assert same(snapshot(DVPG.load(tmp_path / "model")), after)


def test_policy_kwargs_of_the_caller_are_left_alone() -> None:
    given = {
        "net_arch": [8],
        "optimizer_kwargs": {"eps": 1e-5},
        "world_model_kwargs": {"net_arch": [8], "termination": "none"},
    }
    kept = copy.deepcopy(given)
    model = DVPG("MlpPolicy", PointEnv(), policy_kwargs=given, learning_starts=5, batch_size=8).learn(10)
    assert given == kept and model.policy_kwargs == kept


def test_separate_sizes_of_actor_critic_and_model() -> None:
    policy_kwargs = {"net_arch": {"pi": [4], "qf": [6, 6]}, "n_critics": 3, "world_model_kwargs": {"net_arch": [5]}}
    model = tiny(policy_kwargs=policy_kwargs).learn(30)
    assert [p.shape[0] for p in model.actor.mu.parameters() if p.dim() == 2] == [4, 2]
    assert len(model.critic.q_networks) == 3
    assert model.world_model.network[0].out_features == 5


@pytest.mark.parametrize("layer", [nn.Dropout, nn.RReLU, nn.BatchNorm1d])
def test_training_mode_reaches_every_layer_that_has_modes(layer: type[nn.Module]) -> None:
    """The walk over the networks is skipped only where no layer would notice."""

    class Extractor(FlattenExtractor):
        def __init__(self, observation_space: spaces.Box):
            super().__init__(observation_space)
            self.layer = layer(self.features_dim) if layer is nn.BatchNorm1d else layer()

    model = tiny(policy_kwargs={"net_arch": [8], "features_extractor_class": Extractor})
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        assert model.policy.training is mode
        assert all(network.training is mode for network in (model.actor.features_extractor, model.critic, model.world_model))
    assert not model.actor_target.training and not model.critic_target.training
    assert not tiny().policy._has_modes
    with_dropout = {"net_arch": [8], "world_model_kwargs": {"net_arch": [8], "activation_fn": nn.Dropout}}
    assert tiny(policy_kwargs=with_dropout).policy._has_modes


# ---------------------------------------------------------------- 3, 4: callbacks and the log


class NeverAsked(BaseCallback):
    """Counts steps."""

    def _on_step(self) -> bool:
        assert self.locals["self"].num_timesteps == self.num_timesteps
        return True


def test_callbacks(tmp_path: Path) -> None:
    pytest.importorskip("tqdm"), pytest.importorskip("rich")
    env: Any = VecNormalize(several(1))
    evaluation = EvalCallback(
        VecNormalize(several(1), training=False), n_eval_episodes=1, eval_freq=20, best_model_save_path=str(tmp_path),
        log_path=str(tmp_path), verbose=0,
    )  # fmt: skip
    checkpoint = CheckpointCallback(25, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    counter = NeverAsked()
    tiny(env).learn(50, callback=[evaluation, checkpoint, counter], progress_bar=True)
    assert counter.n_calls == 50
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    assert DVPG.load(tmp_path / "best_model.zip").num_timesteps in (20, 40)
    env = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_50_steps.pkl"), several(1))
    resumed = DVPG.load(tmp_path / "rl_model_50_steps.zip", env=env)
    resumed.load_replay_buffer(tmp_path / "rl_model_replay_buffer_50_steps.pkl")
    resumed.learn(10, reset_num_timesteps=False)


KEYS = {
    "actor_loss", "actor_grad_norm", "critic_loss", "critic_grad_norm", "q_abs_mean", "learning_rate",
    "qf_learning_rate", "model_learning_rate", "model_loss", "model_state_loss", "model_reward_loss", "model_done_loss",
    "model_grad_norm", "model_error_1", "model_error_5", "model_reward_error",
}  # fmt: skip


def test_tensorboard_keys(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny(tensorboard_log=str(tmp_path)).learn(120, log_interval=1)
    assert [path.name for path in tmp_path.iterdir()] == ["DVPG_1"]
    events = EventAccumulator(str(tmp_path / "DVPG_1")).Reload()
    keys = {key for key in events.Tags()["scalars"] if key.startswith("train/")}
    assert keys == {f"train/{key}" for key in KEYS}
    assert all(len(key) <= 36 for key in keys)
    for key in keys:
        assert all(np.isfinite(event.value) for event in events.Scalars(key)), key


def test_log_with_fictitious_samples(tmp_path: Path) -> None:
    model = tiny(algorithm=DVG, horizon=0, fictitious_samples=20, fictitious_updates=2)
    model.set_logger(Logger(str(tmp_path), [CSVOutputFormat(str(tmp_path / "progress.csv"))]))
    model.learn(45, log_interval=1)
    keys = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"train/fictitious_actor_loss", "train/fictitious_actor_grad_norm", "train/n_updates"} <= set(keys)
    assert all(len(key) <= 36 for key in keys)


def test_registered_environments_by_name() -> None:
    model = tiny("Pendulum-v1").learn(30)
    assert model.env.envs[0].spec.id == "Pendulum-v1" and model._n_model_updates > 0


# ---------------------------------------------------------------- the constructor, and models that need no training


@pytest.mark.parametrize("algorithm", [DVG, DVPG, MPG, SVG])
def test_signature_shows_every_argument(algorithm: Any) -> None:
    """A leaf spells out only its own arguments; editors and help() still see all of them, in TD3's order."""
    shown = inspect.signature(algorithm).parameters
    theirs = list(inspect.signature(TD3).parameters)
    positional = [name for name, parameter in shown.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == theirs[: len(positional)] and "learning_rate" in positional
    spelt_out = inspect.signature(algorithm.__init__).parameters
    own = [name for name, parameter in spelt_out.items() if parameter.kind is parameter.KEYWORD_ONLY]
    assert list(shown)[len(positional) :][: len(own)] == own
    assert ("target_policy_noise" in shown) == (algorithm is not SVG)
    assert {"model_learning_rate", "policy_kwargs", "seed"} <= set(shown)
    assert not {"args", "kwargs"} & set(shown)
    with pytest.raises(TypeError, match="lerning_rate"):
        algorithm("MlpPolicy", "Pendulum-v1", lerning_rate=1e-3)


def test_a_model_trained_elsewhere_is_trusted() -> None:
    trained, other = tiny().learn(60), tiny()
    assert not other._model_is_ready
    other.set_parameters(trained.get_parameters())
    assert other._model_is_ready and other._n_model_updates == trained._n_model_updates
    trained.set_parameters(tiny().get_parameters())
    assert not trained._model_is_ready


def test_warm_up_is_one_update_for_each_stored_step() -> None:
    """Not for each step of the agent's life: it may come back without its buffer."""
    model = tiny(horizon=0).learn(60)
    model.horizon, model.num_timesteps = 2, 100_000
    model.replay_buffer.reset()
    model.learn(1, reset_num_timesteps=False)
    assert model._n_model_updates == 2


class Drift(WorldModel):
    """A given model, with nothing to fit."""

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        return obs + 0.1 * actions[:, :1], None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, None]:
        return -next_obs.square().sum(1), None

    def losses(self, data: Any) -> dict[str, th.Tensor]:
        raise AssertionError("there is nothing to fit")


def test_a_model_without_parameters_is_used_as_it_is(tmp_path: Path) -> None:
    model = tiny(policy_kwargs={"net_arch": [8], "world_model_class": Drift, "world_model_kwargs": {}})
    assert model._model_is_ready
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = DVPG.load(tmp_path / "model")
    assert same(snapshot(loaded), snapshot(model))


def test_gamma_can_be_changed_between_runs() -> None:
    model = tiny(horizon=0, target_policy_noise=0.0).learn(60)
    batch = model._sample(8)
    before = model._critic_loss(batch)[0]
    model.gamma = 0.0
    assert not th.equal(model._critic_loss(batch)[0], before)
