"""What an update costs against SB3's DDPG, and MAAC's against SB3's SAC: medians of alternating calls of ``train()``, in
one process, on one thread.

    python benchmarks/speed.py                       # the table, and results/speed.csv
    python benchmarks/speed.py --repeats 5 --steps 50   # a quick look
    python benchmarks/speed.py --memory              # peak memory, and results/memory.csv

The networks are equal, replay sampling is included, nothing is compiled. Times are the process's CPU time, so that a
busy machine disturbs little; only the ratios are worth quoting. ``learn()`` is timed too, with the environment's steps.
"""

import argparse
import csv
import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch as th
from pendulum_prior import PRIOR
from report import embed
from stable_baselines3 import DDPG, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG

RESULTS = Path(__file__).parent / "results"
ENV = "HalfCheetah-v5"
PAPER_MODEL = dict(
    net_arch=[64, 64],
    activation_fn=nn.ReLU,
    share_network=False,
    normalize=False,
    predict_change=False,
    weight_decay=1e-4,
    termination="none",
)
# network units, batch size, horizon -> the most that an update may cost (issue 2)
LIMITS = {
    (64, 128, 1): 1.1,
    (64, 128, 2): 1.3,
    (64, 128, 5): 1.9,
    (256, 256, 1): 2.0,
    (256, 256, 2): 2.7,
    (256, 256, 5): 4.8,
}

# MAAC's critic targets; the most that an update may cost of SB3's SAC's (issue 3)
MAAC_SYSTEMS: list[tuple[str, dict[str, Any], Any]] = [
    ("MAAC(3), one-step targets", {"target_estimator": "td", "target_horizon": 0}, 1.95),
    ("MAAC(3), MVE(2)", {"target_estimator": "mve"}, ""),
    ("MAAC(3), STEVE(2)", {}, 1.95),
    ("MAAC(3), STEVE(2) crossed", {"target_estimator": "steve-crossed"}, ""),
    ("MAAC(0) = SAC", {"horizon": 0, "target_estimator": "td", "target_horizon": 0}, ""),
]


# An update of MPG with a prior model, policy step included, at most so many of SB3's DDPG's (issue 4)
MPG_LIMIT = 6

# ours, SB3's, the most that ours may need of its memory
MEMORY: list[tuple[str, str, Any]] = [("DVPG(5)", "DDPG", 1.2), ("MAAC(3)", "SAC", ""), ("MBPO", "SAC", "")]


def paper_preset(units: int) -> dict[str, Any]:
    """The paper's world model beside an actor and a critic of this size; everything else as SB3's DDPG has it."""
    networks = dict(net_arch=[units, units], activation_fn=nn.ReLU, n_critics=1, layer_norm=False)
    networks["world_model_kwargs"] = PAPER_MODEL
    return dict(policy_delay=1, target_policy_noise=0.0, policy_kwargs=networks)


def ddpg(units: int, batch_size: int, buffer_size: int = 20_000) -> DDPG:
    kwargs = dict(net_arch=[units, units])
    noise = NormalActionNoise(th.zeros(6).numpy(), th.full((6,), 0.1).numpy())
    return DDPG("MlpPolicy", ENV, batch_size=batch_size, buffer_size=buffer_size, action_noise=noise, policy_kwargs=kwargs,
                learning_starts=1000, seed=0, device="cpu")  # fmt: skip


def sac() -> SAC:
    return SAC("MlpPolicy", ENV, batch_size=256, buffer_size=20_000, learning_starts=1000, seed=0, device="cpu")


def maac(**changes: Any) -> MAAC:
    """MAAC(3) with SB3's networks of 2x256 and an ensemble of 5 members of 4x200; the fits are not in the timed part."""
    networks = dict(activation_fn=nn.ReLU, layer_norm=False, world_model_kwargs=dict(n_members=5, n_elites=5))
    once = dict(model_fit_freq=10**9, model_fit_kwargs=dict(max_epochs=1))
    return MAAC("MlpPolicy", ENV, batch_size=256, buffer_size=20_000, seed=0, device="cpu", policy_kwargs=networks,
                **{**once, "real_ratio": 1.0, **changes})  # fmt: skip


def mpg() -> MPG:
    """MPG({0, 25}) in the middle of its rule, with an analytic prior of three states and one action."""
    networks = dict(net_arch=[64, 64], activation_fn=nn.ReLU, n_critics=1, layer_norm=False)
    networks |= dict(world_model_class="analytic", world_model_kwargs=PRIOR)
    half_way = dict(eta=1e-9, policy_delay=1, target_policy_noise=0.0)
    return MPG("MlpPolicy", "Pendulum-v1", batch_size=256, buffer_size=20_000, seed=0, device="cpu", policy_kwargs=networks,
               **half_way)  # fmt: skip


def collect(model: BaseAlgorithm, steps: int = 2000) -> BaseAlgorithm:
    """Fill the buffer and reach the state in which every part of ``train()`` runs."""
    gradient_steps, model.gradient_steps = model.gradient_steps, 0
    model.learn(steps)
    model.gradient_steps = gradient_steps
    model.train(20, model.batch_size)
    return model


