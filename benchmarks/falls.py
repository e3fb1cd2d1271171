"""Does the critic of a saved model see falls coming? Q less the return that was then earned, by the steps left until an
episode terminated, beside the same over all steps.

    python benchmarks/learning.py hopper-ensembles --systems MAAC --seeds 0 --models models
    python benchmarks/falls.py MAAC models/hopper-ensembles-MAAC-0.zip --env Hopper-v5

Appends to ``results/falls.csv``.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import stable_baselines3
from learning import RESULTS, append, revision, versions
from stable_baselines3.common.utils import set_random_seed

import sb3_valuegrad
from sb3_valuegrad.diagnostics import critic_calibration

STEPS_LEFT = 10
FIELDS = ["model", "env", "episodes", "steps_left", "bias", "versions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", help="its class, of sb3_valuegrad or stable_baselines3")
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    algorithm = getattr(sb3_valuegrad, args.algorithm, None) or getattr(stable_baselines3, args.algorithm)
    set_random_seed(0)
    env = gym.make(args.env)
    env.reset(seed=10_000)
    found = critic_calibration(algorithm.load(args.model, device="cpu"), env, args.episodes)
    biases = {"all": found.bias} | dict(enumerate(found.bias_before_termination(STEPS_LEFT), start=1))
    path = RESULTS / "falls.csv"
    if not path.exists():
        append(path, FIELDS)
    for left, bias in biases.items():
        print(f"{left:>4} steps left: Q less the return {bias:.2f}")
        append(path, [args.model.stem, args.env, args.episodes, left, round(float(bias), 2), f"{versions()} {revision()}"])


if __name__ == "__main__":
    main()
