"""Asynchronous learning on Ray: the same updates as synchronous ones, processes that die, and what is refused.

All tests share one cluster of two Ray nodes on this machine.
"""

import copy
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from small_models import make, seeded, with_model
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm

# Ray runs its workers at niceness 15: on a machine that is busy with anything else the tests would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'sb3-valuegrad[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from sb3_valuegrad.distributed import learn  # noqa: E402
from sb3_valuegrad.distributed.arguments import Settings, blueprint_of  # noqa: E402
from sb3_valuegrad.distributed.optimizer import Optimizer  # noqa: E402
from sb3_valuegrad.distributed.pace import Pace  # noqa: E402
from sb3_valuegrad.distributed.state import POLICY, WORLD_MODEL, experience, export, store  # noqa: E402
from sb3_valuegrad.distributed.workers import Buffer, Learner  # noqa: E402

STORE = 100 * 2**20


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_actors": 0}, "n_actors=0"),
        ({"n_learners": 1.5}, "n_learners=1.5"),
        ({"n_buffers": 0}, "n_buffers=0"),
        ({"n_buffers": 3}, "n_buffers=3 is more than n_actors=1"),
        ({"max_staleness": -1}, "max_staleness=-1"),
        ({"updates_per_task": 0}, "updates_per_task=0"),
        ({"eval_freq": 0}, "eval_freq=0"),
        ({"checkpoint_freq": 0}, "checkpoint_freq=0"),
        ({"timeout": 0}, "timeout=0 must be positive"),
        ({"env": "CartPole-v1"}, "env='CartPole-v1' makes"),
        ({"address": "nowhere"}, "address='nowhere' does not answer; start a cluster"),
        ({"address": "ray://127.0.0.1:10001"}, "ray start --address"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        learn(make(DVG, horizon=0), 100, **settings)


def test_an_address_that_does_not_answer_is_refused_within_seconds() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        free = listening.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(ValueError, match="does not answer") as raised:
        learn(make(DVG, horizon=0), 100, address=f"127.0.0.1:{free}")
    assert isinstance(raised.value, ConnectionError) and time.monotonic() - start < 10


def test_an_environment_that_cannot_be_made_again() -> None:
    class Own(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-1, 1, (1,))

        def reset(self, **kwargs: Any) -> Any:
            return np.zeros(3, np.float32), {}

    with pytest.raises(ValueError, match="env=None: the model's environment cannot be made again"):
        learn(DVG("MlpPolicy", Own(), horizon=0), 100)


def test_without_ray_the_error_says_what_to_install() -> None:
    said = run("import sys; sys.modules['ray'] = None; import sb3_valuegrad; import sb3_valuegrad.distributed")
    assert "ImportError" in said and "pip install 'sb3-valuegrad[ray]'" in said


# ---------------------------------------------------------------- how many updates


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"train_freq": 1, "gradient_steps": 1}, [0, 0, 1, 50]),
        ({"train_freq": 4, "gradient_steps": 2}, [0, 0, 0, 26]),
        ({"train_freq": 4, "gradient_steps": -1}, [0, 0, 0, 52]),
        ({"train_freq": 1, "gradient_steps": 0}, [0, 0, 0, 0]),
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, [0, 0, 1, 50]),
        ({"train_freq": (2, "episode"), "gradient_steps": 7}, [0, 0, 0, 21]),
    ],
)
def test_as_many_updates_as_sb3_would_make(kwargs: dict[str, Any], expected: list[int]) -> None:
    model = make(DVG, horizon=0, learning_starts=50, **kwargs)
    model.num_timesteps = 0
    pace = Pace(model)
    found = [pace.due(0), pace.due(50), pace.due(51)]
    for step in (10, 60, 70, 80, 81, 99, 100):
        pace.count_episode(step)
    assert [*found, pace.due(100)] == expected


