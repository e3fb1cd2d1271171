"""The oracle is the task: it steps MuJoCo from the state that an observation shows."""

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tiny import same, snapshot, tiny

pytest.importorskip("mujoco")

from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

from sb3_valuegrad import DVPG, MAAC, MBPO, MVE
from sb3_valuegrad.envs import OBSERVABLE
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.world_models import Oracle

TASKS = [*OBSERVABLE, "InvertedPendulum-v4", "InvertedPendulum-v5", "PlacedCheetah-v0"]
TERMINATING = [task for task in TASKS if "Cheetah" not in task and "Swimmer" not in task]
CHEETAH = "HalfCheetahObservable-v5"

# Gymnasium warns about -v4 and about the unbounded spaces that all its MuJoCo tasks have.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:.*WARN:")]


class ForgetfulPendulum(InvertedPendulumEnv):
    """Pays for something that no observation shows: how many steps were made."""

    steps = 0

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        obs, _, *rest = super().step(action)
        return obs, 1e-3 * self.steps, *rest


class PlacedCheetah(HalfCheetahEnv):
    """Pays for where MuJoCo says that the torso is, which it says for the state before the last substep."""

    def __init__(self, **kwargs: Any):
        super().__init__(exclude_current_positions_from_observation=False, **kwargs)

    def step(self, action: np.ndarray) -> Any:
        obs, _, *rest = super().step(action)
        return obs, self.get_body_com("torso")[2], *rest


