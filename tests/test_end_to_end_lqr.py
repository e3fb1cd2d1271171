"""End to end on linear-quadratic systems (item 8): a fitted world model against closed forms, and learning to the
Riccati optimum."""

from typing import Any

import numpy as np
import pytest
import torch as th
from lqr import LinearQuadratic, LinearQuadraticEnv, Truth, make_gain, make_system, start_states
from test_value_expansions import gradient
from torch import nn

from sb3_valuegrad import DVG, DVPG, MPG
from sb3_valuegrad.algorithms.deterministic import DeterministicValueGradient
from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.weights import geometric_weights
from sb3_valuegrad.world_models import MlpWorldModel, Transitions


class Square(nn.Module):
    """The activation under which one hidden layer holds any quadratic function."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        return inputs.square()


def experience(system: LinearQuadratic, rows: int, seed: int) -> Transitions:
    generator = th.Generator().manual_seed(seed)
    obs = th.randn(rows, 3, generator=generator, dtype=th.float64)
    actions = 2 * th.rand(rows, 2, generator=generator, dtype=th.float64) - 1
    rewards, next_obs = system.reward(obs, actions), system.transition(obs, actions)[0]
    return Transitions(obs, actions, rewards, th.zeros_like(rewards), next_obs)


def fit(system: LinearQuadratic, steps: int, learning_rate: float, **kwargs: Any) -> MlpWorldModel:
    """A world model fitted to experience by its own losses, in float64."""
    with th.random.fork_rng():
        th.manual_seed(0)
        model = MlpWorldModel(3, 2, share_network=False, termination="none", **kwargs).double()
    data = experience(system, 5000, seed=1)
    model.observe(data)
    optimizer = th.optim.Adam(model.parameter_groups(), lr=learning_rate)
    decay = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    generator = th.Generator().manual_seed(2)
    for _ in range(steps):
        rows = th.randint(len(data.obs), (256,), generator=generator)
        losses = model.losses(Transitions(*(part[rows] for part in data if part is not None)))
        optimizer.zero_grad()
        th.stack(list(losses.values())).sum().backward()
        optimizer.step()
        decay.step()
    return model


SYSTEM = make_system(0.95)


def known_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return SYSTEM.reward(obs.to(SYSTEM.A), actions.to(SYSTEM.A))


@pytest.fixture(scope="module", params=["linear-model,known-reward", "all-learned"])
def fitted(request: Any) -> MlpWorldModel:
    if request.param == "all-learned":
        return fit(SYSTEM, 1500, 1e-2, net_arch=[32], activation_fn=Square)
    return fit(SYSTEM, 400, 3e-2, net_arch=[], reward_fn=known_reward)


def close(actual: th.Tensor, expected: th.Tensor) -> None:
    """Within 1e-3 of it."""
    assert (actual - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_a_fitted_model_gives_the_true_gradients(fitted: MlpWorldModel, horizon: int) -> None:
    """DVG(k), DVPG and the all-action path within 1e-3 of their closed forms."""
    K, gamma, obs = make_gain(), SYSTEM.gamma, 0.7 * start_states(50)
    truth = Truth(SYSTEM, K)
    rollout = imagine(fitted, lambda states: states @ K.T, obs, horizon)
    values = truth.Q(rollout.obs, rollout.actions)
    expansions = value_expansions(rollout.rewards, rollout.alive, values, gamma)
    close(expansions, truth.V(obs).expand(horizon + 1, -1))

    close(gradient(fitted, truth.Q, K, obs, gamma, {horizon: 1.0}), truth.D(obs))
    weights = dict(enumerate(geometric_weights(0.5, horizon).tolist()))
    close(gradient(fitted, truth.Q, K, obs, gamma, weights), (1 - 0.5 ** (horizon + 1)) * truth.D(obs))
    along = th.stack([gamma**time * truth.D(truth.states(obs, time)) for time in range(horizon + 1)]).sum(0)
    close(gradient(fitted, truth.Q, K, obs, gamma, {horizon: 1.0}, all_actions=True), along)


# ---------------------------------------------------------------- learning

STARTS = np.random.default_rng(0).uniform(-0.7, 0.7, (64, 2))


def cost(policy: Any, steps: int = 100) -> float:
    """Discounted cost of a policy in the true system, mean over fixed starts."""
    env, state, total = LinearQuadraticEnv, STARTS, 0.0
    for time in range(steps):
        action = np.clip(policy(state), -1, 1)
        step_cost = ((state @ env.M) * state).sum(1) + ((action @ env.R) * action).sum(1)
        total += env.GAMMA**time * step_cost.mean()
        state = state @ env.A.T + action @ env.B.T
    return total


def optimal_cost() -> float:
    K = LinearQuadraticEnv.system().optimal_gain()
    return cost(lambda state: state @ K.numpy().T)


def test_the_optimum_is_the_riccati_one() -> None:
    """Bounds on actions do not bind, and a hundred steps are as good as all."""
    system = LinearQuadraticEnv.system()
    truth = Truth(system, system.optimal_gain())
    assert np.abs(STARTS @ truth.K.numpy().T).max() < 1
    assert optimal_cost() == pytest.approx(-truth.V(th.from_numpy(STARTS)).mean().item(), rel=1e-3)
    assert cost(lambda state: 0 * state[:, :1]) > 1.5 * optimal_cost()  # there is something to learn


def make_agent(algorithm: type[DeterministicValueGradient], model: dict[str, Any], **arguments: Any) -> Any:
    """An agent of which everything that learns slows down.

    :param model: what the policy takes of world_model_class and world_model_kwargs
    """

    def decaying(progress: float) -> float:
        return 1e-3 * progress

    return algorithm(
        "MlpPolicy",
        LinearQuadraticEnv(),
        learning_rate=decaying,
        qf_learning_rate=decaying,
        model_learning_rate=decaying,
        learning_starts=500,
        batch_size=128,
        tau=0.02,
        gamma=LinearQuadraticEnv.GAMMA,
        action_noise=0.2,
        target_policy_noise=0.0,
        policy_kwargs={"net_arch": [32, 32], "n_critics": 1, **model},
        seed=0,
        device="cpu",
        **arguments,
    )


def cost_of(agent: Any) -> float:
    return cost(lambda state: agent.predict(state.astype(np.float32), deterministic=True)[0])


LEARNED = {"world_model_kwargs": {"net_arch": [64], "termination": "none"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        (DVG, {"horizon": 5}),
        (DVPG, {"horizon": 3, "lambda_": 0.5}),
        (MPG, {"horizons": (0, 5), "eta": 0.4, "weighting_updates": 1500, "policy_delay": 1}),
    ],
    ids=["DVG(5)", "DVPG(3)", "MPG(0,5)"],
)
def test_learning_reaches_the_riccati_optimum(algorithm: type[DeterministicValueGradient], arguments: dict[str, Any]) -> None:
    """1.02 times the optimal cost with everything learned: critic, next state, reward."""
    agent = make_agent(algorithm, LEARNED, **arguments)
    assert cost_of(agent) > 1.2 * optimal_cost()
    agent.learn(2000)
    assert cost_of(agent) < 1.02 * optimal_cost()


def wrong_step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """The task, with a drift and an action that does too much."""
    A, B = (th.tensor(matrix, dtype=obs.dtype) for matrix in (LinearQuadraticEnv.A, LinearQuadraticEnv.B))
    return obs @ A.T + 2.5 * actions @ B.T + 0.1


def right_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    system = LinearQuadraticEnv.system()
    return system.reward(obs.to(system.A), actions.to(system.A))


@pytest.mark.slow
def test_mpg_recovers_from_a_prior_that_misleads() -> None:
    """The model's gradient alone ends where the wrong model is right; MPG begins there and ends at the optimum."""
    prior = {
        "world_model_class": "analytic",
        "world_model_kwargs": {"transition_fn": wrong_step, "reward_fn": right_reward},
    }
    model_alone = make_agent(DVG, prior, horizon=25).learn(2000)
    assert cost_of(model_alone) > 1.1 * optimal_cost()
    mixed = make_agent(MPG, prior, horizons=(0, 25), weighting_updates=1000, policy_delay=1).learn(2000)
    assert cost_of(mixed) < 1.02 * optimal_cost()
