"""Planning: exact on a linear-quadratic system, then SB3's interface, then every algorithm and world model."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from lqr import LinearQuadraticEnv, Truth
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, same, snapshot, tiny
from torch import nn

from sb3_valuegrad import DVG, DVPG, MAAC, MVE, CrossEntropyPlanner
from sb3_valuegrad.planning import imagined_plans
from sb3_valuegrad.planning import planner as planner_module
from sb3_valuegrad.planning.cross_entropy import best, cross_entropy, open_loop
from sb3_valuegrad.planning.imagined_plans import ImaginedPlans
from sb3_valuegrad.policies import DeterministicPolicy
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.world_models import GaussianEnsemble, WorldModel

SYSTEM = LinearQuadraticEnv.system()
GAIN = th.tensor([[0.3, -0.2]], dtype=th.float64)  # stabilising, and it steers the wrong way first
TRUTH = Truth(SYSTEM, GAIN)


class Lqr(WorldModel):
    """The system itself, with nothing to fit."""

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        return SYSTEM.transition(obs.double(), actions.double())[0].float(), None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, None]:
        return SYSTEM.reward(obs.double(), actions.double()).float(), None

    def losses(self, data: Any) -> dict[str, th.Tensor]:
        raise AssertionError("there is nothing to fit")


class LinearPolicy(DeterministicPolicy):
    """``a = K s``."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return observation @ GAIN.float().T


class KnownValues(DVG):
    """Critics that say what :data:`GAIN` is worth: the second one exactly, the first more than that."""

    def _values(self, critic: Any, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        values = TRUTH.Q(obs.double(), actions.double()).float()
        return th.stack([values + 1, values])


def known(**kwargs: Any) -> Any:
    policy_kwargs = {"net_arch": [4], "world_model_class": Lqr, "world_model_kwargs": {}}
    return tiny(
        LinearQuadraticEnv(), KnownValues, policy=LinearPolicy, policy_kwargs=policy_kwargs, gamma=SYSTEM.gamma, **kwargs
    )


def states(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.7, 0.7, (count, 2)).astype(np.float32)


def optimal(obs: np.ndarray, horizon: int) -> th.Tensor:
    """The optimal actions (H, N, A) before :data:`GAIN` takes over: the Riccati recursion, backwards from its value."""
    A, B, M, R, gamma = SYSTEM.A, SYSTEM.B, SYSTEM.M, SYSTEM.R, SYSTEM.gamma
    P, gains = TRUTH.P, []
    for _ in range(horizon):
        K = -th.linalg.solve(R + gamma * B.T @ P @ B, gamma * B.T @ P @ A)
        P = M + K.T @ R @ K + gamma * (A + B @ K).T @ P @ (A + B @ K)
        gains.append(K)
    state, actions = th.from_numpy(obs).double(), []
    for K in reversed(gains):
        actions.append(state @ K.T)
        state, _ = SYSTEM.transition(state, actions[-1])
    return th.stack(actions)


def true_worth(obs: np.ndarray, plans: th.Tensor) -> th.Tensor:
    """J_H with the true value, step by step, (N,)."""
    state, total = th.from_numpy(obs).double(), th.zeros(len(obs), dtype=th.float64)
    for t, action in enumerate(plans.double()):
        total += SYSTEM.gamma**t * SYSTEM.reward(state, action)
        state, _ = SYSTEM.transition(state, action)
    return total + SYSTEM.gamma ** len(plans) * TRUTH.V(state)


def own_plans(obs: np.ndarray, horizon: int) -> th.Tensor:
    """What :data:`GAIN` does, (H, N, A)."""
    return th.stack([TRUTH.states(th.from_numpy(obs).double(), t) @ GAIN.T for t in range(horizon)])


def whole_plan(actions: np.ndarray, state: Any) -> th.Tensor:
    """The plan from what ``predict`` returned, (H, N, A)."""
    return th.from_numpy(np.concatenate([actions[:, None], state[0]], axis=1)).transpose(0, 1)


# ---------------------------------------------------------------- the method


def test_an_open_loop_policy_walks_its_plan_and_then_follows_the_policy() -> None:
    plans, obs = th.linspace(-1, 1, 6).view(3, 2, 1), th.from_numpy(states(2))
    rollout = imagine(Lqr(2, 1), open_loop(plans, lambda state: state[:, :1]), obs, 4)
    assert th.equal(rollout.actions[:3], plans)
    assert th.equal(rollout.actions[3:], rollout.obs[3:, :, :1])


def test_the_best_come_first_equals_in_order_and_what_is_not_finite_last() -> None:
    plans = th.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 3, 1)
    nan, inf = float("nan"), float("inf")
    scores = th.tensor([[1.0, nan, 0], [5, inf, 0], [3, -2, 0], [4, -1, 0], [2, -inf, 0]])
    chosen = best(plans, scores, 3)
    assert chosen.shape == (3, 2, 3, 1)
    assert chosen[:, 1, :, 0].T.tolist() == [[1, 3, 2], [3, 2, 0], [0, 1, 2]]


