"""The SVG paper's hand and ball: physics, reward, and what Gymnasium and SB3 ask of an environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from tiny import tiny

import sb3_valuegrad.envs
from sb3_valuegrad import SVG
from sb3_valuegrad.envs.hand import GRAVITY, MASS, SEEN, STIFFNESS, TARGETS, TIME_STEP, HandEnv, hand_is_over, hand_reward

assert sb3_valuegrad.envs.OBSERVABLE  # importing it registers the task


def drive(env: gym.Env, steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """(obs, action, next_obs, reward, terminated) under random actions."""
    random, found = np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = random.uniform(-1, 1, 2).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        found.append((obs, action, next_obs, reward, terminated))
        obs = next_obs
    return found


def test_it_obeys_gymnasium_and_sb3() -> None:
    check_env(gym.make("Hand-v0").unwrapped, skip_render_check=True)
    check_env_for_sb3(gym.make("Hand-v0"), warn=False)


def test_an_episode_is_ten_seconds() -> None:
    steps = drive(gym.make("Hand-v0"), 1000)
    assert [terminated for *_, terminated in steps].index(True) == 999
    assert steps[-1][2][8] == 1 and steps[0][0][8] == 0


def test_the_known_functions_are_the_environments() -> None:
    obs, actions, next_obs, rewards, ends = (
        th.from_numpy(np.array(part)) for part in zip(*drive(HandEnv(), 1000), strict=True)
    )
    th.testing.assert_close(hand_reward(obs, actions, next_obs).double(), rewards.double(), rtol=1e-4, atol=1e-6)
    assert th.equal(hand_is_over(obs, actions, next_obs).bool(), ends)
    last = next_obs[-1]
    missed = last[SEEN.hand].norm() + (last[SEEN.ball] - last[SEEN.target]).norm()
    assert rewards[-1].item() == pytest.approx(-10 * missed.item(), rel=1e-5)
    assert rewards[0].item() == pytest.approx(-1e-3 * actions[0].square().sum().item(), rel=1e-5)


def test_physics() -> None:
    """The ball hangs still at rest, obeys Newton's law, and the random force is as large as it says."""
    env = HandEnv(force_noise=0.0)
    start, _ = env.reset(seed=1)
    for _ in range(100):
        after = env.step(np.zeros(2))[0]
    np.testing.assert_allclose(after[:8], start[:8], atol=1e-6)
    for obs, action, next_obs, *_ in drive(env, 50):
        np.testing.assert_allclose(next_obs[SEEN.hand], obs[SEEN.hand] + TIME_STEP * action, atol=1e-6)
        force = STIFFNESS * (obs[SEEN.hand] - obs[SEEN.ball]) - MASS * np.array([0, GRAVITY])
        gained = next_obs[SEEN.ball_velocity] - obs[SEEN.ball_velocity]
        np.testing.assert_allclose(gained, TIME_STEP * force / MASS, atol=1e-5)
    forces = []
    for obs, _, next_obs, *_ in drive(HandEnv(force_noise=2.0), 1000):
        gained = next_obs[SEEN.ball_velocity] - obs[SEEN.ball_velocity]
        expected = STIFFNESS * (obs[SEEN.hand] - obs[SEEN.ball]) - MASS * np.array([0, GRAVITY])
        forces.append(gained / TIME_STEP * MASS - expected)
    assert np.std(forces) == pytest.approx(2.0, rel=0.1)


def test_both_targets_are_drawn_and_repeat_with_the_seed() -> None:
    env = HandEnv()
    drawn = [env.reset(seed=seed)[0][SEEN.target] for seed in range(20)]
    assert {tuple(target.tolist()) for target in drawn} == {tuple(target.tolist()) for target in TARGETS.astype(np.float32)}
    np.testing.assert_array_equal(*(drive(HandEnv(), 30)[-1][2] for _ in range(2)))


def test_the_last_reward_reaches_the_first_action() -> None:
    """SVG(inf), through a learned model and a known reward."""
    known = {"net_arch": [8], "reward_fn": hand_reward, "termination": hand_is_over}
    kwargs = {"world_model_class": "per-dimension", "world_model_kwargs": known}
    model = tiny(HandEnv(steps=30), SVG, horizon=None, policy_replay=False, gamma=1.0, policy_kwargs=kwargs).learn(59)
    places = model.replay_buffer.episodes(59)
    assert places.lengths.tolist() == [30]  # the other is not over
    real = model.replay_buffer.windows(places).trajectory
    actions, policy = [], model._renoised_policy

    def watched(*arguments: Any) -> th.Tensor:
        actions.append(policy(*arguments))
        return actions[-1]

    model._renoised_policy = watched
    rollout = model._rollout(real)
    th.testing.assert_close(rollout.rewards, real.rewards)
    assert th.autograd.grad(rollout.rewards[-1].sum(), actions[0])[0].abs().min() > 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        gym.make("Hand-v0", steps=0)