class OneJointPendulum(InvertedPendulumEnv):
    """Does not show how fast the pole turns."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def _get_obs(self) -> np.ndarray:
        return super()._get_obs()[:3]


gym.register("ForgetfulPendulum-v0", ForgetfulPendulum)
gym.register("PlacedCheetah-v0", PlacedCheetah)
gym.register("OneJointPendulum-v0", OneJointPendulum)


def oracle(task: str, **kwargs: Any) -> Oracle:
    env = gym.make(task, **kwargs.get("env_kwargs", {}))
    assert env.observation_space.shape is not None and env.action_space.shape is not None
    return Oracle(env.observation_space.shape[0], env.action_space.shape[0], task, **{"n_threads": 1, **kwargs})


def experience(task: str, steps: int, seed: int = 7) -> tuple[th.Tensor, ...]:
    """Random steps of a task, in the order of their rewards: observations, actions in [-1, 1], what came of it."""
    env, random = gym.make(task), np.random.default_rng(seed)
    assert isinstance(env.action_space, gym.spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    obs, rows = env.reset(seed=seed)[0], []
    for _ in range(steps):
        action = np.clip(random.normal(size=low.shape), -1, 1).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(low + 0.5 * (action + 1) * (high - low))
        rows.append((obs, action, next_obs, float(reward), float(terminated)))
        obs = env.reset()[0] if terminated or truncated else next_obs
    rows.sort(key=lambda row: row[3])
    return tuple(th.as_tensor(np.array(column)) for column in zip(*rows, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_predicts_what_the_task_does(task: str) -> None:
    obs, actions, *real = experience(task, 300)
    # In double precision it is the task's own arithmetic; the solver alone starts from another guess.
    for predicted, wanted in zip(oracle(task).step(obs, actions), real, strict=True):
        th.testing.assert_close(predicted, wanted, rtol=1e-9, atol=1e-9)
    if task in TERMINATING:
        assert 0 < real[2].sum() < len(obs)


def test_predicts_from_single_precision() -> None:
    obs, actions, next_obs, rewards, _ = experience(CHEETAH, 100)
    step = oracle(CHEETAH).step(obs.float(), actions)
    assert {part.dtype for part in step} == {th.float32}
    moved = (next_obs - obs).square().mean().sqrt()
    assert (step.next_obs - next_obs).square().mean().sqrt() < 1e-5 * moved
    th.testing.assert_close(step.reward.double(), rewards, rtol=1e-3, atol=1e-3)


def test_a_rollout_follows_an_episode() -> None:
    env, model, steps = gym.make("Walker2dObservable-v5", terminate_when_unhealthy=False), oracle("Walker2dObservable-v5"), 60
    actions = th.as_tensor(np.random.default_rng(0).uniform(-1, 1, (steps + 1, 6)), dtype=th.float64)
    states, rewards, fell = [env.reset(seed=3)[0]], [], []
    for action in actions[:-1].numpy():
        obs, reward, *_ = env.step(action)
        states.append(obs)
        rewards.append(reward)
        fell.append(not env.unwrapped.is_healthy)  # type: ignore[attr-defined]
    time = iter(actions)
    rollout = imagine(model, lambda obs: next(time)[None], th.as_tensor(states[0])[None], steps)
    th.testing.assert_close(rollout.obs[:, 0], th.as_tensor(np.array(states)), rtol=1e-6, atol=1e-6)
    th.testing.assert_close(rollout.rewards[:, 0], th.as_tensor(np.array(rewards)), rtol=1e-6, atol=1e-6)
    assert any(fell) and not fell[0]
    alive = 1 - np.maximum.accumulate(np.array(fell, dtype=float))
    assert rollout.alive[1:, 0].tolist() == alive.tolist() and rollout.alive[0] == 1


def test_env_kwargs_reach_the_task() -> None:
    kwargs = {"ctrl_cost_weight": 5.0}
    obs, actions, *_ = experience(CHEETAH, 5)
    cheap, dear = oracle(CHEETAH).step(obs, actions), oracle(CHEETAH, env_kwargs=kwargs).step(obs, actions)
    costs = (5.0 - 0.1) * actions.double().square().sum(1)
    th.testing.assert_close(cheap.reward - dear.reward, costs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", [CHEETAH, "PlacedCheetah-v0"])
def test_threads_and_order_change_nothing(task: str) -> None:
    obs, actions, *_ = experience(task, 60)
    alone, together = oracle(task), oracle(task, n_threads=3)
    for one, many, backwards in zip(
        alone.step(obs, actions), together.step(obs, actions), alone.step(obs.flip(0), actions.flip(0)), strict=True
    ):
        assert th.equal(one, many)
        assert th.equal(one, backwards.flip(0))


def test_rows_that_are_not_finite_stay_so() -> None:
    obs, actions, *_ = experience(CHEETAH, 3)
    model = oracle(CHEETAH)
    whole, spoilt = model.step(obs, actions), obs.clone()
    spoilt[1, 4] = np.nan
    step = model.step(spoilt, actions)
    for part, wanted in zip(step, whole, strict=True):
        assert part[1].isnan().all()
        assert th.equal(part[[0, 2]], wanted[[0, 2]])
    assert model.step(obs[:0], actions[:0]).next_obs.shape == (0, 18)


def test_nothing_is_learned() -> None:
    model = oracle("InvertedPendulum-v5")
    assert not model.is_learned and list(model.parameters()) == []


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("asked", ["obs", "actions"])
def test_a_gradient_is_refused(asked: str) -> None:
    obs, actions, *_ = experience("InvertedPendulum-v5", 4)
    obs, actions = obs.requires_grad_(asked == "obs"), actions.requires_grad_(asked == "actions")
    model = oracle("InvertedPendulum-v5")
    with pytest.raises(ValueError, match=r"has no gradient.*MVE"):
        model.step(obs, actions)
    with th.no_grad():
        assert model.step(obs, actions).next_obs.shape == (4, 4)


@pytest.mark.parametrize(
    ("task", "kwargs", "missing"),
    [
        ("HalfCheetah-v5", {}, "position of joint rootx: not in the observation"),
        ("HalfCheetah-v4", {}, "position of joint rootx: not in the observation"),
        ("Swimmer-v5", {}, "positions of joints slider1, slider2: not in the observation"),
        ("Walker2d-v5", {"exclude_current_positions_from_observation": False}, "velocities of joints rootx.*cut off at 10"),
        ("Hopper-v5", {}, "rootx: not in the observation; velocities of .*foot_joint: cut off at 10"),
        ("InvertedDoublePendulum-v5", {}, "velocities of joints slider, hinge, hinge2: cut off at 10"),
        ("Reacher-v5", {}, "position of joint joint1 and velocities of joints target_x, target_y: not in"),
        ("Ant-v5", {"exclude_current_positions_from_observation": False}, "the reward of 50 steps did not come out"),
        ("ForgetfulPendulum-v0", {}, "the reward of 50 steps did not come out"),
        ("OneJointPendulum-v0", {}, "velocity of joint hinge: not in the observation"),
        ("Pendulum-v1", {}, "not one of Gymnasium's MuJoCo tasks"),
        ("Nowhere-v5", {}, "cannot be made.*If another module registers it"),
    ],
)
def test_a_task_that_cannot_be_restored_is_refused(task: str, kwargs: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        Oracle(3, 1, task, env_kwargs=kwargs)


def test_another_task_than_the_one_learned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"length \(4, 1\).*\(18, 6\)"):
        Oracle(18, 6, "InvertedPendulum-v5")


def test_bad_thread_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="n_threads=0"):
        oracle("InvertedPendulum-v5", n_threads=0)


@pytest.mark.parametrize("algorithm", [DVPG, MAAC])
def test_algorithms_that_climb_the_model_are_refused(algorithm: Any) -> None:
    with pytest.raises(ValueError, match="climbs one through the model"):
        agent("InvertedPendulum-v5", algorithm).learn(30)


@pytest.mark.parametrize("changed", [{"norm_reward": False}, {"norm_obs": False}])
def test_normalised_data_are_refused(changed: dict[str, Any]) -> None:
    env = VecNormalize(make_vec_env("InvertedPendulum-v5"), **changed)
    with pytest.raises(ValueError, match="VecNormalize changes observations or rewards, and Oracle"):
        agent(env).learn(30)
    agent(VecNormalize(make_vec_env("InvertedPendulum-v5"), norm_obs=False, norm_reward=False)).learn(30)


# -------------------------------------------------------------------- in an algorithm


def agent(task: Any, algorithm: Any = MVE, **kwargs: Any) -> Any:
    env_id = task if isinstance(task, str) else "InvertedPendulum-v5"
    policy_kwargs = {"net_arch": [16], "world_model_class": "oracle", "world_model_kwargs": {"env_id": env_id}}
    return tiny(task, algorithm, policy_kwargs=policy_kwargs, **kwargs)


@pytest.mark.parametrize("task", ["InvertedPendulum-v5", CHEETAH])
def test_mve_learns_with_it(task: str, tmp_path: Path) -> None:
    model = agent(task, model_validation_fraction=0.5)
    before = snapshot(model)
    model.learn(80)
    after = snapshot(model)
    assert not same(before, after) and all(value.isfinite().all() for value in after.values())
    errors = model.model_errors()
    assert errors["model_error_1"] < 1e-4 and errors["model_reward_error"] < 1e-4


@pytest.mark.parametrize("algorithm", [MVE, MBPO])
def test_imagined_experience_is_the_tasks(algorithm: Any) -> None:
    model = agent(CHEETAH, algorithm, real_ratio=0.5, rollouts_per_step=4, horizon=0).learn(30)
    # Four from each of the ten times that the networks learned, though MBPO would wait for a fit of the model.
    assert len(model.imagined) == 40
    obs, actions, rewards, dones, next_obs = model.imagined.sample(40)
    step = model.world_model.step(obs, actions)
    assert th.equal(step.next_obs, next_obs) and th.equal(step.reward[:, None], rewards) and not dones.any()


def test_steve_targets_with_it() -> None:
    model = agent("InvertedPendulum-v5", DVPG, horizon=0, target_estimator="steve", target_horizon=2)
    before = snapshot(model)
    assert not same(before, snapshot(model.learn(40)))


def test_is_saved_and_loaded(tmp_path: Path) -> None:
    model = agent("InvertedPendulum-v5").learn(40)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = MVE.load(tmp_path / "model", env=model.get_env())
    assert same(snapshot(loaded), snapshot(model))
    obs, actions, *_ = experience("InvertedPendulum-v5", 5)
    policy = type(model.policy).load(tmp_path / "policy")
    for other in (loaded.world_model, policy.world_model):
        assert th.equal(other.step(obs, actions).next_obs, model.world_model.step(obs, actions).next_obs)
    loaded.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_step_on_their_own(copied: Any) -> None:
    model = oracle("InvertedDoublePendulumObservable-v5", n_threads=2)
    other = copied(model)
    assert other.simulator.data is not model.simulator.data
    obs, actions, *_ = experience("InvertedDoublePendulumObservable-v5", 5)
    assert th.equal(other.step(obs, actions).next_obs, model.step(obs, actions).next_obs)


# -------------------------------------------------------------------- the tasks


@pytest.mark.parametrize("task", OBSERVABLE)
def test_tasks_obey_gymnasium_and_sb3(task: str) -> None:
    check_env(gym.make(task).unwrapped, skip_render_check=True)
    check_env_for_sb3(gym.make(task), warn=False)


@pytest.mark.parametrize("task", OBSERVABLE)
def test_tasks_are_gymnasiums_but_for_the_observation(task: str) -> None:
    ours, theirs = gym.make(task), gym.make(task.replace("Observable", ""))
    assert ours.spec is not None and theirs.spec is not None
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == 1000
    ours.reset(seed=1)
    theirs.reset(seed=1)
    theirs.action_space.seed(1)
    for _ in range(5):
        action = theirs.action_space.sample()
        seen, *outcome = ours.step(action)
        wanted, *wanted_outcome = theirs.step(action)
        assert outcome[:3] == wanted_outcome[:3]
        # The root's position comes first. (The double pendulum's last entry is a force, not state.)
        shared = np.clip(wanted[:-1] if "Double" in task else wanted, -10, 10)
        assert np.array_equal(np.clip(seen, -10, 10)[-len(shared) :], shared)


def test_fast_velocities_are_shown() -> None:
    for name in ("Walker2d", "Hopper"):
        task: Any = gym.make(f"{name}Observable-v5").unwrapped
        task.reset(seed=0)
        task.data.qvel[:] = 25.0
        assert task._get_obs()[-1] == 25.0