def test_the_search_finds_a_maximum_within_the_bounds() -> None:
    peak = th.tensor([0.4, -0.7, 3.0]).view(3, 1, 1).expand(3, 2, 1)
    with th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        mean, std = cross_entropy(
            lambda plans: -(plans - peak).square().sum((1, 3)), th.zeros(3, 2, 1), th.ones(3, 2, 1), 200, 20, 25, 1e-4
        )
    th.testing.assert_close(mean, peak.clamp(-1, 1), atol=1e-3, rtol=0)
    assert (std >= 1e-4).all() and (std < 1e-2).all()


def test_an_iteration_by_hand() -> None:
    tried: list[th.Tensor] = []

    def score(plans: th.Tensor) -> th.Tensor:
        tried.append(plans)
        return plans.sum((1, 3))

    start, std = th.full((2, 1, 1), 0.1), th.full((2, 1, 1), 0.2)
    with th.random.fork_rng(devices=[]):
        mean, end = cross_entropy(score, start, std, n_samples=8, n_elites=3, n_iterations=1, momentum=0.25)
    elites = tried[0][score(tried[0])[:, 0].argsort(descending=True)[:3]]
    th.testing.assert_close(mean, 0.25 * start + 0.75 * elites.mean(0))
    th.testing.assert_close(end, 0.25 * std + 0.75 * elites.std(0, correction=0))


# ---------------------------------------------------------------- exact: a linear-quadratic system


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_the_plan_is_the_riccati_recursions(horizon: int) -> None:
    planner = CrossEntropyPlanner(known(), horizon, n_iterations=25, initial_std=1.0, min_std=0.0, seed=0)
    obs = 0.4 * states(6)  # so that no optimal action is out of bounds
    actions, state = planner.predict(obs)
    plan, truth = whole_plan(actions, state), optimal(obs, horizon)
    assert 0.3 < truth.abs().max() < 1 and (truth - own_plans(obs, horizon)).abs().max() > 0.3
    th.testing.assert_close(plan.double(), truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 2, 50])
def test_no_plan_is_worth_less_than_the_policy(n_samples: int) -> None:
    """However bad the search; and with a value that is exact, the policy's own plan is worth V."""
    obs, planner = states(20), CrossEntropyPlanner(known(), 4, n_samples, n_elites=1, n_iterations=1, seed=1)
    gain = true_worth(obs, whole_plan(*planner.predict(obs))) - true_worth(obs, own_plans(obs, 4))
    th.testing.assert_close(true_worth(obs, own_plans(obs, 4)), TRUTH.V(th.from_numpy(obs).double()))
    assert (gain >= -1e-5).all()
    assert n_samples < 50 or (gain > 0.01).float().mean() > 0.8


