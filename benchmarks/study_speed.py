"""What an update of each system of a study costs, beside one of them: medians of alternating calls of ``train()``, in one
process, on one thread.

    python benchmarks/study_speed.py pathtracking --beside MPG-v2

Times are the process's CPU time, and the middle of ``--repeats`` runs; only the ratios are worth quoting.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import torch as th
from speed import collect, cpu_time, write
from stable_baselines3.common.base_class import BaseAlgorithm
from studies import make_model, studies


def update_times(models: dict[str, BaseAlgorithm], steps: int, repeats: int) -> dict[str, float]:
    """ms of an update, by system."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            # One train() per environment step is how learn() calls it.
            seconds = cpu_time(lambda model=model: [model.train(1, model.batch_size) for _ in range(steps)])  # type: ignore[misc]
            times[name].append(1000 * seconds / steps)
    return {name: median(of_model) for name, of_model in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(studies()))
    parser.add_argument("--beside", required=True, help="the system that the others are compared with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="updates in one timed run")
    parser.add_argument("--embed", type=Path, help="put the table into this page, at its <!-- results:speed-STUDY -->")
    args = parser.parse_args()
    th.set_num_threads(1)
    study = studies()[args.study]
    models = {name: collect(make_model(study, name, 0)) for name in study.systems}
    times = update_times(models, args.steps, args.repeats)
    rows: list[list[Any]] = [["system", "ms an update", f"beside {args.beside}"]]
    rows += [[name, f"{time:.1f}", f"{time / times[args.beside]:.2f}"] for name, time in times.items()]
    command = f"python benchmarks/study_speed.py {args.study} --beside {args.beside}"
    write(f"speed-{args.study}", rows, f"{command} --repeats {args.repeats} --steps {args.steps}", args.embed)
    print(*("{:<28}{:>14}{:>18}".format(*row) for row in rows), sep="\n")


if __name__ == "__main__":
    main()
