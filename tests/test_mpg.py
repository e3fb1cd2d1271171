"""MPG: the rule's weights, the mixed gradient against closed forms and finite differences, its settings, bad input."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from lqr import LinearQuadraticEnv, Truth, make_gain, make_system, start_states, wrong_critic
from small_models import draw, make, with_model
from test_value_expansions import gradient, same
from tiny import PointEnv, snapshot, tiny
from tiny import same as same_tensors
from torch import nn

from sb3_valuegrad import DVG, MPG
from sb3_valuegrad.diagnostics.linear_quadratic import LinearQuadratic
from sb3_valuegrad.weights import rule_lambda, rule_weights
from sb3_valuegrad.world_models import AnalyticWorldModel

# ---------------------------------------------------------------- eq. 10


@pytest.mark.parametrize(
    ("lambda_", "weight", "digits"), [(0.9, 0.999998, 6), (0.95, 0.931, 3), (1.0, 0.5, 15), (1.05, 0.069, 3), (1.1, 2e-6, 6)]
)
def test_weights_at_the_papers_setting(lambda_: float, weight: float, digits: int) -> None:
    """eta = 0.1, H = 25: the weight of J_H."""
    of_data, of_model = rule_weights((0, 25), lambda_).tolist()
    assert of_model == pytest.approx(weight, abs=0.5 * 10**-digits) and of_data + of_model == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("lambda_", [0.85, 0.93, 0.99, 1.0, 1.01, 1.07, 1.15])
@pytest.mark.parametrize("horizons", [(0,), (0, 25), (3, 0, 7), (0, 1, 2, 3, 4)])
def test_weights_are_the_formula_written_out(horizons: tuple[int, ...], lambda_: float) -> None:
    """For any set of horizons, in any order (App. C-A)."""
    errors = [lambda_**i if lambda_ <= 1 else (2 - lambda_) ** (max(horizons) - i) for i in horizons]
    exponentials = [math.exp(1 / error) for error in errors]
    expected = [value / sum(exponentials) for value in exponentials]
    assert rule_weights(horizons, lambda_).tolist() == pytest.approx(expected, abs=1e-14)


def test_the_rule_is_symmetric_and_turns_from_the_model_to_the_data() -> None:
    halves = [rule_weights((0, 10), lambda_) for lambda_ in (0.85, 1.15)]
    same(halves[0], halves[1].flip(0), 1e-12)
    of_model = [rule_weights((0, 10), rule_lambda(0.1, part / 20))[1].item() for part in range(21)]
    assert of_model == sorted(of_model, reverse=True) and of_model[0] > 0.8 and of_model[-1] < 0.2


def test_huge_inverse_errors_are_still_weights() -> None:
    for lambda_ in (1e-12, 2 - 1e-12):
        weights = rule_weights((0, 100), lambda_)
        assert weights.tolist() == ([0.0, 1.0] if lambda_ < 1 else [1.0, 0.0])


def test_lambda_goes_from_one_minus_to_one_plus_eta_and_stays() -> None:
    values = [rule_lambda(0.2, progress) for progress in (0.0, 0.25, 0.5, 1.0, 5.0)]
    assert values == pytest.approx([0.8, 0.9, 1.0, 1.2, 1.2])


# ---------------------------------------------------------------- the gradient

SYSTEM, GAMMA = make_system(0.95), 0.95


def step_of(system: LinearQuadratic, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return system.transition(obs.to(system.A), actions.to(system.A))[0]


def reward_of(system: LinearQuadratic, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return system.reward(obs.to(system.A), actions.to(system.A))


def prior_of(system: LinearQuadratic) -> AnalyticWorldModel:
    states, actions = system.B.shape
    return AnalyticWorldModel(states, actions, partial(step_of, system), partial(reward_of, system)).double()


def test_an_exact_prior_and_a_long_horizon_give_the_closed_form() -> None:
    """At the rule's start, whatever the critic says: J_H's gradient is ``grad pi grad_a Q^pi``, up to gamma^H."""
    K, obs = make_gain(), start_states()
    weights = dict(zip((0, 400), rule_weights((0, 400), 0.9).tolist(), strict=True))
    mixed = gradient(prior_of(SYSTEM), wrong_critic, K, obs, GAMMA, weights)
    same(mixed, Truth(SYSTEM, K).D(obs), 1e-7)
    # A shorter one leaves the critic its say.
    short = gradient(prior_of(SYSTEM), wrong_critic, K, obs, GAMMA, {5: 1.0})
    assert (short - mixed).norm() > 0.01 * mixed.norm()


@pytest.mark.parametrize("lambda_", [0.9, 0.98, 1.0, 1.06, 1.1])
def test_an_exact_prior_and_critic_give_the_closed_form_at_any_weights(lambda_: float) -> None:
    K, obs = make_gain(), start_states()
    weights = dict(zip((0, 3, 25), rule_weights((0, 3, 25), lambda_).tolist(), strict=True))
    truth = Truth(SYSTEM, K)
    same(gradient(prior_of(SYSTEM), truth.Q, K, obs, GAMMA, weights), truth.D(obs))


def linear_agent(gain: th.Tensor, algorithm: Any = MPG, **kwargs: Any) -> Any:
    """An agent on the small linear-quadratic task with the task itself as prior, and a policy that is linear."""
    system = LinearQuadraticEnv.system()
    model = {"transition_fn": partial(step_of, system), "reward_fn": partial(reward_of, system)}
    policy_kwargs = {"net_arch": [16], "world_model_class": "analytic", "world_model_kwargs": model}
    agent = tiny(LinearQuadraticEnv(), algorithm, gamma=system.gamma, policy_kwargs=policy_kwargs, **kwargs)
    agent.actor.mu = nn.Sequential(nn.Linear(2, 1, bias=False))
    agent.actor.mu[0].weight.data = gain.float()
    agent._create_aliases()
    return agent


def gain_gradient(agent: Any, obs: th.Tensor) -> th.Tensor:
    (found,) = th.autograd.grad(agent._objective(obs.float(), agent._expansion_weights())[0], agent.actor.mu[0].weight)
    return found.double()


def test_the_algorithms_own_gradient_is_the_closed_form() -> None:
    """Through MPG itself, its networks and its float32: an exact prior, H large, a critic that knows nothing."""
    gain, obs = th.tensor([[-0.3, -0.5]], dtype=th.float64), start_states(20, 2)
    agent = linear_agent(gain, horizons=(0, 150))
    expected = Truth(LinearQuadraticEnv.system(), gain).D(obs)
    assert (gain_gradient(agent, obs) - expected).norm() < 1e-4 * expected.norm()
    agent._n_updates = agent.weighting_updates  # the rule's end: the critic, which knows nothing
    assert (gain_gradient(agent, obs) - expected).norm() > 0.1 * expected.norm()


def test_n_step_adps_gradient_is_the_discounted_sum() -> None:
    """F3 as corrected, through the algorithms: the all-action gradient is ``sum_{k<=H} gamma^k`` times the first-action
    gradient of J_{H-k} from s_k, the terminal action's term included."""
    gain, obs, horizon = th.tensor([[-0.3, -0.5]], dtype=th.float64), start_states(20, 2), 4
    adp = linear_agent(gain, DVG, horizon=horizon, gradient_path="all-actions")
    truth, total = Truth(LinearQuadraticEnv.system(), gain), th.zeros(1, 2, dtype=th.float64)
    for k in range(horizon + 1):
        dvg = linear_agent(gain, DVG, horizon=horizon - k)
        dvg.critic.load_state_dict(adp.critic.state_dict())
        part = adp.gamma**k * gain_gradient(dvg, truth.states(obs, k))
        total += part
    found = gain_gradient(adp, obs)
    assert (found - total).norm() < 1e-4 * total.norm()
    assert (found - (total - part)).norm() > 1e-3 * total.norm()  # what Theorem 1 prints