def test_worth_is_the_value_expansion_under_the_smallest_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    obs, plans = states(3), 2 * th.rand(5, 4, 3, 1, generator=th.Generator().manual_seed(0)) - 1
    judge = ImaginedPlans(known(), 4, 1)
    truth = th.stack([true_worth(obs, plan) for plan in plans]).float()
    th.testing.assert_close(judge.worth(th.from_numpy(obs), plans), truth, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(imagined_plans, "CHUNK", 4)
    th.testing.assert_close(judge.worth(th.from_numpy(obs), plans), truth, atol=1e-5, rtol=1e-5)


def test_worth_is_a_mean_over_an_ensembles_members() -> None:
    kwargs = {"net_arch": [8], "n_members": 4, "n_elites": 3, "deterministic": True}
    model = tiny(policy_kwargs={"world_model_class": "ensemble", "world_model_kwargs": kwargs}).learn(30)
    ensemble, obs = model.world_model, th.randn(5, 2, generator=th.Generator().manual_seed(0))
    plans = th.rand(2, 3, 5, 2, generator=th.Generator().manual_seed(1))
    with th.no_grad():
        mean = th.stack([_member_worth(model, ensemble, member, obs, plans[1]) for member in range(3)]).mean(0)
        for particles in (1, 2):
            th.testing.assert_close(ImaginedPlans(model, 3, particles).worth(obs, plans)[1], mean)


def _member_worth(model: Any, ensemble: GaussianEnsemble, member: int, obs: th.Tensor, plan: th.Tensor) -> th.Tensor:
    """J_H as one member of an ensemble predicts it, step by step."""
    total, alive = th.zeros(len(obs)), th.ones(len(obs))
    for t, action in enumerate(plan):
        step = ensemble.member_predictions(obs, action)
        total += model.gamma**t * alive * step.reward[member]
        obs, alive = step.next_obs[member], alive * (1 - step.done[member])
    return total + model.gamma ** len(plan) * alive * th.cat(model.critic(obs, model.actor(obs)), dim=1).amin(1)


# ---------------------------------------------------------------- the warm start


def poor(model: Any) -> CrossEntropyPlanner:
    """A planner that searches next to nothing: what it plans is what it began with."""
    return CrossEntropyPlanner(model, 4, n_samples=1, n_elites=1, n_iterations=1, initial_std=1e-6, min_std=0.0, seed=0)


def test_the_earlier_plan_is_shifted_completed_and_kept_where_it_is_better() -> None:
    model, obs = known(), states(5)
    actions, state = CrossEntropyPlanner(model, 4, n_iterations=20, min_std=0.0, seed=0).predict(obs)
    plan = whole_plan(actions, state)
    after = SYSTEM.transition(th.from_numpy(obs).double(), plan[0].double())[0]
    next_obs = after.float().numpy()
    continued = whole_plan(*poor(model).predict(next_obs, state, np.zeros(5, bool)))
    th.testing.assert_close(continued[:3], plan[1:], atol=1e-4, rtol=0)
    for action in plan[1:]:
        after, _ = SYSTEM.transition(after, action.double())
    th.testing.assert_close(continued[3].double(), after @ GAIN.T, atol=1e-4, rtol=0)
    # An earlier plan that is worse than the policy is dropped.
    awful = (-np.sign(plan[1:].transpose(0, 1).numpy()),)
    th.testing.assert_close(whole_plan(*poor(model).predict(obs, awful)).double(), own_plans(obs, 4), atol=1e-4, rtol=0)


def test_an_episodes_start_forgets_its_own_environments_plan() -> None:
    model, obs = known(), states(3)
    plans = optimal(obs, 3).transpose(0, 1).float().numpy()
    actions, _ = poor(model).predict(obs, (plans,), episode_start=np.array([False, True, False]))
    policys = own_plans(obs, 1)[0].numpy()
    np.testing.assert_allclose(actions[[0, 2]], plans[[0, 2], 0], atol=1e-4)
    np.testing.assert_allclose(actions[1], policys[1], atol=1e-4)
    assert np.abs(plans[1, 0] - policys[1]) > 1e-2


def test_the_search_begins_around_the_better_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the spread asked for, or the stochastic policy's own."""
    begun: list[tuple[th.Tensor, th.Tensor]] = []

    def spy(score: Any, mean: th.Tensor, std: th.Tensor, *settings: Any) -> tuple[th.Tensor, th.Tensor]:
        begun.append((mean, std))
        return cross_entropy(score, mean, std, *settings)

    monkeypatch.setattr(planner_module, "cross_entropy", spy)
    obs, earlier = states(3), optimal(states(3), 3).transpose(0, 1).float()
    planner = CrossEntropyPlanner(known(), 4, **FAST)
    for state, start in ((None, own_plans(obs, 3)), ((earlier.numpy(),), earlier.transpose(0, 1).double())):
        planner.predict(obs, state)
        mean, std = begun.pop()
        th.testing.assert_close(mean[:3].double(), start, atol=1e-4, rtol=0)
        assert (std == 0.3).all()
    model = tiny(algorithm=MAAC, policy_kwargs={"world_model_class": Still, "world_model_kwargs": {}})
    for initial_std in (None, 0.7):
        CrossEntropyPlanner(model, 4, **FAST, initial_std=initial_std).predict(obs)
    (_, own), (_, given) = begun
    assert own.unique().numel() > 1 and (given == 0.7).all()


# ---------------------------------------------------------------- SB3's interface

FAST: dict[str, Any] = {"n_samples": 8, "n_elites": 2, "n_iterations": 2, "seed": 0}
DICT = spaces.Dict({"place": spaces.Box(-10, 10, (2,), np.float32), "grid": spaces.Box(-10, 10, (2, 3), np.float32)})


class TableEnv(PointEnv):
    """A :class:`PointEnv` whose actions are a table, with bounds that differ."""

    def __init__(self, space: spaces.Space):
        super().__init__(space)
        self.action_space = spaces.Box(np.array([[-2.0], [0.0]], np.float32), np.array([[1.0], [5.0]], np.float32))

    def step(self, action: np.ndarray) -> Any:
        return super().step(action[:, 0])


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
@pytest.mark.parametrize("space", [spaces.Box(-10, 10, (3,), np.float64), DICT, spaces.MultiBinary(4)], ids=str)
def test_predict_returns_what_the_models_does(algorithm: Any, space: spaces.Space) -> None:
    env = TableEnv(space)
    model = tiny(env, algorithm, policy_kwargs={"world_model_class": Still, "world_model_kwargs": {}})
    planner = CrossEntropyPlanner(model, 3, **FAST)
    single, _ = env.reset(seed=0)
    for obs, count in ((single, 1), (batch_of(single, 4), 4), (batch_of(single, 1), 1)):
        expected, _ = model.predict(obs)
        for deterministic in (True, False):
            actions, state = planner.predict(obs, deterministic=deterministic)
            assert actions.shape == expected.shape and actions.dtype == expected.dtype
            assert state is not None and state[0].shape == (count, 2, 2)
            assert all(env.action_space.contains(action) for action in actions.reshape(-1, 2, 1))
            actions, _ = planner.predict(obs, state, np.zeros(count, bool), deterministic)
            assert actions.shape == expected.shape


def batch_of(obs: Any, count: int) -> Any:
    return {key: np.stack([part] * count) for key, part in obs.items()} if isinstance(obs, dict) else np.stack([obs] * count)


class Still(WorldModel):
    """A given model for any space: nothing moves, and small actions are rewarded."""

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        return obs, None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, None]:
        return -actions.square().sum(1), None

    def losses(self, data: Any) -> dict[str, th.Tensor]:
        raise AssertionError("there is nothing to fit")


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
@pytest.mark.parametrize("deterministic", [True, False])
def test_horizon_zero_is_the_policy(algorithm: Any, deterministic: bool) -> None:
    model, obs = tiny(algorithm=algorithm), np.ones((3, 2), np.float32)
    planner = CrossEntropyPlanner(model, horizon=0)
    actions, state = planner.predict(obs, deterministic=deterministic)
    assert state is None
    if deterministic or algorithm is DVPG:
        np.testing.assert_array_equal(actions, model.predict(obs, deterministic=True)[0])
    else:
        assert not np.array_equal(actions, planner.predict(obs, deterministic=False)[0])


