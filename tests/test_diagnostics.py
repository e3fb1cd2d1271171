"""Diagnostics against systems on which the right number is known."""

import sys
from pathlib import Path
from typing import Any

import lqr
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from tiny import PointEnv, same, snapshot, tiny

from sb3_valuegrad import DVPG, MAAC
from sb3_valuegrad.diagnostics import (
    CriticCalibration,
    DiagnosticsCallback,
    ModelError,
    NothingToMeasureError,
    critic_calibration,
    ensemble_calibration,
    gradient_error_study,
    gradient_errors,
    gradient_existence,
    interval_coverage,
    model_error,
    open_loop_errors,
    plot_gradient_error_study,
)
from sb3_valuegrad.diagnostics.ensemble_calibration import predicted_distributions
from sb3_valuegrad.diagnostics.figures import new_figure
from sb3_valuegrad.diagnostics.gradient_existence import GradientExistence, existence_along
from sb3_valuegrad.diagnostics.linear_quadratic import LinearPolicy, LinearQuadratic, QuadraticCritic, double_integrator
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
    np.testing.assert_array_equal(found.steps_left, left)


def test_a_critic_that_sees_no_end_coming_looks_beyond_it() -> None:
    """What 1 a step for ever is worth is too much by 2 gamma^t where t steps are left, however many episodes there are."""
    agent = constant(agents()["DVPG"](), 2.0)
    found = critic_calibration(agent, Salary(length=3, terminates=True), n_episodes=2)
    np.testing.assert_allclose(found.bias_before_termination(4), [1.0, 0.5, 0.25, np.nan], rtol=1e-6)
    endless = critic_calibration(agent, Salary(length=3), n_episodes=1, max_bootstrap=1)
    assert np.isnan(endless.bias_before_termination(2)).all() and np.isinf(endless.steps_left).all()
    with pytest.raises(ValueError, match="steps=0"):
        found.bias_before_termination(0)


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
    statistics: Any = trained_in.obs_rms
    statistics.var = np.full(2, 100.0)
    for env in (Salary(), VecNormalize(DummyVecEnv([Salary]))):
        found = critic_calibration(agent, env, n_episodes=1, max_bootstrap=1)
        np.testing.assert_allclose(found.returns, 1.0, rtol=1e-5)
    assert max(seen) < 0.5 and statistics.count < 1


def test_correlation_bias_and_error() -> None:
    q = np.array([1.0, 2.0, 3.0, 4.0])
    found = CriticCalibration(q, 2 * q - 3, np.zeros(4), soft=False, steps_left=np.full(4, np.inf))
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


# ---------------------------------------------------------------- gradient error

STARTS = lqr.start_states(20, 2)
MASS, GAIN = double_integrator(), th.tensor([[-1.0, -2.0]], dtype=th.float64)
TRUTH = LinearPolicy(MASS, GAIN)


def test_closed_forms_are_the_tests_own() -> None:
    """The package solves its Lyapunov equations without SciPy; a system with two actions, gradients summed up by hand."""
    theirs = lqr.make_system()
    gain, obs = lqr.make_gain(), lqr.start_states()
    ours = LinearPolicy(LinearQuadratic(theirs.A, theirs.B, theirs.M, theirs.R, theirs.gamma), gain)
    truth = lqr.Truth(theirs, gain)
    actions = obs[:, :2]
    for mine, its in (
        (ours.P, truth.P),
        (ours.V(obs), truth.V(obs)),
        (ours.Q(obs, actions), truth.Q(obs, actions)),
        (ours.D(obs), truth.D(obs)),
        (ours.states(obs, 3), truth.states(obs, 3)),
        (ours.value_gradient(obs), truth.dV_dK(obs)),
        (ours.value_gradient(obs), sum(theirs.gamma**time * ours.D(ours.states(obs, time)) for time in range(400))),
    ):
        th.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_exact_model_and_critic_have_no_gradient_error() -> None:
    """At any horizon; against grad V(s_0), which is not what the estimators estimate, they would seem to have one."""
    found = gradient_errors(MASS, GAIN, MASS, TRUTH.Q, STARTS, horizon=12)
    assert found.all_actions.max() < 1e-12 and found.first_action.max() < 1e-12
    away = (TRUTH.value_gradient(STARTS) - TRUTH.D(STARTS)).abs().sum().item()
    assert found.missing_tail[0] == pytest.approx(away) and away > found.first_action_reference > 0.1
    assert (np.diff(found.missing_tail) < 0).all()
    assert gradient_errors(MASS, GAIN, MASS, TRUTH.Q, STARTS, 100).missing_tail[-1] < 1e-6


