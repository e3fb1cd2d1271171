"""Diagnostics against systems on which the right number is known."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tiny import PointEnv, tiny

from sb3_valuegrad import MAAC
from sb3_valuegrad.diagnostics import (
    CriticCalibration,
    NothingToMeasureError,
    critic_calibration,
    model_error,
    open_loop_errors,
)
from sb3_valuegrad.world_models import MlpWorldModel
from sb3_valuegrad.world_models.base import Step

ENSEMBLE = {"n_members": 3, "n_elites": 2, "net_arch": [], "normalize": False, "termination": "none"}


def still(model: Any, change: list[list[float]], log_std: float = 0.0) -> None:
    """An ensemble without hidden layers becomes ``s' ~ N(s + change of the member, exp(2 log_std))``, reward 0."""
    with th.no_grad():
        model.network.weights[0].zero_()
        model.network.biases[0].zero_()
        model.network.biases[0][:, 0, : model.obs_dim] = th.tensor(change)
        model.network.biases[0][:, 0, model.obs_dim : 2 * model.obs_dim] = 2 * log_std
        model.updates.fill_(1)


def store(agent: Any, moves: np.ndarray) -> None:
    """One endless episode, in steps of ``moves`` (N, 2), with rewards 1, -1, 1, ..."""
    state = np.zeros(2, dtype=np.float32)
    for time, move in enumerate(moves.astype(np.float32)):
        args = state[None], (state + move)[None], np.zeros((1, 2)), np.array([(-1.0) ** time]), np.zeros(1)
        agent.replay_buffer.add(*args, [{}])
        state = state + move


@pytest.fixture
def ensemble() -> Any:
    """An agent with an ensemble of three, two of them elites."""
    return tiny(algorithm=MAAC, policy_kwargs={"world_model_kwargs": dict(ENSEMBLE)})


# ---------------------------------------------------------------- open-loop error


