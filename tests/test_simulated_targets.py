"""MPG-v1 as the paper has it: the critic's targets are of n real steps under the current policy, and serve several updates."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import PointEnv, same, snapshot, tiny

import sb3_valuegrad.envs
from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.envs.priors import PRIORS
from sb3_valuegrad.world_models import Oracle

assert sb3_valuegrad.envs.OBSERVABLE
TRACKING, PENDULUM = PRIORS
TERMINATING = "InvertedPendulum-v5"
pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:")


class StepFromEnv(PointEnv):
    """A :class:`PointEnv` that says what follows an observation."""

    @staticmethod
    def step_from(observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        states = observations + 0.1 * actions
        return states, -np.square(states).sum(1), np.zeros(len(states), dtype=bool)


class DriftingEnv(StepFromEnv):
    """Its states also move by themselves, of which ``step_from`` knows nothing."""

    def step(self, action: np.ndarray) -> Any:
        self.state = self.state + 0.01 * self.steps
        return super().step(action)


gym.register("StepFrom-v0", lambda **_: StepFromEnv())
gym.register("Drifting-v0", lambda **_: DriftingEnv())
gym.register("Square-v0", lambda **_: StepFromEnv(spaces.Box(-1, 1, (2, 2), np.float32)))


def need(task: str) -> None:
    if "Pendulum" in task:
        pytest.importorskip("mujoco")


def simulated(task: str, steps: int, algorithm: Any = MPG, **kwargs: Any) -> Any:
    """An agent whose critic learns from ``steps`` simulated steps; its policy climbs the prior, if the task has one."""
    policy_kwargs: dict[str, Any] = {"net_arch": [16], "simulator_class": "oracle", "simulator_kwargs": {"env_id": task}}
    if task in PRIORS:
        policy_kwargs |= {"world_model_class": "analytic", "world_model_kwargs": PRIORS[task]}
    if algorithm is not SVG:
        policy_kwargs["n_critics"] = 1
    if algorithm is not MVE:
        kwargs = {"target_estimator": "mve", "target_horizon": steps - 1, **kwargs}
    if algorithm in (MPG, DVG, DVPG):
        kwargs = {"target_policy_noise": 0.0, **kwargs}
    policy_kwargs |= kwargs.pop("policy_kwargs", {})
    return tiny(gym.make(task), algorithm, policy_kwargs=policy_kwargs, **kwargs)


def state_of(env: Any) -> Any:
    """What the simulation is in, in its own numbers."""
    task = env.unwrapped
    return copy.deepcopy(task.vehicles.motion) if hasattr(task, "vehicles") else (task.data.qpos.copy(), task.data.qvel.copy())


def set_state(env: Any, state: Any) -> None:
    task = env.unwrapped
    if hasattr(task, "vehicles"):
        task.vehicles.motion = copy.deepcopy(state)
    else:
        task.set_state(*state)


def lived(agent: Any, task: str, count: int, spread: float) -> list[tuple[Any, np.ndarray]]:
    """Random experience in the agent's replay buffer; the states before each step and the actions, in the task's units."""
    env: Any = gym.make(task)
    random, rows = np.random.default_rng(0), []
    obs = env.reset(seed=0)[0]
    for _ in range(count):
        scaled = np.clip(spread * random.normal(size=env.action_space.shape), -1, 1).astype(np.float32)
        action = agent.policy.unscale_action(scaled)
        rows.append((state_of(env), action))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        agent.replay_buffer.add(obs[None], next_obs[None], scaled[None], np.array([reward]), np.array([terminated]), [{}])
        obs = env.reset()[0] if terminated or truncated else next_obs
    return rows


@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("task", [TRACKING, PENDULUM, TERMINATING])
def test_targets_are_of_really_stepping_the_environment(task: str, steps: int) -> None:
    """Eq. 11, first line: ``sum_{l<n} gamma^l r_l + gamma^n Q'(s_n, mu'(s_n))``, the replayed action first, then mu. Where the
    task truncates the episode after m < n steps, as it does experience, it is the sum of m."""
    need(task)
    agent = simulated(task, steps, gamma=0.9)
    with th.no_grad():
        for parameter in agent.actor.mu[-2].parameters():
            parameter.mul_(3)  # the current policy is another one than the target policy, and lets the pole fall
    rows = lived(agent, task, 60, spread=0.3)
    batch = agent.replay_buffer.columns(th.arange(len(rows)), None)
    found = agent._critic_target(
        agent._sample(4)._replace(
            rewards=batch[2], dones=batch[3], next_observations=batch[4], observations=batch[0], actions=batch[1]
        )
    )[:, 0]
    env: Any = gym.make(task, max_episode_steps=10**6)
    ended = cut_off = 0
    for (state, action), target in zip(rows, found.tolist(), strict=True):
        env.reset(seed=1)
        set_state(env, state)
        expected, terminated = 0.0, False
        for step in range(steps):
            obs, reward, terminated, truncated, _ = env.step(action)
            expected += agent.gamma**step * reward
            if terminated or truncated:
                ended += terminated and step < steps - 1
                cut_off += truncated and step < steps - 1
                break
            action = agent.policy.unscale_action(agent.actor(th.as_tensor(obs[None]).float()).detach().numpy())[0]
        if not terminated:
            last = th.as_tensor(obs[None]).float()
            with th.no_grad():
                expected += agent.gamma ** (step + 1) * agent.critic_target(last, agent.actor_target(last))[0].item()
        assert target == pytest.approx(expected, rel=2e-5, abs=2e-5)
    assert (ended > 10) == (task == TERMINATING and steps == 25)
    assert (cut_off > 10) == (task != TERMINATING and steps == 25)


def test_one_step_and_no_reuse_are_the_ordinary_target() -> None:
    agent = simulated(TRACKING, 1)
    plain = tiny(gym.make(TRACKING), MPG, target_policy_noise=0.0, policy_kwargs={"n_critics": 1})
    lived(agent, TRACKING, 40, spread=1.0)
    batch = agent._sample(32)
    with th.no_grad():
        value = agent.critic_target(batch.next_observations, agent.actor_target(batch.next_observations))[0]
    th.testing.assert_close(agent._critic_target(batch), batch.rewards + agent.gamma * (1 - batch.dones) * value)
    plain.policy.load_state_dict(agent.policy.state_dict(), strict=False)
    assert th.equal(plain._critic_target(batch), agent._critic_target(batch))


def test_the_policy_climbs_the_prior_and_the_critic_the_simulator() -> None:
    agent = simulated(TRACKING, 5)
    lived(agent, TRACKING, 40, spread=1.0)
    batch = agent._sample(32)
    loss, target = agent._actor_loss(batch)[0], agent._critic_target(batch)
    agent.simulator = agent.world_model
    assert not th.allclose(agent._critic_target(batch), target)
    assert agent._actor_loss(batch)[0].item() == pytest.approx(loss.item(), rel=1e-3)  # but for the prior's noise


def test_a_world_model_that_nothing_asks_is_not_learned() -> None:
    agent = simulated(TRACKING, 5, DVG, horizon=0, policy_kwargs={"world_model_class": "mlp", "world_model_kwargs": {}})
    before = snapshot(agent)
    after = snapshot(agent.learn(60))
    moved = {name.split("/")[2].split(".")[0] for name in before if not th.equal(before[name], after[name])}
    assert moved == {"actor", "actor_target", "critic", "critic_target"} and not agent._needs_model()


# ---------------------------------------------------------------- batch reuse


@pytest.mark.parametrize("reuse", [1, 3])
def test_a_batch_and_its_targets_serve_several_updates(reuse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = simulated("StepFrom-v0", 4, batch_reuse=reuse).learn(30)
    updates: list[Any] = []
    simulated_steps: list[Any] = []

    def noted(method: Any, notes: list[Any]) -> Any:
        def call(first: Any, *others: Any) -> Any:
            notes.append(first)
            return method(first, *others)

        return call

    monkeypatch.setattr(agent, "_critic_loss", noted(agent._critic_loss, updates))
    monkeypatch.setattr(agent.simulator, "transition", noted(agent.simulator.transition, simulated_steps))
    first = agent._n_updates % reuse
    assert first == 1 % reuse  # in the middle of a batch's use, where it is used again
    agent.train(8, agent.batch_size)
    drawn = [True] + [not th.equal(a.actions, b.actions) for a, b in pairwise(updates)]
    fresh = [(update + first) % reuse == 0 for update in range(8)]
    assert drawn[1:] == fresh[1:] and len(simulated_steps) == 3 * sum(fresh)
    for (left, right), new in zip(pairwise(updates), drawn[1:], strict=True):
        assert (left is right) == (not new)
        assert (right.targets is None) == (reuse == 1)


def test_reused_targets_are_those_of_the_first_use() -> None:
    agent = simulated("StepFrom-v0", 4, batch_reuse=2, learning_starts=100).learn(60)
    agent._n_updates = 1
    batch = agent._minibatch(16)
    target = agent._critic_target(batch._replace(targets=None))
    assert th.equal(agent._critic_target(batch), target)
    with th.no_grad():
        for parameter in agent.critic_target.parameters():
            parameter.add_(0.1)
    loss = agent._critic_loss(batch)[0]
    value = agent.critic(batch.observations, batch.actions)[0]
    th.testing.assert_close(loss, (value - target).square().mean())
    agent._n_updates = 2
    assert agent._minibatch(16) is batch
    agent._n_updates = 3
    assert agent._minibatch(16) is not batch


# ---------------------------------------------------------------- in every algorithm, and saved


@pytest.mark.parametrize("algorithm", [DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG])
def test_every_algorithm_takes_a_simulator_and_reuses_batches(algorithm: Any) -> None:
    kwargs: dict[str, Any] = {"horizon": 2} if algorithm is MVE else {"batch_reuse": 3}
    agent = simulated("StepFrom-v0", 3, algorithm, **kwargs)
    before = snapshot(agent)
    after = snapshot(agent.learn(60))
    assert not same(before, after) and all(value.isfinite().all() for value in after.values())


def test_is_saved_and_loaded(tmp_path: Path) -> None:
    agent = simulated(TRACKING, 3, batch_reuse=4).learn(31)
    agent.save(tmp_path / "model")
    agent.policy.save(tmp_path / "policy")
    loaded = MPG.load(tmp_path / "model", env=agent.get_env())
    assert same(snapshot(loaded), snapshot(agent)) and loaded._reused is None and loaded.batch_reuse == 4
    obs, actions = th.zeros(3, 6), th.full((3, 2), 0.5)
    policy = type(agent.policy).load(tmp_path / "policy")
    others: list[Any] = [loaded.simulator, policy.simulator, copy.deepcopy(agent.simulator)]
    for other in others:
        with th.no_grad():
            assert th.equal(other.step(obs, actions).next_obs, agent.simulator.step(obs, actions).next_obs)
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded._n_updates > agent._n_updates


# ---------------------------------------------------------------- the oracle of such a task


def test_the_oracle_is_path_tracking_itself() -> None:
    agent = simulated(TRACKING, 2)
    lived(agent, TRACKING, 150, spread=0.5)
    obs, actions, rewards, dones, next_obs = agent.replay_buffer.columns(th.arange(150), None)
    with th.no_grad():
        step = Oracle(6, 2, TRACKING).step(obs, actions)
    th.testing.assert_close(step.next_obs, next_obs, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(step.reward[:, None], rewards, rtol=1e-5, atol=1e-5)
    assert th.equal(step.done[:, None], dones) and not dones.any()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Drifting-v0", "Drifting-v0.*the next observation and the reward of 50 steps by step_from did not come out"),
        ("Square-v0", r"Square-v0.*shapes \[\(2, 2\), \(2,\)\]; step_from is for flat ones"),
        ("Pendulum-v1", r"Pendulum-v1.*no method step_from\(observations, actions\)"),
        ("HalfCheetah-v5", "position of joint rootx: not in the observation"),
    ],
)
def test_tasks_that_cannot_be_restored(task: str, message: str) -> None:
    if task in ("Pendulum-v1", "HalfCheetah-v5"):
        pytest.importorskip("mujoco")
    with pytest.raises(ValueError, match=message):
        simulated(task, 3)


def test_actions_of_the_oracle_are_scaled() -> None:
    with th.no_grad():
        step = Oracle(2, 2, "StepFrom-v0").step(th.zeros(1, 2), th.tensor([[1.0, -0.5]]))
    th.testing.assert_close(step.next_obs, th.tensor([[0.2, -0.1]]))


# ---------------------------------------------------------------- bad input

ORACLE = {"simulator_class": "oracle", "simulator_kwargs": {"env_id": "StepFrom-v0"}}
TARGET: dict[str, Any] = {"target_estimator": "mve", "target_horizon": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_kwargs": ORACLE}, "simulator_class='oracle' with target_estimator=\"td\".*target_horizon=n - 1"),
        ({"target_estimator": "td-k", "target_horizon": 2, "batch_reuse": 2}, "batch_reuse=2 with.*td-k.*use batch_reuse=1"),
        ({**TARGET, "policy_kwargs": {"simulator_class": "mlp"}}, "simulator_class='mlp' would have to be learned.*oracle"),
        ({**TARGET, "policy_kwargs": {"simulator_class": "real"}}, "simulator_class='real' is unknown; use one of.*oracle"),
        ({**TARGET, "policy_kwargs": {"simulator_kwargs": {"env_id": "x"}}}, "simulator_kwargs=.*without a simulator_class"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tiny(algorithm=MPG, **arguments)


def test_normalised_data_are_refused() -> None:
    env = VecNormalize(DummyVecEnv([StepFromEnv]))
    with pytest.raises(ValueError, match="VecNormalize changes observations or rewards, and Oracle"):
        tiny(env, MPG, policy_kwargs=ORACLE, **TARGET).learn(30)


def test_another_task_than_the_one_learned_is_refused() -> None:
    box = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match=r"length \(2, 2\).*\(3, 2\)"):
        tiny(PointEnv(box), MPG, policy_kwargs=ORACLE, **TARGET)