def test_a_critics_error_is_measured_and_fades() -> None:
    """At horizon 0 the error is that of ``grad_a Q``, on both paths: ``2 gamma B' dP (A + B K) s s'``."""
    change = th.tensor([[0.3, 0.1], [0.1, -0.2]], dtype=th.float64)
    critic = QuadraticCritic(MASS, TRUTH.P + change)
    found = gradient_errors(MASS, GAIN, MASS, critic, STARTS, horizon=40)
    of_action = 2 * MASS.gamma * MASS.B.T @ change @ TRUTH.closed_loop @ STARTS.T @ STARTS / len(STARTS)
    for errors in (found.all_actions, found.first_action):
        assert errors[0] == pytest.approx(of_action.abs().sum().item(), rel=1e-9)
        assert errors[-1] < 1e-2 * errors[0]


def test_a_models_error_is_measured() -> None:
    """One step of a model whose action is a tenth too strong: ``grad J_1`` by hand, along the first action."""
    wrong = LinearQuadratic(MASS.A, 1.1 * MASS.B, MASS.M, MASS.R, MASS.gamma)
    found = gradient_errors(MASS, GAIN, wrong, TRUTH.Q, STARTS, horizon=1)
    assert found.first_action[0] < 1e-12 and found.all_actions[0] < 1e-12
    closed = MASS.A + 1.1 * MASS.B @ GAIN
    of_action = -2 * (MASS.R @ GAIN + MASS.gamma * 1.1 * MASS.B.T @ TRUTH.P @ closed)
    away = of_action @ STARTS.T @ STARTS / len(STARTS) - TRUTH.D(STARTS)
    assert found.first_action[1] == pytest.approx(away.abs().sum().item(), rel=1e-9)


def test_maac_figure_3() -> None:
    """Under wrong critics the first-action error falls with the horizon, to nothing in the true dynamics alone; where
    only the model is wrong it starts from nothing."""
    before = th.get_rng_state()
    found = gradient_error_study(horizon=20, model_rows=300, n_critics=2)
    assert th.equal(th.get_rng_state(), before)
    true, learned = found["true dynamics"], found["learned dynamics"]
    assert true.first_action[20] < 0.05 * true.first_action[0]
    assert true.first_action[20] < learned.first_action[20] < 0.5 * learned.first_action[0]
    exact = gradient_error_study(horizon=3, model_rows=100, critic_error=0.0, n_critics=1)
    assert exact["true dynamics"].all_actions.max() < 1e-12
    assert exact["learned dynamics"].all_actions[0] < 1e-12 < 1e-3 < exact["learned dynamics"].all_actions[3]


def test_gradient_errors_refuse() -> None:
    with pytest.raises(ValueError, match=r"gain has shape \(1, 3\)"):
        gradient_errors(MASS, th.zeros(1, 3), MASS, TRUTH.Q, STARTS)
    with pytest.raises(ValueError, match="makes the closed loop grow"):
        gradient_errors(MASS, -GAIN, MASS, TRUTH.Q, STARTS)
    with pytest.raises(ValueError, match="critic_error=-1"):
        gradient_error_study(critic_error=-1)


# ---------------------------------------------------------------- ensemble calibration

QUANTILES = th.special.ndtri((th.arange(1000, dtype=th.float64) + 0.5) / 1000)


