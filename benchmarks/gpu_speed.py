"""What an update, a fit and an imagined batch take on a GPU and on one thread of its machine's CPU: ``results/gpu_speed.csv``.

    python benchmarks/gpu_speed.py

Networks are the algorithms' defaults, on HalfCheetah-v5. Wall time, medians of alternating measurements in one process; the
GPU is waited for.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch as th
from speed import write
from stable_baselines3 import SAC, TD3

from sb3_valuegrad import DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.algorithms.imagination import imagined_transitions
from sb3_valuegrad.held_out import stored_transitions
from sb3_valuegrad.world_models.fitting import fit

ENV, DEVICES = "HalfCheetah-v5", ("cpu", "cuda")
HEAD: list[Any] = ["what", "batch", "CPU in ms", "GPU in ms", "CPU to GPU"]
ONE_STEP: dict[str, Any] = {"target_estimator": "td", "target_horizon": 0, "real_ratio": 1.0}
SYSTEMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "TD3 (SB3)": (TD3, {}),
    "SAC (SB3)": (SAC, {}),
    "DVPG": (DVPG, {}),
    "MVE": (MVE, {}),
    "MPG": (MPG, {}),
    "SVG": (SVG, {}),
    "MBPO": (MBPO, {}),
    "MAAC, one-step targets": (MAAC, ONE_STEP),
    "MAAC": (MAAC, {}),
}


def times(calls: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median milliseconds of each, measured in turn."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, kept in zip(calls, taken, strict=True):
            th.cuda.synchronize()
            start = time.perf_counter()
            call()
            th.cuda.synchronize()
            kept.append(1000 * (time.perf_counter() - start))
    return [median(kept[1:]) for kept in taken]  # the first pays for what is made once


def agents(algorithm: Any, batch_size: int, kwargs: dict[str, Any]) -> list[Any]:
    """One on each device that has collected 1000 steps, and fitted its model where it needs one."""
    made = []
    for device in DEVICES:
        fits = {"model_fit_kwargs": {"max_epochs": 1}} if algorithm in (MAAC, MBPO) else {}
        agent = algorithm("MlpPolicy", ENV, batch_size=batch_size, buffer_size=20_000, learning_starts=990, seed=0,
                          device=device, **fits, **kwargs)  # fmt: skip
        made.append(agent.learn(1000))
    return made


def updates(batch_size: int, systems: Iterable[str], repeats: int, steps: int) -> Iterator[list[Any]]:
    for name in systems:
        algorithm, kwargs = SYSTEMS[name]
        pair = agents(algorithm, batch_size, kwargs)
        calls = [lambda agent=agent: agent.train(steps, batch_size) for agent in pair]
        yield [f"update, {name}", batch_size, *(ms / steps for ms in times(calls, repeats))]


def ensemble(repeats: int) -> Iterator[list[Any]]:
    """One epoch of a fit to 1000 rows, and imagined steps in one batch, with MAAC's ensemble."""
    pair = agents(MAAC, 256, {})

    def epoch(agent: Any) -> None:
        data = stored_transitions(agent.replay_buffer, agent._flat, None, agent.model_validation_fraction)
        fit(agent.world_model, *data, max_epochs=1)

    def imagine(agent: Any, rows: int) -> None:
        obs = agent._flat.flatten(agent._sample(rows).observations)
        with th.no_grad():
            imagined_transitions(agent.world_model, agent._behaviour(), obs, 1)

    yield ["epoch of a fit, 900 rows", 256, *times([lambda agent=agent: epoch(agent) for agent in pair], repeats)]
    for rows in (4_000, 100_000):
        calls = [lambda agent=agent, rows=rows: imagine(agent, rows) for agent in pair]
        yield ["imagined steps", rows, *times(calls, repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="updates in one measurement")
    parser.add_argument("--embed", type=Path, help="put the table into this page, at its <!-- results:gpu_speed -->")
    args = parser.parse_args()
    th.set_num_threads(1)
    rows = [HEAD]
    for what, batch, *taken in measured(args.repeats, args.steps):
        rows.append([what, batch, *(f"{ms:.2f}" for ms in taken), f"{taken[0] / taken[1]:.2f}"])
        print(*rows[-1], flush=True)
        # After each row: the machine may be lent, and the run be cut off.
        command = f"python benchmarks/gpu_speed.py --repeats {args.repeats} --steps {args.steps} | {th.cuda.get_device_name()}"
        write("gpu_speed", rows, command, args.embed)


def measured(repeats: int, steps: int) -> Iterator[list[Any]]:
    yield from updates(256, SYSTEMS, repeats, steps)
    yield from updates(4096, ("SAC (SB3)", "DVPG", "MAAC"), repeats, max(steps // 16, 2))
    yield from ensemble(repeats)


if __name__ == "__main__":
    main()