@pytest.mark.parametrize("horizon", [0, 2])
def test_seeds_repeat_and_nobody_elses_random_numbers_are_touched(horizon: int) -> None:
    kwargs: Any = {"world_model_class": "ensemble"}
    model = tiny(algorithm=MAAC, policy_kwargs=kwargs, model_fit_freq=None, real_ratio=1.0).learn(25)
    obs, before = states(3), snapshot(model)
    torch_state, numpy_state = th.get_rng_state(), str(np.random.get_state(legacy=False))

    def actions(seed: int | None) -> list[np.ndarray]:
        planner = CrossEntropyPlanner(model, horizon, **{**FAST, "seed": seed})
        return [planner.predict(obs, deterministic=False)[0] for _ in range(2)]

    first, second = actions(3), actions(3)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[0], first[1])
    for other in (actions(4), actions(None)):
        assert not np.array_equal(first, other)
    assert th.equal(th.get_rng_state(), torch_state) and str(np.random.get_state(legacy=False)) == numpy_state
    assert same(snapshot(model), before)


def test_a_search_begins_with_the_stochastic_policys_own_spread() -> None:
    """To first order: the squashing's slope at the mode times the Gaussian's deviation."""
    model = tiny(algorithm=MAAC, policy_kwargs={"world_model_class": Still, "world_model_kwargs": {}})
    with th.no_grad(), th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        model.actor.log_std.weight.zero_()
        model.actor.log_std.bias.copy_(th.tensor([-2.0, -3.0]))
        judge = ImaginedPlans(model, 2, n_particles=40)
        plans, visited = judge.completed(th.from_numpy(states(4)), th.zeros(0, 4, 2))
        expected = (1 - plans.square()) * th.tensor([-2.0, -3.0]).exp()
        th.testing.assert_close(judge.spread(visited), expected, rtol=0.1, atol=0)


