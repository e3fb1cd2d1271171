"""MPG's weights by measured errors: the formula, the measurements against closed forms, and how they are used."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from small_models import draw, with_model
from tiny import PointEnv, same, snapshot, tiny

from sb3_valuegrad import MPG
from sb3_valuegrad.algorithms.measuring import Errors, gradient_variance, measure, value_errors
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.weights import MEASURING, WEIGHTINGS, Evidence, by_rule, by_variance, rule_weights

MEASURED = {"weighting": "variance", "horizons": (0, 2)}


def evidence(**changes: Any) -> Evidence:
    given = Evidence((0, 5, 25), 0.98, 0.1, 0.3, [0.01, 0.02, 0.03], 0.5, 0.1)
    return given._replace(**changes)


# ---------------------------------------------------------------- the formula


def test_weights_are_the_inverse_of_variance_and_squared_bias() -> None:
    bias = [0.98**i * 0.5 + (1 - 0.98**i) * 0.1 for i in (0, 5, 25)]
    certainty = [1 / (variance + part**2) for variance, part in zip([0.01, 0.02, 0.03], bias, strict=True)]
    expected = [part / sum(certainty) for part in certainty]
    assert by_variance(evidence()).tolist() == pytest.approx(expected, abs=1e-14)


def test_a_bad_critic_calls_for_long_horizons_and_a_bad_model_for_none() -> None:
    quiet = [0.0, 0.0, 0.0]
    critic = by_variance(evidence(variance=quiet, td_error=1.0, model_error=0.01)).tolist()
    model = by_variance(evidence(variance=quiet, td_error=0.01, model_error=1.0)).tolist()
    assert critic == sorted(critic) and critic[-1] > 0.5
    assert model == sorted(model, reverse=True) and model[0] > 0.95
    assert by_variance(evidence(variance=quiet, td_error=0.3, model_error=0.3)).tolist() == pytest.approx([1 / 3] * 3)


def test_variance_decides_where_nothing_else_does() -> None:
    weights = by_variance(evidence(variance=[0.01, 0.02, 0.04], td_error=0.0, model_error=0.0)).tolist()
    assert weights == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_errors_of_zero_are_shared_and_give_numbers() -> None:
    weights = by_variance(evidence(variance=[0.0, 0.0, 0.1], td_error=0.0, model_error=0.0))
    assert weights.isfinite().all() and weights.tolist() == pytest.approx([0.5, 0.5, 0.0])


def test_the_rule_goes_by_the_updates_alone() -> None:
    expected = rule_weights((0, 5, 25), 0.9 + 0.2 * 0.3).tolist()
    assert by_rule(evidence(variance=[], td_error=7.0)).tolist() == pytest.approx(expected)
    assert set(WEIGHTINGS) == {"rule", "variance"} and set(MEASURING) < set(WEIGHTINGS)


def test_running_means() -> None:
    blended = Errors([0.0, 1.0], 2.0, 3.0).blended(Errors([1.0, 1.0], 0.0, 5.0), 0.25)
    assert blended == Errors([0.25, 1.0], 1.5, 3.5)


# ---------------------------------------------------------------- measurements


def test_gradient_variance_by_halves_is_the_spread_written_out() -> None:
    agent = with_model(MPG, horizons=(0, 3, 1))
    obs = draw(agent).observations
    means = []
    for k in (0, 3, 1):
        with frozen(agent._other_parameters):
            halves = []
            for half in obs.chunk(2):
                # The derivative in the action: that of the mean objective in a shift of the first action.
                shift = th.zeros(1, requires_grad=True)
                policy = agent._policy
                agent._policy = partial(lambda inner, shift, states: inner(states) + shift, policy, shift)
                agent._frozen_policy = policy
                objective = agent._objective(half, {k: 1.0})[0]
                del agent._policy, agent._frozen_policy
                halves.append(th.autograd.grad(objective, shift)[0])
        means.append(th.stack(halves))
    size = th.stack([pair.mean().square() for pair in means]).mean()
    expected = [((pair[0] - pair[1]) ** 2 / 2 / 2 / size).item() for pair in means]
    assert gradient_variance(agent, obs, [0, 3, 1]).tolist() == pytest.approx(expected, rel=1e-3)


def test_members_that_differ_have_variance_and_equal_ones_have_none() -> None:
    model = {"net_arch": [16], "n_members": 4, "n_elites": 3}
    agent = with_model(MPG, horizons=(0, 3), policy_kwargs={"world_model_class": "ensemble", "world_model_kwargs": model})
    agent.world_model.deterministic = True
    obs = draw(agent).observations
    at_once, far = gradient_variance(agent, obs, [0, 3]).tolist()
    assert at_once < 1e-10 < far  # every member sees the same states, and J_0 asks none
    for parameter in agent.world_model.parameters():
        parameter.data[:] = parameter.data[:1].clone()
    assert gradient_variance(agent, obs, [0, 3]).max() < 1e-10


def move(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + 0.1 * actions


def reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -next_obs.square().sum(-1)


def with_prior(**kwargs: Any) -> Any:
    noise = kwargs.pop("noise_mean", 0.0)
    model = {"transition_fn": move, "reward_fn": reward, "noise_mean": noise}
    policy_kwargs = {"net_arch": [16], "world_model_class": "analytic", "world_model_kwargs": model}
    return tiny(algorithm=MPG, policy_kwargs=policy_kwargs, **{**MEASURED, **kwargs})


def test_an_exact_model_has_no_error_and_a_wrong_one_its_own() -> None:
    right, wrong = with_prior().learn(40), with_prior(noise_mean=0.5).learn(40)
    for agent, low, high in ((right, 0.0, 1e-4), (wrong, 0.1, 1e3)):
        with th.no_grad():
            td_error, model_error = value_errors(agent, agent._sample(64))
        assert low <= model_error < high and td_error > 0.01


def test_td_error_is_the_critics() -> None:
    agent = with_prior(target_policy_noise=0.0).learn(40)
    batch = agent._sample(64)
    with th.no_grad():
        target = agent._backup(batch, agent._next_value(batch))[:, 0]
        estimate = agent.critic(batch.observations, batch.actions)[0][:, 0]
        td_error, _ = value_errors(agent, batch)
    th.testing.assert_close(td_error, (estimate - target).square().mean().sqrt() / target.std())


def test_measuring_trains_nothing_and_leaves_no_gradient() -> None:
    agent = with_prior().learn(40)
    before, flags = snapshot(agent), [parameter.requires_grad for parameter in agent.policy.parameters()]
    measure(agent, agent._sample(64), [0, 2])
    assert same(before, snapshot(agent))
    assert [parameter.requires_grad for parameter in agent.policy.parameters()] == flags
    assert all(parameter.grad is None for parameter in agent.policy.parameters())


# ---------------------------------------------------------------- in the algorithm


def test_weights_follow_the_measurements_and_survive_saving(tmp_path: Path) -> None:
    agent = with_prior(measure_freq=10, policy_delay=1).learn(60)
    assert agent._n_updates == 40 and agent._measured_at == 31
    expected = by_variance(Evidence((0, 2), agent.gamma, agent.eta, 0.0, *agent._errors)).tolist()
    assert list(agent._weights().values()) == pytest.approx(expected)
    logged = agent.logger.name_to_value
    assert logged["train/weight_J2"] == pytest.approx(expected[1], rel=1e-5)
    assert {"train/variance_J0", "train/variance_J2", "train/td_error", "train/model_value_error"} <= logged.keys()
    agent.save(tmp_path / "model")
    loaded = MPG.load(tmp_path / "model", env=PointEnv())
    assert loaded._weights() == agent._weights()
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded._measured_at > 40
    other = MPG.load(tmp_path / "model", env=PointEnv(), horizons=(0, 1, 2))
    assert other._errors is None
    other.learn(30)
    assert other._errors is not None and len(other._errors[0]) == 3


@pytest.mark.parametrize("arguments", [{}, {"gradient_path": "all-actions"}, {"n_steps": 3}, {"n_samples": 2}])
def test_learned_models_are_measured_too(arguments: dict[str, Any]) -> None:
    agent = tiny(algorithm=MPG, **MEASURED, **arguments, measure_freq=5).learn(60)
    assert agent._errors is not None and np.isfinite([*agent._errors[0], *agent._errors[1:]]).all()
    assert sum(agent._weights().values()) == pytest.approx(1)


def test_before_the_model_has_learned_nothing_is_measured() -> None:
    agent = tiny(algorithm=MPG, **MEASURED, model_learning_starts=1000).learn(60)
    assert agent._errors is None and agent._expansion_weights() == {0: 1.0}
    assert agent.logger.name_to_value["train/weight_J0"] == 1.0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="measure_freq=0 must be a whole number of at least 1"):
        tiny(algorithm=MPG, measure_freq=0)
