"""Bad input raises ``ValueError``: which argument, which value, and the way out. Nothing is broken by it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, SpoiltEnv, same, snapshot, tiny

from sb3_valuegrad import DVG, DVPG, MPG, SVG
from sb3_valuegrad.world_models import MlpWorldModel, get_world_model_class

ALGORITHMS = [DVG, DVPG, MPG, SVG]

# ---------------------------------------------------------------- spaces

PIXELS = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OBSERVATIONS = {
    "pixels": (PIXELS, "observation_space=Box", "state observations"),
    "pixels in a dict": (
        spaces.Dict({"eye": PIXELS, "place": spaces.Box(-1, 1, (2,))}),
        "eye=Box",
        "state observations",
    ),
    "discrete": (spaces.Discrete(3), "observation_space=Discrete(3)", "one-hot"),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), "observation_space=MultiDiscrete([3 4])", "one-hot"),
    "discrete in a dict": (spaces.Dict({"mode": spaces.Discrete(3)}), "mode=Discrete(3)", "one-hot"),
}
ACTIONS = {
    "discrete": (spaces.Discrete(3), "DQN"),
    "multi-discrete": (spaces.MultiDiscrete([3, 4]), "DQN"),
    "unbounded": (spaces.Box(-np.inf, np.inf, (2,)), "RescaleAction"),
    "half-bounded": (spaces.Box(np.array([-1, 0]), np.array([1, np.inf])), "RescaleAction"),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observation_spaces(algorithm: Any, name: str) -> None:
    space, names, way_out = OBSERVATIONS[name]
    env = PointEnv(spaces.Box(-1, 1, (2,)))
    env.observation_space = space
    with pytest.raises(ValueError, match=f"(?s){re.escape(names)}.*{way_out}"):
        tiny(env, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("vectorized", [False, True])
def test_action_spaces(algorithm: Any, name: str, vectorized: bool) -> None:
    space, way_out = ACTIONS[name]
    env = PointEnv()
    env.action_space = space
    with pytest.raises(ValueError, match=f"(?s)action_space={re.escape(str(space))}.*{way_out}"):
        tiny(DummyVecEnv([lambda: env]) if vectorized else env, algorithm)


def test_pixels_of_the_cnn_policy() -> None:
    with pytest.raises(ValueError, match=r"policy='CnnPolicy'.*MultiInputPolicy.*[Pp]ixels"):
        tiny(policy="CnnPolicy")


def test_sb3s_kind_of_error_is_kept() -> None:
    with pytest.raises(AssertionError):
        DVPG("MlpPolicy", "CartPole-v1")


# ---------------------------------------------------------------- arguments

BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"horizon": -1}, "horizon=-1 .*at least 0"),
    ({"horizon": 1.5}, "horizon=1.5 .*whole number"),
    ({"horizon": True}, "horizon=True .*whole number"),
    ({"learning_starts": -5}, "learning_starts=-5 .*at least 0"),
    ({"buffer_size": 0}, "buffer_size=0 .*at least 1"),
    ({"gradient_steps": "x"}, "gradient_steps='x' .*whole number"),
    ({"action_noise": "normal"}, "action_noise='normal' .*ActionNoise"),
    ({"action_noise": True}, "action_noise=True .*ActionNoise"),
    ({"qf_learning_rate": "1e-3"}, "qf_learning_rate='1e-3' .*!!float"),
    ({"learning_rate": None}, "learning_rate=None .*schedule"),
    ({"target_policy_noise": -0.1}, "target_policy_noise=-0.1 .*0 switches"),
    ({"target_noise_clip": -0.1}, "target_noise_clip=-0.1 .*0 switches"),
    ({"policy_delay": 0}, "policy_delay=0 .*at least 1"),
    ({"batch_reuse": 0}, "batch_reuse=0 .*at least 1"),
    ({"batch_reuse": 1.5}, "batch_reuse=1.5 .*whole number"),
    ({"batch_size": 0}, "batch_size=0 .*at least 1"),
    ({"n_steps": 0}, "n_steps=0 .*at least 1"),
    ({"gamma": 1.1}, r"gamma=1.1 .*\[0, 1\]"),
    ({"tau": -0.1}, r"tau=-0.1 .*\[0, 1\]"),
    ({"model_learning_starts": -1}, "model_learning_starts=-1 .*at least 0"),
    ({"model_gradient_steps": 0}, "model_gradient_steps=0 .*at least 1"),
    ({"model_validation_fraction": 0.9}, r"model_validation_fraction=0.9 .*\[0, 0.5\]"),
    ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 .*None"),
    ({"action_noise": -0.1}, "action_noise=-0.1 .*None"),
    ({"train_freq": (1, "hour")}, "train_freq.*hour"),
    ({"policy_kwargs": {"world_model_class": "gaussian"}}, "world_model_class='gaussian' .*mlp"),
    ({"policy_kwargs": {"world_model_class": dict}}, "world_model_class=.*dict.*WorldModel"),
    ({"policy_kwargs": {"world_model_kwargs": {"termination": "sometimes"}}}, "termination='sometimes'.*learned.*none"),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_arguments(algorithm: Any, arguments: dict[str, Any], message: str) -> None:
    if algorithm is MPG and "horizon" in arguments:
        message = r"horizon=.*horizons=\(0, "  # it has several, see test_mpg.py
    if algorithm is SVG and any(name.startswith("target_") for name in arguments):
        pytest.skip("of the deterministic family")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny(algorithm=algorithm, **arguments)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_lambda(value: float) -> None:
    with pytest.raises(ValueError, match=rf"lambda_={value} must be in \[0, 1\]"):
        tiny(lambda_=value)


def test_lambda_one_warns() -> None:
    with pytest.warns(UserWarning, match="lambda_=1"):
        tiny(lambda_=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0, "bootstrap": False}, "bootstrap=False with horizon=0"),
        ({"fictitious_samples": 5}, "fictitious_samples=5 and fictitious_updates=0 .*both"),
        ({"fictitious_updates": 5}, "fictitious_samples=0 and fictitious_updates=5 .*both"),
        ({"fictitious_samples": -1, "fictitious_updates": -1}, "fictitious_samples=-1"),
    ],
)
def test_arguments_of_dvg(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny(algorithm=DVG, **arguments)


def test_n_step_returns_of_dict_observations() -> None:
    env = PointEnv(spaces.Dict({"a": spaces.Box(-1, 1, (2,))}))
    with pytest.raises(ValueError, match=r"n_steps=3.*Dict.*n_steps=1"):
        tiny(env, n_steps=3)


@pytest.mark.parametrize("name", ["reward_fn", "termination"])
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda obs, actions, next_obs: obs, r"\(3, 2\)"),
        (lambda obs, actions, next_obs: obs[:, :1], r"\(3, 1\)"),
        (lambda obs, actions, next_obs: obs.sum(), r"\(\)"),
        (lambda obs, actions, next_obs: 1.0, "float"),
        (lambda obs, actions, next_obs: None, "NoneType"),
    ],
)
def test_given_functions_of_the_wrong_shape(name: str, function: Any, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s){name}=<function.*shape \(3,\).*{shape}"):
        tiny(policy_kwargs={"world_model_kwargs": {name: function}})


def test_world_model_aliases() -> None:
    assert get_world_model_class("mlp") is get_world_model_class(MlpWorldModel) is MlpWorldModel


# ---------------------------------------------------------------- what is not finite

BAD_VALUES = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("what", ["obs", "terminal obs", "reward", "first obs"])
@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("normalised", [False, True])
def test_bad_experience(what: str, value: float, normalised: bool, tmp_path: Path) -> None:
    """Training stops before anything is learned from it: parameters and buffer are finite, and can be saved."""
    env: Any = DummyVecEnv([lambda: SpoiltEnv(what, value, at=36)])
    if normalised:
        env = VecNormalize(env)
        if what == "terminal obs" and np.isinf(value):
            pytest.skip("VecNormalize clips it to a finite value before anybody sees it")
    model = tiny(env)
    noun = "reward" if what == "reward" else "observation"
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match=f"non-finite {noun} at step .*check the environment"),
    ):
        model.learn(60)
    assert all(th.isfinite(part).all() for part in snapshot(model).values())
    assert np.isfinite(model.replay_buffer.rows).all()
    assert model.replay_buffer.pos == {"first obs": 0, "terminal obs": 39}.get(what, 35)
    _check_saved(model, tmp_path)


def _check_saved(model: Any, folder: Path) -> None:
    """The saved state loads, equals the model's, and trains on."""
    before = snapshot(model)
    model.save(folder / "model")
    loaded = DVPG.load(folder / "model", env=PointEnv())
    assert same(snapshot(loaded), before)
    loaded.learn(30)
    assert all(th.isfinite(part).all() for part in snapshot(loaded).values())


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD], ids=["fused", "not fused"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_reward_in_the_buffer(optimizer: Any, max_grad_norm: float | None, value: float, tmp_path: Path) -> None:
    """However it came there: critic and model stay as they were, to the last bit, and the quantity is named."""
    model = tiny(policy_kwargs={"optimizer_class": optimizer}, max_grad_norm=max_grad_norm, policy_delay=2).learn(30)
    model.replay_buffer.rewards[:30] = value
    model._n_updates = 0  # the next update is of the critic alone
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"(critic|model_reward)_loss is (nan|inf).*not applied.*learning_rate"):
        model.train(gradient_steps=1, batch_size=16)
    after = snapshot(model)
    changed = [name for name in before if not th.equal(before[name], after[name])]
    # Only statistics of what is finite go on: inputs are good.
    good = ("input_scaler", "state_scaler", "seen_", "updates")
    assert all(any(part in name for part in good) for name in changed), changed
    _check_saved(model, tmp_path)