class Half(MlpWorldModel):
    """Predicts half of every move of a system that goes where the action points, and no reward."""

    def step(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        return Step(obs + 0.5 * actions, th.zeros(len(obs)), th.zeros(len(obs)))


def test_half_of_each_move_is_half_an_error_at_every_horizon() -> None:
    actions = th.randn(4, 50, 2, generator=th.Generator().manual_seed(0))
    states = th.cat([th.zeros(1, 50, 2), actions.cumsum(0)])
    rewards = th.tensor([1.0, -1.0]).repeat(4, 25)
    state, reward = open_loop_errors(Half(2, 2), states, actions, rewards)
    th.testing.assert_close(state, th.full((4,), 0.5))
    th.testing.assert_close(reward, (1 / rewards.std()).expand(4))


def test_an_ensembles_error_is_its_elites_mean(ensemble: Any) -> None:
    """The elites miss by 1 and -1 a step, and their mean not at all; noise and the third network do not count."""
    still(ensemble.world_model, [[2.0, 1.0], [0.0, 1.0], [50.0, 50.0]], log_std=0.2)
    store(ensemble, np.ones((200, 2)))
    state = th.get_rng_state()
    error = model_error(ensemble, horizon=5)
    assert th.equal(state, th.get_rng_state())
    np.testing.assert_allclose(error.state, 0, atol=1e-6)
    assert error.stretches > 20
    still(ensemble.world_model, [[1.5, 0.5], [0.5, 0.5], [50.0, 50.0]])
    np.testing.assert_allclose(model_error(ensemble, horizon=5).state, 0.5 * 0.5**0.5, rtol=1e-5)


def test_model_error_of_a_run() -> None:
    agent = tiny()
    agent.learn(300)
    error = model_error(agent, horizon=4)
    assert error.state.shape == error.reward.shape == (4,)
    logged = agent.model_errors(steps=4)
    assert error.state[0] == pytest.approx(logged["model_error_1"])
    assert error.state[3] == pytest.approx(logged["model_error_4"])


def refusals() -> dict[str, tuple[Any, str]]:
    def filled(**kwargs: Any) -> Any:
        agent = tiny(**kwargs)
        store(agent, np.ones((100, 2)))
        agent.world_model.updates.fill_(1)
        return agent

    overlapping: dict[str, Any] = {
        "optimize_memory_usage": True,
        "replay_buffer_class": ReplayBuffer,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    }
    return {
        "no model": (lambda: model_error(TD3("MlpPolicy", PointEnv())), "agent=TD3 has no world model"),
        "never fitted": (lambda: model_error(tiny()), "never fitted its world model"),
        "too long": (lambda: model_error(filled(), horizon=33), "steps=33 must be at most 32"),
        "no horizon": (lambda: model_error(filled(), horizon=0), "steps=0 must be a whole number"),
        "nothing held out": (lambda: model_error(filled(model_validation_fraction=0.0)), "model_validation_fraction=0.0"),
        "overlapping": (lambda: model_error(filled(**overlapping)), "optimize_memory_usage=True"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_measured_says_why(name: str) -> None:
    call, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_too_little_experience_is_an_error_of_its_own() -> None:
    agent = tiny()
    store(agent, np.ones((40, 2)))
    agent.world_model.updates.fill_(1)
    assert model_error(agent, horizon=8).stretches == 1
    with pytest.raises(NothingToMeasureError, match=r"steps=9 .* among the 40 steps stored"):
        model_error(agent, horizon=9)


# ---------------------------------------------------------------- critic against observed returns


class Salary(PointEnv):
    """A :class:`PointEnv` that pays 1 a step."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, 1.0, terminated, truncated, info


def constant(agent: Any, value: float) -> Any:
    """The agent with critics that say ``value`` of everything."""
    for network in agent.critic.q_networks:
        with th.no_grad():
            network[-1].weight.zero_()
            network[-1].bias.fill_(value)
    return agent


def agents(**kwargs: Any) -> dict[str, Any]:
    small = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0, "gamma": 0.5, **kwargs}
    return {
        "DVPG": lambda: tiny(gamma=0.5, **kwargs),
        "TD3": lambda: TD3("MlpPolicy", PointEnv(), **small),
        "MAAC": lambda: tiny(algorithm=MAAC, gamma=0.5, ent_coef=0.0, **kwargs),
        "SAC": lambda: SAC("MlpPolicy", PointEnv(), ent_coef=0.0, **small),
    }


@pytest.mark.parametrize("name", agents())
def test_a_critic_that_is_right_has_no_bias(name: str) -> None:
    """1 a step for ever is worth 1 / (1 - gamma) = 2, a time limit does not change that; a termination does."""
    agent = constant(agents()[name](), 2.0)
    for n_envs in (1, 2):
        env = DummyVecEnv([lambda: Salary(length=10)] * n_envs)
        found = critic_calibration(agent, env, n_episodes=3, max_bootstrap=1)
        np.testing.assert_allclose(found.returns, np.full(30, 2.0), rtol=1e-6)
        assert found.bias == pytest.approx(0, abs=1e-6) and np.isnan(found.correlation)
        assert found.bootstrap.max() == 0.5 and found.bootstrap.min() == 0.5**10
    left = 10 - np.arange(10)
    found = critic_calibration(agent, Salary(length=10, terminates=True), n_episodes=1)
    np.testing.assert_allclose(found.returns, 2 * (1 - 0.5**left), rtol=1e-6)
    assert found.bias == pytest.approx(np.mean(2 * 0.5**left), rel=1e-5) and not found.bootstrap.any()


def test_steps_near_a_time_limit_are_left_out() -> None:
    agent = constant(agents()["DVPG"](), 3.0)
    found = critic_calibration(agent, Salary(length=10), n_episodes=2, max_bootstrap=0.1)
    assert len(found.q) == 2 * 7 and found.bootstrap.max() == 0.5**4
    np.testing.assert_allclose(np.unique(found.q - found.returns), 1 - 0.5 ** np.arange(4.0, 11.0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"max_bootstrap=0.1 leaves none of the 2 steps"):
        critic_calibration(agent, Salary(length=2), n_episodes=1, max_bootstrap=0.1)


@pytest.mark.parametrize("name", ["MAAC", "SAC"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_stochastic_familys_returns_are_soft(name: str, learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step after the first also earns ``-alpha log pi`` = 0.3 * 2; Q does not count the first one's."""
    agent = constant({"MAAC": lambda: tiny(algorithm=MAAC, gamma=0.5, ent_coef="auto_0.3" if learned else 0.3),
                      "SAC": lambda: SAC("MlpPolicy", PointEnv(), gamma=0.5, ent_coef="auto_0.3" if learned else 0.3),
                      }[name](), (1 + 0.5 * 0.6) / (1 - 0.5))  # fmt: skip
    monkeypatch.setattr(agent.actor, "action_log_prob", lambda obs: (th.zeros(len(obs), 2), th.full((len(obs),), -2.0)))
    found = critic_calibration(agent, Salary(length=10), n_episodes=2, max_bootstrap=1)
    assert found.soft and found.error < 1e-6
    ends = critic_calibration(agent, Salary(length=3, terminates=True), n_episodes=1)
    np.testing.assert_allclose(ends.returns, [1 + 0.5 * (1.6 + 0.5 * 1.6), 1 + 0.5 * 1.6, 1], rtol=1e-6)


def test_returns_are_on_the_scale_of_training() -> None:
    """VecNormalize divides rewards by the deviation of returns; its statistics are not touched."""
    trained_in = VecNormalize(DummyVecEnv([PointEnv]), gamma=0.5)
    trained_in.ret_rms.var = np.array(4.0)
    agent = constant(tiny(trained_in, gamma=0.5), 1.0)
    seen: list[float] = []
    agent.actor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max().item()))
    trained_in.obs_rms.var = np.full(2, 100.0)
    for env in (Salary(), VecNormalize(DummyVecEnv([Salary]))):
        found = critic_calibration(agent, env, n_episodes=1, max_bootstrap=1)
        np.testing.assert_allclose(found.returns, 1.0, rtol=1e-5)
    assert max(seen) < 0.5 and trained_in.obs_rms.count < 1


def test_correlation_bias_and_error() -> None:
    q = np.array([1.0, 2.0, 3.0, 4.0])
    found = CriticCalibration(q, 2 * q - 3, np.zeros(4), soft=False)
    assert found.correlation == pytest.approx(1) and found.bias == pytest.approx(0.5)
    assert found.error == pytest.approx(1.5**0.5)


def test_dropout_is_off_while_the_critic_is_asked_and_on_again_after() -> None:
    agent = constant(agents()["TD3"](), 2.0)
    agent.policy.set_training_mode(True)
    modes: list[bool] = []
    agent.actor.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    critic_calibration(agent, Salary(), n_episodes=1)
    assert not any(modes) and agent.actor.training and agent.policy.training


def test_what_has_no_critic_of_this_kind_says_so() -> None:
    with pytest.raises(ValueError, match="agent=PPO has no critic"):
        critic_calibration(PPO("MlpPolicy", PointEnv(), device="cpu"), PointEnv())
    with pytest.raises(ValueError, match="env has observation_space="):
        critic_calibration(tiny(), PointEnv(spaces.Box(-1, 1, (3,))))
    with pytest.raises(ValueError, match="n_episodes=0"):
        critic_calibration(tiny(), PointEnv(), n_episodes=0)
    with pytest.raises(ValueError, match="max_bootstrap=2"):
        critic_calibration(tiny(), PointEnv(), max_bootstrap=2)
    stacked = VecFrameStack(VecNormalize(DummyVecEnv([PointEnv])), 1)
    with pytest.raises(ValueError, match="VecNormalize inside"):
        critic_calibration(tiny(), stacked)