@pytest.mark.parametrize("members", [1, 2])
def test_right_intervals_hold_their_share(members: int) -> None:
    """Outcomes at the thousand quantiles of the prediction itself: every share is exact, to one outcome."""
    mean, std = th.tensor([3.0, -1.0]).double(), th.tensor([0.1, 5.0]).double()
    outcomes = mean + std * QUANTILES[:, None]
    found = interval_coverage(mean.expand(members, 1000, 2), std.expand(members, 1000, 2), outcomes)
    np.testing.assert_allclose(found.coverage, found.levels[:, None].repeat(2, 1), atol=1.01e-3)
    np.testing.assert_allclose(found.pit[:, 0], (np.arange(1000) + 0.5) / 1000, atol=1e-9)
    assert found.error < 1.01e-3


def test_intervals_half_as_wide_hold_what_they_should() -> None:
    """Inside half of the interval of level p lie 2 F(z_p / 2) - 1 of N(0, 1): overconfident; twice as wide is the other."""
    zeros, ones = th.zeros(1, 1000, 1), th.ones(1, 1000, 1)
    for width, sign in ((0.5, 1), (2.0, -1)):
        found = interval_coverage(zeros, width * ones, QUANTILES[:, None], levels=(0.3, 0.6, 0.9))
        bounds = width * th.special.ndtri((1 + th.tensor(found.levels)) / 2)
        np.testing.assert_allclose(found.mean_coverage, 2 * th.special.ndtr(bounds) - 1, atol=1.01e-3)
        assert sign * found.confidence > 0.1 and found.error == pytest.approx(abs(found.confidence))


def test_two_elites_predict_their_mixture() -> None:
    """Members at -4 and 4 are right about outcomes half of which are near -4 and half near 4; one of them is not."""
    outcomes = th.cat([QUANTILES[::2] - 4, QUANTILES[::2] + 4])[:, None]
    mean = th.tensor([-4.0, 4.0])[:, None, None].expand(2, 1000, 1)
    right = interval_coverage(mean, th.ones(2, 1000, 1), outcomes)
    assert right.error < 3e-3
    assert interval_coverage(mean[:1], th.ones(1, 1000, 1), outcomes).error > 0.1


def test_a_dimension_that_never_changes_is_left_out() -> None:
    std = th.tensor([1.0, 0.0]).expand(1, 1000, 2)
    found = interval_coverage(th.zeros(1, 1000, 2), std, th.stack([QUANTILES, th.zeros(1000)], dim=1))
    assert np.isnan(found.coverage[:, 1]).all() and found.error < 1.01e-3


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_an_agents_ensemble_is_measured_on_its_replay_buffer(normalize: bool, width: float) -> None:
    """An ensemble that is told the true distribution of the moves, N(0, 0.2^2), or half its width."""
    kwargs = {"world_model_kwargs": {**ENSEMBLE, "normalize": normalize}}
    agent = tiny(algorithm=MAAC, model_validation_fraction=0.5, policy_kwargs=kwargs)
    random = np.random.default_rng(0)
    store(agent, 0.2 * np.stack([random.permutation(QUANTILES.numpy()) for _ in range(2)], axis=1))
    model, std = agent.world_model, th.full((2,), 0.2 * width)
    still(model, [[0.0, 0.0]] * 3)
    if normalize:
        model.state_scaler.spread.copy_(th.tensor([1.0, 2.0]))
    spread = model.state_scaler.spread if normalize else 1.0
    with th.no_grad():
        model.network.biases[0][:, 0, 2:4] = 2 * (std / spread).log()
    _, predicted = predicted_distributions(model, th.zeros(1, 2), th.zeros(1, 2))
    # The soft bounds of the variance move it a little.
    th.testing.assert_close(predicted, std.expand(2, 1, 2), rtol=0.02, atol=0)
    found = ensemble_calibration(agent, most=10_000)
    assert len(found.pit) == 15 * 32 + 8
    expected = 2 * th.special.ndtr(width * th.special.ndtri((1 + th.tensor(found.levels)) / 2)) - 1
    # Half of the outcomes, drawn: four standard errors of a share.
    np.testing.assert_allclose(found.mean_coverage, expected, atol=4 * 0.5 / (2 * len(found.pit)) ** 0.5)


