"""Does the critic of a saved model see falls coming? Q less the return that was then earned, by the steps left until an
episode terminated, beside the same over all steps.

    python benchmarks/learning.py hopper-ensembles --systems MAAC --seeds 0 --models models
    python benchmarks/falls.py MAAC models/hopper-ensembles-MAAC-0.zip --env Hopper-v5

Appends to ``results/falls.csv``.
"""

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import numpy as np
import stable_baselines3
from learning import RESULTS, revision, versions

import sb3_valuegrad
from sb3_valuegrad.diagnostics import critic_calibration

STEPS_LEFT = 10
FIELDS = ["model", "env", "episodes", "steps_left", "steps", "q_mean", "return_mean", "bias", "versions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", help="its class, of sb3_valuegrad or stable_baselines3")
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    algorithm = getattr(sb3_valuegrad, args.algorithm, None) or getattr(stable_baselines3, args.algorithm)
    env = gym.make(args.env)
    env.reset(seed=10_000)
    found = critic_calibration(algorithm.load(args.model, device="cpu"), env, args.episodes)
    groups = {"all": np.full(len(found.q), True)}
    groups |= {str(left): found.steps_left == left for left in range(1, STEPS_LEFT + 1)}
    path = RESULTS / "falls.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(FIELDS)
        for left, rows in groups.items():
            q, returns = found.q[rows].mean(), found.returns[rows].mean()
            numbers = [round(float(number), 2) for number in (q, returns, q - returns)]
            print(f"{left:>4} steps left: Q {numbers[0]}, return {numbers[1]}, bias {numbers[2]} ({rows.sum()} steps)")
            what = [args.model.stem, args.env, args.episodes, left, rows.sum()]
            writer.writerow([*what, *numbers, f"{versions()} {revision()}"])


if __name__ == "__main__":
    main()
