"""Real trajectories gone once more under inferred noise, in float64: values, and the gradient of SVG's recursion."""

from typing import Any

import pytest
import torch as th
from lqr import make_gain, make_system, start_states, wrong_critic
from torch.autograd.functional import jacobian

from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import Trajectory, follow, imagine, renoise
from sb3_valuegrad.weights import importance_weights
from sb3_valuegrad.world_models import GaussianEnsemble, MlpWorldModel, PerDimensionGaussian

GAMMA, OBS, ACTIONS = 0.9, 3, 2
SHAPES = {"obs": (6, 4, OBS), "actions": (5, 4, ACTIONS), "rewards": (5, 4)}


class WrongGaussian:
    """A nonlinear model whose mean and standard deviation depend on state and action, and have little to do with anything."""

    def __init__(self, terminates: bool = False):
        generator = th.Generator().manual_seed(1)
        self.mean_of, self.log_std_of = (th.randn(OBS + ACTIONS, OBS, generator=generator, dtype=th.float64) for _ in range(2))
        self.terminates = terminates

    def mean(self, s: th.Tensor, a: th.Tensor) -> th.Tensor:
        return s + th.tanh(th.cat([s, a], dim=-1) @ self.mean_of)

    def std(self, s: th.Tensor, a: th.Tensor) -> th.Tensor:
        return (0.3 * th.sin(th.cat([s, a], dim=-1) @ self.log_std_of) - 1).exp()

    def reward(self, s: th.Tensor, a: th.Tensor) -> th.Tensor:
        return th.cos(s.sum(-1)) - (a.square().sum(-1) + 0.5 * s[..., 0] * a[..., 1])

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, None]:
        return renoise(self.mean(obs, actions), self.std(obs, actions), next_obs), None

    def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: Any) -> Any:
        return self.reward(obs, actions), th.sigmoid(next_obs.sum(1)) if self.terminates else None


def policy_mean(theta: th.Tensor, s: th.Tensor) -> th.Tensor:
    return th.tanh(s @ theta[:ACTIONS].T)


def policy_std(theta: th.Tensor, s: th.Tensor) -> th.Tensor:
    return (0.2 * s @ theta[ACTIONS:].T - 0.5).exp()


def renoised_policy(theta: th.Tensor) -> Any:
    return lambda s, a: renoise(policy_mean(theta, s), policy_std(theta, s), a)


def make_theta() -> th.Tensor:
    return th.randn(2 * ACTIONS, OBS, generator=th.Generator().manual_seed(2), dtype=th.float64)


def make_trajectory(seed: int = 0, dones: bool = False) -> Trajectory:
    """What happened, by no law that the model or the policy knows."""
    generator = th.Generator().manual_seed(seed)
    parts = [th.randn(shape, generator=generator, dtype=th.float64) for shape in SHAPES.values()]
    ended = th.zeros_like(parts[2])
    if dones:
        ended[3, 0] = 1
    return Trajectory(parts[0], parts[1], parts[2], ended)


@pytest.mark.parametrize("steps", [5, 400])
def test_inferred_noise_reproduces_what_happened(steps: int) -> None:
    """Through a model and under a policy that are both wrong; errors of rounding do not add up."""
    generator = th.Generator().manual_seed(3)
    shapes = [(steps + 1, 4, OBS), (steps, 4, ACTIONS), (steps, 4)]
    obs, actions, rewards = (10 * th.randn(shape, generator=generator, dtype=th.float64) for shape in shapes)
    real = Trajectory(obs, actions, rewards, (th.rand(steps, 4, generator=generator, dtype=th.float64) < 0.1).double())
    rollout = follow(WrongGaussian(terminates=True), renoised_policy(make_theta()), real)
    assert (rollout.obs - real.obs).abs().max() < 1e-12
    assert (rollout.actions - real.actions).abs().max() < 1e-12
    assert (rollout.rewards - real.rewards).abs().max() < 1e-12
    alive = th.cat([th.ones(1, 4), (1 - real.dones).cumprod(0)])
    assert (rollout.alive - alive).abs().max() < 1e-12
    # The model has not got there by being right.
    assert (WrongGaussian().mean(real.obs[:-1], real.actions) - real.obs[1:]).abs().mean() > 1


def recursion(theta: th.Tensor, real: Trajectory, row: int, of_last_state: th.Tensor) -> th.Tensor:
    """v_theta of one trajectory by the backward recursion, SVG eqs. 9 and 10 at the noise that Alg. 1 line 11 infers."""
    model = WrongGaussian()
    v_s, v_theta = of_last_state, th.zeros(theta.numel(), dtype=th.float64)
    for t in reversed(range(len(real.rewards))):
        s, a, next_s = real.obs[t, row], real.actions[t, row], real.obs[t + 1, row]
        eta = (a - policy_mean(theta, s)) / policy_std(theta, s)
        xi = (next_s - model.mean(s, a)) / model.std(s, a)

        def pi(s: th.Tensor, theta: th.Tensor, eta: th.Tensor = eta) -> th.Tensor:
            return policy_mean(theta, s) + policy_std(theta, s) * eta

        def f(s: th.Tensor, a: th.Tensor, xi: th.Tensor = xi) -> th.Tensor:
            return model.mean(s, a) + model.std(s, a) * xi

        r_s, r_a = jacobian(model.reward, (s, a))
        pi_s, pi_theta = jacobian(pi, (s, theta))
        f_s, f_a = jacobian(f, (s, a))
        pi_theta = pi_theta.reshape(ACTIONS, -1)
        v_theta = r_a @ pi_theta + GAMMA * (v_s @ f_a @ pi_theta + v_theta)
        v_s = r_s + r_a @ pi_s + GAMMA * v_s @ (f_s + f_a @ pi_s)
    return v_theta


