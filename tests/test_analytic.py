"""World models that are given as torch functions: exact, in the environment's units, refused before training if unsound."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from lqr import Truth, WrongModel, make_gain, make_system, start_states, wrong_critic
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_value_expansions import gradient, same
from tiny import PointEnv, snapshot, tiny
from tiny import same as same_tensors
from torch import nn

from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MVE
from sb3_valuegrad.planning import CrossEntropyPlanner
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.world_models import AnalyticWorldModel

Kwargs = dict[str, Any]


def move(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """:class:`PointEnv`, in its own units; rows or one state."""
    return obs + 0.1 * actions


def distance(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -next_obs.square().sum(-1)


def far_off(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return next_obs.norm(dim=-1) > 1.0


POINT: Kwargs = {"transition_fn": move, "reward_fn": distance}


def agent(algorithm: Any = DVPG, env: Any = None, model: Kwargs = POINT, **kwargs: Any) -> Any:
    policy_kwargs = {"net_arch": [16], "world_model_class": "analytic", "world_model_kwargs": model}
    return tiny(env, algorithm, policy_kwargs=policy_kwargs, **kwargs)


# ---------------------------------------------------------------- exact

SYSTEM, GAMMA = make_system(0.95), 0.95
LOW, HIGH = th.tensor([-0.5, -2.0], dtype=th.float64), th.tensor([1.5, 1.0], dtype=th.float64)


def system_step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return SYSTEM.transition(obs, actions)[0]


def system_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return SYSTEM.reward(obs, actions)


def exact_model(**kwargs: Any) -> AnalyticWorldModel:
    return AnalyticWorldModel(3, 2, system_step, system_reward, **kwargs).double()


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("horizon", [0, 1, 5, 25])
def test_gradients_are_the_closed_forms(horizon: int, batched: bool) -> None:
    """F2 and F4, through the world model itself."""
    K, obs, model = make_gain(), start_states(), exact_model(batched=batched)
    truth = Truth(SYSTEM, K)
    same(gradient(model, truth.Q, K, obs, GAMMA, {horizon: 1.0}), truth.D(obs))
    along = th.stack([GAMMA**time * truth.D(truth.states(obs, time)) for time in range(horizon + 1)]).sum(0)
    same(gradient(model, truth.Q, K, obs, GAMMA, {horizon: 1.0}, all_actions=True), along)


def test_actions_are_scaled_to_the_environments_units() -> None:
    def policy(states: th.Tensor) -> th.Tensor:
        return states @ make_gain().T

    model = exact_model()
    model.set_action_bounds(LOW, HIGH)
    obs = start_states()
    rollout = imagine(model, policy, obs, 3)
    state = obs
    for time in range(3):
        action = LOW + 0.5 * (policy(state) + 1) * (HIGH - LOW)  # as SB3's policies do it
        same(rollout.rewards[time], SYSTEM.reward(state, action))
        state = SYSTEM.transition(state, action)[0]
        same(rollout.obs[time + 1], state)
    assert rollout.endless


def test_the_policy_hands_on_the_environments_bounds() -> None:
    env = PointEnv()
    env.action_space = spaces.Box(*np.array([[-2, 0], [2, 1]], dtype=np.float32))
    step = agent(env=env).world_model.step(th.zeros(2, 2), th.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert th.allclose(step.next_obs, 0.1 * th.tensor([[-2.0, 0.0], [2.0, 1.0]]))


@pytest.mark.parametrize("batched", [True, False])
def test_terminations_are_whether_or_a_chance(batched: bool) -> None:
    obs, actions = th.tensor([[0.0, 0.0], [0.95, 0.0]]), th.ones(2, 2)
    model = AnalyticWorldModel(2, 2, move, distance, far_off, batched=batched)
    assert model.step(obs, actions).done.tolist() == [0.0, 1.0]
    rollout = imagine(model, lambda states: th.ones_like(states), obs, 3)
    assert rollout.alive.T.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]] and not rollout.endless


def test_a_constant_in_float64_does_not_carry_over() -> None:
    def step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return obs + th.tensor([0.1, 0.2], dtype=th.float64) * actions

    with pytest.warns(UserWarning, match="import path"):
        model = AnalyticWorldModel(2, 2, step, distance)
    assert all(part.dtype == th.float32 for part in model.step(th.zeros(3, 2), th.ones(3, 2)))


# ---------------------------------------------------------------- noise


def test_noise_has_the_given_mean_and_spread() -> None:
    model = exact_model(noise_mean=[0.0, 0.5, 0.0], noise_std=[0.0, 0.1, 1.0])
    obs, actions = start_states(1).expand(20_000, -1), th.zeros(20_000, 2, dtype=th.float64)
    with th.random.fork_rng():
        th.manual_seed(0)
        noise = model.transition(obs, actions)[0] - system_step(obs, actions)
    assert th.allclose(noise.mean(0), th.tensor([0.0, 0.5, 0.0], dtype=th.float64), atol=0.02)
    assert th.allclose(noise.std(0), th.tensor([0.0, 0.1, 1.0], dtype=th.float64), atol=0.02)
    # What it expects, as the diagnostics ask for it, is without chance.
    expected = model.member_predictions(obs, actions).next_obs[0] - system_step(obs, actions)
    assert th.allclose(expected, th.tensor([0.0, 0.5, 0.0], dtype=th.float64))


def test_several_samples_are_averaged() -> None:
    """J_1 of a noisy point: the mean over samples of r, and its spread falls with their number."""
    objectives = {}
    for count in (1, 64):
        model = agent(DVG, model={**POINT, "noise_std": 0.5}, horizon=1, n_samples=count)
        with th.random.fork_rng():
            th.manual_seed(1)
            draws = [model._objective(th.zeros(1, 2), {1: 1.0})[0].item() for _ in range(60)]
        objectives[count] = (np.mean(draws), np.std(draws))
    assert objectives[64][1] < 0.25 * objectives[1][1]
    assert abs(objectives[64][0] - objectives[1][0]) < 4 * objectives[1][1] / 60**0.5


# ---------------------------------------------------------------- in every algorithm

TARGETS = [("td", 0), ("mve", 2), ("td-k", 2), ("steve", 2), ("steve-crossed", 1)]
CASES: list[tuple[Any, Kwargs]] = [
    (DVG, {"horizon": 3}),
    (DVG, {"horizon": 2, "gradient_path": "all-actions"}),
    (DVG, {"horizon": 2, "bootstrap": False}),
    (DVG, {"horizon": 0, "fictitious_samples": 8, "fictitious_updates": 2}),
    *[(DVPG, {"horizon": 2, "target_estimator": name, "target_horizon": steps}) for name, steps in TARGETS],
    (DVPG, {"n_steps": 3}),
    (MVE, {"horizon": 2}),
    (MVE, {"horizon": 2, "td_k": False}),
    (MVE, {"horizon": 0, "real_ratio": 0.2, "rollouts_per_step": 4}),
    *[(MAAC, {"target_estimator": name, "target_horizon": steps, "rollouts_per_step": 4}) for name, steps in TARGETS],
    (MBPO, {"horizon": 0, "rollouts_per_step": 4}),
]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("algorithm", "arguments"), CASES)
def test_every_algorithm_learns_with_it(algorithm: Any, arguments: Kwargs, ends: bool) -> None:
    given = {**POINT, "noise_std": [0.0, 0.01], **({"termination_fn": far_off} if ends else {})}
    model = agent(algorithm, model=given, model_validation_fraction=0.5, **arguments)
    before = snapshot(model)
    model.learn(40)
    after = snapshot(model)
    assert not any("world_model.optimizer" in name for name in after)
    names = [name for name in after if name in before and "/actor.mu" in name and name.endswith("weight")]
    assert names and all(not th.equal(before[name], after[name]) for name in names)
    assert all(value.isfinite().all() for value in after.values())


def test_its_error_is_measured_on_real_data() -> None:
    model = agent(model_validation_fraction=0.5).learn(80)
    assert model.model_errors()["model_error_1"] < 1e-5 and model.model_errors()["model_reward_error"] < 1e-5
    wrong = agent(model={**POINT, "noise_mean": 0.3}, model_validation_fraction=0.5).learn(80)
    assert wrong.model_errors()["model_error_1"] > 1


def test_plans_are_made_in_it() -> None:
    planner = CrossEntropyPlanner(agent().learn(30), horizon=2)
    assert planner.predict(np.zeros(2, dtype=np.float32))[0].shape == (2,)


def test_a_network_in_a_functions_place_stays_as_it_is() -> None:
    class Prior(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
            return obs + self.layer(th.cat([obs, actions], dim=-1))

    prior = Prior()
    before = prior.layer.weight.clone()
    model = agent(model={"transition_fn": prior, "reward_fn": distance}).learn(40)
    assert not model.world_model.is_learned and th.equal(model.world_model.transition_fn.layer.weight, before)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("as_path", [False, True])
def test_functions_are_saved_by_their_import_path(as_path: bool, tmp_path: Path) -> None:
    given = {"transition_fn": f"{__name__}:move", "reward_fn": f"{__name__}:distance"} if as_path else POINT
    model = agent(model={**given, "noise_mean": 0.1}).learn(40)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = DVPG.load(tmp_path / "model", env=PointEnv())
    assert same_tensors(snapshot(loaded), snapshot(model))
    policy = type(model.policy).load(tmp_path / "policy")
    obs, actions = th.ones(3, 2), th.ones(3, 2)
    for other in (loaded.world_model, policy.world_model):
        assert other.transition_fn is move and other.reward_fn is distance
        assert th.equal(other.step(obs, actions).next_obs, obs + 0.2 * actions + 0.1)
    loaded.learn(10, reset_num_timesteps=False)


def scaled_move(scale: float, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + scale * actions


def test_functions_that_cannot_be_saved_are_named(tmp_path: Path, recwarn: Any) -> None:
    agent(model={**POINT, "transition_fn": partial(scaled_move, 0.1)})
    assert not [warning for warning in recwarn if "import path" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"(?s)reward_fn=.*lambda.*no import path.*module that can be imported"):
        model = agent(model={**POINT, "reward_fn": lambda obs, actions, next_obs: -next_obs.square().sum(-1)})
    with pytest.raises(ValueError, match=r"policy_kwargs.*import path"):
        model.policy.save(tmp_path / "policy")
    model.save(tmp_path / "model")  # its code
    with pytest.warns(UserWarning, match="no import path"):
        assert same_tensors(snapshot(DVPG.load(tmp_path / "model")), snapshot(model))


# ---------------------------------------------------------------- bad input


def detached(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + 0.1 * actions.detach()


def without_states(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs.detach() + 0.1 * actions


def elsewhere(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return (obs + actions).to("meta")


def too_short(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs[:, :1] + actions[:, :1]


def numpy_step(obs: th.Tensor, actions: th.Tensor) -> Any:
    return obs.detach().numpy() + actions.detach().numpy()


def no_number(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + 0.1 * actions + (actions - 10).log()


def steep(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + actions.abs().sqrt()


def column(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return -next_obs.square().sum(1, keepdim=True)


def constant(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return th.zeros(len(obs))


def missing(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return unknown_name  # type: ignore[name-defined]  # noqa: F821


def certainly(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return 2 + 0 * next_obs[:, 0]


BAD: list[tuple[Kwargs, str]] = [
    ({"transition_fn": detached}, "transition_fn is not differentiable in actions"),
    ({"transition_fn": without_states}, "transition_fn is not differentiable in obs"),
    (
        {"transition_fn": elsewhere},
        "transition_fn, called with .* returned a tensor on 'meta'; make its constants",
    ),
    ({"transition_fn": too_short}, r"transition_fn, called .*shape \(3, 2\), but gave \(3, 1\)"),
    ({"transition_fn": numpy_step}, "transition_fn, called .*raised AttributeError.*torch tensor"),
    ({"transition_fn": no_number}, r"transition_fn, called with .* returned \[nan, nan\] at obs=.*must be finite"),
    ({"transition_fn": steep}, "transition_fn has a gradient in actions that is not finite"),
    ({"transition_fn": missing}, "transition_fn, called .*raised NameError.*unknown_name"),
    ({"reward_fn": column}, r"reward_fn, called .*shape \(3,\), but gave \(3, 1\)"),
    ({"reward_fn": constant}, "reward_fn is not differentiable in obs or actions or next_obs"),
    ({"termination_fn": certainly}, r"termination_fn must return chances in \[0, 1\]"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_unsound_functions_are_refused_before_training(given: Kwargs, message: str) -> None:
    model = agent(model={**POINT, **given})
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        model.learn(40)
    assert model.num_timesteps == 0 and same_tensors(snapshot(model), before)


BAD_ARGUMENTS: list[tuple[Kwargs, str]] = [
    ({"transition_fn": 3}, "transition_fn=3 must be a torch function"),
    ({"transition_fn": "no_colon"}, "transition_fn='no_colon' is no import path"),
    ({"transition_fn": "nowhere.at_all:move"}, "transition_fn='nowhere.at_all:move' is no import path.*nowhere"),
    ({"reward_fn": f"{__name__}:absent"}, "reward_fn=.*absent"),
    ({"reward_fn": f"{__name__}:GAMMA"}, "reward_fn=.*leads to 0.95, which is not a function"),
    ({"noise_std": -1.0}, "noise_std=-1.0 must not be negative"),
    ({"noise_std": [0.1, 0.2, 0.3]}, r"noise_std=\[0.1, 0.2, 0.3\] must be.*a sequence of 2"),
    ({"noise_mean": float("nan")}, "noise_mean=nan must be a finite number"),
]


@pytest.mark.parametrize(("given", "message"), BAD_ARGUMENTS)
def test_bad_arguments(given: Kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalyticWorldModel(2, 2, **{**POINT, **given})


def test_normalised_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"VecNormalize changes.*AnalyticWorldModel"):
        agent(env=VecNormalize(DummyVecEnv([PointEnv]))).learn(30)


def jittery(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return obs + 0.1 * actions + 0.1 * th.randn_like(obs)


def test_the_check_draws_nothing_that_a_run_would_miss() -> None:
    model = agent(model={**POINT, "transition_fn": jittery})
    with th.random.fork_rng():
        state = th.get_rng_state()
        model.world_model.check(th.zeros(1, 2))
        assert th.equal(th.get_rng_state(), state)


def test_the_wrong_model_of_the_other_tests_as_functions() -> None:
    """A nonlinear model that terminates by a chance: the world model adds nothing to it and leaves nothing out."""
    wrong, K, obs = WrongModel.make(), make_gain(), start_states()
    model = AnalyticWorldModel(3, 2, partial(_step_of, wrong), partial(_reward_of, wrong), partial(_done_of, wrong)).double()
    for weights in ({0: 0.3, 4: 0.7}, {5: 1.0}):
        same(gradient(model, wrong_critic, K, obs, GAMMA, weights), gradient(wrong, wrong_critic, K, obs, GAMMA, weights))


def _step_of(model: WrongModel, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    return model.transition(obs, actions)[0]


def _reward_of(model: WrongModel, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return model.outcome(obs, actions, next_obs, model.transition(obs, actions)[1])[0]


def _done_of(model: WrongModel, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> Any:
    return model.outcome(obs, actions, next_obs, model.transition(obs, actions)[1])[1]
