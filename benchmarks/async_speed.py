"""Asynchronous against synchronous learning: updates a second, what each stage takes, and what follows for more learners.

    python benchmarks/async_speed.py             # results/async_speed.csv, .md and .png, and async_scaling.csv
    python benchmarks/async_speed.py --rounds 1  # a quick look

MPG-v2 on PathTracking-v0 with the paper's networks (2x256), minibatches (256) and horizon (25), and its prior model; one
step of the environment an update. Every learner has one thread, and so has synchronous learning. Both alternate within one
run: while `learn()` makes its updates in the trainer's own process, the learners have nothing to do. Times are wall times, so
the cores should be free; nothing else is measured than ratios within this run.

The model of the scaling is the textbook's closed queueing network (mean value analysis): N learners, each with one task at a
time, and one optimizer that serves them one after the other. Its two numbers are measured with one learner. It supposes a core
for every learner; on two cores two learners share them with the optimizer, the actor and Ray.
"""

import argparse
import csv
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch as th
from report import embed
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

import sb3_valuegrad.envs  # noqa: F401 (registers the task)
from sb3_valuegrad import MPG
from sb3_valuegrad.distributed import learn
from sb3_valuegrad.envs.priors import PRIORS

ENV = "PathTracking-v0"
RESULTS = Path(__file__).parent / "results"
STAGES = ("sample", "transfer", "gradient", "apply", "publish")
MOST_LEARNERS = 64
WARM_UP = 32
AIM = 1.6


def build(seed: int) -> MPG:
    """The paper's MPG-v2 (Table VI), with experience to learn from."""
    networks: dict[str, Any] = dict(net_arch=[256, 256], activation_fn=nn.ELU, n_critics=2, layer_norm=False)
    kwargs: dict[str, Any] = dict(horizons=(0, 25), min_weight=0.0, gamma=0.98, max_grad_norm=3.0, target_policy_noise=0.0)
    kwargs |= dict(batch_size=256, buffer_size=100_000, learning_starts=1000, gradient_steps=0, seed=seed, device="cpu")
    networks |= dict(world_model_class="analytic", world_model_kwargs=PRIORS[ENV])
    model = MPG("MlpPolicy", ENV, policy_kwargs=networks, **kwargs)
    model.learn(1500)
    model.gradient_steps = 1
    model.train(WARM_UP, model.batch_size)
    return model


class Alternate(BaseCallback):
    """Measures synchronous and asynchronous learning by turns.

    :param synchronous: another model, which learns here
    :param rounds: of both
    :param updates: in each round of each
    :param report: is told how, updates a second, and the optimizer's own processor time for an update
    """

    def __init__(self, synchronous: MPG, rounds: int, updates: int, report: Callable[[str, float, float], None]):
        super().__init__()
        self.synchronous, self.rounds, self.updates, self.report = synchronous, rounds, updates, report
        self.since: tuple[int, float, float] | None = None
        self.resumed = 0
        self.stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.staleness: list[int] = []

    def _on_training_start(self) -> None:
        self.trainer: Any = self.locals["trainer"]

    def _on_step(self) -> bool:
        optimizer = self.trainer.optimizer
        now = optimizer.version, time.monotonic(), time.thread_time()
        if now[0] > 0 and not self.stages["sample"] and self.since is None and not self.resumed:
            self.resumed = now[0]
            print("measuring", flush=True)
        if self.since is None:
            if now[0] < self.resumed + WARM_UP:
                return True
            for kept in (optimizer.times, optimizer.staleness):
                kept.clear()
            self.since = now
            return True
        updates, seconds, processor = (new - old for new, old in zip(now, self.since, strict=True))
        if updates < self.updates:
            return True
        self.report("asynchronous", updates / seconds, processor / updates)
        for stage in STAGES:
            self.stages[stage] += optimizer.times[stage]
        self.staleness += optimizer.staleness
        self._measure_synchronous()
        self.since, self.resumed = None, optimizer.version
        self.rounds -= 1
        return self.rounds > 0

    def _measure_synchronous(self) -> None:
        start = time.monotonic()
        self.synchronous.learn(self.updates, reset_num_timesteps=False, log_interval=10**9)
        self.report("synchronous", self.updates / (time.monotonic() - start), 0.0)


def measure(learners: int, at_once: int, rounds: int, updates: int, seed: int) -> dict[str, Any]:
    """Rates by turns, and the stages' means in seconds for an update."""
    rates: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
    optimizer: list[float] = []

    def report(how: str, rate: float, processor: float) -> None:
        print(f"{learners} learner(s), {at_once:2} a task, {how:12}: {rate:6.1f} updates/s", flush=True)
        rates[how].append(rate)
        optimizer.extend([processor] if how == "asynchronous" else [])

    print("starting", flush=True)
    callback = Alternate(build(seed), rounds, updates, report)
    settings = dict(n_learners=learners, updates_per_task=at_once)
    learn(build(seed), 10**6, callback, log_interval=None, reset_num_timesteps=False, **settings)
    stages = {stage: mean(times) for stage, times in callback.stages.items()}
    pairs = zip(rates["asynchronous"], rates["synchronous"], strict=True)
    return {
        "learners": learners,
        "at_once": at_once,
        "synchronous": median(rates["synchronous"]),
        "asynchronous": median(rates["asynchronous"]),
        "ratio": median(one / other for one, other in pairs),
        **{**stages, "publish": stages["publish"] / at_once},
        "optimizer": median(optimizer),
        "staleness": mean(callback.staleness),
        "staleness_max": max(callback.staleness),
    }