@pytest.mark.parametrize("network", ["actor", "critic", "world_model"])
def test_a_diverged_network_does_not_poison_the_others(network: str) -> None:
    """Weights that overflow: no parameter of a network that is still good becomes non-finite."""
    model = tiny().learn(30)
    with th.no_grad():
        next(iter(getattr(model, network).parameters())).fill_(float("nan"))
    bad = {name for name, part in snapshot(model).items() if not th.isfinite(part).all()}
    with pytest.raises(ValueError, match="is nan after"):
        model.train(gradient_steps=3, batch_size=16)
    now_bad = {name for name, part in snapshot(model).items() if not th.isfinite(part).all()}
    targets = {name for name in now_bad - bad if "_target" in name}
    assert now_bad - bad == targets


# ---------------------------------------------------------------- files that do not fit

OTHER_MODELS = [
    {"net_arch": [8]},
    {"net_arch": [16], "normalize": False},
    {"net_arch": [16], "share_network": False},
    {"net_arch": [16], "termination": "none"},
    {"net_arch": [16], "reward_fn": lambda obs, actions, next_obs: obs[:, 0]},
]


@pytest.mark.parametrize("kwargs", OTHER_MODELS, ids=lambda kwargs: list(kwargs)[-1])
def test_another_world_model(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model, other = tiny(), tiny(policy_kwargs={"world_model_kwargs": kwargs})
    model.save(tmp_path / "model")
    for source in (model.get_parameters(), str(tmp_path / "model")):
        with pytest.raises(ValueError, match=r"world model.*world_model_kwargs"):
            other.set_parameters(source)
    changed: dict[str, Any] = {"policy_kwargs": {"net_arch": [16], "world_model_kwargs": kwargs}}
    with pytest.raises(ValueError, match=r"world model.*world_model_kwargs"):
        DVPG.load(tmp_path / "model", custom_objects=changed)
    with pytest.raises(ValueError, match="policy kwargs"):
        DVPG.load(tmp_path / "model", **changed)


def test_another_policy(tmp_path: Path) -> None:
    tiny().save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"does not fit this model's policy.*policy_kwargs"):
        tiny(policy_kwargs={"net_arch": [8]}).set_parameters(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"[Oo]bservation spaces do not match"):
        DVPG.load(tmp_path / "model", env=PointEnv(spaces.Box(-10, 10, (3,))))
