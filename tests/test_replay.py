"""The packed buffer against SB3's, and what is held out of the world model's fit."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, tiny

from sb3_valuegrad.held_out import BLOCK, held_out_segments, is_held_out
from sb3_valuegrad.observations import FlatObservations
from sb3_valuegrad.replay import PackedReplayBuffer, sample_batch

ACTIONS = spaces.Box(-1, 1, (3,), np.float32)


def filled(buffer: ReplayBuffer, steps: int, episode: int = 10, resets_at: tuple[int, ...] = ()) -> ReplayBuffer:
    """Add ``steps`` numbered steps: the state counts on within an episode, by 0.5, and an episode starts anywhere.

    Every second episode ends with a time limit. ``resets_at``: steps before which the environment is reset although no
    episode has ended, as a second ``learn()`` does.
    """
    rng = np.random.default_rng(0)
    shape = (buffer.n_envs, *buffer.obs_shape)
    obs = rng.uniform(size=shape).astype(np.float32)
    for step in range(steps):
        if step in resets_at:
            obs = rng.uniform(size=shape).astype(np.float32)
        # Environments end their episodes at different times.
        ends = np.array([(step + 3 * env + 1) % episode == 0 for env in range(buffer.n_envs)])
        infos = [{"TimeLimit.truncated": bool(end and (step // episode) % 2)} for end in ends]
        next_obs = obs + np.float32(0.5)
        action = rng.uniform(-1, 1, (buffer.n_envs, 3)).astype(np.float32)
        buffer.add(obs, next_obs, action, rng.normal(size=buffer.n_envs), ends, infos)
        fresh = rng.uniform(size=shape).astype(np.float32)
        obs = np.where(ends.reshape(-1, *[1] * len(buffer.obs_shape)), fresh, next_obs)
    return buffer


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [17, 70], ids=["partly filled", "wrapped around"])
def test_packed_rows_are_sb3s_samples(shape: tuple[int, ...], n_envs: int, steps: int) -> None:
    space = spaces.Box(-100, 100, shape, np.float32)
    packed: Any = filled(PackedReplayBuffer(40 * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs), steps)
    theirs = filled(ReplayBuffer(40 * n_envs, space, ACTIONS, device="cpu", n_envs=n_envs), steps)
    assert packed.buffer_size == theirs.buffer_size == 40 and packed.pos == theirs.pos and packed.full == theirs.full
    indices = np.arange(packed.size())
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(theirs, name))
    # SB3 draws the environment itself: with one seed both draw the same.
    np.random.seed(1)
    expected: Any = theirs._get_samples(indices)
    np.random.seed(1)
    envs = np.random.randint(0, high=n_envs, size=len(indices))
    rows = packed.gather(th.from_numpy(indices * n_envs + envs))
    parts = (
        expected.observations.flatten(1),
        expected.actions,
        expected.rewards,
        expected.dones,
        expected.next_observations.flatten(1),
    )
    assert th.equal(rows, th.cat(parts, dim=1))
    np.random.seed(1)
    mine: Any
    for mine, other in zip(packed._get_samples(indices), expected, strict=True):
        assert mine is other or th.equal(mine, other)


def test_time_limits_are_no_terminations() -> None:
    buffer: Any = filled(PackedReplayBuffer(100, spaces.Box(-9, 9, (2,)), ACTIONS, device="cpu", n_envs=1), 40)
    terminated = buffer.gather(th.arange(40))[:, 2 + 3 + 1].numpy()
    # Ends at steps 9, 19, 29, 39, of which the second and the fourth are time limits.
    assert np.flatnonzero(terminated).tolist() == [9, 29]
    assert np.flatnonzero(buffer.dones[:, 0]).tolist() == [9, 19, 29, 39]


def test_handle_timeout_termination_false() -> None:
    space = spaces.Box(-9, 9, (2,))
    buffer: Any = PackedReplayBuffer(100, space, ACTIONS, device="cpu", n_envs=1, handle_timeout_termination=False)
    terminated = filled(buffer, 40).gather(th.arange(40))[:, 6]  # type: ignore[attr-defined]
    assert np.flatnonzero(terminated.numpy()).tolist() == [9, 19, 29, 39]


def test_the_state_action_pair_is_a_view() -> None:
    buffer: Any = filled(PackedReplayBuffer(100, spaces.Box(-9, 9, (2,)), ACTIONS, device="cpu", n_envs=1), 40)
    batch: Any = sample_batch(buffer, 8, FlatObservations(buffer.observation_space), 0.0, None)
    assert batch.transitions.obs.data_ptr() + 2 * 4 == batch.transitions.actions.data_ptr()
    assert batch.observations.data_ptr() == batch.transitions.obs.data_ptr()
    assert batch.rewards.shape == batch.dones.shape == (8, 1) and batch.discounts is None


def test_memory_usage_cannot_be_optimised_in_rows() -> None:
    with pytest.raises(ValueError, match="optimize_memory_usage=True"):
        PackedReplayBuffer(10, spaces.Box(-9, 9, (2,)), ACTIONS, optimize_memory_usage=True)


# ---------------------------------------------------------------- held-out data


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5])
def test_held_out_share(fraction: float) -> None:
    held_out = is_held_out(np.arange(100 * BLOCK), fraction)
    assert held_out.mean() == pytest.approx(fraction, abs=0.01)
    # Whole blocks, and some early on.
    assert (held_out.reshape(100, BLOCK).all(axis=1) | ~held_out.reshape(100, BLOCK).any(axis=1)).all()
    assert held_out[: 2 * BLOCK].any()
    assert not is_held_out(np.arange(1000), 0).any()


def _buffers() -> list[Any]:
    box, of_dict = spaces.Box(-100, 100, (2,), np.float32), spaces.Dict({"a": spaces.Box(-100, 100, (2,), np.float32)})
    return [
        filled(PackedReplayBuffer(300, box, ACTIONS, device="cpu", n_envs=2), 200),
        filled(ReplayBuffer(300, box, ACTIONS, device="cpu", n_envs=2), 200),
        filled(NStepReplayBuffer(300, box, ACTIONS, device="cpu", n_envs=2, n_steps=3), 200),
        _filled_dict(DictReplayBuffer(300, of_dict, ACTIONS, device="cpu", n_envs=2), 200),
    ]


def _filled_dict(buffer: DictReplayBuffer, steps: int) -> DictReplayBuffer:
    source = filled(ReplayBuffer(2 * steps, spaces.Box(-100, 100, (2,), np.float32), ACTIONS, device="cpu", n_envs=2), steps)
    for step in range(steps):
        obs, next_obs = {"a": source.observations[step]}, {"a": source.next_observations[step]}
        infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in source.timeouts[step]]
        buffer.add(obs, next_obs, source.actions[step], source.rewards[step], source.dones[step], infos)
    return buffer


@pytest.mark.parametrize("kind", range(4), ids=["packed", "sb3", "n-step", "dict"])
def test_held_out_rows_have_no_weight(kind: int) -> None:
    buffer = _buffers()[kind]
    fraction = 0.25
    held_out = is_held_out(np.arange(buffer.buffer_size), fraction)
    observations = buffer.observations["a"] if kind == 3 else buffer.observations
    secret = {tuple(row) for row in observations[held_out].reshape(-1, 2).tolist()}
    flat = FlatObservations(buffer.observation_space)
    transitions: Any = sample_batch(buffer, 2000, flat, fraction, None).transitions
    counts = np.array([tuple(row) not in secret for row in transitions.obs.tolist()])
    np.testing.assert_array_equal(transitions.weights.numpy() > 0, counts)
    assert 0.1 < 1 - counts.mean() < 0.4
    assert sample_batch(buffer, 9, flat, 0.0, None).transitions.weights is None


@pytest.mark.parametrize("length", [1, 5, 20])
@pytest.mark.parametrize("kind", range(4), ids=["packed", "sb3", "n-step", "dict"])
def test_held_out_segments_are_consecutive(kind: int, length: int) -> None:
    """Every state is the one before plus 0.5: true within an episode only. The buffer has wrapped around."""
    buffer = _buffers()[kind]
    assert buffer.full and 0 < buffer.pos < buffer.buffer_size
    segments = held_out_segments(buffer, FlatObservations(buffer.observation_space), 0.25, length, 10_000, None)
    if length == 20:  # longer than an episode
        assert segments is None
        return
    assert segments is not None
    states, actions, rewards = segments
    count = states.shape[1]
    assert count > 0 and states.shape == (length + 1, count, 2)
    assert actions.shape == (length, count, 3) and rewards.shape == (length, count)
    np.testing.assert_allclose(states[1:] - states[:-1], 0.5, atol=1e-5)
    # Each step's action and reward belong to its state, and it is held out.
    observations = (buffer.observations["a"] if kind == 3 else buffer.observations).reshape(-1, 2).tolist()
    rows = {tuple(row): index for index, row in enumerate(observations)}
    for step in range(length):
        found = np.array([rows[tuple(row)] for row in states[step].tolist()])
        np.testing.assert_array_equal(buffer.actions.reshape(-1, 3)[found], actions[step].numpy())
        np.testing.assert_array_equal(buffer.rewards.reshape(-1)[found], rewards[step].numpy())
        assert is_held_out(found // 2, 0.25).all()


def test_held_out_segments_are_the_newest() -> None:
    buffer: Any = PackedReplayBuffer(400, spaces.Box(-1000, 1000, (2,)), ACTIONS, device="cpu", n_envs=1)
    for pos in (400, 500, 790):
        filled(buffer, pos - (buffer.pos + 400 * buffer.full), episode=1000)
        segments = held_out_segments(buffer, FlatObservations(buffer.observation_space), 0.25, 3, 10, None)
        assert segments is not None and segments[0].shape[1] == 10
        position = {tuple(row): index for index, row in enumerate(buffer.observations[:, 0].tolist())}
        ages = [(buffer.pos - 1 - position[tuple(row)]) % 400 for row in segments[0][0].tolist()]
        assert sorted(ages) == list(range(min(ages), min(ages) + 10)) and max(ages) < 4 * BLOCK


def test_held_out_segments_stop_where_learning_was_stopped() -> None:
    """A second ``learn()`` resets the environment without an end of the episode in the buffer."""
    space = spaces.Box(-1000, 1000, (2,), np.float32)
    buffer: Any = filled(PackedReplayBuffer(200, space, ACTIONS, device="cpu", n_envs=1), 70, 1000, resets_at=(40, 47))
    segments = held_out_segments(buffer, FlatObservations(space), 0.25, 3, 1000, None)
    assert segments is not None
    np.testing.assert_allclose(segments[0][1:] - segments[0][:-1], 0.5, atol=1e-5)


def test_held_out_segments_are_normalised() -> None:
    env: Any = VecNormalize(DummyVecEnv([PointEnv] * 2))
    model = tiny(env, model_validation_fraction=0.25).learn(200)
    states, _, rewards = held_out_segments(model.replay_buffer, model._flat, 0.25, 1, 1000, env)  # type: ignore[misc]
    raw_states, _, raw_rewards = held_out_segments(model.replay_buffer, model._flat, 0.25, 1, 1000, None)  # type: ignore[misc]
    np.testing.assert_allclose(states[0], env.normalize_obs(raw_states[0].numpy()), rtol=1e-5)
    np.testing.assert_allclose(rewards, env.normalize_reward(raw_rewards.numpy()), rtol=1e-5)


def test_nothing_is_held_out_of_an_empty_or_undivided_buffer() -> None:
    space = spaces.Box(-9, 9, (2,), np.float32)
    buffer: Any = PackedReplayBuffer(100, space, ACTIONS, device="cpu", n_envs=1)
    for steps in (0, 3, 30):
        assert held_out_segments(filled(buffer, steps), FlatObservations(space), 0.05, 5, 10, None) is None
    assert held_out_segments(filled(buffer, 60), FlatObservations(space), 0.0, 5, 10, None) is None


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.3, 0.4, 0.5])
def test_the_held_out_share_is_the_one_asked_for(fraction: float) -> None:
    assert is_held_out(np.arange(1000 * BLOCK), fraction).mean() == pytest.approx(fraction, abs=0.002)
