"""The SVG paper's tasks but the hand: physics, rewards, and what Gymnasium and SB3 ask of an environment."""

import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from tiny import tiny

from sb3_valuegrad import SVG
from sb3_valuegrad.envs.cart_pole import (
    BUFFER_STIFFNESS,
    CART_MASS,
    GRAVITY,
    HALF_LENGTH,
    POLE_MASS,
    RAIL,
    TIME_STEP,
    CartPoleEnv,
    cart_pole_reward,
    integrate,
    motion,
)
from sb3_valuegrad.envs.registration import SVG_TASKS

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:")
TASKS = [name for name, *_ in SVG_TASKS if name != "Hand-v0"]
LIMITS = {name: limit for name, _, limit, _ in SVG_TASKS}


def made(task: str, **kwargs: Any) -> Any:
    if not task.startswith("CartPole"):
        pytest.importorskip("mujoco")
    return gym.make(task, **kwargs)


def reward_of(task: str) -> Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]:
    if task.startswith("CartPole"):
        return cart_pole_reward
    pytest.importorskip("mujoco")
    from sb3_valuegrad.envs import monoped, reacher, swimmer

    rewards = {"Swimmer": swimmer.swimmer_reward, "Reacher": reacher.reacher_reward, "Monoped": monoped.monoped_reward}
    return next(reward for name, reward in rewards.items() if task.startswith(name))


