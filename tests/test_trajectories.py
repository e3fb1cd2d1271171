"""Replay of stretches of real experience: what follows what, and how likely it was."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv

from sb3_valuegrad.trajectories import LOG_PROB, Places, TrajectoryReplayBuffer

OBS, ACTIONS = spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,))


class Story:
    """Experience in which every state is a number of its own, so that what follows what can be read off.

    :param end: what an episode ends with: "termination", "time limit", or "reset", which nobody tells the buffer about
    """

    def __init__(self, size: int, n_envs: int = 1, end: str = "termination"):
        self.buffer = TrajectoryReplayBuffer(size * n_envs, OBS, ACTIONS, n_envs=n_envs, device="cpu")
        self.n_envs, self.end = n_envs, end
        self.now, self.told = np.arange(n_envs, dtype=np.float32) * 1e5, 0

    def go_on(self, lengths: list[int]) -> "Story":
        """Episodes of these lengths; of several environments the next ones' are each a step longer."""
        ends = [np.cumsum(np.array(lengths) + env) for env in range(self.n_envs)]
        for step in range(1, sum(lengths) + 1):
            over = np.array([step in end for end in ends])
            dones = over if self.end != "reset" else np.zeros_like(over)
            infos = [{"TimeLimit.truncated": self.end == "time limit", LOG_PROB: -x} for x in self.now]
            state, after = (np.stack([x, -x], axis=1) for x in (self.now, self.now + 1))
            self.buffer.add(state, after, self.now[:, None] % 7, self.now / 10, dones, infos)
            self.now = self.now + 1 + 100 * over
            self.told += 1
        return self

    def check(self, places: Places) -> None:
        """Every window is a piece of the story, as long as it can be, and repeats its last step beyond its end."""
        windows = self.buffer.windows(places)
        obs, actions, rewards, dones = windows.trajectory
        horizon = len(rewards)
        for column, (length, env) in enumerate(zip(windows.lengths, places.envs, strict=True)):
            states = obs[:, column, 0]
            assert states[0] == self.buffer.observations[places.steps[column], env, 0]
            np.testing.assert_array_equal(np.diff(states[: length + 1]), np.ones(length))
            assert (states[length:] == states[length]).all() and (obs[:, column, 1] == -states).all()
            last = np.minimum(np.arange(horizon), length - 1)
            real = states[last]
            np.testing.assert_array_equal(actions[:, column, 0], real % 7)
            np.testing.assert_allclose(rewards[:, column], real / 10, rtol=1e-6)
            np.testing.assert_array_equal(windows.log_probs[:, column], -real)
            np.testing.assert_array_equal(windows.within[:, column], np.arange(horizon) < length)
            assert not dones[: length - 1, column].any()

    def expected_length(self, step: int, env: int, most: int) -> int:
        """As far as the stored states count on."""
        buffer, length = self.buffer, 1
        while length < most and (step - buffer.pos + 1) % buffer.buffer_size != 0:
            following = (step + 1) % buffer.buffer_size
            if buffer.observations[following, env, 0] != buffer.next_observations[step, env, 0]:
                break
            step, length = following, length + 1
        return length


@pytest.mark.parametrize("end", ["termination", "time limit", "reset"])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("told", [[5, 1, 7, 2], [5, 1, 7, 2, 9, 3, 30, 1, 4, 6], [100]], ids=["part", "wrapped", "one long"])
@pytest.mark.parametrize("most", [1, 2, 4, 25])
def test_windows_are_what_happened(end: str, n_envs: int, told: list[int], most: int) -> None:
    story = Story(40, n_envs, end).go_on(told)
    size = story.buffer.size()
    assert size == min(40, story.told)
    steps, envs = (index.ravel() for index in np.meshgrid(np.arange(size), np.arange(n_envs), indexing="ij"))
    places = story.buffer._places(steps, envs, most)
    story.check(places)
    lengths = [story.expected_length(int(step), int(env), most) for step, env in zip(steps, envs, strict=True)]
    assert places.lengths.tolist() == lengths


def test_terminations_and_time_limits_are_told_apart() -> None:
    for end, expected in (("termination", 1.0), ("time limit", 0.0), ("reset", 0.0)):
        buffer = Story(20, end=end).go_on([3, 4]).buffer
        windows = buffer.windows(Places(np.array([0, 1, 4]), np.zeros(3, dtype=int), np.array([3, 2, 1])))
        dones = windows.trajectory.dones
        assert [dones[2, 0], dones[1, 1], dones[0, 2]] == [expected, expected, 0.0]
        assert dones[:2, 0].sum() == 0


