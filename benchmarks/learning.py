"""Learning studies: train every (system, seed) of a study in its own single-thread process, evaluate as it learns,
and append each evaluation to ``results/<study>.csv`` as it comes. A run that is already complete there is skipped,
so a study can be interrupted, resumed and extended.

    python benchmarks/learning.py halfcheetah --workers 2
    python benchmarks/learning.py halfcheetah --systems DVPG TD3 --seeds 0 1
"""

import argparse
import csv
import importlib.metadata
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from studies import Study, make_model, studies

STUDIES = studies()
RESULTS = Path(__file__).parent / "results"
FIELDS = ["system", "seed", "step", "return_mean", "return_std", "return_min", "episode_length", "hours", "versions"]


def versions() -> str:
    packages = ["stable-baselines3", "torch", "gymnasium", "mujoco"]
    return " ".join(f"{name}={importlib.metadata.version(name)}" for name in packages)


def revision() -> str:
    """The commit that is being measured (``+`` where the working tree differs from it)."""
    try:
        folder = Path(__file__).parent
        call = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return "commit=" + subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "commit=unknown"


def run_one(study_name: str, system: str, seed: int, models: Path | None, device: str) -> None:
    """Train one system with one seed in this process.

    :param models: folder that the trained model is saved in; None: it is not
    :param device: what it is trained on
    """
    import gymnasium as gym
    import numpy as np
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    th.set_num_threads(1)
    study = STUDIES[study_name]
    eval_env = Monitor(gym.make(study.env, **study.eval_env_kwargs))
    # The evaluation starts are the same for every system and seed of a study.
    path = RESULTS / f"{study_name}.csv"
    started, note = time.monotonic(), f"{versions()} {revision()}{'' if device == 'cpu' else f' device={device}'}"

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            step = self.num_timesteps // study.n_envs
            if step % study.eval_freq:
                return True
            observations: list[Any] = []
            eval_env.reset(seed=10_000)
            returns, lengths = evaluate_policy(
                self.model,
                eval_env,
                study.eval_episodes,
                deterministic=True,
                return_episode_rewards=True,
                callback=(lambda local, _: observations.append(local["new_observations"][0])) if study.errors else None,
            )
            mean, spread = np.mean(returns), np.std(returns)
            hours = round((time.monotonic() - started) / 3600, 4)
            row = [system, seed, step, round(mean, 2), round(spread, 2), round(min(returns), 2), np.mean(lengths), hours, note]
            append(path, row)
            if study.errors:
                squares = np.square(np.array(observations)[:, list(study.errors.values())])
                append(errors_path(study_name), [system, seed, step, *np.sqrt(squares.mean(0)).round(5), note])
            print(f"{study_name} {system} seed {seed} step {step}: {mean:.4g}", flush=True)
            return step < study.last_evaluation

    model = make_model(study, system, seed, device)
    model.learn(study.steps * study.n_envs, callback=Evaluate(), log_interval=None)
    if models is not None:
        model.save(models / f"{study_name}-{system}-{seed}.zip")


def errors_path(study_name: str) -> Path:
    """Where a study's errors are kept, beside its returns."""
    return RESULTS / f"{study_name}-errors.csv"


def append(path: Path, row: list[Any]) -> None:
    """One short write in append mode: several processes may share the file."""
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)


def finished(study_name: str, study: Study) -> set[tuple[str, int]]:
    """The runs that reached the study's last step; the rows of those that did not are dropped from its files."""
    path = RESULTS / f"{study_name}.csv"
    path.parent.mkdir(exist_ok=True)
    done = {run_of(row) for row in read(path, FIELDS) if int(row["step"]) >= study.last_evaluation}
    keep(path, FIELDS, done)
    if study.errors:
        keep(errors_path(study_name), ["system", "seed", "step", *study.errors, "versions"], done)
    return done


def run_of(row: dict[str, str]) -> tuple[str, int]:
    return row["system"], int(row["seed"])


def read(path: Path, fields: list[str]) -> list[dict[str, str]]:
    """The file's rows; it is made if it is not there."""
    if not path.exists():
        path.write_text(",".join(fields) + "\n")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(path: Path, fields: list[str], done: set[tuple[str, int]]) -> None:
    """Drop the rows of all other runs from the file."""
    rows = [row for row in read(path, fields) if run_of(row) in done]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--systems", nargs="+", help="default: all of the study")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the study's")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side; one core each")
    parser.add_argument("--models", type=Path, help="folder that the trained models are saved in; default: they are not")
    parser.add_argument("--device", default="cpu", help="PyTorch's device that they are trained on; default: cpu")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        system, seed = json.loads(args.run)
        run_one(args.study, system, seed, args.models, args.device)
        return
    study = STUDIES[args.study]
    done = finished(args.study, study)
    seeds = args.seeds if args.seeds is not None else study.seeds
    runs = [(system, seed) for seed in seeds for system in args.systems or study.systems]

    def train(run: tuple[str, int]) -> int:
        models = [] if args.models is None else ["--models", str(args.models)]
        call = [sys.executable, __file__, args.study, "--run", json.dumps(run), "--device", args.device, *models]
        return subprocess.run(call, check=False).returncode

    with ThreadPoolExecutor(args.workers) as pool:
        codes = list(pool.map(train, [run for run in runs if run not in done]))
    if any(codes):
        sys.exit(f"{sum(map(bool, codes))} of {len(codes)} runs failed")


if __name__ == "__main__":
    main()