def scaling(alone: float, shared: float, at_once: int) -> list[tuple[int, int, float, float]]:
    """(updates a task, learners N, seconds an update, mean staleness) up to :data:`MOST_LEARNERS`.

    Between a task's parameters and its use each of the other N - 1 learners hands over one task, on average.

    :param alone: seconds that a learner needs for a task, transfers included; learners do not disturb each other
    :param shared: seconds that the optimizer is busy with it
    """
    rows, queue = [], 0.0
    for learners in range(1, MOST_LEARNERS + 1):
        response = shared * (1 + queue)
        rate = learners / (alone + response)
        queue = rate * response
        rows.append((at_once, learners, 1 / (rate * at_once), (learners - 1.0) * at_once))
    return rows


def models(measured: list[dict[str, Any]]) -> list[tuple[float, float, list[tuple[int, int, float, float]]]]:
    """For each number of updates a task what was measured with one learner, in seconds an update, and what follows."""
    found = []
    for row in measured:
        if row["learners"] == 1:
            at_once, shared = row["at_once"], row["optimizer"]
            alone = 1 / row["asynchronous"] - shared
            found.append((alone, shared, scaling(alone * at_once, shared * at_once, at_once)))
    return found


def write(measured: list[dict[str, Any]], command: str) -> None:
    """The tables and the picture."""
    modelled = models(measured)
    with open(RESULTS / "async_speed.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(measured[0])
        rows.writerows([f"{value:.6g}" for value in row.values()] for row in measured)
    with open(RESULTS / "async_scaling.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["updates_per_task", "learners", "update_seconds", "staleness"])
        rows.writerows([k, n, f"{seconds:.6g}", f"{stale:g}"] for *_, model in modelled for k, n, seconds, stale in model)
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("ray", "torch", "stable-baselines3"))
    lines = [f"<!-- made by: {command} | {versions} -->", ""]
    names = ["learners", "updates a task", "synchronous, updates/s", "asynchronous, updates/s", "ratio", "aim"]
    lines += [f"| {' | '.join(names)} | staleness, mean (most) |", "| --- " * 7 + "|"]
    for row in measured:
        aim = f"{AIM:g}" if row["learners"] == 2 else ""
        rates = f"{row['synchronous']:.1f} | {row['asynchronous']:.1f} | {row['ratio']:.2f}"
        stale = f"{row['staleness']:.2f} ({row['staleness_max']})"
        lines.append(f"| {row['learners']} | {row['at_once']} | {rates} | {aim} | {stale} |")
    lines += ["", "Milliseconds an update; the optimizer's processor time has apply and publish in it:", ""]
    lines += [f"| learners | updates a task | {' | '.join(STAGES)} | optimizer |", "| --- " * 8 + "|"]
    for row in measured:
        times = " | ".join(f"{1000 * row[stage]:.2f}" for stage in (*STAGES, "optimizer"))
        lines.append(f"| {row['learners']} | {row['at_once']} | {times} |")
    lines += ["", "The model: milliseconds an update (times as fast as with one learner; mean staleness):", ""]
    shown = [1, 2, 4, 8, 12, 16, 32, 64]
    lines += [f"| updates a task | {' | '.join(f'{n} learners' for n in shown)} |", "| --- " * (len(shown) + 1) + "|"]
    for *_, model in modelled:
        cells = [f"{1000 * s:.2f} ({model[0][2] / s:.1f}; {stale:g})" for _, n, s, stale in model if n in shown]
        lines.append(f"| {model[0][0]} | {' | '.join(cells)} |")
    (RESULTS / "async_speed.md").write_text("\n".join(lines) + "\n")
    embed(Path(__file__).parents[1] / "docs/distributed.md", "async_speed", "\n".join(lines))
    draw(measured, modelled)


def draw(measured: list[dict[str, Any]], modelled: list[tuple[float, float, list[tuple[int, int, float, float]]]]) -> None:
    """Update time and staleness against learners; circles are measured."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for index, (_, shared, model) in enumerate(modelled):
        at_once, learners, seconds, stale = (np.array(column) for column in zip(*model, strict=True))
        color, points = f"C{index}", [row for row in measured if row["at_once"] == at_once[0]]
        left.loglog(learners, 1000 * seconds, color=color, label=f"{at_once[0]} updates a task", base=2)
        left.axhline(1000 * shared, ls="--", lw=0.8, color=color)
        right.loglog(learners[1:], stale[1:], color=color, base=2)
        left.plot([row["learners"] for row in points], [1000 / row["asynchronous"] for row in points], "o", color=color)
        stale_points = [row for row in points if row["staleness"] > 0]
        right.plot([row["learners"] for row in stale_points], [row["staleness"] for row in stale_points], "o", color=color)
    left.set(xlabel="learners", ylabel="ms an update (dashed: optimizer alone)")
    right.set(xlabel="learners", ylabel="mean staleness, updates")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "async_speed.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="alternations for each number of learners")
    parser.add_argument("--updates", type=int, default=96, help="in each")
    parser.add_argument("--learners", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="updates a task")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    rounds, updates, seed = arguments.rounds, arguments.updates, arguments.seed
    measured = [
        measure(learners, at_once, rounds, updates, seed) for at_once in arguments.at_once for learners in arguments.learners
    ]
    write(measured, f"python benchmarks/async_speed.py --rounds {rounds} --updates {updates} --seed {seed}")
    print((RESULTS / "async_speed.md").read_text())


if __name__ == "__main__":
    main()