def cpu_time(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def update_ratio(model: BaseAlgorithm, reference: BaseAlgorithm, steps: int, repeats: int) -> float:
    """Median over alternating A B A B runs of the ratio of the two ``train()`` times."""
    ratios = []
    for _ in range(repeats):
        # One train() per environment step is how learn() calls it.
        ours = cpu_time(lambda: [model.train(1, model.batch_size) for _ in range(steps)])
        theirs = cpu_time(lambda: [reference.train(1, reference.batch_size) for _ in range(steps)])
        ratios.append(ours / theirs)
    return median(ratios)


def learn_ratio(model: BaseAlgorithm, reference: BaseAlgorithm, steps: int, repeats: int) -> float:
    """The same for whole ``learn()`` calls: environment steps, exploration, storage, updates."""
    ratios = []
    for _ in range(repeats):
        ours = cpu_time(lambda: model.learn(steps, reset_num_timesteps=False))
        theirs = cpu_time(lambda: reference.learn(steps, reset_num_timesteps=False))
        ratios.append(ours / theirs)
    return median(ratios)


def alone(system: str) -> BaseAlgorithm:
    """A system whose peak memory is measured; HalfCheetah's replay buffer is filled."""
    if system == "DDPG":
        return ddpg(64, 128, buffer_size=50_000)
    if system == "DVPG(5)":
        return DVPG("MlpPolicy", ENV, horizon=5, batch_size=128, buffer_size=50_000, seed=0, device="cpu", **paper_preset(64))
    if system == "SAC":
        return SAC("MlpPolicy", ENV, buffer_size=50_000, learning_starts=1000, seed=0, device="cpu")
    ours = {"MAAC(3)": MAAC, "MBPO": MBPO}[system]
    return ours("MlpPolicy", ENV, buffer_size=50_000, seed=0, device="cpu", model_fit_kwargs=dict(max_epochs=1))


def peak_memory(system: str) -> float:
    """Peak resident memory in MB of a process that fills its replay buffer and trains: a fit, imagining, updates."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import speed; speed.train_alone({system!r})"
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(call.stdout.splitlines()[-1])


def train_alone(system: str) -> None:
    """Train one system in this process, and print the peak memory in MB."""
    th.set_num_threads(1)
    model = collect(alone(system), 50_000)
    model.train(50, model.batch_size)
    # Not getrusage's: that includes what the process had from which this one was started.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def times(repeats: int, steps: int) -> list[list[Any]]:
    """The table of ratios."""
    rows: list[list[Any]] = []

    def report(*row: Any) -> None:
        rows.append(list(row))
        print(("{:<38}" + "{:>10}" * (len(row) - 1)).format(*row), flush=True)

    report("system", "units", "batch", "update", "learn", "limit")
    for units, batch_size in ((64, 128), (256, 256)):
        reference = collect(ddpg(units, batch_size))
        common = dict(batch_size=batch_size, buffer_size=20_000, seed=0, device="cpu")
        systems: list[tuple[str, BaseAlgorithm, Any]] = [
            (
                f"DVPG({k})",
                DVPG("MlpPolicy", ENV, horizon=k, **common, **paper_preset(units)),
                LIMITS[units, batch_size, k],
            )
            for k in (1, 2, 5)
        ]
        systems.append(("DVG(0) = DDPG", DVG("MlpPolicy", ENV, horizon=0, **common, **paper_preset(units)), ""))
        if units == 256:
            systems.append(("DVPG(1) default preset", DVPG("MlpPolicy", ENV, **common), ""))
        for name, model, limit in systems:
            collect(model)
            update = update_ratio(model, reference, steps, repeats)
            learn = learn_ratio(model, reference, 2 * steps, max(repeats // 3, 1))
            report(name, units, batch_size, f"{update:.2f}", f"{learn:.2f}", limit)
    ratio = update_ratio(collect(mpg()), collect(ddpg(64, 128)), steps // 3, repeats)
    report("MPG(0, 25), analytic prior", 64, 256, f"{ratio:.2f}", "", MPG_LIMIT)
    for name, changes, limit in MAAC_SYSTEMS:
        model = collect(maac(**changes))
        reference_sac = collect(sac())
        update = update_ratio(model, reference_sac, steps // 3, repeats)
        report(name + ", to SAC", 256, 256, f"{update:.2f}", "", limit)
    return rows


def memory() -> list[list[Any]]:
    """The table of peak resident memory."""
    rows: list[list[Any]] = [["system", "peak memory in MB", "SB3's", "of it in MB", "ratio", "limit"]]
    for system, reference, limit in MEMORY:
        ours, theirs = peak_memory(system), peak_memory(reference)
        rows.append([system, round(ours), reference, round(theirs), f"{ours / theirs:.2f}", limit])
    return rows


def write(name: str, rows: list[list[Any]], command: str, page: Path | None) -> None:
    """The CSV file, the table as text, and the table in a page."""
    note = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("torch", "stable-baselines3", "numpy"))
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, [note]])
    lines = [" | ".join(map(str, row)) for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    text = "\n".join([f"<!-- made by: {command} | {note} -->", "", *(f"| {line} |" for line in lines)])
    (RESULTS / f"{name}.md").write_text(text + "\n")
    if page:
        embed(page, name, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100, help="updates in one timed run")
    parser.add_argument("--embed", type=Path, help="put the table into this page, at its <!-- results:speed --> or memory")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.memory:
        write("memory", memory(), "python benchmarks/speed.py --memory", args.embed)
    else:
        command = f"python benchmarks/speed.py --repeats {args.repeats} --steps {args.steps}"
        write("speed", times(args.repeats, args.steps), command, args.embed)


if __name__ == "__main__":
    main()