def test_only_an_ensemble_is_calibrated() -> None:
    agent = tiny()
    agent.learn(100)
    with pytest.raises(ValueError, match="world_model_class=MlpWorldModel predicts no distribution"):
        ensemble_calibration(agent)
    with pytest.raises(ValueError, match=r"levels=\(0.5, 1.0\)"):
        interval_coverage(th.zeros(1, 1, 1), th.ones(1, 1, 1), th.zeros(1, 1), (0.5, 1.0))


# ---------------------------------------------------------------- during training


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
def test_a_run_does_not_notice_the_callback(algorithm: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kwargs = {"model_fit_freq": 100, "model_fit_kwargs": {"max_epochs": 2}} if algorithm is MAAC else {}
    runs = []
    for watched in (False, True):
        agent = tiny(algorithm=algorithm, gamma=0.9, **kwargs)
        callback = DiagnosticsCallback(PointEnv(), freq=70, n_episodes=1, horizon=4, folder=tmp_path / "pictures")
        agent.learn(230, callback=callback if watched else None)
        runs.append(snapshot(agent))
    assert same(*runs)
    assert [entry["timesteps"] for entry in callback.history] == [70, 140, 210]
    names = {"model_error_1", "model_error_4", "reward_error_1", "reward_error_4", "q_bias", "q_error", "q_correlation"}
    names |= {"ensemble_error", "ensemble_confidence"} if algorithm is MAAC else set()
    assert callback.history[-1].keys() == names | {"timesteps"}
    assert all(len(f"diagnostics/{name}") <= 36 for name in names)
    written = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"model_error_210.png", "critic_calibration_210.png"} <= written
    assert ("ensemble_calibration_210.png" in written) == (algorithm is MAAC)


def test_the_callback_writes_to_the_models_log(tmp_path: Path) -> None:
    agent = TD3("MlpPolicy", PointEnv(), learning_starts=10, gamma=0.9, policy_kwargs={"net_arch": [8]}, device="cpu")
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(50, callback=DiagnosticsCallback(Salary(), freq=20, n_episodes=1), log_interval=1)
    header = (tmp_path / "progress.csv").read_text().split("\n")[0].split(",")
    assert {"diagnostics/q_bias", "diagnostics/q_error", "diagnostics/q_correlation"} <= set(header)


def test_what_cannot_be_measured_yet_is_left_out() -> None:
    agent = tiny(learning_starts=200)
    callback = DiagnosticsCallback(freq=50)
    agent.learn(100, callback=callback)
    assert callback.history == [{"timesteps": 50}, {"timesteps": 100}]


def test_a_buffer_that_holds_nothing_out_does_not_end_a_run() -> None:
    kwargs: dict[str, Any] = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = tiny(gamma=0.5, replay_buffer_class=ReplayBuffer, **kwargs)
    callback = DiagnosticsCallback(PointEnv(), freq=40, n_episodes=1)
    agent.learn(40, callback=callback)
    assert callback.history[0].keys() == {"timesteps", "q_bias", "q_error", "q_correlation"}
    with pytest.raises(ValueError, match="optimize_memory_usage=True keeps no s'"):
        agent.learn(1, callback=DiagnosticsCallback())


def test_episodes_too_short_for_the_discount_do_not_end_a_run() -> None:
    callback = DiagnosticsCallback(PointEnv(length=3), freq=30, n_episodes=1)
    agent = tiny(gamma=0.99)
    with pytest.warns(UserWarning, match=r"max_bootstrap=0.5 leaves none of the 3 steps"):
        agent.learn(30, callback=callback)
    assert callback.history == [{"timesteps": 30}]
    callback = DiagnosticsCallback(PointEnv(length=3), freq=30, n_episodes=1, max_bootstrap=1.0)
    agent.learn(30, callback=callback)
    assert "q_bias" in callback.history[0]