def terminal_value(s: th.Tensor) -> th.Tensor:
    return wrong_critic(s, th.zeros(*s.shape[:-1], ACTIONS, dtype=th.float64) + s[..., :ACTIONS])


@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("bootstrap", [True, False], ids=["SVG(k)", "SVG(inf)"])
def test_autograd_is_the_papers_recursion(horizon: int, bootstrap: bool) -> None:
    """Eqs. 9-12, with noise in the model and in the policy whose size depends on state, action and parameters."""
    theta, whole = make_theta().requires_grad_(), make_trajectory()
    real = Trajectory(whole.obs[: horizon + 1], *(part[:horizon] for part in whole[1:]))
    rollout = follow(WrongGaussian(), renoised_policy(theta), real)
    values = terminal_value(rollout.obs[-1])[None] if bootstrap else th.zeros(1, 4, dtype=th.float64)
    expansions = value_expansions(rollout.rewards, rollout.alive, values, GAMMA, [horizon])[0]
    for row in range(4):
        actual = th.autograd.grad(expansions[row], theta, retain_graph=True)[0].flatten()
        of_last = jacobian(terminal_value, real.obs[-1, row]) if bootstrap else th.zeros(OBS, dtype=th.float64)
        expected = recursion(theta.detach(), real, row, of_last)
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_without_a_horizon_it_is_the_real_action_that_is_valued() -> None:
    """SVG(0), Alg. 3 line 11: ``Q_a pi_theta`` at the inferred noise."""
    theta, real = make_theta().requires_grad_(), make_trajectory()
    s, a = real.obs[0], real.actions[0]
    start = Trajectory(s[None], a[None], real.rewards[:0], real.dones[:0])
    rollout = follow(WrongGaussian(), renoised_policy(theta), start)
    J_0 = value_expansions(rollout.rewards, rollout.alive, wrong_critic(rollout.obs, rollout.actions), GAMMA)[0]
    assert (J_0 - wrong_critic(s, a)).abs().max() < 1e-12
    actual = th.autograd.grad(J_0.sum(), theta)[0]
    eta = ((a - policy_mean(theta, s)) / policy_std(theta, s)).detach()
    Q_a = jacobian(lambda action: wrong_critic(s, action).sum(), a)
    expected = th.autograd.grad((Q_a * (policy_mean(theta, s) + policy_std(theta, s) * eta)).sum(), theta)[0]
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_a_termination_ends_value_and_gradient() -> None:
    """J_H of a trajectory that ended is worth what was earned until then, and what comes after does not count; that the model
    might have let it go on does."""
    theta, real = make_theta().requires_grad_(), make_trajectory(dones=True)
    rollout = follow(WrongGaussian(terminates=True), renoised_policy(theta), real)
    values = terminal_value(rollout.obs)
    expansions = value_expansions(rollout.rewards, rollout.alive, values, GAMMA)
    earned = (GAMMA ** th.arange(4, dtype=th.float64)) @ real.rewards[:4, 0]
    assert (expansions[4:, 0] - earned).abs().max() < 1e-12
    of_survival = th.autograd.grad(rollout.alive[4, 0], theta)[0]
    assert of_survival.abs().max() > 0


class Deterministic:
    """The linear-quadratic system, whose noise is zero."""

    def __init__(self) -> None:
        self.system = make_system(GAMMA)
        self.transition, self.outcome = self.system.transition, self.system.outcome

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, Any]:
        expected, hint = self.transition(obs, actions)
        return renoise(expected, None, next_obs), hint


