"""Does staleness cost learning? MPG with its prior model on InvertedPendulumExplicit-v5: returns after as many steps and
updates, synchronous, and with two learners.

    python benchmarks/async_learning.py --seeds 0 1 2   # results/async_learning.csv and .md, and docs/distributed.md
"""

import argparse
import csv
import importlib.metadata
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium as gym
import torch as th
from report import embed
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import sb3_valuegrad.envs  # noqa: F401 (registers the task)
from sb3_valuegrad import MPG
from sb3_valuegrad.distributed import learn
from sb3_valuegrad.envs.priors import PRIORS

ENV = "InvertedPendulumExplicit-v5"
RESULTS = Path(__file__).parent / "results"
# updates a task; 0: synchronous
SYSTEMS = {"synchronous": 0, "2 learners, 1 update a task": 1, "2 learners, 4": 4, "2 learners, 16": 16}


class Points(BaseCallback):
    """Evaluates the policy at these steps; its staleness so far, too."""

    def __init__(self, points: list[int]):
        super().__init__()
        self.points, self.returns = list(points), list[float]()
        self.env = Monitor(gym.make(ENV))
        self.env.reset(seed=1000)

    def _on_step(self) -> bool:
        while self.points and self.num_timesteps >= self.points[0]:
            self.points.pop(0)
            self.evaluate()
        return True

    def evaluate(self) -> None:
        self.returns.append(float(evaluate_policy(self.model, self.env, 10)[0]))  # type: ignore[arg-type]


def run(at_once: int, points: list[int], seed: int) -> list[float]:
    """Mean returns of 10 episodes at these steps; the prior without its noise."""
    prior = {name: PRIORS[ENV][name] for name in ("transition_fn", "reward_fn")}
    networks: dict[str, Any] = dict(net_arch=[64, 64], world_model_class="analytic", world_model_kwargs=prior)
    model = MPG("MlpPolicy", ENV, horizons=(0, 10), weighting_updates=points[-1], learning_starts=500,
                policy_kwargs=networks, seed=seed, device="cpu")  # fmt: skip
    callback = Points(points[:-1])
    if at_once == 0:
        model.learn(points[-1], callback)
    else:
        learn(model, points[-1], callback, updates_per_task=at_once, n_learners=2)
    assert model._n_updates == points[-1] - 500, model._n_updates
    callback.evaluate()
    return callback.returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", type=int, nargs="+", default=[1000, 1500, 2000], help="steps")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    found: dict[str, list[list[float]]] = {name: [] for name in SYSTEMS}
    with open(RESULTS / "async_learning.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["system", "seed", *arguments.points])
        for seed in arguments.seeds:
            for name, at_once in SYSTEMS.items():
                found[name].append(run(at_once, arguments.points, seed))
                rows.writerow([name, seed, *(f"{value:.4g}" for value in found[name][-1])])
                file.flush()
                print(name, seed, [f"{value:.2f}" for value in found[name][-1]], flush=True)
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("ray", "torch", "stable-baselines3"))
    seeds = " ".join(map(str, arguments.seeds))
    lines = [f"<!-- made by: python benchmarks/async_learning.py --seeds {seeds} | {versions} -->", ""]
    lines += [f"| {' | '.join(['', *(f'{point} steps' for point in arguments.points)])} |"]
    lines += ["| --- " * (len(arguments.points) + 1) + "|"]
    for name, runs in found.items():
        cells = [f"{mean(at):.2f} ({min(at):.2f} .. {max(at):.2f})" for at in zip(*runs, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    (RESULTS / "async_learning.md").write_text("\n".join(lines) + "\n")
    embed(RESULTS.parents[1] / "docs/distributed.md", "async_learning", "\n".join(lines))


if __name__ == "__main__":
    main()