def test_v1_learns_from_n_step_returns() -> None:
    """Eq. 11, first line: ``sum_{l<n} gamma^l r + gamma^n Q'(s_n, mu'(s_n))``."""
    agent = tiny(algorithm=MPG, n_steps=3, gamma=0.9, target_policy_noise=0.0, policy_kwargs={"n_critics": 1}).learn(40)
    batch = draw(agent, 64)
    with th.no_grad():
        next_value = agent.critic_target(batch.next_observations, agent.actor_target(batch.next_observations))[0]
        target = agent._backup(batch, agent._next_value(batch))
        value = agent.critic(batch.observations, batch.actions)[0]
    assert batch.discounts is not None and th.isclose(batch.discounts, th.tensor(0.9**3)).any()
    th.testing.assert_close(target, batch.rewards + (1 - batch.dones) * batch.discounts * next_value)
    loss = agent._critic_loss(batch)[0]
    th.testing.assert_close(loss, (value - target).square().mean())


def test_v2_learns_from_the_smaller_critic() -> None:
    """Eq. 11, second line; that it is SB3's TD3 with ``horizons=(0,)`` is in test_identities.py."""
    agent = tiny(algorithm=MPG, target_policy_noise=0.0).learn(40)
    batch = draw(agent, 64)
    with th.no_grad():
        values = agent.critic_target(batch.next_observations, agent.actor_target(batch.next_observations))
        target = agent._backup(batch, agent._next_value(batch))
    assert len(values) == 2 and not th.equal(*values)
    expected = batch.rewards + (1 - batch.dones) * agent.gamma * th.minimum(*values)
    th.testing.assert_close(target, expected)


