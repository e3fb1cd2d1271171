"""MVE, TD-k and STEVE inside the algorithms, against the same thing written out with loops."""

import inspect
from typing import Any

import pytest
import torch as th
from small_models import draw, seeded, with_model
from tiny import tiny

from sb3_valuegrad import DVPG, MAAC, MVE
from sb3_valuegrad.algorithms.targets import Evaluation, steve_value
from sb3_valuegrad.returns import steve_weights
from sb3_valuegrad.world_models import WorldModel

QUIET = {"target_policy_noise": 0.0, "model_validation_fraction": 0.0}
ENSEMBLE = {"world_model_class": "ensemble", "world_model_kwargs": {"net_arch": [16], "n_members": 3, "n_elites": 2,
            "deterministic": True}}  # fmt: skip
REAL_ONLY = {"model_fit_freq": None, "real_ratio": 1.0, "target_horizon": 0, "target_estimator": "td"}


def target_q(agent: Any, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return th.stack([value[:, 0] for value in agent.critic_target(obs, actions)])


def expansion(agent: Any, step: Any, obs: th.Tensor, horizon: int) -> th.Tensor:
    """J_H under the target actor and the smallest target critic, written out."""
    total, alive = th.zeros(len(obs)), th.ones(len(obs))
    for time in range(horizon):
        action = agent.actor_target(obs)
        obs, reward, done = step(obs, action)
        total, alive = total + agent.gamma**time * alive * reward, alive * (1 - done)
    return total + agent.gamma**horizon * alive * target_q(agent, obs, agent.actor_target(obs)).amin(0)


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_mve_target(horizon: int) -> None:
    """Under any actor: here DVPG's."""
    agent = with_model(DVPG, target_estimator="mve", target_horizon=horizon, **QUIET)
    batch = draw(agent)
    expected = expansion(agent, agent.world_model.step, batch.next_observations, horizon)
    th.testing.assert_close(agent._next_value(batch)[:, 0], expected, rtol=1e-5, atol=1e-5)
    if horizon == 0:
        plain = with_model(DVPG, **QUIET)
        assert th.equal(agent._critic_loss(batch)[0], plain._critic_loss(batch)[0])


def td_k_loss(agent: Any, batch: Any, horizon: int) -> th.Tensor:
    """MVE, Algorithm 1, row by row and time by time."""
    gamma, rows, total = agent.gamma, len(batch.actions), th.zeros(())
    for row in range(rows):
        obs, ended = batch.next_observations[row : row + 1], batch.dones[row, 0]
        states, actions, rewards, dones = [], [], [], []
        for _ in range(horizon):
            action = agent.actor_target(obs)
            step = agent.world_model.step(obs, action)
            states.append(obs)
            actions.append(action)
            rewards.append(step.reward[0])
            dones.append(step.done[0])
            obs = step.next_obs
        y = target_q(agent, obs, agent.actor_target(obs)).amin(0)[0]
        alive = [th.ones(())]
        for done in dones:
            alive.append(alive[-1] * (1 - done))
        for time in reversed(range(horizon)):
            y = rewards[time] + gamma * (1 - dones[time]) * y
            for value in agent.critic(states[time], actions[time]):
                total = total + (1 - ended) * alive[time] * (value[0, 0] - y.detach()).square()
        y = batch.rewards[row, 0] + (1 - ended) * gamma * y
        for value in agent.critic(batch.observations[row : row + 1], batch.actions[row : row + 1]):
            total = total + (value[0, 0] - y.detach()).square()
    return total / (rows * (horizon + 1))


@pytest.mark.parametrize("horizon", [1, 3])
def test_td_k_loss(horizon: int) -> None:
    agent = with_model(MVE, horizon=horizon, imagined_action_noise=0.0, model_validation_fraction=0.0)
    batch = draw(agent, size=32)
    assert batch.dones.sum() > 0  # a real end: what is imagined after it must not count
    loss, expected = agent._critic_loss(batch)[0], td_k_loss(agent, batch, horizon)
    th.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    parameters = list(agent.critic.parameters())
    th.testing.assert_close(th.autograd.grad(loss, parameters), th.autograd.grad(expected, parameters), rtol=1e-3, atol=1e-4)


def test_without_td_k_only_the_real_transition_counts() -> None:
    agent = with_model(MVE, horizon=3, td_k=False, imagined_action_noise=0.0, model_validation_fraction=0.0)
    batch = draw(agent)
    value = expansion(agent, agent.world_model.step, batch.next_observations, 3)
    target = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * agent.gamma * value
    predicted = agent.critic(batch.observations, batch.actions)
    expected = sum(((q[:, 0] - target.detach()) ** 2).mean() for q in predicted)
    th.testing.assert_close(agent._critic_loss(batch)[0], expected, rtol=1e-4, atol=1e-5)


class Member:
    """One elite of an ensemble, alone."""

    def __init__(self, model: WorldModel, index: int):
        self.model, self.index = model, index

    def __call__(self, obs: th.Tensor, actions: th.Tensor) -> Any:
        return type(self.model.step(obs, actions))(*(p[self.index] for p in self.model.member_predictions(obs, actions)))


@pytest.mark.parametrize("horizon", [0, 2])
@pytest.mark.parametrize("estimator", ["steve", "steve-crossed"])
def test_steve_target(estimator: str, horizon: int) -> None:
    """Every combination of states' member, its rewards (crossed: any member's) and critic is one estimate of each J_k; the
    smaller critic's are averaged, all of them say how certain they are."""
    agent = with_model(DVPG, target_estimator=estimator, target_horizon=horizon, policy_kwargs=ENSEMBLE, batch_size=8, **QUIET)
    model, batch, gamma = agent.world_model, draw(agent, size=8), agent.gamma
    members = [Member(model, index) for index in range(2)]
    estimates: list[list[th.Tensor]] = [[] for _ in range(horizon + 1)]
    with th.no_grad():
        for of_states in members:
            for of_rewards in members if estimator == "steve-crossed" else [of_states]:
                for critic in range(2):
                    obs, total, alive = batch.next_observations, th.zeros(8), th.ones(8)
                    for time in range(horizon + 1):
                        action = agent.actor_target(obs)
                        value = target_q(agent, obs, action)[critic]
                        estimates[time].append(total + gamma**time * alive * value)
                        reward = of_rewards(obs, action).reward
                        obs, _, done = of_states(obs, action)
                        total, alive = total + gamma**time * alive * reward, alive * (1 - done)
        expansions = th.stack([th.stack(of_time) for of_time in estimates])
        smaller = expansions.unflatten(1, (-1, 2)).amin(2)  # the critics took turns
        weights = steve_weights(expansions.var(1, correction=0))
        expected = (weights * smaller.mean(1)).sum(0)
        th.testing.assert_close(agent._next_value(batch)[:, 0], expected, rtol=1e-4, atol=1e-4)


def with_steve(algorithm: Any, target_horizon: int) -> Any:
    """Of either family, with an ensemble."""
    settings = {**QUIET, "target_estimator": "steve", "target_horizon": target_horizon, "policy_kwargs": ENSEMBLE}
    settings = settings if algorithm is DVPG else {**REAL_ONLY, **settings, "horizon": 0}
    settings.pop("target_policy_noise" if algorithm is MAAC else "", None)
    return with_model(algorithm, **settings)


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
def test_steve_asks_policy_and_critics_once_about_the_state_that_is_given(algorithm: Any) -> None:
    """All members start there: no more can be learned of it. A stochastic policy's one action serves them all, too."""
    agent = with_steve(algorithm, target_horizon=2)
    seen: dict[str, list[th.Tensor]] = {"policy": [], "values": []}
    evaluation = agent._evaluation()

    def policy(obs: th.Tensor) -> Any:
        seen["policy"].append(obs)
        return evaluation.policy(obs)

    def values(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        seen["values"].append(obs)
        return evaluation.values(obs, actions)

    obs = draw(agent).next_observations
    with th.no_grad():
        steve_value(agent.world_model, Evaluation(policy, values, evaluation.alpha), obs, 2, agent.gamma)
    for given in seen.values():
        assert sum(len(rows) for rows in given) == 5 * len(obs)  # once, and two members at two later times
        assert th.equal(given[0], obs)


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
def test_steve_without_a_horizon_is_the_one_step_target(algorithm: Any) -> None:
    """Clipped double Q, and with it SAC's and TD3's own."""
    agent = with_steve(algorithm, target_horizon=0)
    batch = draw(agent)
    values = []
    for estimator in ("steve", "td"):
        agent.target_estimator = estimator
        th.manual_seed(0)
        values.append(agent._next_value(batch))
    th.testing.assert_close(values[0], values[1].detach(), rtol=1e-6, atol=1e-6)


def test_steve_with_one_member_and_one_critic_is_mve() -> None:
    single = {"world_model_kwargs": {"net_arch": [16]}, "n_critics": 1}
    agents = [with_model(DVPG, target_estimator=name, target_horizon=3, policy_kwargs=single, **QUIET)
              for name in ("steve", "mve")]  # fmt: skip
    batch = draw(agents[0])
    th.testing.assert_close(agents[0]._next_value(batch), agents[1]._next_value(batch), rtol=1e-6, atol=1e-6)


def test_a_soft_policy_is_worth_its_entropy_along_the_way() -> None:
    agent = with_model(MAAC, horizon=0, **{**REAL_ONLY, "target_estimator": "mve", "target_horizon": 2},
                       ent_coef=0.3, model_validation_fraction=0.1, policy_kwargs={"world_model_class": "mlp"})  # fmt: skip
    batch, gamma = draw(agent), agent.gamma
    with seeded(2), th.no_grad():
        value = agent._next_value(batch)[:, 0]
    with seeded(2), th.no_grad():
        obs, total, alive = batch.next_observations, th.zeros(32), th.ones(32)
        for time in range(3):
            action, log_prob = agent.actor.action_log_prob(obs)
            if time == 2:
                total = total + gamma**2 * alive * (target_q(agent, obs, action).amin(0) - 0.3 * log_prob)
                break
            step = agent.world_model.step(obs, action)
            total = total + gamma**time * alive * (step.reward - 0.3 * log_prob)
            obs, alive = step.next_obs, alive * (1 - step.done)
    th.testing.assert_close(value, total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["mve", "td-k", "steve"])
def test_only_the_critic_receives_gradient(estimator: str) -> None:
    agent = with_model(DVPG, target_estimator=estimator, target_horizon=2, policy_kwargs=ENSEMBLE)
    agent._critic_loss(draw(agent))[0].backward()
    assert all(parameter.grad is not None for parameter in agent.critic.parameters())
    for network in (agent.actor, agent.actor_target, agent.critic_target, agent.world_model):
        assert all(parameter.grad is None for parameter in network.parameters())


def test_an_untrained_model_is_not_asked() -> None:
    agent = with_model(MVE, horizon=3, imagined_action_noise=0.0, model_validation_fraction=0.0)
    plain = with_model(MVE, horizon=0, imagined_action_noise=0.0, model_validation_fraction=0.0)
    batch = draw(agent)
    agent._n_model_updates = 0
    assert th.equal(agent._critic_loss(batch)[0], plain._critic_loss(batch)[0])


def test_mve_derives_its_target_whenever_it_is_set_up(tmp_path: Any) -> None:
    """Also of a model that is loaded with other arguments, as RL Zoo's continued training does."""
    model = tiny(algorithm=MVE, horizon=3)
    assert (model.target_estimator, model.target_horizon, model.target_policy_noise) == ("td-k", 3, 0.2)
    model.save(tmp_path / "model")
    loaded: Any = MVE.load(tmp_path / "model", horizon=4, td_k=False, imagined_action_noise=0.1)
    assert (loaded.target_estimator, loaded.target_horizon, loaded.target_policy_noise) == ("mve", 4, 0.1)
    assert not tiny(algorithm=MVE, horizon=0)._needs_model()
    with pytest.raises(ValueError, match=r"target_policy_noise=0.3 follows from .* imagined_action_noise"):
        tiny(algorithm=MVE, target_policy_noise=0.3)
    assert not set(MVE.derived_arguments) & set(inspect.signature(MVE).parameters)
