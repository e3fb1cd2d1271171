"""The maths room in float64 against closed forms: value expansions, both gradient paths, terminations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch as th
from lqr import (
    LinearQuadratic,
    Truth,
    WrongModel,
    linear,
    make_gain,
    make_system,
    quadratic,
    start_states,
    wrong_critic,
)

from sb3_valuegrad.returns import discounts, value_expansions
from sb3_valuegrad.rollouts import Dynamics, Rollout, imagine
from sb3_valuegrad.weights import geometric_weights

Critic = Callable[[th.Tensor, th.Tensor], th.Tensor]
HORIZONS = [0, 1, 2, 5, 10]
GAMMAS = [0.9, 0.95, 0.99]


def same(actual: th.Tensor, expected: th.Tensor, tolerance: float = 1e-12) -> None:
    """Equal up to ``tolerance`` of the largest entry."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (actual - expected).abs().max().item() <= tolerance * scale


def expand(rollout: Rollout, critic: Critic, gamma: float, horizons: list[int] | None = None) -> th.Tensor:
    chosen = list(range(len(rollout.obs))) if horizons is None else horizons
    values = critic(rollout.obs[chosen], rollout.actions[chosen])
    return value_expansions(rollout.rewards, rollout.alive, values, gamma, horizons)


def gradient(
    model: Dynamics,
    critic: Critic,
    K: th.Tensor,
    obs: th.Tensor,
    gamma: float,
    weights: dict[int, float],
    all_actions: bool = False,
) -> th.Tensor:
    """Gradient of ``mean_s sum_k w_k J_k(s)`` in the gain, along one of the two paths."""
    theta = K.clone().requires_grad_()
    horizons = sorted(weights)
    later = None if all_actions else linear(K)
    rollout = imagine(model, linear(theta), obs, horizons[-1], later_policy=later)
    expansions = expand(rollout, critic, gamma, horizons)
    objective = (expansions.new_tensor([weights[k] for k in horizons]) @ expansions).mean()
    return th.autograd.grad(objective, theta)[0]


class Exact(NamedTuple):
    system: LinearQuadratic
    K: th.Tensor
    truth: Truth
    obs: th.Tensor


@pytest.fixture(params=GAMMAS)
def exact(request: Any) -> Exact:
    system, K = make_system(request.param), make_gain()
    return Exact(system, K, Truth(system, K), start_states())


# ---------------------------------------------------------------- golden arrays, by hand


def test_value_expansions_golden() -> None:
    """Two rows: one that goes on, one that ends for good after its first step (c_1 = 0)."""
    rewards = th.tensor([[1.0, 4.0], [2.0, 5.0]], dtype=th.float64)
    alive = th.tensor([[1.0, 1.0], [1.0, 0.0], [0.5, 0.0]], dtype=th.float64)
    values = th.tensor([[10.0, 20.0], [12.0, 30.0], [16.0, 40.0]], dtype=th.float64)
    expected = th.tensor(
        [
            [10.0, 20.0],  # Q_0
            [1 + 0.5 * 12, 4.0],  # r_0 + gamma c_1 Q_1
            [1 + 0.5 * 2 + 0.25 * 0.5 * 16, 4.0],  # r_0 + gamma c_1 r_1 + gamma^2 c_2 Q_2
        ],
        dtype=th.float64,
    )
    assert th.equal(value_expansions(rewards, alive, values, 0.5), expected)


def assert_same(found: th.Tensor, expected: th.Tensor) -> None:
    """Up to float64's rounding: on Intel's processors a product of fewer rows is rounded in another order."""
    th.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)


def test_horizons_select_rows() -> None:
    generator = th.Generator().manual_seed(3)
    rewards, alive, values = (th.rand(n, 6, generator=generator, dtype=th.float64) for n in (4, 5, 5))
    full = value_expansions(rewards, alive, values, 0.9)
    for horizons in ([0], [4], [2, 3], [0, 4], [1, 2, 4], range(5)):
        chosen = list(horizons)
        assert_same(value_expansions(rewards, alive, values[chosen], 0.9, horizons), full[chosen])