def test_every_step_is_as_likely_to_be_the_first() -> None:
    """Those near an episode's end, too: episodes shorter than k are not passed over."""
    story = Story(30, 2).go_on([2, 3, 20, 1, 3])
    state = np.random.get_state()
    np.random.seed(0)
    places = story.buffer.draw(20_000, most=6)
    np.random.set_state(state)
    counts = np.bincount(places.steps * 2 + places.envs, minlength=story.buffer.size() * 2)
    assert abs(counts / counts.mean() - 1).max() < 0.2
    assert set(places.lengths) == {1, 2, 3, 4, 5, 6}
    story.check(Places(*(part[:500] for part in places)))


@pytest.mark.parametrize("newest", [1, 5, 28, 100])
def test_newest_steps_alone(newest: int) -> None:
    story = Story(30, 2).go_on([3, 20, 9, 13])
    buffer = story.buffer
    places = buffer.draw(1000, most=3, newest=newest)
    ages = (buffer.pos - 1 - places.steps) % buffer.buffer_size
    # Each of them once, as they are no more than asked for.
    assert sorted(zip(ages, places.envs, strict=True)) == [(age, env) for age in range(min(newest, 30)) for env in range(2)]
    story.check(places)
    few = buffer.draw(7, most=3, newest=newest)
    few_ages = (buffer.pos - 1 - few.steps) % buffer.buffer_size
    assert len(few.steps) == min(7, 2 * newest) and few_ages.max() < newest


def test_whole_episodes() -> None:
    story = Story(40).go_on([8, 3, 12])
    assert story.buffer.fresh == 23
    story.buffer.fresh = 0
    story.go_on([5, 2, 20, 4])  # over the ring's end
    places = story.buffer.episodes(story.buffer.fresh)
    assert places.lengths.tolist() == [5, 2, 20, 4]
    story.check(places)
    assert places.steps.tolist() == [23, 28, 30, 10]


def test_episodes_that_are_not_over_are_left_out() -> None:
    story = Story(40).go_on([8, 3])
    story.end = "reset"
    story.go_on([6])
    story.end = "time limit"
    story.go_on([4])
    story.buffer.add(np.zeros((1, 2)), np.ones((1, 2)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    places = story.buffer.episodes(22)
    assert places.lengths.tolist() == [8, 3, 4]
    assert Story(40).buffer.episodes(0).lengths.tolist() == []


def test_episodes_that_have_been_overwritten() -> None:
    story = Story(10).go_on([8, 6])
    with pytest.raises(ValueError, match=r"buffer_size=10 .*14 steps.*max_episode_steps"):
        story.buffer.episodes(14)


def test_a_reset_buffer_begins_anew() -> None:
    story = Story(10).go_on([4])
    story.buffer.reset()
    assert story.buffer.fresh == story.buffer.size() == 0
    story.go_on([3])
    assert story.buffer._places(np.arange(3), np.zeros(3, dtype=int), 5).lengths.tolist() == [3, 2, 1]


def test_saved_with_its_likelihoods() -> None:
    story = Story(20, 2).go_on([4, 5])
    loaded: Any = pickle.load(io.BytesIO(pickle.dumps(story.buffer)))
    places = story.buffer.draw(50, most=3)
    left, right = loaded.windows(places), story.buffer.windows(places)
    assert th.equal(left.log_probs, right.log_probs) and left.lengths == right.lengths
    assert all(th.equal(one, other) for one, other in zip(left.trajectory, right.trajectory, strict=True))
    assert loaded.fresh == 9 and np.shares_memory(loaded.observations, loaded.rows)


def test_windows_are_normalised() -> None:
    env = VecNormalize(DummyVecEnv([PointEnv, PointEnv]))
    buffer = TrajectoryReplayBuffer(40, env.observation_space, env.action_space, n_envs=2, device="cpu")
    env.reset()
    for _ in range(15):
        before = env.get_original_obs()
        _, _, dones, infos = env.step(np.full((2, 2), 0.3, dtype=np.float32))
        after: Any = env.get_original_obs().copy()
        for index in np.flatnonzero(dones):
            after[index] = env.unnormalize_obs(infos[index]["terminal_observation"])
        buffer.add(before, after, np.full((2, 2), 0.15), env.get_original_reward(), dones, infos)  # type: ignore[arg-type]
    places = buffer._places(np.array([0, 3, 8]), np.array([0, 1, 1]), 4)
    assert places.lengths.tolist() == [4, 4, 2]
    raw, normalised = buffer.windows(places).trajectory, buffer.windows(places, env).trajectory
    expected: Any = env.normalize_obs(raw.obs.numpy().reshape(-1, 2))
    np.testing.assert_allclose(normalised.obs.reshape(-1, 2), expected, rtol=1e-5)
    np.testing.assert_allclose(normalised.rewards, env.normalize_reward(raw.rewards.numpy()), rtol=1e-5)
    assert th.isnan(buffer.windows(places).log_probs).all()  # nobody said how likely the actions were
