"""Diagnostics against systems on which the right number is known."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from tiny import PointEnv, tiny

from sb3_valuegrad import MAAC
from sb3_valuegrad.diagnostics import NothingToMeasureError, model_error, open_loop_errors
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