@pytest.mark.parametrize("horizons", [[4, 3, 2, 1, 0], [3, 0], [2, 2], [0, 0, 1, 1, 2]])
def test_horizons_in_any_order(horizons: list[int]) -> None:
    """Also where there are as many as the rollout has steps."""
    generator = th.Generator().manual_seed(3)
    rewards, alive, values = (th.rand(n, 6, generator=generator, dtype=th.float64) for n in (4, 5, 5))
    full = value_expansions(rewards, alive, values, 0.9)
    assert_same(value_expansions(rewards, alive, values[horizons], 0.9, horizons), full[horizons])


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_extreme_discounts(gamma: float) -> None:
    ones = th.ones(3, 2, dtype=th.float64)
    expected = [1.0, 1.0, 1.0] if gamma == 0 else [1.0, 2.0, 3.0]
    assert value_expansions(ones[:2], ones, ones, gamma)[:, 0].tolist() == expected


def test_geometric_weights_golden() -> None:
    assert geometric_weights(0.5, 3).tolist() == [0.5, 0.25, 0.125, 0.0625]
    assert geometric_weights(0.0, 2).tolist() == [1.0, 0.0, 0.0]
    assert geometric_weights(0.0, 0).tolist() == [1.0]
    assert geometric_weights(1.0, 2).tolist() == [0.0, 0.0, 0.0]
    same(geometric_weights(0.1, 2), th.tensor([0.9, 0.09, 0.009], dtype=th.float64), 1e-16)
    same(geometric_weights(0.7, 6).sum(), th.tensor(1 - 0.7**7, dtype=th.float64), 1e-15)


def test_discounts_golden_in_the_datas_own_dtype() -> None:
    """``gamma ** arange`` in float32 would be off by 1e-8 here, and by 1e-7 in every value."""
    table = th.cat(discounts(0.9, (0, 3), 3, th.float64, th.device("cpu")), dim=1)
    same(table, th.tensor([[0, 0, 0, 1.0], [1.0, 0.9, 0.81, 0.729]], dtype=th.float64), 1e-15)
    assert discounts(0.9, (1,), 1, th.float32, th.device("cpu"))[0].dtype == th.float32


def test_constants_made_in_inference_mode_serve_training_too() -> None:
    """The table is cached: whoever asks first must not leave a tensor that autograd refuses."""
    ones = th.ones(2, 3, dtype=th.float64)
    gamma = 0.123456  # nobody else's
    with th.inference_mode():
        value_expansions(ones[:1], ones, ones, gamma)
    rewards = ones[:1].clone().requires_grad_()
    value_expansions(rewards, ones, ones, gamma).sum().backward()
    assert rewards.grad is not None and th.equal(rewards.grad, ones[:1])


# ---------------------------------------------------------------- the truth itself


def test_the_closed_forms_are_true(exact: Exact) -> None:
    """Against simulation and finite differences, so that nothing below is held against a wrong formula."""
    system, K, truth, obs = exact
    steps = round(-40 / th.tensor(system.gamma).log().item())
    returns, state = th.zeros(len(obs), dtype=th.float64), obs
    for time in range(steps):
        returns += system.gamma**time * system.reward(state, state @ K.T)
        state = system.transition(state, state @ K.T)[0]
    same(truth.V(obs), returns)
    same(truth.Q(obs, obs @ K.T), truth.V(obs))

    nudge, numeric = 1e-6, th.zeros_like(K)
    for index in range(K.numel()):
        step = th.zeros(K.numel(), dtype=th.float64)
        step[index] = nudge
        up, down = (Truth(system, K + sign * step.view_as(K)).V(obs).mean() for sign in (1, -1))
        numeric.view(-1)[index] = (up - down) / (2 * nudge)
    same(truth.dV_dK(obs), numeric, 1e-8)


def test_the_optimal_gain_has_no_gradient(exact: Exact) -> None:
    best = Truth(exact.system, exact.system.optimal_gain())
    assert best.G.abs().max() < 1e-12
    assert (best.V(exact.obs) >= exact.truth.V(exact.obs)).all()
    assert best.V(exact.obs).sum() > 0.95 * exact.truth.V(exact.obs).sum()


# ---------------------------------------------------------------- item 1: exact model, reward and Q


def test_every_expansion_is_the_value(exact: Exact) -> None:
    system, K, truth, obs = exact
    rollout = imagine(system, linear(K), obs, 10)
    expansions = expand(rollout, truth.Q, system.gamma)
    same(expansions, truth.V(obs).expand(11, -1))
    same(rollout.obs[10], truth.states(obs, 10))


@pytest.mark.parametrize("horizon", HORIZONS)
def test_dvg_gradient_is_the_same_for_every_horizon(exact: Exact, horizon: int) -> None:
    """F2: first-action path, DVG(k) and MPG's model gradient."""
    system, K, truth, obs = exact
    same(gradient(system, truth.Q, K, obs, system.gamma, {horizon: 1.0}), truth.D(obs))