def drive(env: Any, steps: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Observations, actions, next observations and rewards under random actions."""
    random, found = np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = random.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        assert not terminated
        found.append((obs, action, next_obs, reward))
        obs = env.reset()[0] if truncated else next_obs
    return tuple(np.array(column) for column in zip(*found, strict=True))


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("task", TASKS)
def test_they_obey_gymnasium_and_sb3(task: str) -> None:
    check_env(made(task).unwrapped, skip_render_check=True)
    check_env_for_sb3(made(task), warn=False)


@pytest.mark.parametrize("task", TASKS)
def test_time_limits_cut_and_nothing_terminates(task: str) -> None:
    env = made(task)
    env.reset(seed=0)
    ends = [env.step(env.action_space.high)[2:4] for _ in range(LIMITS[task] or 0)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends].index(True) == len(ends) - 1


@pytest.mark.parametrize("task", TASKS)
def test_the_known_rewards_are_the_environments(task: str) -> None:
    obs, actions, next_obs, rewards = drive(made(task), 300)
    columns = (th.from_numpy(part).double() for part in (obs, actions, next_obs))
    tolerance = 1e-10 if obs.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(reward_of(task)(*columns), rewards, rtol=tolerance, atol=tolerance)
    assert np.std(rewards) > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_known_rewards_have_a_gradient_everywhere(task: str) -> None:
    """At the goal, too, where a length is not differentiable."""
    env = made(task)
    obs, action = th.zeros(2, *env.observation_space.shape), th.zeros(2, *env.action_space.shape)
    next_obs = obs.clone()
    next_obs[1] = 0.5
    next_obs.requires_grad_()
    reward_of(task)(obs, action, next_obs).sum().backward()
    assert next_obs.grad is not None and next_obs.grad.isfinite().all() and next_obs.grad[1].abs().sum() > 0


@pytest.mark.parametrize("task", TASKS)
def test_episodes_repeat_with_the_seed(task: str) -> None:
    """Starts, targets and the motors' noise."""
    first, again, other = (drive(made(task), 30, seed)[2] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first[0], other[0])


@pytest.mark.parametrize("task", TASKS)
def test_actions_are_cut_off_at_their_bounds(task: str) -> None:
    def outcome(size: float) -> Any:
        env = made(task).unwrapped
        env.reset(seed=0)
        return env.step(np.full(env.action_space.shape, size))[:2]

    for left, right in zip(outcome(1.0), outcome(7.0), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("task", TASKS)
def test_copies_by_pickle_are_the_same_task(task: str) -> None:
    env = made(task).unwrapped
    copied = pickle.loads(pickle.dumps(env))
    for left, right in zip(drive(env, 5), drive(copied, 5), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("task", ["CartPoleSwingUp-v0", "Swimmer5-v0", "ReacherMovingTarget-v0", "Monoped-v0"])
@pytest.mark.parametrize("horizon", [1, None])
def test_svg_learns_with_the_known_reward(task: str, horizon: int | None) -> None:
    env = made(task, max_episode_steps=20)
    kwargs = {"net_arch": [8], "reward_fn": reward_of(task), "termination": "none"}
    policy_kwargs = {"world_model_class": "per-dimension", "world_model_kwargs": kwargs}
    model = tiny(env, SVG, horizon=horizon, policy_replay=horizon is not None, policy_kwargs=policy_kwargs)
    before = [parameter.clone() for parameter in model.actor.parameters()]
    model.learn(45)
    assert any(not th.equal(old, new) for old, new in zip(before, model.actor.parameters(), strict=True))


# ---------------------------------------------------------------- cart-pole


def energy(state: np.ndarray) -> float:
    x, theta, x_dot, theta_dot = state
    swing = HALF_LENGTH * theta_dot
    kinetic = CART_MASS * x_dot**2 + POLE_MASS * (x_dot**2 + 2 * x_dot * swing * np.cos(theta) + 4 / 3 * swing**2)
    beyond = max(abs(x) - RAIL, 0.0)
    return float(kinetic / 2 + POLE_MASS * GRAVITY * HALF_LENGTH * np.cos(theta) + BUFFER_STIFFNESS * beyond**2 / 2)


def test_the_cart_poles_equations_are_those_of_gymnasiums() -> None:
    """One Euler step of CartPole-v1, which is written otherwise and whose force is as large."""
    theirs: Any = gym.make("CartPole-v1").unwrapped
    for seed in range(20):
        theirs.reset(seed=seed)
        x, x_dot, theta, theta_dot = before = np.random.default_rng(seed).uniform(-1.5, 1.5, 4)
        theirs.state = before
        force = theirs.force_mag * (1 if seed % 2 else -1)
        after = np.array(theirs.step(seed % 2)[0], dtype=np.float64)
        found = motion(np.array([x, theta, x_dot, theta_dot]), force)
        np.testing.assert_allclose(found[[0, 2, 1, 3]], (after - before) / theirs.tau, rtol=1e-4, atol=1e-4)


def test_the_cart_pole_conserves_energy() -> None:
    """Also where the springs at the rail's ends turn the cart back."""
    env = CartPoleEnv()
    for speed in (0.0, 3.0):
        env.reset(seed=0)
        env.state = np.array([0.0, 2.0, speed, 1.0])
        before, farthest = energy(env.state), 0.0
        for _ in range(200):
            env.step(np.zeros(1))
            farthest = max(farthest, abs(env.state[0]))
            assert energy(env.state) == pytest.approx(before, abs=0.02 if speed else 1e-4)
        assert (farthest > RAIL) == (speed > 0)


def test_the_cart_poles_integrator_is_of_fourth_order() -> None:
    start = np.array([0.1, 2.0, 0.5, 3.0])

    def after(pieces: int) -> np.ndarray:
        state = start
        for _ in range(pieces):
            state = integrate(state, 5.0, 0.4 / pieces)
        return state

    exact = after(2000)
    coarse, fine = (np.abs(after(pieces) - exact).max() for pieces in (8, 16))
    assert 1e-8 < fine < coarse / 12


def test_where_the_pole_starts_and_what_it_is_worth() -> None:
    for task, theta in (("CartPoleSwingUp-v0", np.pi), ("CartPoleBalance-v0", 0.0)):
        env = made(task).unwrapped
        obs, _ = env.reset(seed=1)
        assert np.abs(env.state - [0, theta, 0, 0]).max() <= 0.1
        x, angle, x_dot, theta_dot = env.state
        np.testing.assert_allclose(obs, [x, np.sin(angle), np.cos(angle), x_dot, theta_dot], rtol=1e-6)
    env.state = np.zeros(4)
    assert env.step(np.zeros(1))[1] == pytest.approx(1)
    # The cart gains 10 N / (1 + 0.1 / 4) kg, as the rod turns about its centre; to first order.
    env.state = np.zeros(4)
    assert env.step(np.ones(1))[0][3] == pytest.approx(10 * TIME_STEP / (CART_MASS + POLE_MASS / 4), rel=0.01)


def test_the_cart_poles_picture() -> None:
    env = made("CartPoleBalance-v0", render_mode="rgb_array")
    env.reset(seed=0)
    env.unwrapped.state = np.zeros(4)
    picture = env.render()
    red = (picture == (190, 40, 40)).all(axis=2)
    assert picture.shape == (240, 640, 3) and abs(np.nonzero(red)[1].mean() - 320) < 2 and np.nonzero(red)[0].max() <= 120
    env.unwrapped.state = np.array([1.0, np.pi / 2, 0.0, 0.0])
    red = (env.render() == (190, 40, 40)).all(axis=2)
    assert np.nonzero(red)[1].min() == pytest.approx(320 + 96, abs=2) and np.nonzero(red)[1].max() == pytest.approx(512, abs=2)


# ---------------------------------------------------------------- swimmers


def test_the_swimmer_of_three_links_is_gymnasiums() -> None:
    """The same compiled numbers, and the same motion."""
    ours, theirs = made("Swimmer3-v0").unwrapped, made("Swimmer-v5", frame_skip=20).unwrapped
    for name in ("body_mass", "body_inertia", "body_pos", "geom_size", "jnt_range", "dof_armature", "actuator_gear"):
        np.testing.assert_array_equal(getattr(ours.model, name), getattr(theirs.model, name))
    assert ours.dt == theirs.dt and ours.model.opt.density == theirs.model.opt.density
    ours.reset(seed=0), theirs.reset(seed=0)
    theirs.set_state(ours.data.qpos, ours.data.qvel)
    random = np.random.default_rng(0)
    for _ in range(50):
        action = random.uniform(-1, 1, 2)
        ours.step(action), theirs.step(action)
    np.testing.assert_allclose(ours.data.qpos, theirs.data.qpos, rtol=1e-9)


@pytest.mark.parametrize("links", [3, 5, 7])
def test_swimmers_are_chains_of_equal_links(links: int) -> None:
    env = made(f"Swimmer{links}-v0").unwrapped
    assert env.model.nq == env.model.nv == links + 2 and env.model.nu == links - 1
    assert env.observation_space.shape == (2 * links + 3,)
    masses = env.model.body_mass[1:]
    assert len(masses) == links and np.ptp(masses) == 0
    assert (env.model.jnt_range[3:] == env.model.jnt_range[3]).all() and env.model.jnt_limited[3:].all()
    env.set_state(np.zeros(links + 2), np.zeros(links + 2))
    np.testing.assert_allclose(env.data.geom_xpos[1:, 0], 1.0 - np.arange(links), atol=1e-12)  # end to end


@pytest.mark.parametrize("links", [3, 7])
def test_what_a_swimmer_sees_is_mujocos(links: int) -> None:
    env = made(f"Swimmer{links}-v0").unwrapped
    obs, _ = env.reset(seed=0)
    for _ in range(10):
        obs = env.step(np.random.default_rng(1).uniform(-1, 1, links - 1))[0]
    axes = env.data.body("torso").xmat.reshape(3, 3)[:2, :2].copy()
    first = env.data.geom_xpos[1][:2]  # half a metre behind the nose
    np.testing.assert_allclose(axes @ (obs[:2] + np.array([0.5, 0.0])), -first, atol=1e-10)
    np.testing.assert_allclose(obs[4 : 3 + links], env.data.qpos[3:])
    np.testing.assert_allclose(obs[3 + links :], env.data.qvel[2:])
    # The velocity of the centre of mass by differences of positions.
    place, velocity, centres = env.data.qpos.copy(), env.data.qvel.copy(), []
    for sign in (1, -1):
        env.set_state(place + sign * 1e-5 * velocity, velocity)
        centres.append(env.data.subtree_com[1][:2].copy())
    np.testing.assert_allclose(axes @ obs[2:4], (centres[0] - centres[1]) / 2e-5, atol=1e-7)


def test_a_turned_swimmer_sees_and_does_the_same() -> None:
    """The observation is all that matters: a turn about the goal changes nothing."""
    env = made("Swimmer5-v0").unwrapped
    env.reset(seed=0)
    place, velocity = env.data.qpos.copy(), env.data.qvel.copy()
    seen = []
    for angle in (0.0, 1.1):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned, moving = place.copy(), velocity.copy()
        turned[:2], turned[2], moving[:2] = turn @ place[:2], place[2] + angle, turn @ velocity[:2]
        env.set_state(turned, moving)
        seen.append([env.step(np.array([0.5, -0.5, 0.2, 1.0]))[0] for _ in range(20)])
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-8)


def test_the_swimmers_reward_is_its_speed_to_the_goal() -> None:
    """App. D, with a state in which both are plain: the goal 2 m ahead of the nose, the body gliding ahead at 0.3 m/s."""
    env = made("Swimmer3-v0").unwrapped
    from sb3_valuegrad.envs.swimmer import ACTION_WEIGHT

    env.reset(seed=0)
    env.set_state(np.array([-3.5, 0, 0, 0, 0.0]), np.array([0.3, 0, 0, 0, 0.0]))
    obs, reward, _, _, info = env.step(np.zeros(2))
    assert obs[0] == pytest.approx(info["distance"]) == pytest.approx(2 - 0.3 * 0.2, abs=0.01)
    assert reward == pytest.approx(obs[2], rel=0.01) and 0.2 < obs[2] < 0.3
    env.set_state(np.array([-3.5, 0, 0, 0, 0.0]), np.zeros(5))
    # Opposite torques at both ends of a straight, symmetric chain do not move its centre of mass.
    assert env.step(np.array([1.0, -1.0]))[1] == pytest.approx(2 * ACTION_WEIGHT, abs=1e-3)


def test_swimmers_start_everywhere_around_the_goal() -> None:
    env = made("Swimmer3-v0").unwrapped
    goals = np.array([env.reset(seed=seed)[0][:2] for seed in range(300)])
    distances = np.linalg.norm(goals, axis=1)
    assert distances.max() <= 4 and np.mean(distances < 2) == pytest.approx(0.25, abs=0.08)
    assert (np.abs(goals.mean(axis=0)) < 0.4).all()


def test_too_few_links() -> None:
    with pytest.raises(ValueError, match="links=2 must be at least 3"):
        made("Swimmer3-v0", links=2)


# ---------------------------------------------------------------- reachers


def test_the_reachers_kinematics_are_mujocos() -> None:
    env = made("ReacherMovingTarget-v0").unwrapped
    from sb3_valuegrad.envs.reacher import _joints

    assert env.model.nq == env.model.nv == env.model.nu == 3
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        np.testing.assert_allclose(_joints(obs[:3])[-1], env.get_body_com("fingertip")[:2], atol=1e-12)
        np.testing.assert_allclose(obs[6:], env.get_body_com("target")[:2], atol=1e-12)
        assert env.data.ncon == 0 and np.abs(_joints(obs[:3])).max() <= 0.2


def test_targets_rest_in_the_four_corners() -> None:
    env = made("Reacher4Targets-v0")
    corners = {tuple(env.reset(seed=seed)[0][6:].tolist()) for seed in range(40)}
    assert corners == {(0.2, 0.2), (-0.2, 0.2), (-0.2, -0.2), (0.2, -0.2)}
    obs, _, next_obs, _ = drive(env, 50)
    assert (next_obs[:, 6:] == obs[0, 6:]).all()


def test_moving_targets_are_reflected() -> None:
    env = made("ReacherMovingTarget-v0", max_episode_steps=1000).unwrapped
    reflected = 0
    for seed in range(5):
        obs, _, next_obs, _ = drive(env, 400, seed)
        velocities = (next_obs[:, 6:] - obs[:, 6:]) / env.dt
        assert np.abs(next_obs[:, 6:]).max() <= 0.2
        sizes = np.abs(velocities).max(axis=0)
        assert 0.05 - 1e-9 <= np.linalg.norm(sizes) <= 0.2 + 1e-9
        turned = np.abs(np.abs(velocities) - sizes) > 1e-9  # steps that hold a reflection
        assert turned.mean() < 0.1
        signs = np.sign(velocities[~turned.any(axis=1)])
        reflected += int((np.diff(signs, axis=0) != 0).sum())
    assert reflected > 10


def test_walls_stop_the_arm() -> None:
    env = made("Reacher4Targets-v0").unwrapped
    touched = 0
    for seed in range(10):
        env.reset(seed=seed)
        action = np.random.default_rng(seed).choice([-1.0, 1.0], 3)
        for _ in range(100):
            env.step(action)
            env.set_state(env.data.qpos, env.data.qvel)
            touched += env.data.ncon > 0
            assert np.abs(env.get_body_com("fingertip")[:2]).max() < 0.24  # the middle of the wall
    assert touched > 20


# ---------------------------------------------------------------- the monoped


def test_the_monopeds_motors_are_noisy_at_all_times() -> None:
    """5% of a motor's strength, in every direction even where the action is at its bound, anew in every step."""
    env = made("Monoped-v0").unwrapped
    torques: list[np.ndarray] = []
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(100):
            env.step(np.array([1.0, 0.0, -1.0]))
            torques.append(env.data.ctrl - [1, 0, -1])
    noise = np.array(torques)
    np.testing.assert_allclose(noise.std(axis=0), 0.05, rtol=0.1)
    assert (np.abs(noise.mean(axis=0)) < 0.01).all() and (noise > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.1
    forces = env.data.qfrc_actuator[3:]
    assert np.abs(forces).max() > 180  # N m: of the motors' 200


def test_the_monoped_falls_and_lands() -> None:
    env = made("Monoped-v0", torque_noise=0.0).unwrapped
    obs, _ = env.reset(seed=0)
    assert obs[0] == pytest.approx(1.45) and env.data.ncon == 0
    heights = [obs[0]]
    for _ in range(20):
        heights.append(env.step(np.zeros(3))[0][0])
    falling = np.array(heights[:10])
    assert (np.diff(falling) < 0).all() and np.diff(falling, 2).mean() / env.dt**2 == pytest.approx(-9.81, rel=0.02)
    while env.data.ncon == 0:
        obs = env.step(np.zeros(3))[0]
    assert 1.1 < obs[0] < 1.3


def test_the_monoped_is_seen_at_any_speed() -> None:
    env = made("Monoped-v0").unwrapped
    env.reset(seed=0)
    env.set_state(env.init_qpos, np.full(6, 40.0))
    assert (env._get_obs()[5:] == 40).all() and env._get_obs().shape == (11,)


def test_noise_of_negative_size() -> None:
    with pytest.raises(ValueError, match=r"torque_noise=-0.1 must be at least 0"):
        made("Monoped-v0", torque_noise=-0.1)
