"""``sb3-valuegrad report``: the learning curve of a run as a picture, beside a baseline, and how to replay the run."""

import argparse
import csv
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

Curve = dict[int, float]
"""Mean return of each evaluation, by environment step."""


def run_folder(folder: str, algo: str, env: str, exp_id: int = 0) -> Path:
    """A training run's folder.

    :param exp_id: number of the run; 0: the latest
    :raises ValueError: if it holds no evaluations
    """
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.utils import get_latest_run_id

    name = EnvironmentName(env)
    exp_id = exp_id or get_latest_run_id(os.path.join(folder, algo), name)
    path = Path(folder, algo, f"{name}_{exp_id}")
    if not (path / "evaluations.npz").is_file():
        raise ValueError(f"{path} has no evaluations.npz: is {folder!r} the log folder, and did train have --eval-freq?")
    return path


def read_evaluations(run: Path) -> tuple[Curve, Curve]:
    """Mean and standard deviation over the episodes of each evaluation."""
    with np.load(run / "evaluations.npz") as data:
        steps, returns = data["timesteps"], data["results"]
    pairs = list(zip(steps.tolist(), returns, strict=True))
    return {step: float(np.mean(row)) for step, row in pairs}, {step: float(np.std(row)) for step, row in pairs}


def read_baseline(path: Path, system: str) -> tuple[Curve, int]:
    """Mean over the seeds of a system in one of our benchmarks' CSV files, where all its seeds were evaluated.

    :param path: CSV file with the columns system, seed, step, return_mean
    :return: the curve and the number of seeds
    :raises ValueError: if the file does not have the system
    """
    returns: dict[int, dict[str, float]] = defaultdict(dict)
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["system"] == system]
    if not rows:
        raise ValueError(f"{path} has no rows of the system {system!r}")
    for row in rows:
        returns[int(row["step"])][row["seed"]] = float(row["return_mean"])
    seeds = {row["seed"] for row in rows}
    curve = {step: float(np.mean(list(found.values()))) for step, found in returns.items() if found.keys() == seeds}
    return curve, len(seeds)


def draw(path: Path, title: str, curve: Curve, spread: Curve, baseline: Curve, baseline_name: str) -> None:
    """Save the picture of the learning curve."""
    from matplotlib.figure import Figure

    # No pyplot: a figure without it needs no display.
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    steps, mean = np.array(sorted(curve)), np.array([curve[step] for step in sorted(curve)])
    band = np.array([spread[step] for step in steps.tolist()])
    axes.plot(steps, mean, marker="o", markersize=3, label="this run")
    axes.fill_between(steps, mean - band, mean + band, alpha=0.2)
    shown = sorted(step for step in baseline if step <= steps[-1])
    if shown:
        axes.plot(shown, [baseline[step] for step in shown], linestyle="--", color="gray", label=baseline_name)
    axes.set(title=title, xlabel="environment steps", ylabel="evaluation return")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def command_name() -> str:
    """How this folder's shell calls the command of this environment, which may not be activated."""
    path = Path(sys.executable).parent / "sb3-valuegrad"
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def closing_lines(run: Path, algo: str, env: str, folder: str, picture: Path) -> list[str]:
    """Where everything is and how to replay it."""
    command = command_name()
    name, exp_id = run.name.rsplit("_", 1)
    flags = f"--algo {algo} --env {env} -f {folder} --exp-id {exp_id} --load-best"
    return [
        f"Model:          {run / (name + '.zip')} (best evaluation: {run / 'best_model.zip'})",
        f"Learning curve: {picture}",
        f"Replay:         {command} enjoy {flags}",
        f"Video, no display needed: MUJOCO_GL=egl {command} record_video {flags}",
    ]


def report() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", default="dvpg", help="RL Algorithm")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="Log folder")
    parser.add_argument("--exp-id", default=0, type=int, help="Experiment ID (default: 0: latest)")
    parser.add_argument("--baseline", type=Path, help="CSV file of a benchmark to compare with")
    parser.add_argument("--system", default="DDPG", help="the system in that file")
    args = parser.parse_args()
    run = run_folder(args.folder, args.algo, args.env, args.exp_id)
    curve, spread = read_evaluations(run)
    baseline, seeds = read_baseline(args.baseline, args.system) if args.baseline else ({}, 0)
    name = f"SB3 {args.system}, mean of {seeds} seeds"
    picture = run / "learning_curve.png"
    draw(picture, f"{args.algo.upper()} on {args.env}", curve, spread, baseline, name)
    print()
    last = max(curve)
    print(f"{args.algo.upper()} on {args.env}: evaluation return {curve[last]:.0f} at step {last}")
    common = curve.keys() & baseline.keys()
    if common:
        step = max(common)
        print(f"At step {step}: {args.algo.upper()} {curve[step]:.0f}, {name} {baseline[step]:.0f} ({args.baseline})")
    elif baseline:
        print(f"{args.baseline} has no evaluation of {args.system} at this run's steps to compare with")
    print("\n".join(closing_lines(run, args.algo, args.env, args.folder, picture)))
