"""What the Gaussian ensemble costs: 7 networks of 4 x 200 SiLU units, HalfCheetah's sizes, on one thread.

A termination is learned beside them (7 networks of 2 x 64), although HalfCheetah has none.

    python benchmarks/ensemble_speed.py               # the table, and results/ensemble_speed.csv
    python benchmarks/ensemble_speed.py --repeats 3   # a quick look

Training: minibatches of 256; the floating-point operations of forward and backward (3 x 2 x weights x rows x networks)
per second, as a share of what the machine's matrix product reaches in the same run, measured alternately: a square
``mm`` of 1024 and the ensemble's own ``bmm`` of hidden layers, whichever is faster. Rollouts: 10 000 and 100 000 rows
one step ahead without gradients, rows split over the elites, in chunks of several sizes. Times are the process's CPU
time, medians, so that a busy machine disturbs little.
Beside mbrl-lib: benchmarks/mbrl_speed.py.
"""

import argparse
import csv
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch as th

from sb3_valuegrad.gradients import guarded_step
from sb3_valuegrad.world_models import GaussianEnsemble, Transitions

RESULTS = Path(__file__).parent / "results"
S, A, BATCH = 17, 6, 256


def cpu_time(call: Callable[[], Any], times: int) -> float:
    """Seconds of one call."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def medians(calls: dict[str, tuple[Callable[[], Any], int]], repeats: int, warm_up: bool = True) -> dict[str, float]:
    """Median seconds of each call, measured in turns."""
    for call, _ in calls.values():
        if warm_up:
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, times) in calls.items():
            found[name].append(cpu_time(call, times))
    return {name: median(seconds) for name, seconds in found.items()}


def build(**kwargs: Any) -> GaussianEnsemble:
    model = GaussianEnsemble(S, A, **kwargs)
    model.optimizer = th.optim.Adam(model.parameter_groups(), 1e-3, fused=True)
    model.observe_all(rows(2048))
    return model


def rows(count: int) -> Transitions:
    obs, dones = th.randn(count, S), (th.rand(count) < 0.01).float()
    return Transitions(obs, th.rand(count, A) * 2 - 1, th.randn(count), dones, obs + 0.1 * th.randn(count, S))


def training(repeats: int) -> list[list[Any]]:
    """Share of the matrix product's rate that forward and backward, and the whole update, reach."""
    model, data = build(), rows(BATCH)
    square, hidden = th.randn(1024, 1024), th.randn(7, BATCH, 200)
    weights, output = th.randn(7, 200, 200), th.empty(7, BATCH, 200)

    def loss() -> th.Tensor:
        return th.stack(list(model.losses(data).values())).sum()

    def backward() -> None:
        loss().backward()
        model.optimizer.zero_grad()

    seconds = medians(
        {
            "mm": (lambda: th.mm(square, square), 3),
            "bmm": (lambda: th.bmm(hidden, weights, out=output), 30),
            "backward": (backward, 10),
            "update": (lambda: guarded_step(loss(), [model.optimizer]), 10),
        },
        repeats,
    )
    # Of all networks; a bias is no product.
    weights_of_all = [*model.network.weights, *model.done_network.weights]
    flops = 3 * 2 * BATCH * sum(weight.numel() for weight in weights_of_all)
    rates = {"mm": 2 * 1024**3 / seconds["mm"], "bmm": 2 * 7 * BATCH * 200**2 / seconds["bmm"]}
    reference = max(rates.values())
    table = [[f"matrix product: {name}", f"{rate / 1e9:.1f} GFLOP/s", ""] for name, rate in rates.items()]
    for name, what in (("backward", "training: loss and gradients"), ("update", "training: whole update, Adam included")):
        table.append([what, f"{1e3 * seconds[name]:.2f} ms", f"{flops / seconds[name] / reference:.0%} of the matrix product"])
    return table


def rollouts(repeats: int) -> list[list[Any]]:
    model, table = build(), []
    for count in (10_000, 100_000):
        data = rows(count)
        for member_draw in ("step", "rollout"):
            for chunk in (250, 1000, 4000, count):

                def imagine(chunk: int = chunk, data: Transitions = data, member_draw: str = member_draw) -> None:
                    model.member_draw = member_draw
                    with th.no_grad():
                        for obs, actions in zip(data.obs.split(chunk), data.actions.split(chunk), strict=True):
                            model.step(obs, actions)

                seconds = medians({"": (imagine, 1)}, max(repeats // 3, 1))[""]
                table.append([f"{count} imagined steps, by {member_draw}", f"{1e3 * seconds:.0f} ms", f"chunks of {chunk}"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    th.set_num_threads(1)
    th.manual_seed(0)
    table = [["what", "measured", "note"]]
    for measure in (training, rollouts):
        for row in measure(args.repeats):
            table.append(row)
            print("{:<42}{:>16}   {}".format(*row), flush=True)
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("torch", "numpy"))
    table.append([f"python benchmarks/ensemble_speed.py --repeats {args.repeats}", versions, "one thread"])
    with (RESULTS / "ensemble_speed.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
