"""The MPG paper's tasks and their prior models: formulas, units, and what Gymnasium and SB3 ask of an environment."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.vec_env import VecMonitor
from test_value_expansions import same
from tiny import tiny

import sb3_valuegrad.envs
from sb3_valuegrad import DVG, MAAC, MPG, MVE
from sb3_valuegrad.envs.path_tracking import ACTION_LIMITS, PathTrackingVectorEnv, Vehicles
from sb3_valuegrad.envs.priors import PRIORS, pendulum_reward, pendulum_step, vehicle_reward, vehicle_step
from sb3_valuegrad.envs.vec_env import VectorEnvForSB3
from sb3_valuegrad.envs.vehicle import PATH_PERIOD, Motion, drive, path
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.world_models import AnalyticWorldModel

assert sb3_valuegrad.envs.OBSERVABLE
TRACKING, PENDULUM = PRIORS
TASKS = [TRACKING, PENDULUM]
pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:")


def need(task: str) -> None:
    if task == PENDULUM:
        pytest.importorskip("mujoco")


# ---------------------------------------------------------------- environments


@pytest.mark.parametrize("task", TASKS)
def test_tasks_obey_gymnasium_and_sb3(task: str) -> None:
    need(task)
    check_env(gym.make(task, render_mode="rgb_array").unwrapped, skip_render_check=task == PENDULUM)
    check_env_for_sb3(gym.make(task), warn=False)


@pytest.mark.parametrize(("task", "length"), [(TRACKING, 200), (PENDULUM, 100)])
@pytest.mark.parametrize("early_reset", [False, True])
def test_episodes_are_cut_and_never_end(task: str, length: int, early_reset: bool) -> None:
    need(task)
    steps, off_track = 0, False
    env: Any = gym.make(task, early_reset=early_reset)
    env.reset(seed=0)
    truncated = False
    while not truncated:
        obs, reward, terminated, truncated, info = env.step(env.action_space.high)
        steps += 1
        assert np.isfinite(obs).all() and np.isfinite(reward) and not terminated
        assert not off_track or not early_reset  # the step that leaves the track is the last one
        off_track |= info["off_track"]
    assert off_track and (steps < length if early_reset else steps == length)


def test_the_path_is_three_sines_with_their_slope() -> None:
    x = np.linspace(0, PATH_PERIOD, 1001)
    y, phi = path(x)
    expected = 7.5 * np.sin(2 * np.pi * x / 200) + 2.5 * np.sin(2 * np.pi * x / 300) - 5 * np.sin(2 * np.pi * x / 400)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    numeric = (path(x + 1e-5)[0] - path(x - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(np.tan(phi), numeric, atol=1e-8)
    np.testing.assert_allclose(path(x + PATH_PERIOD)[0], y, atol=1e-10)


def continuous(state: np.ndarray, steering: float, acceleration: float) -> np.ndarray:
    """d/dt of (u, v, r, y, phi, x): rigid body, linear tyres, written from the physics and not from eq. 15."""
    u, v, r, _, phi, _ = state
    a, b, mass, inertia, front, rear = 1.14, 1.40, 1500.0, 2420.0, 88_000.0, 94_000.0
    of_front = -front * ((v + a * r) / u - steering)
    of_rear = -rear * (v - b * r) / u
    return np.array(
        [
            acceleration + v * r,
            (of_front + of_rear) / mass - u * r,
            (a * of_front - b * of_rear) / inertia,
            u * np.sin(phi) + v * np.cos(phi),
            r,
            u * np.cos(phi) - v * np.sin(phi),
        ]
    )


@pytest.mark.parametrize("steering", [-0.05, 0.0, 0.02])
def test_the_simulator_follows_the_differential_equation(steering: float) -> None:
    """Eq. 15 with small steps against the physics integrated by Runge and Kutta; the error is of first order in the step."""
    start, seconds = np.array([20.0, 0.1, -0.05, 1.0, 0.1, 30.0]), 0.5
    exact, n = start.copy(), 2000
    for _ in range(n):
        h = seconds / n
        k1 = continuous(exact, steering, 1.0)
        k2 = continuous(exact + h / 2 * k1, steering, 1.0)
        k3 = continuous(exact + h / 2 * k2, steering, 1.0)
        k4 = continuous(exact + h * k3, steering, 1.0)
        exact = exact + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    errors = []
    for frequency in (200, 400):
        motion = Motion(*start[:, None])
        for _ in range(int(seconds * frequency)):
            motion = drive(motion, np.array([steering]), np.array([1.0]), 1 / frequency, np)
        errors.append(np.abs(np.concatenate(motion) - exact))
    assert (errors[0] < [0.02, 0.02, 0.02, 0.05, 0.01, 0.1]).all()
    large = errors[0] > 1e-4
    assert large.any() and (errors[1][large] < 0.6 * errors[0][large]).all()


def test_observation_and_reward_are_the_papers() -> None:
    env: Any = gym.make(TRACKING).unwrapped
    env.reset(seed=3)
    u, v, r, y, phi, x = (float(column[0]) for column in env.vehicles.motion)
    y_ref, phi_ref = (float(part) for part in path(np.array(x)))
    expected = [u - 20, v, r, y - y_ref, phi - phi_ref, x / 100]
    np.testing.assert_allclose(env.vehicles.observe()[0], expected, rtol=1e-5)
    action = np.array([0.1, -1.0], dtype=np.float32)
    reward = env.step(action)[1]
    wanted = 0.01 * (u - 20) ** 2 + 0.04 * (y - y_ref) ** 2 + 0.1 * (phi - phi_ref) ** 2 + 0.02 * r**2 + 5 * 0.1**2 + 0.05
    assert reward == pytest.approx(-wanted, rel=1e-6)


def test_the_observation_forgets_laps_and_turns() -> None:
    vehicles = Vehicles(2)
    near, far = np.array([20.0, 0, 0, 1.0, 0.1, 50.0]), np.array([20.0, 0, 0, 1.0, 0.1 + 4 * np.pi, 50.0 + 3 * PATH_PERIOD])
    vehicles.motion = Motion(*np.stack([near, far], axis=1))
    left, right = vehicles.observe()
    np.testing.assert_allclose(left, right, atol=1e-5)


def test_the_actuator_saturates_and_speed_stays_positive() -> None:
    two = Vehicles(2)
    two.motion = Motion(*np.tile(np.array([[20.0], [0], [0], [0], [0], [0]]), 2))
    rewards = two.step(np.array([[9.0, 9.0], ACTION_LIMITS]))
    assert rewards[0] == rewards[1] and (two.observe()[0] == two.observe()[1]).all()
    for _ in range(100):
        two.step(np.array([[0.0, -3.0]] * 2))
    assert (two.motion.u == 1.0).all() and two.off_track().all()


@pytest.mark.parametrize(
    ("state", "off"),
    [
        ([20, 0, 0, 2.9, 0, 0], False),
        ([20, 0, 0, 3.1, 0, 0], True),
        ([20, 0, 0, -3.1, 0, 0], True),
        ([20, 0, 0, 0, 0.7, 0], False),
        ([20, 0, 0, 0, 0.8, 0], True),
        ([20, 0, 0, 0, -0.8, 0], True),
        ([1.9, 0, 0, 0, 0, 0], True),
        ([20, 0, -0.9, 0, 0, 0], True),
    ],
)
def test_where_a_vehicle_is_taken_back(state: list[float], off: bool) -> None:
    vehicles = Vehicles(1)
    y_ref, phi_ref = path(np.zeros(1))
    motion = np.array(state) + np.array([0, 0, 0, y_ref[0], phi_ref[0], 0])
    vehicles.motion = Motion(*motion[:, None])
    assert vehicles.off_track()[0] == off


def test_the_picture_shows_road_and_vehicle() -> None:
    env: Any = gym.make(TRACKING, render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (240, 640, 3) and picture.dtype == np.uint8 and len(np.unique(picture.reshape(-1, 3), axis=0)) == 5
    env.step(np.array([0.0, 0.0]))
    assert (env.render() != picture).any()


# ---------------------------------------------------------------- many vehicles


def test_the_vector_environment_is_many_single_ones() -> None:
    many = gym.make_vec(TRACKING, 5, vectorization_mode="vector_entry_point", early_reset=False)
    single: Any = SyncVectorEnv([lambda: gym.make(TRACKING, early_reset=False).unwrapped for _ in range(5)])
    many.reset(seed=1)
    single.reset(seed=2)
    core: Any = many.unwrapped
    for index, env in enumerate(single.envs):
        env.unwrapped.vehicles.motion = Motion(*(column[index : index + 1].copy() for column in core.vehicles.motion))
    random = np.random.default_rng(0)
    for _ in range(20):
        actions = random.uniform(-ACTION_LIMITS, ACTION_LIMITS, (5, 2)).astype(np.float32)
        ours, theirs = many.step(actions), single.step(actions)
        for left, right in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-6)


def test_episodes_begin_anew_in_the_same_step() -> None:
    env = PathTrackingVectorEnv(300, max_episode_steps=30)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs) and env.action_space.contains(env.action_space.sample())
    ended = 0
    for _ in range(40):
        obs, rewards, terminated, truncated, info = env.step(np.zeros((300, 2)))
        assert obs.shape == (300, 6) and rewards.shape == (300,) and not terminated.any()
        assert not (np.abs(obs[:, 3]) > 3).any()  # those off the track are back
        if truncated.any():
            ended += int(truncated.sum())
            last = info["final_obs"][truncated]
            assert (info["_final_obs"] == truncated).all() and (env.steps[truncated] == 0).all()
            assert not np.allclose(last, obs[truncated]) and np.allclose(info["final_obs"][~truncated], obs[~truncated])
    assert ended > 300
    assert env.render() is None
    assert len(PathTrackingVectorEnv(2, render_mode="rgb_array").render() or ()) == 2


def test_seeded_resets_repeat() -> None:
    env = PathTrackingVectorEnv(4)
    first, other, again = (env.reset(seed=seed)[0] for seed in (5, 6, 5))
    assert (first == again).all() and not (first == other).any()


def test_many_vehicles_train_one_policy() -> None:
    env = VecMonitor(VectorEnvForSB3(PathTrackingVectorEnv(16, max_episode_steps=10)))
    model = agent(TRACKING, MPG, env=env, horizons=(0, 3), gradient_steps=2)
    model.learn(16 * 30)
    buffer = model.replay_buffer
    assert buffer.n_envs == 16 and buffer.pos == 30 and model._n_updates > 20
    # Time limits are no terminations: the critic looks beyond them.
    assert buffer.dones[:30].any() and (buffer.timeouts[:30] == buffer.dones[:30]).all()
    assert not buffer.rows[:30, :, buffer.obs_dim + buffer.action_dim + 1].any()
    assert len(model.ep_info_buffer) > 0 and env.get_attr("early_reset") == [True] * 16


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"autoreset_mode=.*NEXT_STEP.*same step"):
        VectorEnvForSB3(gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"))


# ---------------------------------------------------------------- prior models


def agent(task: str, algorithm: Any, env: Any = None, **kwargs: Any) -> Any:
    policy_kwargs = {"net_arch": [16], "world_model_class": "analytic", "world_model_kwargs": PRIORS[task]}
    return tiny(gym.make(task) if env is None else env, algorithm, policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize("algorithm", [MPG, DVG, MVE, MAAC])
@pytest.mark.parametrize("task", TASKS)
def test_priors_serve_every_algorithm(task: str, algorithm: Any, tmp_path: Path) -> None:
    need(task)
    model = agent(task, algorithm)
    model.learn(50)
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    assert algorithm.load(tmp_path / "model").world_model.reward_fn is model.world_model.reward_fn


SMALL: dict[str, tuple[Any, Any, int, int, list[float]]] = {
    TRACKING: (vehicle_step, vehicle_reward, 6, 2, [2.0, 0.2, 0.1, 1.0, 0.2, 3.0]),
    PENDULUM: (pendulum_step, pendulum_reward, 4, 1, [0.3, 0.2, 0.5, 0.5]),
}


@pytest.mark.parametrize("horizon", [1, 2, 10, 25])
@pytest.mark.parametrize("task", TASKS)
def test_first_action_gradients_through_the_priors_by_finite_differences(task: str, horizon: int) -> None:
    """``grad_{a_0} J_H`` with later actions by a policy that follows the state, in float64, noise mean included."""
    step, reward, states, actions, scale = SMALL[task]
    mean = PRIORS[task]["noise_mean"]
    model = AnalyticWorldModel(states, actions, step, reward, noise_mean=mean).double()
    model.set_action_bounds(*(sign * th.tensor([0.4, 3.0][:actions] if states == 6 else [3.0]) for sign in (-1, 1)))
    generator = th.Generator().manual_seed(0)
    obs = th.randn(5, states, generator=generator, dtype=th.float64) * th.tensor(scale)
    gain = 0.05 * th.randn(actions, states, generator=generator, dtype=th.float64)
    first = 0.2 * th.randn(5, actions, generator=generator, dtype=th.float64)

    def value(chosen: th.Tensor) -> th.Tensor:
        rollout = imagine(model, lambda _: chosen, obs, horizon, later_policy=lambda states: th.tanh(states @ gain.T))
        discount = 0.98 ** th.arange(horizon, dtype=th.float64)
        return discount @ rollout.rewards

    leaf = first.clone().requires_grad_()
    (found,) = th.autograd.grad(value(leaf).sum(), leaf)
    numeric, nudge = th.zeros_like(first), 1e-6
    for column in range(actions):
        shift = th.zeros_like(first)
        shift[:, column] = nudge
        numeric[:, column] = (value(first + shift) - value(first - shift)) / (2 * nudge)
    assert numeric.abs().max() > 1e-3
    same(found, numeric, 1e-6)


def test_the_vehicles_prior_is_the_simulator_on_a_straight_line_with_long_steps() -> None:
    obs = th.tensor([[1.0, 0.2, -0.1, 0.5, 0.1, 3.0]], dtype=th.float64)
    actions = th.tensor([[0.05, 1.0]], dtype=th.float64)
    motion = drive(Motion(21.0, 0.2, -0.1, 0.5, 0.1, 300.0), 0.05, 1.0, 0.1, np)
    expected = [motion.u - 20, motion.v, motion.r, motion.y, motion.phi, motion.x / 100]
    same(vehicle_step(obs, actions), th.tensor([expected], dtype=th.float64), 1e-14)


def test_the_pendulums_prior_conserves_energy() -> None:
    """A uniform rod on a cart, free of force: the error of forward Euler is of first order in the step."""
    m1, m2, length, g = 9.42, 4.89, 0.6, 9.81

    def energy(state: th.Tensor) -> th.Tensor:
        _, theta, x_dot, theta_dot = state.unbind(1)
        kinetic = 0.5 * (m1 + m2) * x_dot**2 + 0.5 * m2 * length * theta.cos() * x_dot * theta_dot
        return kinetic + m2 * length**2 / 6 * theta_dot**2 + 0.5 * m2 * g * length * theta.cos()

    start = th.tensor([[0.0, 0.3, 0.4, -0.5]], dtype=th.float64)
    rates = (pendulum_step(start, th.zeros(1, 1)) - start) * 25
    state = start.clone().requires_grad_()
    (slope,) = th.autograd.grad(energy(state).sum(), state)
    assert slope.norm() > 1 and abs((slope * rates).sum().item()) < 1e-12


def test_the_pendulums_prior_is_near_mujocos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs and the force of an action: one step from states near the top."""
    pytest.importorskip("mujoco")
    env: Any = gym.make(PENDULUM).unwrapped
    env.reset(seed=0)
    random = np.random.default_rng(0)
    for _ in range(10):
        state, action = random.uniform(-0.1, 0.1, 4), random.uniform(-0.5, 0.5, 1)
        env.set_state(state[:2], state[2:])
        obs, reward, *_ = env.step(action)
        predicted = pendulum_step(th.from_numpy(state)[None], th.from_numpy(action)[None])[0].numpy()
        moved, expected = obs[2:] - state[2:], predicted[2:] - state[2:]
        assert np.abs(moved - expected).max() < 0.35 * np.abs(moved).max()
        x, theta, x_dot, theta_dot = obs
        assert reward == pytest.approx(-(0.01 * x**2 + theta**2 + 0.1 * x_dot**2 + 0.1 * theta_dot**2))


def test_the_priors_reward_of_the_vehicle_is_the_simulators() -> None:
    vehicles = Vehicles(6)
    vehicles.place(np.ones(6, dtype=bool), np.random.default_rng(0))
    obs, actions = th.from_numpy(vehicles.observe()), th.from_numpy(np.random.default_rng(1).uniform(-0.4, 0.4, (6, 2)))
    rewards = vehicle_reward(obs.double(), actions, obs)
    np.testing.assert_allclose(rewards, vehicles.step(actions.numpy()), rtol=1e-5)