# ---------------------------------------------------------------- the same updates


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with two cores each, as Ray sees them; this process is connected to the first."""
    node: dict[str, Any] = {"num_cpus": 2, "object_store_memory": STORE}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


class Here:
    """A worker in this process, which can be asked as if it were in another one."""

    def __init__(self, worker: Any):
        self.worker = worker

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = staticmethod(lambda *args: ray.put(getattr(self.worker, name)(*args)))

        return Method


def arrays(model: ValueGradientAlgorithm) -> list[np.ndarray]:
    """Everything that learning changes, copied."""
    found = []
    for part in (POLICY, WORLD_MODEL):
        state = export(model, part)
        found += state.tensors + [moments[name] for moments in state.moments for name in sorted(moments)]
    return [np.array(array) for array in found]


def twin(model: Any) -> Any:
    """Another agent with the same parameters, optimizers, counters and experience."""
    file = io.BytesIO()
    model.save(file)
    other = type(model).load(file, env=model.env, device="cpu")
    other.set_logger(model.logger)
    store(other.replay_buffer, [experience(model.replay_buffer)])
    return other


def run_one_learner(model: Any, updates: int, at_once: int) -> Optimizer:
    """What the trainer does with one learner and one buffer, so many updates a task."""
    blueprint = [ray.put(blueprint_of(model, Settings()))]
    state = np.random.get_state(), th.get_rng_state()
    buffer, learner = Buffer(blueprint, 1, model.buffer_size), Learner(blueprint, 2)
    buffer.start_from(experience(model.replay_buffer))
    np.random.set_state(state[0])
    th.set_rng_state(state[1])
    optimizer, first = Optimizer(model, max_staleness=0), model._n_updates
    if model._is_fit_due():
        optimizer.take_fit(learner.prepare(optimizer.now(), buffer.content()))
    for start in range(first + 1, first + updates + 1, at_once):
        numbers = [(number, number == first + 1) for number in range(start, start + at_once)]
        needed = sum((number - 1) % model.batch_reuse == 0 for number, _ in numbers)
        batches = buffer.sample(model.batch_size, needed) if needed else ([], 0.0)
        made = learner.updates(optimizer.now(), numbers, batches, Here(buffer), optimizer.imagined)
        assert optimizer.take(copy.deepcopy(made)) == at_once
    return optimizer


SMALL_FIT = {"model_fit_kwargs": {"max_epochs": 2}, "rollouts_per_step": 1}
ENSEMBLE = {"world_model_kwargs": {"n_members": 3, "n_elites": 2, "net_arch": [16, 16]}}
AGENTS: dict[str, tuple[type[ValueGradientAlgorithm], dict[str, Any]]] = {
    "DVG": (DVG, {"horizon": 2, "max_grad_norm": 0.5, "policy_delay": 2}),
    "DVG, no model": (DVG, {"horizon": 0}),
    "DVPG": (DVPG, {"horizon": 2, "model_gradient_steps": 2}),
    "MVE": (MVE, {"horizon": 2}),
    "MPG-v2": (MPG, {"horizons": (0, 3)}),
    "MPG-v1": (MPG, {"horizons": (0, 3), "n_steps": 3, "target_policy_noise": 0.0, "policy_kwargs": {"n_critics": 1}}),
    "MPG, measured": (MPG, {"horizons": (0, 3), "weighting": "variance", "measure_freq": 2}),
    "MAAC": (MAAC, {"horizon": 2, "policy_kwargs": ENSEMBLE, **SMALL_FIT}),
    "MBPO": (MBPO, {"policy_kwargs": ENSEMBLE, "target_update_interval": 2, "ent_coef": 0.1, **SMALL_FIT}),
    "MPG-v1, batches reused": (MPG, {"horizons": (0, 3), "batch_reuse": 3}),
    "SVG(2)": (SVG, {"horizon": 2, "importance_weights": False, "target_update_interval": 3}),
    "SVG(1), of the newest": (SVG, {"importance_weights": False, "policy_window": 50}),
}


@pytest.mark.parametrize("name", AGENTS)
def test_one_learner_makes_the_synchronous_updates(name: str, cluster: str) -> None:
    """To the bit: parameters, targets, optimizers, the model's scales and the weights' memory, over several updates."""
    algorithm, kwargs = AGENTS[name]
    model = make(algorithm, **kwargs)
    assert not model.policy.world_model.is_learned or model._n_model_updates == 0
    alone, together = twin(model), twin(model)
    with seeded(3):
        alone.train(gradient_steps=6, batch_size=model.batch_size)
    with seeded(3):
        optimizer = run_one_learner(together, 6, at_once=2 if "SVG" not in name and "gradient_steps" not in str(kwargs) else 1)
    before, expected, found = arrays(model), arrays(alone), arrays(together)
    assert len(expected) == len(found) and len(found) >= len(before)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not all(np.array_equal(one, other) for one, other in zip(before, found, strict=False))
    assert alone._n_updates == together._n_updates == 6 and optimizer.dropped == 0
    for attribute in ("_n_model_updates", "_last_fit", *model.update_memory):
        assert getattr(alone, attribute) == getattr(together, attribute)


def test_each_learner_imagines_for_its_updates(cluster: str) -> None:
    model = with_model(MVE, horizon=0, real_ratio=0.5, rollouts_per_step=7)
    blueprint = [ray.put(blueprint_of(model, Settings()))]
    buffer, learner = Buffer(blueprint, 1, model.buffer_size), Learner(blueprint, 2)
    buffer.start_from(experience(model.replay_buffer))
    optimizer = Optimizer(model, max_staleness=5)
    numbers = [(1, True), (2, False), (3, True), (4, False)]  # gradient_steps=2
    assert optimizer.take(learner.updates(optimizer.now(), numbers, buffer.sample(32, 4), Here(buffer), None)) == 4
    assert len(learner.model.imagined) == 14  # type: ignore[attr-defined]


def test_gradients_that_are_too_old_are_dropped(cluster: str) -> None:
    model = make(DVG, horizon=0)
    blueprint = [ray.put(blueprint_of(model, Settings()))]
    buffer, learner = Buffer(blueprint, 1, model.buffer_size), Learner(blueprint, 2)
    buffer.start_from(experience(model.replay_buffer))
    optimizer = Optimizer(model, max_staleness=1)
    at_first = optimizer.now()

    def task(*numbers: int) -> list[Any]:  # from the first parameters
        batches = buffer.sample(model.batch_size, len(numbers))
        return learner.updates(at_first, [(number, False) for number in numbers], batches, Here(buffer), None)

    assert optimizer.take(task(1)) == 1 and optimizer.take(task(2, 3)) == 2
    assert optimizer.staleness == [0, 1, 1]  # an earlier step of the same task is no staleness
    before = arrays(model)
    assert optimizer.take(task(4, 5)) == 0  # 5 would not be too old, but was made on top of 4
    for one, other in zip(before, arrays(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert optimizer.staleness == [0, 1, 1] and optimizer.dropped == 2 and model._n_updates == 3


def test_a_replay_buffer_goes_out_and_comes_home(cluster: str) -> None:
    """In time's order when it is full, with a cut where stretches of experience meet."""
    model = make(DVG, horizon=0, buffer_size=50)  # 200 were added
    content = experience(model.replay_buffer)
    other = make(DVG, horizon=0, buffer_size=80).replay_buffer
    store(other, [content, content])
    assert other.full and other.pos == 20
    np.testing.assert_array_equal(experience(other)["rows"][-50:], content["rows"])
    assert other.dones[49] == 1 and other.dones[19] == 1  # where the first part ended, and the second
    ends = other.dones * (1 - other.timeouts)
    np.testing.assert_array_equal(ends[:, 0], other.rows[:, 0, 5])  # a cut is no termination