def test_the_callback_refuses() -> None:
    with pytest.raises(ValueError, match="freq=0"):
        DiagnosticsCallback(freq=0)
    with pytest.raises(ValueError, match="horizon=33"):
        DiagnosticsCallback(horizon=33)
    with pytest.raises(ValueError, match="there is nothing to measure"):
        TD3("MlpPolicy", PointEnv(), device="cpu").learn(1, callback=DiagnosticsCallback())
    env = PointEnv()
    for given in (env, DummyVecEnv([lambda: env])):
        agent = tiny(given)
        for again in (given, agent.get_env()):
            with pytest.raises(ValueError, match="eval_env is the environment that is trained in"):
                agent.learn(1, callback=DiagnosticsCallback(again))


# ---------------------------------------------------------------- pictures

STUDY = {"true dynamics": gradient_errors(MASS, GAIN, MASS, TRUTH.Q, STARTS, 3)}
FOUND: dict[str, Any] = {
    "model error": ModelError(np.array([0.1, 0.2]), np.array([0.3, 0.4]), 5).plot,
    "critic": CriticCalibration(np.arange(3.0), np.arange(3.0) + 1, np.zeros(3), True, np.arange(3.0)).plot,
    "gradient": lambda ax=None: plot_gradient_error_study(STUDY, ax),
    "existence": GradientExistence(*np.ones((3, 4, 2))).plot,
    "ensemble": interval_coverage(th.zeros(1, 9, 2), th.ones(1, 9, 2), th.randn(9, 2)).plot,
}


@pytest.mark.parametrize("name", FOUND)
def test_every_diagnostic_has_a_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    own = new_figure().subplots()
    assert FOUND[name](own) is own
    assert own.lines or own.collections
    assert own.get_xlabel() and own.get_ylabel() and own.get_title()


@pytest.mark.parametrize("name", FOUND)
def test_without_matplotlib_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.pyplot", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    for draw in (FOUND[name], new_figure, lambda: DiagnosticsCallback(folder="pictures")):
        with pytest.raises(ImportError, match=r"sb3-valuegrad\[plots\]"):
            draw()


# ---------------------------------------------------------------- existence of the value gradient


class Linear(MlpWorldModel):
    """``s' = A s + B a``."""

    def step(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        return Step(MASS.transition(obs, actions)[0], th.zeros(len(obs)), th.zeros(len(obs)))


def test_corollary_1_in_a_linear_system() -> None:
    """There C is a power of the closed loop, from any state."""
    found = existence_along(Linear(2, 1), lambda obs: obs @ GAIN.T, STARTS, MASS.gamma, horizon=6)
    for k in range(1, 7):
        power = MASS.gamma**k * th.linalg.matrix_power(TRUTH.closed_loop, k)
        norms = sorted(power.abs().sum(dim).max().item() for dim in (0, 1))
        radius = th.linalg.eigvals(power).abs().max().item()
        expected = {"smaller_norm": norms[0], "norm": norms[1], "spectral_radius": radius}
        for name, number in expected.items():
            np.testing.assert_allclose(getattr(found, name)[k - 1], np.full(len(STARTS), number), rtol=1e-9)


def test_corollary_1_of_an_agent() -> None:
    agent = tiny()
    agent.learn(60)
    before = snapshot(agent)
    found = gradient_existence(agent, horizon=3, most=5)
    assert found.norm.shape == (3, 5) and same(before, snapshot(agent))
    assert (found.spectral_radius <= found.smaller_norm * (1 + 1e-5)).all() and (found.smaller_norm <= found.norm).all()
    assert all(parameter.grad is None for parameter in agent.policy.parameters())
    stochastic = tiny(algorithm=MAAC)
    stochastic.world_model.updates.fill_(1)
    with pytest.raises(ValueError, match="agent=MAAC has a stochastic policy"):
        gradient_existence(stochastic)
