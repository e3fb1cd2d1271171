"""SVG: its networks, its gradient and its critic against what the paper writes out, when it learns from what, bad input."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from lqr import LinearQuadraticEnv
from small_models import LinearFeatures
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_end_to_end_lqr import cost_of, optimal_cost
from tiny import PointEnv, same, snapshot, tiny
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution, kl_divergence

from sb3_valuegrad import DVPG, SVG
from sb3_valuegrad.gaussian_policies import BOUND, GaussianActor, VCritic, gaussian_kl
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.replay import PackedReplayBuffer
from sb3_valuegrad.rollouts import Trajectory
from sb3_valuegrad.trajectories import TrajectoryReplayBuffer, Windows
from sb3_valuegrad.weights import overlap

ENSEMBLE: dict[str, Any] = {
    "world_model_class": "ensemble",
    "world_model_kwargs": {"net_arch": [8], "n_members": 2, "n_elites": 2},
}
KINDS: dict[str, dict[str, Any]] = {
    "squashed": {},
    "plain": {"squash": False},
    "learned noise": {"learn_noise": True},
    "plain, learned noise": {"squash": False, "learn_noise": True, "noise_std": 0.5},
}
WHOLE: dict[str, Any] = {"horizon": None, "policy_replay": False}


def svg(env: Any = None, **kwargs: Any) -> Any:
    return tiny(PointEnv() if env is None else env, SVG, **{"horizon": 1, **kwargs})


def several(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: PointEnv(**kwargs) for _ in range(n_envs)])


def exact(model: Any) -> Any:
    """All networks in float64."""
    for network in (model.actor, model.critic, model.critic_target, model.world_model):
        network.double()
        network.extract_features = lambda obs, extractor: obs  # SB3's makes float32 of it
    model._flat.flatten = lambda obs: obs
    return model


def in_float64(windows: Windows) -> Windows:
    real = Trajectory(*(part.double() for part in windows.trajectory))
    return Windows(real, windows.log_probs.double(), windows.within.double(), windows.lengths)


def stretches(model: Any, count: int = 12, most: int = 3) -> Windows:
    state = np.random.get_state()
    np.random.seed(1)
    windows = model.replay_buffer.windows(model.replay_buffer.draw(count, most))
    np.random.set_state(state)
    return in_float64(windows)


@pytest.fixture
def quiet_rng() -> Iterator[None]:
    with th.random.fork_rng():
        th.manual_seed(0)
        yield


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("kind", KINDS)
def test_the_policys_likelihood_and_its_inferred_noise(kind: str, quiet_rng: None) -> None:
    actor = exact(svg(policy_kwargs=KINDS[kind])).actor
    obs = th.randn(200, 2, dtype=th.float64)
    actions, log_probs = actor.action_log_prob(obs)
    mean, log_std, _ = actor.get_action_dist_params(obs)
    plain = Independent(Normal(mean, log_std.exp()), 1)
    expected = plain if not actor.squash else TransformedDistribution(plain, TanhTransform(cache_size=1))
    # SB3's guard against a logarithm of zero, 1e-6, is in ours.
    th.testing.assert_close(log_probs, expected.log_prob(actions), rtol=0, atol=1e-4 if actor.squash else 1e-10)
    th.testing.assert_close(actor.renoised(obs, actions), actions, rtol=0, atol=1e-12)
    th.testing.assert_close(actor(obs, deterministic=True), actor._squashed(mean))
    if "noise_std" not in KINDS[kind]:
        assert log_std.exp().mean().item() == pytest.approx(0.5, rel=0.3 if actor.learn_noise else 1e-6)
    spread = (actor._unsquashed(actions) - mean) / log_std.exp()
    assert abs(spread.mean()) < 0.2 and abs(spread.std() - 1) < 0.1


def test_a_squashed_action_at_its_bound(quiet_rng: None) -> None:
    """It stays there, with finite likelihood and gradient."""
    actor: GaussianActor = svg().actor
    obs, actions = th.randn(3, 2), th.tensor([[1.0, -1.0], [1.0, 0.5], [-1.0, BOUND]])
    actions_again = actor.renoised(obs, actions)
    assert (actions_again - actions).abs().max() < 2e-6 and th.isfinite(actor.log_prob(obs, actions)).all()
    (actions_again.sum() + actor.log_prob(obs, actions).sum()).backward()
    assert all(th.isfinite(parameter.grad).all() for parameter in actor.parameters() if parameter.grad is not None)


def test_gaussian_kl_golden(quiet_rng: None) -> None:
    mean, other = th.randn(2, 5, 3, dtype=th.float64)
    log_std, other_log_std = th.randn(2, 5, 3, dtype=th.float64)
    left, right = (Independent(Normal(m, s.exp()), 1) for m, s in ((mean, log_std), (other, other_log_std)))
    th.testing.assert_close(gaussian_kl(mean, log_std, other, other_log_std), kl_divergence(left, right))


def test_the_critic_is_of_states_unless_there_is_no_horizon() -> None:
    for horizon, kind in ((1, True), (3, True), (None, True), (0, False)):
        model = svg(horizon=horizon, policy_replay=horizon is not None)
        assert isinstance(model.critic, VCritic) == kind
        obs, actions = th.randn(4, 2), th.randn(2, 4, 2)
        assert th.equal(model.critic(obs, actions[0])[0], model.critic(obs, actions[1])[0]) == kind
        assert th.equal(model.critic(obs, actions[0])[0][:, 0], model.critic.q1(obs, actions[0]))


def test_a_plain_policy_is_cut_off_at_the_bounds_by_whoever_acts() -> None:
    """Its experience, whose likelihood is known, is not."""
    seen = []

    class Watched(PointEnv):
        def step(self, action: np.ndarray) -> Any:
            seen.append(action.copy())
            return super().step(action)

    model = svg(Watched(), policy_kwargs={"squash": False, "noise_std": 2.0}).learn(30)
    stored = model.replay_buffer.actions[:30, 0]
    assert np.abs(stored).max() > 1.5
    np.testing.assert_allclose(np.array(seen), 2 * stored.clip(-1, 1), rtol=1e-6, atol=1e-6)  # the space is [-2, 2]
    for deterministic in (True, False):
        actions, _ = model.predict(np.full((100, 2), 5, dtype=np.float32), deterministic=deterministic)
        assert np.abs(actions).max() <= 2


# ---------------------------------------------------------------- the policy's gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_class", ["mlp", "ensemble"])
def test_svg_1_is_its_equation(kind: str, model_class: str) -> None:
    """``w (r_a + gamma V_s' f_a) pi_theta`` at the inferred noise (Alg. 2 line 13), each factor a Jacobian of its own."""
    kwargs = {**(ENSEMBLE if model_class == "ensemble" else {}), **KINDS[kind], "n_critics": 1}
    kwargs["world_model_kwargs"] = {**ENSEMBLE["world_model_kwargs"], "n_members": 1, "n_elites": 1, "termination": "none"}
    if model_class == "mlp":
        kwargs["world_model_kwargs"] = {"net_arch": [8], "termination": "none"}
    model = exact(svg(policy_kwargs=kwargs).learn(60))
    model.actor.mu.weight.data.mul_(1.5)  # a policy that has moved on from its data
    windows = stretches(model, most=1)
    actor, world, critic = model.actor, model.world_model, model.critic
    model._policy_loss(windows)[0].backward()
    actual = th.cat([parameter.grad.flatten() for parameter in actor.parameters()])

    expected = th.zeros_like(actual)
    real, count = windows.trajectory, len(windows.lengths)
    for row in range(count):
        s, a, next_s = real.obs[0, row], real.actions[0, row], real.obs[1, row]

        def reward(action: th.Tensor, s: th.Tensor = s, next_s: th.Tensor = next_s) -> th.Tensor:
            return world.outcome(s[None], action[None], next_s[None], world.transition(s[None], action[None])[1])[0][0]

        def f(action: th.Tensor, s: th.Tensor = s, next_s: th.Tensor = next_s, a: th.Tensor = a) -> th.Tensor:
            """At the noise xi that explains next_s."""
            if model_class == "mlp":
                return world.transition(s[None], action[None])[0][0]

            def moments(action: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
                mean, log_var, _ = world._split(world._by_elites(world._inputs(s[None], action[None]), None))
                return world._next_obs(s[None], mean)[0], world._state_std(log_var)[0]

            mean, std = moments(a)
            xi = ((next_s - mean) / std).detach()
            mean, std = moments(action)
            return mean + std * xi

        r_a, f_a = jacobian(reward, a), jacobian(f, a)
        V_s = jacobian(lambda state: critic(state[None])[0][0, 0], next_s)
        actor.zero_grad()
        mean, log_std, _ = actor.get_action_dist_params(s[None])
        u = a if not actor.squash else th.atanh(a.clamp(-BOUND, BOUND))
        eta = ((u - mean) / log_std.exp()).detach()
        action = actor._squashed(mean + log_std.exp() * eta)[0]
        with th.no_grad():
            w = (actor.log_prob(s[None], a[None])[0] - windows.log_probs[0, row]).exp().clamp(max=5.0)
        (w * (r_a + model.gamma * V_s @ f_a) @ action).backward()
        expected -= th.cat([parameter.grad.flatten() for parameter in actor.parameters()]) / count
    assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_svg_0_is_its_equation() -> None:
    """``Q_a pi_theta`` at the inferred noise (Alg. 3 line 11), weighed."""
    model = exact(svg(horizon=0, policy_kwargs={"n_critics": 1}).learn(40))
    windows = stretches(model, most=1)
    obs, actions = windows.trajectory.obs[0], windows.trajectory.actions[0]
    model._policy_loss(windows)[0].backward()
    actual = [parameter.grad.clone() for parameter in model.actor.parameters()]
    model.actor.zero_grad()
    Q_a = jacobian(lambda a: model.critic.q1(obs, a).sum(), actions)
    w = (model.actor.log_prob(obs, actions) - windows.log_probs[0]).exp().clamp(max=5.0).detach()
    (-(w[:, None] * Q_a * model.actor.renoised(obs, actions)).sum() / len(obs)).backward()
    for left, parameter in zip(actual, model.actor.parameters(), strict=True):
        th.testing.assert_close(left, parameter.grad)


@pytest.mark.parametrize("terminates", [True, False], ids=["terminations", "time limits"])
def test_stretches_of_different_lengths_are_worth_what_each_is_alone(terminates: bool) -> None:
    model = exact(svg(PointEnv(length=5, terminates=terminates), horizon=4).learn(60))
    assert model.world_model.may_end
    windows = stretches(model, count=20, most=4)
    assert set(windows.lengths) == {1, 2, 3, 4}
    together = model._expansions(windows)
    gradient = th.autograd.grad(together.sum(), list(model.actor.parameters()))
    alone, gradients = [], []
    for row, length in enumerate(windows.lengths):
        obs, *others = (part[:, row : row + 1] for part in windows.trajectory)
        real = Trajectory(obs[: length + 1], *(part[:length] for part in others))
        one = Windows(real, windows.log_probs[:length, row : row + 1], th.ones(length, 1).double(), [length])
        alone.append(model._expansions(one)[0])
        gradients.append(th.autograd.grad(alone[-1], list(model.actor.parameters()), retain_graph=True))
        # And what that is: the real rewards, then V, or nothing after a termination.
        rewards, dones = real.rewards[:, 0], real.dones[:, 0]
        earned = (model.gamma ** th.arange(length, dtype=th.float64)) @ rewards
        last = model._values(model.critic, real.obs[-1], real.actions[-1]).amin() * (1 - dones[-1])
        th.testing.assert_close(alone[-1], earned + model.gamma**length * last, rtol=1e-10, atol=1e-10)
    th.testing.assert_close(together, th.stack(alone), rtol=1e-12, atol=1e-12)
    for index, part in enumerate(gradient):
        th.testing.assert_close(part, sum(one[index] for one in gradients), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("horizon", [0, 1, 3, None])
def test_only_the_actor_receives_gradient(horizon: int | None) -> None:
    model = svg(horizon=horizon, policy_replay=horizon is not None, policy_kwargs={"learn_noise": True}).learn(50)
    windows = stretches(model)
    real = Trajectory(*(part.float() for part in windows.trajectory))
    windows = Windows(real, windows.log_probs.float(), windows.within.float(), windows.lengths)
    with frozen(model._other_parameters):
        model._policy_loss(windows)[0].backward()
    for network in (model.critic, model.critic_target, model.world_model):
        assert all(parameter.grad is None for parameter in network.parameters())
    for name, parameter in model.actor.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_the_world_models_gradient_is_what_svg_1_climbs() -> None:
    """Other model, other gradient; the value of J does not change, as the trajectory is the real one."""
    model = exact(svg().learn(50))
    windows = stretches(model)
    values, gradients = [], []
    for _ in range(2):
        expansions = model._expansions(windows)
        values.append(expansions.detach())
        gradients.append(th.autograd.grad(expansions.sum(), model.actor.mu.weight)[0])
        for parameter in model.world_model.parameters():
            parameter.data.mul_(-2)
    th.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    assert (gradients[0] - gradients[1]).abs().max() > 0.1 * gradients[0].abs().max()


# ---------------------------------------------------------------- importance weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_weights_are_one_on_the_current_policys_data(kind: str, n_envs: int) -> None:
    model = svg(several(n_envs), horizon=3, policy_kwargs=KINDS[kind], learning_starts=1000).learn(60)
    windows = model.replay_buffer.windows(model.replay_buffer.draw(50, 3))
    th.testing.assert_close(model._policy_weights(windows), th.ones(50), rtol=2e-4, atol=0)
    assert set(windows.lengths) == {1, 2, 3}
    model.actor.mu.bias.data.add_(0.3)
    weights = model._policy_weights(windows)
    assert (weights - 1).abs().mean() > 0.1 and weights.max() <= 5
    model.max_importance_weight = 1.2
    assert model._policy_weights(windows).max() <= 1.2
    model.importance_weights = False
    assert th.equal(model._policy_weights(windows), th.ones(50))


def test_the_overlap_is_one_minus_total_variation(quiet_rng: None) -> None:
    """Of unit Gaussians at distance d: ``TV = 2 Phi(d / 2) - 1``."""
    acted = th.randn(200_000, dtype=th.float64)
    for distance in (0.0, 0.5, 2.0):
        weights = (Normal(distance, 1.0).log_prob(acted) - Normal(0.0, 1.0).log_prob(acted)).exp()
        total_variation = 2 * Normal(0.0, 1.0).cdf(th.tensor(distance / 2)) - 1
        assert overlap(weights).item() == pytest.approx(1 - total_variation.item(), abs=5e-3)


@pytest.mark.parametrize("per_episode", [True, False])
def test_a_policy_that_left_its_data_behind_waits(per_episode: bool) -> None:
    """Whatever remains of the gradient, Adam would make a full step of it. New experience lets it go on."""
    phases = {"policy_gradient_steps": 2, "train_freq": (1, "episode")} if per_episode else {}
    model = svg(policy_window=20, **phases).learn(60)
    model.actor.mu.bias.data.add_(3.0)
    before = copy.deepcopy(model.actor.state_dict())
    losses: Any = defaultdict(list)
    step = partial(model._on_episode_end, losses) if per_episode else partial(model._gradient_step, 16, losses)
    step()
    assert same(before, model.actor.state_dict()) and "actor_loss" not in losses
    assert len(losses["policy_overlap"]) == 1 and losses["policy_overlap"][0] < 0.25
    model.min_overlap = 0.0
    step()
    assert not same(before, model.actor.state_dict()) and len(losses["actor_loss"]) == (2 if per_episode else 1)
    model.min_overlap = 0.25
    model.learn(20, reset_num_timesteps=False)
    step()
    assert losses["policy_overlap"][-1] > 0.25


def test_the_policy_learns_from_the_newest_experience() -> None:
    for n_envs, window in ((1, 8), (2, 8), (1, None)):
        model = svg(several(n_envs), policy_window=window).learn(60)
        drawn = [model._experience().trajectory.obs[0] for _ in range(20)]
        stored = th.from_numpy(model.replay_buffer.observations[: model.replay_buffer.pos].copy())
        newest = stored if window is None else stored[-(window // n_envs) :]
        assert {tuple(row) for row in th.cat(drawn).tolist()} == {tuple(row) for row in newest.flatten(0, 1).tolist()}


# ---------------------------------------------------------------- the critic


def test_the_critic_is_fitted_policy_evaluation() -> None:
    """Alg. 4: ``w/2 (r + gamma V_target(s') - V(s))^2``, the weight a constant, and 0 behind a termination."""
    model = svg(PointEnv(terminates=True, length=4), policy_kwargs={"n_critics": 1}, target_update_interval=7).learn(60)
    batch = model._sample(64)
    assert 0 < batch.dones.sum() < 64
    with th.no_grad():
        y = batch.rewards + model.gamma * (1 - batch.dones) * model.critic_target(batch.next_observations)[0]
        w = (model.actor.log_prob(batch.observations, batch.actions) - batch.log_probs).exp().clamp(max=5.0)
        expected = (w[:, None] / 2 * (y - model.critic(batch.observations)[0]).square()).mean()
    loss, _ = model._critic_loss(batch)
    th.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in model.actor.parameters())


def test_the_target_is_copied_every_c_updates() -> None:
    model = svg(target_update_interval=10)
    copies = []
    update = model._update_targets

    def watched() -> None:
        before = copy.deepcopy(model.critic_target.state_dict())
        update()
        if any(not th.equal(value, before[name]) for name, value in model.critic_target.state_dict().items()):
            copies.append(model._n_updates)
            assert all(th.equal(v, model.critic.state_dict()[n]) for n, v in model.critic_target.state_dict().items())

    model._update_targets = watched
    model.learn(55)
    assert model._n_updates == 35 and copies == [10, 20, 30]


# ---------------------------------------------------------------- who learns from what, and when


def policy_steps(model: Any, steps: int) -> list[tuple[int, Windows]]:
    """Train; at which timestep the policy stepped, and on what."""
    found: list[tuple[int, Windows]] = []
    loss = model._policy_loss

    def watched(windows: Windows, *args: Any) -> Any:
        found.append((model.num_timesteps, windows))
        return loss(windows, *args)

    model._policy_loss = watched
    model.learn(steps)
    return found


def test_with_replay_the_policy_steps_beside_the_critic() -> None:
    found = policy_steps(svg(policy_delay=2), 60)
    assert [time for time, _ in found] == list(range(22, 61, 2))
    assert all(len(windows.lengths) == 16 for _, windows in found)


def test_svg_1_er_steps_after_each_episode() -> None:
    """App. D: K steps, each on new data."""
    model = svg(policy_gradient_steps=3, train_freq=(1, "episode"), gradient_steps=-1)
    found = policy_steps(model, 60)
    assert [time for time, _ in found] == [time for time in (30, 40, 50, 60) for _ in range(3)]
    assert not th.equal(found[0][1].trajectory.obs, found[1][1].trajectory.obs)
    assert model._n_updates == 40


@pytest.mark.parametrize("per_episode", [True, False])
def test_without_replay_experience_is_new(per_episode: bool) -> None:
    """Each step of the environment serves the policy once (or ``policy_gradient_steps`` times, after an episode)."""
    model = svg(policy_replay=False, policy_gradient_steps=2 if per_episode else None, batch_size=100, gradient_steps=2)
    found = policy_steps(model, 60)
    counts = [len(windows.lengths) for _, windows in found]
    # At first all that was seen before learning began, then what has come in since.
    assert counts == ([21, 21, 9, 9, 10, 10, 10, 10, 10, 10] if per_episode else [21] + [1] * 39)
    for _, windows in found:
        assert windows.trajectory.obs.shape[0] == 2


def test_svg_inf_learns_from_whole_episodes_of_one_policy() -> None:
    model = svg(PointEnv(length=9), **WHOLE)
    actors = []
    sample = model._sample_action

    def watched(*args: Any, **kwargs: Any) -> Any:
        actors.append(model.actor.mu.weight.detach().clone())
        return sample(*args, **kwargs)

    model._sample_action = watched
    found = policy_steps(model, 54)
    assert [time for time, _ in found] == [27, 36, 45, 54]
    assert [windows.lengths for _, windows in found] == [[9, 9, 9], [9], [9], [9]]
    for time, windows in found:
        length = len(windows.lengths) * 9
        assert all(th.equal(actors[time - length], actor) for actor in actors[time - length : time])
        stored = model.replay_buffer.observations[time - 9 : time, 0]
        np.testing.assert_array_equal(windows.trajectory.obs[:-1, -1], stored)
    assert not th.equal(actors[0], actors[-1])
    # J is the return, discounted; nothing comes after it.
    real = found[-1][1].trajectory
    th.testing.assert_close(model._expansions(found[-1][1])[0], (model.gamma ** th.arange(9)) @ real.rewards[:, 0])
    # No critic is asked or trained.
    before = svg(PointEnv(length=9), **WHOLE).critic.state_dict()
    assert all(th.equal(value, before[name]) for name, value in model.critic.state_dict().items())


def test_the_planner_goes_where_its_model_leads() -> None:
    """From the same start states, under the policy's own noise."""
    model = svg(trajectories="imagined", horizon=3).learn(50)
    windows = model._experience()
    real = windows.trajectory
    rollout = model._rollout(real)
    assert th.equal(rollout.obs[0], real.obs[0]) and not th.equal(rollout.obs[1], real.obs[1])
    assert not th.equal(rollout.actions[0], model._rollout(real).actions[0])
    assert th.equal(model._policy_weights(windows), th.ones(16))
    episodes = policy_steps(svg(trajectories="imagined", **WHOLE), 40)
    assert [windows.lengths for _, windows in episodes] == [[10, 10, 10], [10]]


def test_the_penalty_keeps_the_policy_near() -> None:
    """It is zero, and flat, at the first step after an episode; later steps go less far."""
    distances = {}
    for kl_coef in (1e-9, 1000.0):
        phase = {"policy_gradient_steps": 10, "train_freq": (1, "episode"), "min_overlap": 0.0}
        model = svg(kl_coef=kl_coef, learning_rate=1e-2, **phase)
        logged: list[float] = []
        update = model._update_actor

        def watched(loss_of: Any, after: Any = None, update: Any = update, logged: list[float] = logged) -> Any:
            result = update(loss_of, after)
            logged.append(result["kl"].item())
            return result

        model._update_actor = watched
        model.learn(40)
        assert logged[0] == logged[10] == 0 and min(logged[1:10]) > 0
        distances[kl_coef] = logged[9]
    assert distances[1000.0] < 0.1 * distances[1e-9]


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "learning_rate"),
    [({}, 1e-3), ({"horizon": 3}, 1e-3), (WHOLE, 2e-2)],
    ids=["SVG(1)", "SVG(3)", "SVG(inf)"],
)
def test_it_learns_the_riccati_optimum(arguments: dict[str, Any], learning_rate: float) -> None:
    """SVG(inf) makes one policy step an episode, 25 times fewer."""
    rates = {name: linear(1e-3) for name in ("qf_learning_rate", "model_learning_rate")}
    networks = {"net_arch": [32, 32], "n_critics": 1, "noise_std": 0.2}
    model = SVG(
        "MlpPolicy", LinearQuadraticEnv(), linear(learning_rate), **rates, learning_starts=500, batch_size=128, seed=0,
        gamma=LinearQuadraticEnv.GAMMA, target_update_interval=20, device="cpu", **arguments,
        policy_kwargs={**networks, "world_model_kwargs": {"net_arch": [64], "termination": "none"}},
    )  # fmt: skip
    assert cost_of(model.learn(3000)) < 1.02 * optimal_cost()


def linear(rate: float) -> Any:
    """A schedule that ends at zero."""
    return lambda progress: rate * progress


# ---------------------------------------------------------------- ecosystem

SETTINGS: dict[str, dict[str, Any]] = {
    "SVG(0)": {"horizon": 0},
    "SVG(1)": {"policy_replay": False},
    "SVG(1)-ER": {"policy_gradient_steps": 3, "kl_coef": 0.1},
    "SVG(3)": {"horizon": 3, "policy_kwargs": KINDS["plain, learned noise"]},
    "SVG(inf)": WHOLE,
    "planner": {**WHOLE, "trajectories": "imagined"},
    "ensemble": {"policy_kwargs": ENSEMBLE, "horizon": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_saved_loaded_and_repeated(name: str, tmp_path: Path) -> None:
    runs = [svg(**{"seed": seed, **SETTINGS[name]}).learn(50) for seed in (1, 1, 2)]
    assert same(snapshot(runs[0]), snapshot(runs[1])) and not same(snapshot(runs[0]), snapshot(runs[2]))
    model = runs[0]
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = SVG.load(tmp_path / "model", env=PointEnv())
    assert same(snapshot(loaded), snapshot(model)) and loaded.horizon == model.horizon
    obs = np.ones((5, 2), dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.learn(20, reset_num_timesteps=False)
    assert all(th.isfinite(value).all() for value in snapshot(loaded).values())
    policy = type(model.policy)
    model.policy.save(tmp_path / "policy.pth")
    again = policy.load(tmp_path / "policy.pth")
    assert all(th.equal(value, model.policy.state_dict()[key]) for key, value in again.state_dict().items())


def test_resuming_equals_not_stopping(tmp_path: Path) -> None:
    model = svg(DummyVecEnv([PointEnv]), policy_gradient_steps=2, policy_replay=False, learning_starts=44).learn(50)
    assert model.replay_buffer.fresh == 0
    model.replay_buffer.fresh = 7
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    resumed = SVG.load(tmp_path / "model", env=DummyVecEnv([PointEnv]))
    resumed.load_replay_buffer(tmp_path / "buffer.pkl")
    for each in (model, resumed):
        each.set_random_seed(3)
        each.set_logger(Logger(None, []))
        each.train(gradient_steps=5, batch_size=16)
    assert same(snapshot(model), snapshot(resumed)) and resumed.replay_buffer.fresh == model.replay_buffer.fresh


@pytest.mark.parametrize("horizon", [0, 2])
def test_several_environments_normalised_with_features(horizon: int) -> None:
    env = VecNormalize(several(3))
    model = svg(env, horizon=horizon, gradient_steps=-1, policy_kwargs={"features_extractor_class": LinearFeatures})
    model.learn(90)
    assert model._n_updates == 72 and all(th.isfinite(value).all() for value in snapshot(model).values())
    assert isinstance(model.replay_buffer, TrajectoryReplayBuffer)


@pytest.mark.parametrize("space", [spaces.Box(-10, 10, (2, 3), np.float32), spaces.Box(-10, 10, (3,), np.float64)], ids=str)
def test_spaces(space: spaces.Space) -> None:
    model = svg(PointEnv(space), horizon=2).learn(40)
    assert model.world_model.obs_dim == int(np.prod(space.shape or ()))


def test_an_expansion_may_stand_in_the_critics_target() -> None:
    model = svg(target_estimator="mve", target_horizon=2).learn(40)
    assert model._n_updates == 20


# ---------------------------------------------------------------- bad input

BAD: list[tuple[dict[str, Any], str]] = [
    ({"horizon": None}, "policy_replay=True with horizon=None.*policy_replay=False"),
    ({**WHOLE, "policy_gradient_steps": 5}, "policy_gradient_steps=5 with horizon=None.*use 1"),
    ({**WHOLE, "train_freq": 4}, r"train_freq=4 with horizon=None.*train_freq=\(1"),
    ({**WHOLE, "kl_coef": 1.0}, "kl_coef=1.0.*finite horizon"),
    ({"kl_coef": 1.0}, "kl_coef=1.0.*policy_gradient_steps"),
    ({"kl_coef": -1.0}, "kl_coef=-1.0.*0 is no penalty"),
    ({"policy_gradient_steps": 0}, "policy_gradient_steps=0 .*at least 1"),
    ({"max_importance_weight": 0}, "max_importance_weight=0 .*None"),
    ({"policy_window": 0}, "policy_window=0 "),
    ({"min_overlap": 1.0}, r"min_overlap=1.0 must be in \[0, 1\)"),
    ({"min_overlap": -0.1}, r"min_overlap=-0.1 must be in \[0, 1\)"),
    ({"min_overlap": 0.4, "max_importance_weight": 0.3}, r"min_overlap=0.4 must be in \[0, 0.3\).*max_importance_weight=0.3"),
    ({"target_update_interval": 0}, "target_update_interval=0 .*at least 1"),
    ({"trajectories": "dreamt"}, "trajectories='dreamt' .*imagined"),
    ({"action_noise": 0.1}, "action_noise=0.1.*noise_std"),
    ({"target_estimator": "td-k", "target_horizon": 1}, 'target_estimator="td-k".*mve'),
    ({"n_steps": 3}, "n_steps=3.*n_steps=1"),
    ({"optimize_memory_usage": True}, "optimize_memory_usage=True.*False"),
    ({"replay_buffer_class": ReplayBuffer}, "replay_buffer_class=ReplayBuffer.*TrajectoryReplayBuffer"),
    ({"replay_buffer_class": HerReplayBuffer}, "replay_buffer_class=HerReplayBuffer.*TrajectoryReplayBuffer"),
    ({"policy_kwargs": {"noise_std": 0.0}}, "noise_std=0.0 must be positive"),
    ({"policy_kwargs": {"share_features_extractor": True}}, "share_features_extractor=True.*False"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        svg(**arguments)


def test_several_policies_data() -> None:
    with pytest.raises(ValueError, match=r"3 environments.*one environment"):
        svg(several(3), **WHOLE)


def test_dict_observations() -> None:
    env = PointEnv(spaces.Dict({"a": spaces.Box(-1, 1, (2,))}))
    with pytest.raises(ValueError, match=r"Dict.*FlattenObservation"):
        svg(env)
    svg(gym.wrappers.FlattenObservation(env)).learn(30)


def test_episodes_that_do_not_end() -> None:
    model = svg(PointEnv(length=10**9), buffer_size=50, **WHOLE)
    with pytest.raises(ValueError, match=r"buffer_size=50 .*max_episode_steps"):
        model.learn(200)


def test_a_buffer_of_another_algorithm(tmp_path: Path) -> None:
    other = tiny(algorithm=DVPG).learn(30)
    assert type(other.replay_buffer) is PackedReplayBuffer
    other.save_replay_buffer(tmp_path / "buffer.pkl")
    model = svg()
    with pytest.raises(ValueError, match=r"PackedReplayBuffer without trajectories.*behaviour_log_prob"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")


def test_steps_of_unknown_likelihood() -> None:
    def demonstrated(**kwargs: Any) -> Any:
        model = svg(**kwargs)
        state = np.zeros((1, 2), dtype=np.float32)
        infos: list[dict[str, Any]] = [{**kwargs.pop("info", {})}]
        model.replay_buffer.add(state, state, np.zeros((1, 2)), np.zeros(1), np.ones(1), infos)
        return model

    with pytest.raises(ValueError, match=r"without log-probabilities.*behaviour_log_prob.*importance_weights=False"):
        demonstrated().learn(30)
    demonstrated(importance_weights=False).learn(30)