# ---------------------------------------------------------------- whole runs


class Watch(BaseCallback):
    """Sees the trainer, and acts when so many steps have been made."""

    def __init__(self, *events: tuple[int, Any]) -> None:
        super().__init__()
        self.events = list(events)
        self.calls = 0

    def _on_step(self) -> bool:
        self.calls += 1
        trainer = self.parent_locals["trainer"]
        if self.events and self.num_timesteps >= self.events[0][0]:
            return self.events.pop(0)[1](trainer) is not False
        return True

    def _on_training_start(self) -> None:
        self.parent_locals = dict(self.locals)

    @property
    def trainer(self) -> Any:
        return self.parent_locals["trainer"]


class Recorder(Logger, KVWriter):
    """Keeps the newest of every value that was logged."""

    def __init__(self, kept: dict[str, float]) -> None:
        Logger.__init__(self, None, [self])
        self.kept = kept

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.kept.update(key_values)

    def close(self) -> None:
        pass


class Prioritised(ReplayBuffer):
    """Some buffer of a user's own."""


def kill(role: str) -> Any:
    """A process of this role, as the operating system's out-of-memory killer would."""
    return lambda trainer: os.kill(trainer.processes.pids[role, 0], signal.SIGKILL)


def test_a_run_with_one_learner_makes_the_synchronous_updates(cluster: str) -> None:
    """Through Ray, noise included: the minibatches and the noise are those of processes seeded alike."""
    model = with_model(DVPG, horizon=2, train_freq=8, gradient_steps=8, learning_starts=0)
    alone = twin(model)
    watch = Watch()
    learn(model, 8, watch, n_learners=1, max_staleness=0, log_interval=None)
    assert watch.calls == model.num_timesteps == 8 and model._n_updates == 8
    assert model.replay_buffer.size() == 208 and watch.trainer.optimizer.dropped == 0
    content = experience(alone.replay_buffer)["rows"]
    np.testing.assert_array_equal(experience(model.replay_buffer)["rows"][:200], content)
    store(alone.replay_buffer, [experience(model.replay_buffer)])
    state = np.random.get_state()
    with th.random.fork_rng():
        seeds = {role: 1 + 1000 * place for place, role in enumerate(("actor", "buffer", "learner"))}
        set_random_seed(model.seed + seeds["learner"])
        np.random.seed(model.seed + seeds["buffer"])
        alone.train(gradient_steps=8, batch_size=alone.batch_size)
    np.random.set_state(state)
    for one, other in zip(arrays(alone), arrays(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_processes_that_die_are_replaced(cluster: str, caplog: pytest.LogCaptureFixture) -> None:
    """A learner, an actor and a buffer killed, and a learner ended for good: training reaches its target."""

    def end_for_good(trainer: Any) -> None:
        ray.kill(trainer.processes.workers["learner"][0])

    deaths = [(80, kill("learner")), (110, kill("actor")), (140, kill("buffer")), (180, end_for_good)]
    model = make(MPG, horizons=(0, 2), learning_starts=40, replay_buffer_class=None)
    model.replay_buffer.reset()
    watch = Watch(*deaths)
    learn(model, 240, watch, n_learners=1, timeout=90)
    assert not watch.events and model.num_timesteps == 240 and model._n_updates == 200
    assert watch.trainer.processes.replaced == 4
    lost = re.search(r"buffer 0: the (\d+) steps that it held are lost", caplog.text)
    assert lost is not None and int(lost[1]) >= 100
    assert 0 < model.replay_buffer.size() <= 240 - int(lost[1])


def test_a_buffer_lost_after_the_last_step_ends_training(cluster: str, caplog: pytest.LogCaptureFixture) -> None:
    """And one that is ended for good with everything in it: what cannot be learned any more is said, and nothing hangs."""
    model = make(DVG, horizon=0, learning_starts=40, gradient_steps=50)
    model.replay_buffer.reset()
    watch = Watch((100, lambda trainer: ray.kill(trainer.processes.workers["buffer"][0])))
    learn(model, 100, watch, n_learners=1, log_interval=None, timeout=60)
    assert model.num_timesteps == 100 and 0 < model._n_updates < 60 * 50
    assert "updates were not made: the experience that they needed is lost" in caplog.text


def test_two_nodes_and_an_ordinary_model_afterwards(cluster: str, tmp_path: Path) -> None:
    """Two learners, each on a node of its own; evaluated, logged, saved, loaded, and continued synchronously."""
    model = make(MAAC, horizon=1, learning_starts=60, model_fit_freq=80, policy_kwargs=ENSEMBLE, **SMALL_FIT)
    model.replay_buffer.reset()
    nodes: set[str] = set()

    def look(trainer: Any) -> None:
        nodes.update(ray.get([learner.node.remote() for learner in trainer.processes.workers["learner"]], timeout=60))

    logged: dict[str, float] = {}
    model.set_logger(Recorder(logged))
    learn(model, 200, Watch((190, look)), n_learners=2, eval_freq=100, n_eval_episodes=1, log_interval=1)
    assert len(nodes) == 2
    assert model.num_timesteps == 200 and model._n_updates == 140 and model._model_is_ready
    assert model.replay_buffer.size() == 200 and len(model.imagined) > 0
    for name in ("updates_per_second", "staleness_mean", "staleness_max", "dropped", "replaced"):
        assert logged[f"async/{name}"] >= 0
    for stage in ("sample", "transfer", "gradient", "apply", "publish"):
        assert logged[f"async/{stage}_ms"] > 0
    assert logged["eval/mean_reward"] < 0 and "train/critic_loss" in logged and "train/model_error_1" in logged

    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded: Any = MAAC.load(tmp_path / "model", env=model.env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    for one, other in zip(arrays(model), arrays(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded._n_updates == 160 and loaded.replay_buffer.size() == 220
    learn(loaded, 20, n_learners=1, reset_num_timesteps=False, log_interval=None)
    assert loaded.num_timesteps == 240 and loaded._n_updates == 180 and loaded.replay_buffer.size() == 240


def test_several_actors_with_buffers_of_their_own_and_a_callback_that_stops(cluster: str) -> None:
    """SVG on stretches of experience: its log-probabilities travel along."""
    envs = DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2)
    networks: dict[str, Any] = {"net_arch": [16], "world_model_kwargs": {"net_arch": [16]}}
    model: Any = SVG("MlpPolicy", envs, horizon=2, learning_starts=30, batch_size=32, policy_kwargs=networks, device="cpu")
    watch = Watch((300, lambda trainer: False))
    learn(model, 10_000, watch, n_actors=2, n_learners=1, log_interval=None)
    assert model.num_timesteps == 300 and watch.calls == 150 and model._n_updates > 0
    assert not np.isnan(model.replay_buffer.log_probs[: model.replay_buffer.size()]).any()
    assert model.replay_buffer.size() >= 120 and model.replay_buffer.ends.sum() >= 1


HEAD = """
import sys, time
import ray
from ray.cluster_utils import Cluster
from stable_baselines3.common.callbacks import BaseCallback
from sb3_valuegrad import DVG
from sb3_valuegrad.distributed import learn

node = dict(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
cluster = Cluster(initialize_head=True, head_node_args=node)

class Kill(BaseCallback):
    killed = None
    def _on_step(self):
        if self.num_timesteps >= 150 and self.killed is None:
            self.killed = time.monotonic()
            cluster.head_node.kill_gcs_server()
        return True

kill = Kill()
model = DVG("MlpPolicy", "Pendulum-v1", horizon=0, seed=0, learning_starts=20, policy_kwargs=dict(net_arch=[8]))
try:
    learn(model, 100_000, kill, n_learners=1, log_interval=None, address=cluster.address, checkpoint_path=sys.argv[1])
except RuntimeError as error:
    print("SECONDS", time.monotonic() - kill.killed)
    print("ERROR", error)
cluster.shutdown()
"""

ALONE = """
import ray
from stable_baselines3.common.callbacks import BaseCallback
from sb3_valuegrad import DVG
from sb3_valuegrad.distributed import learn

class Session(BaseCallback):
    def _on_training_start(self):
        print("SESSION", ray._private.worker.global_worker.node.session_name)
    def _on_step(self):
        return True

model = DVG("MlpPolicy", "Pendulum-v1", horizon=0, seed=0, learning_starts=20, policy_kwargs=dict(net_arch=[8]))
learn(model, 60, Session(), n_learners=1, log_interval=None)
print("UPDATES", model._n_updates, ray.is_initialized())
"""


def run(script: str, *arguments: str) -> str:
    """What a script of its own process prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=150, env=environment
    )
    return done.stdout + done.stderr


def test_a_dead_head_stops_with_the_last_checkpoint_named(tmp_path: Path) -> None:
    said = run(HEAD, str(tmp_path / "last"))
    error = re.search(r"^ERROR (.*)$", said, re.MULTILINE)
    seconds = re.search(r"^SECONDS (.*)$", said, re.MULTILINE)
    assert error is not None and seconds is not None, said
    assert "does not answer any more" in error[1] and str(tmp_path / "last.zip") in error[1]
    assert float(seconds[1]) < 20
    assert DVG.load(tmp_path / "last", device="cpu")._n_updates > 0


def test_one_machine_alone_leaves_no_process_behind() -> None:
    psutil = pytest.importorskip("psutil")
    said = run(ALONE)
    assert "UPDATES 40 False" in said, said
    session = re.search(r"^SESSION (.*)$", said, re.MULTILINE)
    assert session is not None

    def left() -> list[str]:
        return [line for p in psutil.process_iter(["cmdline"]) if session[1] in (line := " ".join(p.info["cmdline"] or []))]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left()


def test_algorithms_that_cannot(cluster: str) -> None:
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (SVG, {"horizon": None, "policy_replay": False}, "policy_replay=False learns from experience of the newest"),
        (SVG, {"policy_gradient_steps": 3}, "policy_gradient_steps come after whole episodes"),
        (DVG, {"horizon": 0, "fictitious_samples": 8, "fictitious_updates": 1}, "DDPG(model) learns after each episode"),
        (DVG, {"horizon": 0, "replay_buffer_class": Prioritised}, "replay_buffer_class=Prioritised"),
    ]
    for algorithm, kwargs, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)):
            learn(make(algorithm, **kwargs), 100)
    with pytest.raises(ValueError, match="n_buffers=1 with n_actors=2: TrajectoryReplayBuffer"):
        learn(make(SVG), 100, n_actors=2, n_buffers=1)
    normalised = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    with pytest.raises(ValueError, match="VecNormalize's running statistics"):
        learn(DVG("MlpPolicy", normalised, horizon=0), 100)
    with pytest.raises(ValueError, match="n_learners=100, and the cluster has 4 cores"):
        learn(make(DVG, horizon=0), 100, n_learners=100)
    with pytest.raises(ValueError, match="this process is connected to"):
        learn(make(DVG, horizon=0), 100, address="127.0.0.1:1")
    with pytest.raises(ValueError, match="model=TD3 is none of this package's"):
        learn(TD3("MlpPolicy", "Pendulum-v1"), 100)  # type: ignore[type-var]


def test_a_process_that_does_not_come_is_named(cluster: str) -> None:
    with pytest.raises(ValueError, match=r"buffer 0 was not there within timeout=0\.001 s.*Raise timeout"):
        learn(with_model(DVG), 100, n_learners=1, log_interval=None, timeout=0.001)


def test_an_error_in_a_process_is_raised_here(cluster: str) -> None:
    """A reward that is not a number stops training as it does synchronously; so does what cannot be built there."""

    class NaN(gym.RewardWrapper):
        def reward(self, reward: Any) -> float:
            return float("nan")

    def missing() -> gym.Env:
        if "pytest" not in sys.modules:
            raise ImportError("No module named 'my_envs'")
        return gym.make("Pendulum-v1")

    with pytest.raises(ValueError, match="non-finite reward"):
        learn(
            make(DVG, horizon=0, learning_starts=0),
            100,
            n_learners=1,
            env=lambda: NaN(gym.make("Pendulum-v1")),
            log_interval=None,
        )
    with pytest.raises(ValueError, match=r"actor 0 could not be built.*my_envs"):
        learn(make(DVG, horizon=0), 100, n_learners=1, env=missing)