@pytest.mark.parametrize("horizon", HORIZONS)
def test_all_action_gradient_is_the_truncated_sum(exact: Exact, horizon: int) -> None:
    """F4: sum_{l <= H} gamma^l D(s_l); the tail that autograd does not see is missing."""
    system, K, truth, obs = exact
    expected = sum(system.gamma**time * truth.D(truth.states(obs, time)) for time in range(horizon + 1))
    assert isinstance(expected, th.Tensor)
    same(gradient(system, truth.Q, K, obs, system.gamma, {horizon: 1.0}, all_actions=True), expected)


def test_all_action_gradient_tends_to_the_policy_gradient(exact: Exact) -> None:
    system, K, truth, obs = exact
    errors = [
        (gradient(system, truth.Q, K, obs, system.gamma, {horizon: 1.0}, all_actions=True) - truth.dV_dK(obs))
        .abs()
        .max()
        .item()
        for horizon in (0, 10, 30, 300)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.1 and errors[-1] < 1e-9


@pytest.mark.parametrize(("lambda_", "horizon"), [(0.0, 3), (0.1, 1), (0.1, 2), (0.6, 4), (0.9, 0)])
def test_dvpg_gradient_is_scaled_by_the_truncated_weights(exact: Exact, lambda_: float, horizon: int) -> None:
    """The tail is dropped, not renormalised: 1 - lambda^(K+1) times the truth."""
    system, K, truth, obs = exact
    weights = dict(enumerate(geometric_weights(lambda_, horizon).tolist()))
    actual = gradient(system, truth.Q, K, obs, system.gamma, weights)
    same(actual, (1 - lambda_ ** (horizon + 1)) * truth.D(obs))


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_dvgf_gradient_lacks_the_bootstrap(exact: Exact, horizon: int) -> None:
    """No critic: the gradient of Q less that of gamma^k V(s_k), through s_k = (A+BK)^(k-1) (A s + B a)."""
    system, K, truth, obs = exact

    def none(states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return th.zeros(states.shape[:-1], dtype=states.dtype)

    reach = th.linalg.matrix_power(truth.closed_loop, horizon - 1) @ system.B
    of_bootstrap = -2 * system.gamma**horizon * reach.T @ truth.P @ truth.states(obs, horizon).T @ obs / len(obs)
    same(gradient(system, none, K, obs, system.gamma, {horizon: 1.0}), truth.D(obs) - of_bootstrap)


# ---------------------------------------------------------------- F1, F3 and sums, with everything wrong


@pytest.mark.parametrize("horizon", HORIZONS)
def test_dvg_is_the_weighted_form_with_one_weight(horizon: int) -> None:
    """F1: all weight on J_k, whether the others are asked for or not."""
    K, obs, model = make_gain(), start_states(), WrongModel.make()
    padded = {k: float(k == horizon) for k in range(horizon + 1)}
    alone = gradient(model, wrong_critic, K, obs, 0.95, {horizon: 1.0})
    same(gradient(model, wrong_critic, K, obs, 0.95, padded), alone, 1e-15)


def test_weighted_gradient_is_the_sum_of_dvg_gradients() -> None:
    K, obs, model = make_gain(), start_states(), WrongModel.make()
    weights = {0: 0.5, 2: -0.3, 3: 0.7}
    parts = [weight * gradient(model, wrong_critic, K, obs, 0.95, {k: 1.0}) for k, weight in weights.items()]
    same(gradient(model, wrong_critic, K, obs, 0.95, weights), th.stack(parts).sum(0), 1e-14)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("horizon", [0, 1, 3, 6])
@pytest.mark.parametrize("terminates", [False, True])
def test_all_action_gradient_is_a_sum_of_first_action_gradients(gamma: float, horizon: int, terminates: bool) -> None:
    """F3 for a wrong model, a wrong critic and learned terminations: every row of the sum carries its c_k, and the
    terminal action's term belongs to it (the MPG paper's Theorem 1 stops one short)."""
    K, model = make_gain(), WrongModel.make(terminates=terminates)
    obs = start_states(1)  # one start state: c_k weighs rows
    whole = gradient(model, wrong_critic, K, obs, gamma, {horizon: 1.0}, all_actions=True)
    rollout = imagine(model, linear(K), obs, horizon)
    parts = [
        gamma**k * rollout.alive[k] * gradient(model, wrong_critic, K, rollout.obs[k], gamma, {horizon - k: 1.0})
        for k in range(horizon + 1)
    ]
    same(whole, th.stack(parts).sum(0), 1e-14)
    assert not th.allclose(whole, th.stack([*parts[:-1], 0 * parts[-1]]).sum(0), rtol=1e-3, atol=0)


# ---------------------------------------------------------------- item 3: finite differences


@pytest.mark.parametrize("horizon", HORIZONS)
def test_first_action_gradient_by_finite_differences(horizon: int) -> None:
    """``grad_theta`` by autograd is ``grad_a J . grad_theta mu``, with grad_a J by central differences: later actions
    follow the policy wherever the first one leads, so their dependence on the state is in it."""
    K, obs, model, gamma = make_gain(), start_states(), WrongModel.make(), 0.95
    first, nudge = obs @ K.T, 1e-5

    def value(actions: th.Tensor) -> th.Tensor:
        rollout = imagine(model, lambda _: actions, obs, horizon, later_policy=linear(K))
        return expand(rollout, wrong_critic, gamma, [horizon])[0]

    numeric = th.zeros_like(first)
    for column in range(first.shape[1]):
        step = th.zeros_like(first)
        step[:, column] = nudge
        numeric[:, column] = (value(first + step) - value(first - step)) / (2 * nudge)
    expected = numeric.T @ obs / len(obs)
    same(gradient(model, wrong_critic, K, obs, gamma, {horizon: 1.0}), expected, 1e-8)


@pytest.mark.parametrize("horizon", [1, 4])
def test_all_action_gradient_by_finite_differences(horizon: int) -> None:
    K, obs, model, nudge = make_gain(), start_states(), WrongModel.make(), 1e-5

    def value(gain: th.Tensor) -> th.Tensor:
        return expand(imagine(model, linear(gain), obs, horizon), wrong_critic, 0.95, [horizon]).mean()

    numeric = th.zeros_like(K)
    for index in range(K.numel()):
        step = th.zeros(K.numel(), dtype=th.float64)
        step[index] = nudge
        numeric.view(-1)[index] = (value(K + step.view_as(K)) - value(K - step.view_as(K))) / (2 * nudge)
    same(gradient(model, wrong_critic, K, obs, 0.95, {horizon: 1.0}, all_actions=True), numeric, 1e-8)


# ---------------------------------------------------------------- item 6: who receives gradient


def test_nothing_is_detached_by_the_rollout() -> None:
    """Whoever calls decides: left alone, gradient reaches the start states and the model's parameters too."""
    model = WrongModel(WrongModel.make().W.requires_grad_())
    obs = start_states().requires_grad_()
    expand(imagine(model, linear(make_gain()), obs, 3), wrong_critic, 0.95)[-1].sum().backward()
    assert model.W.grad is not None and model.W.grad.abs().sum() > 0
    assert obs.grad is not None and obs.grad.abs().sum() > 0


# ---------------------------------------------------------------- shapes, dtypes, horizon 0


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("horizon", [0, 1, 4])
@pytest.mark.parametrize("terminates", [False, True])
def test_shapes_and_dtypes(dtype: th.dtype, horizon: int, terminates: bool) -> None:
    model = WrongModel(WrongModel.make().W.to(dtype), terminates)
    rollout = imagine(model, linear(make_gain().to(dtype)), start_states(5).to(dtype), horizon)
    assert rollout.obs.shape == (horizon + 1, 5, 3)
    assert rollout.actions.shape == (horizon + 1, 5, 2)
    assert rollout.rewards.shape == (horizon, 5)
    assert rollout.alive.shape == (horizon + 1, 5)
    expansions = expand(rollout, wrong_critic, 0.9)
    assert expansions.shape == (horizon + 1, 5)
    assert expand(rollout, wrong_critic, 0.9, [horizon]).shape == (1, 5)
    assert {part.dtype for part in [*rollout[:4], expansions]} == {dtype}


def test_horizon_zero_is_the_critic_alone(exact: Exact) -> None:
    """DDPG: nothing is imagined, and the model is not asked."""
    _, K, truth, obs = exact
    rollout = imagine(None, linear(K), obs, 0)  # type: ignore[arg-type]
    assert th.equal(expand(rollout, truth.Q, 0.9), truth.Q(obs, obs @ K.T)[None])


# ---------------------------------------------------------------- terminations


class Clock:
    """A system whose last state counts the steps: it ends with chance ``chance`` at step ``end``, and from there on
    rewards and motion are multiplied by ``after``."""

    def __init__(self, end: int, after: float, chance: float = 1.0):
        self.end, self.after, self.chance = end, after, chance

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        state, clock = obs[:, :-1], obs[:, -1:]
        move = th.tanh(state + actions) * th.where(clock > self.end, self.after, 1.0)
        return th.cat([move, clock + 1], dim=1), None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, th.Tensor]:
        clock = obs[:, -1]
        rewards = (obs[:, :-1] * actions + next_obs[:, :-1]).sum(1) * th.where(clock > self.end, self.after, 1.0)
        return rewards, th.where(clock == self.end, self.chance, 0.0).to(obs)


def clocked(model: Clock, horizon: int, critic_scale: float = 1.0) -> tuple[th.Tensor, th.Tensor]:
    """J_0 .. J_H and the gradient of each, all-action path."""
    obs = th.cat([start_states(5, 2), th.zeros(5, 1, dtype=th.float64)], dim=1)
    theta = th.tensor([[-0.2, -0.3, 0.1], [0.05, 0.1, -0.4]], dtype=th.float64).requires_grad_()
    rollout = imagine(model, linear(theta), obs, horizon)

    def critic(states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        ended = states[..., -1] > model.end
        return quadratic(th.eye(2, dtype=th.float64), states[..., :-1] + actions) * th.where(ended, critic_scale, 1.0)

    expansions = expand(rollout, critic, 0.9)
    gradients = [th.autograd.grad(J.sum(), theta, retain_graph=True)[0] for J in expansions]
    return expansions.detach(), th.stack(gradients)


@pytest.mark.parametrize("end", [0, 1, 3])
def test_nothing_counts_after_a_termination(end: int) -> None:
    """Item 7: whatever model and critic say of the time after it, values and gradients are the same."""
    values, gradients = clocked(Clock(end, after=1.0), 5)
    others, other_gradients = clocked(Clock(end, after=7.0), 5, critic_scale=100.0)
    assert th.equal(values, others)
    assert th.equal(gradients, other_gradients)
    # From there on all expansions are the same sum of rewards, the last one included; before, they are not.
    assert th.equal(values[end + 1 :], values[end + 1 :][:1].expand(5 - end, -1))
    assert not th.allclose(values[end], values[end + 1])


def test_without_the_termination_it_would_count() -> None:
    """The test above can fail."""
    values, gradients = clocked(Clock(1, after=1.0, chance=0.0), 5)
    others, other_gradients = clocked(Clock(1, after=7.0, chance=0.0), 5, critic_scale=100.0)
    assert not th.allclose(values[2:], others[2:]) and not th.allclose(gradients[2:], other_gradients[2:])


def test_terminations_are_chances() -> None:
    """c_t by hand: half of what comes after an even chance."""
    obs = th.cat([start_states(5, 2), th.zeros(5, 1, dtype=th.float64)], dim=1)
    rollout = imagine(Clock(1, after=1.0, chance=0.5), linear(th.zeros(2, 3, dtype=th.float64)), obs, 4)
    assert rollout.alive[:, 0].tolist() == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_the_chance_of_termination_is_differentiated() -> None:
    """A policy learns to stay alive: d enters J through c_t, with the sign that makes ending cost what is lost."""
    chance = th.tensor([0.1, 0.3], dtype=th.float64, requires_grad=True)

    class Constant(Clock):
        def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> tuple[th.Tensor, th.Tensor]:
            return th.ones(len(obs), dtype=obs.dtype), chance.repeat_interleave(len(obs) // 2)

    obs = th.zeros(1, 3, dtype=th.float64)
    rollout = imagine(Constant(0, 1.0), linear(th.zeros(2, 3, dtype=th.float64)), obs, 2)
    expansions = expand(rollout, lambda states, _: th.full(states.shape[:-1], 10.0, dtype=th.float64), 0.5)
    # J_2 = 1 + 0.5 (1 - d_0) + 0.25 (1 - d_0)(1 - d_1) 10
    same(expansions[2].detach(), th.tensor([1 + 0.5 * 0.9 + 2.5 * 0.9 * 0.7], dtype=th.float64), 1e-15)
    (slope,) = th.autograd.grad(expansions[2].sum(), chance)
    same(slope, th.tensor([-0.5 - 2.5 * 0.7, -2.5 * 0.9], dtype=th.float64), 1e-15)