def test_networks_plan_in_evaluation_mode() -> None:
    model = tiny(policy_kwargs={"activation_fn": nn.RReLU}).learn(25)
    model.policy.set_training_mode(True)
    CrossEntropyPlanner(model, 2, **FAST).predict(states(1))
    assert not any(network.training for network in (model.actor, model.critic, model.world_model))


def test_where_the_model_diverges_the_policy_acts() -> None:
    class Diverging(Still):
        def outcome(self, *args: Any) -> tuple[th.Tensor, None]:
            return super().outcome(*args)[0] * float("nan"), None

    model = tiny(policy_kwargs={"world_model_class": Diverging, "world_model_kwargs": {}})
    actions, _ = CrossEntropyPlanner(model, 3, **FAST).predict(states(4))
    np.testing.assert_allclose(actions, model.predict(states(4))[0], rtol=1e-5)


# ---------------------------------------------------------------- in environments


def returns_of(model: Any, *others: Any) -> list[Any]:
    """Mean returns of ten episodes from the same starts: of the policy, the planner around it, and others."""
    env, returns = DummyVecEnv([LinearQuadraticEnv for _ in range(5)]), []
    for actor in (model, CrossEntropyPlanner(model, 5, n_samples=50, n_elites=10, seed=0), *others):
        env.seed(0)
        returns.append(evaluate_policy(actor, env, 10, warn=False)[0])
    return returns


def test_planning_improves_a_policy_to_near_the_optimum() -> None:
    """With the true model and the true value of a poor policy."""

    class Optimal:
        def predict(self, observation: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, None]:
            return observation @ SYSTEM.optimal_gain().numpy().T, None

    policys, planners, optimums = returns_of(known(), Optimal())
    assert policys < 5 * optimums and planners > 1.1 * optimums, (policys, planners, optimums)


def test_planning_improves_a_half_trained_policy() -> None:
    """Everything but the model is learned."""
    kwargs = {"net_arch": [16], "world_model_class": Lqr, "world_model_kwargs": {}}
    model = tiny(LinearQuadraticEnv(), DVG, horizon=0, policy_kwargs=kwargs, gamma=SYSTEM.gamma).learn(200)
    policys, planners = returns_of(model)
    assert planners > policys + 1, (policys, planners)