@pytest.mark.parametrize("horizon", [1, 3])
def test_without_noise_it_is_dvg(horizon: int) -> None:
    """sigma -> 0, real = model, V = Q(., pi): for k = 1 DVG's gradient itself; for more that of the same J_k along all
    actions. Approached as sigma goes to zero, and exact there."""
    model, K, obs = Deterministic(), make_gain(), start_states()

    def value(s: th.Tensor) -> th.Tensor:  # theta is frozen in it
        return wrong_critic(s, s @ K.T)

    def gradient_of(J: th.Tensor, theta: th.Tensor) -> th.Tensor:
        return th.autograd.grad(J.mean(), theta)[0]

    theta = K.clone().requires_grad_()
    later = (lambda s: s @ K.T) if horizon == 1 else None
    rollout = imagine(model, lambda s: s @ theta.T, obs, horizon, later_policy=later)
    bootstrap = value(rollout.obs[-1])[None]
    dvg = gradient_of(value_expansions(rollout.rewards, None, bootstrap, GAMMA, [horizon])[0], theta)

    def svg(sigma: float) -> th.Tensor:
        generator = th.Generator().manual_seed(5)

        def noise(like: th.Tensor) -> th.Tensor:
            return sigma * th.randn(like.shape, generator=generator, dtype=th.float64)

        states, actions, rewards = [obs], [], []
        for _ in range(horizon):
            mean = states[-1] @ K.T
            actions.append(mean + noise(mean))
            next_obs = model.transition(states[-1], actions[-1])[0]
            rewards.append(model.outcome(states[-1], actions[-1], next_obs, None)[0])
            states.append(next_obs + noise(next_obs))
        earned = th.stack(rewards)
        real = Trajectory(th.stack(states), th.stack(actions), earned, th.zeros_like(earned))
        theta = K.clone().requires_grad_()
        std = None if sigma == 0 else th.full((2,), sigma, dtype=th.float64)
        followed = follow(model, lambda s, a: renoise(s @ theta.T, std, a), real)
        bootstrap = value(followed.obs[-1])[None]
        return gradient_of(value_expansions(followed.rewards, followed.alive, bootstrap, GAMMA, [horizon])[0], theta)

    scale = dvg.abs().max()
    assert (svg(0.0) - dvg).abs().max() <= 1e-12 * scale
    errors = [((svg(sigma) - dvg).abs().max() / scale).item() for sigma in (1e-2, 1e-4, 1e-6)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5


# ---------------------------------------------------------------- importance weights


def test_importance_weights_golden() -> None:
    today = th.tensor([[0.5, 0.2, 8.0], [0.5, 3.0, 1.0]], dtype=th.float64).log()
    then = th.tensor([[0.5, 0.4, 0.1], [0.5, 1.0, 0.5]], dtype=th.float64).log()
    assert importance_weights(today, then, None).tolist() == pytest.approx([1.0, 1.5, 160.0], rel=1e-14)
    assert importance_weights(today, then, 5.0).tolist() == pytest.approx([1.0, 1.5, 5.0], rel=1e-14)
    assert importance_weights(today, today, 5.0).tolist() == [1.0, 1.0, 1.0]
    assert importance_weights(th.tensor([[1000.0]]), th.tensor([[-1000.0]]), 5.0).item() == 5


# ---------------------------------------------------------------- world models


def world_models() -> dict[str, Any]:
    ensemble: dict[str, Any] = {"net_arch": [8], "n_members": 3, "n_elites": 2}
    return {
        "mlp": MlpWorldModel(OBS, ACTIONS, net_arch=[8]),
        "ensemble": GaussianEnsemble(OBS, ACTIONS, **ensemble),
        "ensemble of fixed draws": GaussianEnsemble(OBS, ACTIONS, **ensemble, member_draw="rollout"),
        "per dimension": PerDimensionGaussian(OBS, ACTIONS, net_arch=[8]),
        "per dimension, learned noise": PerDimensionGaussian(OBS, ACTIONS, net_arch=[8], noise="learned"),
        "means of an ensemble": GaussianEnsemble(OBS, ACTIONS, **ensemble, deterministic=True),
    }


@pytest.mark.parametrize("name", world_models())
def test_world_models_pass_through_what_happened(name: str) -> None:
    model = world_models()[name].double()
    real = make_trajectory()
    model.state_scaler.spread.copy_(th.tensor([2.0, 0.5, 0.0]))  # the last column never moved in training
    theta = make_theta().requires_grad_()
    rollout = follow(model, renoised_policy(theta), real)
    assert (rollout.obs - real.obs).abs().max() < 1e-12
    assert th.isfinite(th.autograd.grad(rollout.obs[-1].sum(), theta)[0]).all()


def test_an_ensembles_noise_has_its_own_gradient() -> None:
    """d s' / d a at the inferred noise, by finite differences of ``mean + std * xi`` in the data's units."""
    model = GaussianEnsemble(OBS, ACTIONS, net_arch=[8], n_members=1, n_elites=1).double()
    model.state_scaler.spread.copy_(th.tensor([2.0, 0.5, 3.0]))
    real = make_trajectory()
    s, a, next_s = real.obs[0], real.actions[0].clone().requires_grad_(), real.obs[1]
    actual = th.autograd.grad(model.renoised(s, a, next_s)[0].sum(), a)[0]

    def moments(actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        mean, log_var, _ = model._split(model._by_elites(model._inputs(s, actions), None))
        return model._next_obs(s, mean), model._state_std(log_var)

    with th.no_grad():
        mean, std = moments(a)
        xi, step = (next_s - mean) / std, 1e-6
        for column in range(ACTIONS):
            ahead, behind = a.detach().clone(), a.detach().clone()
            ahead[:, column] += step
            behind[:, column] -= step
            (mean_1, std_1), (mean_0, std_0) = moments(ahead), moments(behind)
            expected = ((mean_1 + std_1 * xi) - (mean_0 + std_0 * xi)).sum(1) / (2 * step)
            assert (actual[:, column] - expected).abs().max() < 1e-7 * (1 + expected.abs().max())