# ---------------------------------------------------------------- the schedule


def test_weights_follow_the_critics_updates_and_survive_saving(tmp_path: Path) -> None:
    agent = tiny(algorithm=MPG, horizons=(0, 3), eta=0.5, weighting_updates=40, min_weight=0.0).learn(40)
    assert agent._n_updates == 20
    expected = rule_weights((0, 3), 1.0).tolist()
    assert list(agent._expansion_weights().values()) == pytest.approx(expected)
    assert agent.logger.name_to_value["train/weight_J3"] == pytest.approx(0.5)
    agent.save(tmp_path / "model")
    loaded = MPG.load(tmp_path / "model", env=PointEnv())
    assert loaded._expansion_weights() == agent._expansion_weights()
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded._n_updates > 60
    assert list(loaded._expansion_weights().values()) == pytest.approx(rule_weights((0, 3), 1.5).tolist())
    assert loaded.logger.name_to_value["train/weight_J0"] > 0.99


def test_what_weighs_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = with_model(MPG, horizons=(0, 25), eta=0.2)
    steps: list[int] = []
    transition = agent.world_model.transition

    def counted(*args: Any) -> Any:
        steps.append(1)
        return transition(*args)

    monkeypatch.setattr(agent.world_model, "transition", counted)
    for updates, kept in ((0, [25]), (agent.weighting_updates // 2, [0, 25]), (agent.weighting_updates, [0])):
        agent._n_updates = updates
        steps.clear()
        logged = agent._actor_loss(draw(agent))[1]
        assert sorted(agent._expansion_weights()) == kept and len(steps) == max(kept)
        assert {name for name in logged if name.startswith("J")} == {f"J{i}" for i in kept}
        assert sum(logged[f"share_J{i}"].item() for i in (0, 25)) == pytest.approx(1)
        assert (logged["weight_J25"] > 0) == (25 in kept) and agent._needs_model()
    agent.min_weight = 0.0
    assert sorted(agent._expansion_weights()) == [0, 25]


def test_shares_are_of_the_weighted_values() -> None:
    agent = with_model(MPG, horizons=(0, 2, 5), weighting_updates=10)
    agent._n_updates = 4
    loss, logged = agent._actor_loss(draw(agent))
    weights = agent._expansion_weights()
    parts = {i: weights[i] * logged[f"J{i}"] for i in (0, 2, 5)}
    assert -loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-4)
    total = sum(part.abs() for part in parts.values())
    for i, part in parts.items():
        assert logged[f"share_J{i}"].item() == pytest.approx((part.abs() / total).item(), rel=1e-5)
        assert logged[f"weight_J{i}"].item() == pytest.approx(weights[i], rel=1e-6)


def test_logged_names_are_short_enough_and_written() -> None:
    agent = tiny(algorithm=MPG, horizons=(0, 2), max_grad_norm=3.0).learn(40)
    names = {"weight_J0", "weight_J2", "share_J0", "share_J2", "J0", "J2", "actor_grad_norm", "learning_rate"}
    assert {f"train/{name}" for name in names} <= agent.logger.name_to_value.keys()


def test_the_policy_is_delayed_by_two_unless_told_otherwise() -> None:
    assert make(MPG).policy_delay == 2 and make(MPG, policy_delay=3).policy_delay == 3


def test_both_learning_rates_take_schedules() -> None:
    """Linear, as the paper's, from one rate to another."""

    def linear(first: float, last: float) -> Any:
        return lambda left: last + left * (first - last)

    agent = tiny(algorithm=MPG, learning_rate=linear(3e-4, 3e-6), qf_learning_rate=linear(8e-4, 8e-6))
    agent.learn(100)
    for network, last in ((agent.actor, 3e-6), (agent.critic, 8e-6)):
        assert network.optimizer.param_groups[0]["lr"] == pytest.approx(last)


# ---------------------------------------------------------------- bad input

BAD: list[tuple[dict[str, Any], str]] = [
    ({"horizons": (5, 25)}, r"horizons=\(5, 25\) must be.*with 0.*among them: \[0, 5, 25\]"),
    ({"horizons": ()}, r"horizons=\(\) must be.*\[0\]"),
    ({"horizons": (0, -3)}, r"horizons=\(0, -3\) must be.*-3 is no number of steps"),
    ({"horizons": (0, 2.5)}, r"horizons=\(0, 2.5\).*2.5 is no number of steps"),
    ({"horizons": (0, 4, 4)}, r"horizons=\(0, 4, 4\).*different.*\[0, 4\]"),
    ({"horizons": 25}, r"horizons=25 must be a list or tuple.*such as \(0, 25\)"),
    ({"eta": 0.0}, "eta=0.0 must be between 0 and 1"),
    ({"eta": 1.0}, "eta=1.0 must be between 0 and 1"),
    ({"eta": float("nan")}, "eta=nan must be between 0 and 1"),
    ({"weighting_updates": 0}, "weighting_updates=0 must be a whole number of at least 1"),
    ({"weighting": "magic"}, "weighting='magic' is unknown; use one of"),
    ({"min_weight": 0.5}, r"min_weight=0.5 must be in \[0, 1 / 2\)"),
    ({"horizon": 25}, r"horizon=25.*horizons=\(0, 25\)"),
    ({"gradient_path": "both"}, "gradient_path='both' is unknown; use one of"),
    ({"n_samples": 0}, "n_samples=0 must be a whole number of at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        MPG("MlpPolicy", PointEnv(), **arguments)


def test_lists_from_yaml_and_files_are_horizons_too(tmp_path: Path) -> None:
    agent = tiny(algorithm=MPG, horizons=[0, 1, 2]).learn(30)
    agent.save(tmp_path / "model")
    loaded = MPG.load(tmp_path / "model")
    assert list(loaded.horizons) == [0, 1, 2] and loaded.horizon == 2
    assert same_tensors(snapshot(loaded), snapshot(agent))
    obs = np.ones((5, 2), dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(obs)[0], agent.predict(obs)[0])