@pytest.mark.parametrize("algorithm", [DVPG, MVE, MAAC])
@pytest.mark.parametrize("world_model", ["mlp", "ensemble"])
def test_every_algorithm_and_world_model_behind_evaluate_policy(algorithm: Any, world_model: str) -> None:
    env = VecNormalize(DummyVecEnv([lambda: PointEnv(DICT) for _ in range(2)]))
    kwargs: Any = {} if algorithm is DVPG else {"real_ratio": 1.0}
    model = tiny(env, algorithm, policy_kwargs={"world_model_class": world_model}, model_fit_freq=None, **kwargs).learn(30)
    assert model._model_is_ready
    env.training, env.norm_reward = False, False
    planner = CrossEntropyPlanner(model, 2, env=env, **FAST)
    returns, lengths = evaluate_policy(planner, env, 4, return_episode_rewards=True, warn=False)
    assert np.isfinite(returns).all() and lengths == [10] * 4


# ---------------------------------------------------------------- bad input

BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"horizon": -1}, "horizon=-1 .*at least 0"),
    ({"horizon": 2.0}, "horizon=2.0 .*whole number"),
    ({"n_samples": 0}, "n_samples=0 .*at least 1"),
    ({"n_elites": 0}, "n_elites=0 .*at least 1"),
    ({"n_samples": 10, "n_elites": 11}, "n_elites=11 .*n_samples=10"),
    ({"n_iterations": 0}, "n_iterations=0 .*at least 1"),
    ({"n_particles": True}, "n_particles=True .*whole number"),
    ({"initial_std": 0.0}, "initial_std=0.0 .*None"),
    ({"initial_std": float("nan")}, "initial_std=nan .*None"),
    ({"min_std": -0.1}, "min_std=-0.1 .*0"),
    ({"momentum": 1.0}, r"momentum=1.0 .*\[0, 1\)"),
    ({"seed": -1}, "seed=-1 .*at least 0"),
    ({"env": PointEnv(spaces.Box(-1, 1, (3,)))}, "env=<.*PointEnv.*trained in.*Observation spaces do not match.*3,"),
    ({"env": LinearQuadraticEnv()}, "env=<.*LinearQuadraticEnv.*trained in.*do not match"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        CrossEntropyPlanner(tiny(policy_kwargs={"world_model_class": Still, "world_model_kwargs": {}}), **arguments)


def test_models_that_cannot_plan() -> None:
    untrained: Any = tiny()
    with pytest.raises(ValueError, match=r"(?s)horizon=5.*learned nothing.*learn\(\).*horizon=0"):
        CrossEntropyPlanner(untrained)
    sac: Any = SAC("MlpPolicy", PointEnv(), policy_kwargs={"net_arch": [4]}, buffer_size=10)
    with pytest.raises(ValueError, match=r"(?s)model=.*SAC.*sb3_valuegrad"):
        CrossEntropyPlanner(sac)


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (None, np.zeros(3, np.float32)),
        (None, np.zeros((2, 4, 2), np.float32)),
        (None, {"place": np.zeros(2, np.float32)}),
        (None, (np.zeros(2, np.float32), {})),
        (None, np.array([np.nan, 0], np.float32)),
        (DICT, np.zeros(8, np.float32)),
        (DICT, {"place": np.zeros(2, np.float32)}),
        (DICT, {"place": np.zeros((4, 2), np.float32), "grid": np.zeros((3, 2, 3), np.float32)}),
        (DICT, {"place": np.zeros(2), "grid": np.zeros((2, 3)), "more": np.zeros(1)}),
    ],
)
def test_observations_that_do_not_fit(space: Any, observation: Any) -> None:
    model = tiny(PointEnv(space), policy_kwargs={"world_model_class": Still, "world_model_kwargs": {}})
    for horizon in (0, 2):
        with pytest.raises(ValueError, match=r"(?s)observation=.*(does not fit the model's|is not finite; check)"):
            CrossEntropyPlanner(model, horizon, **FAST).predict(observation)


def test_states_that_do_not_fit() -> None:
    planner = CrossEntropyPlanner(known(), 3, **FAST)
    _, state = planner.predict(states(2))
    with pytest.raises(ValueError, match=r"\(2, 2, 1\), not \(3, 2, 1\).*predict\(\) returned last"):
        planner.predict(states(3), state)
    with pytest.raises(ValueError, match=r"episode_start=.*each of 3 observations"):
        planner.predict(states(3), episode_start=np.ones(2, bool))
