"""What an update costs against SB3's DDPG, and MAAC's and SVG's against SB3's SAC: medians of alternating calls of
``train()``, in one process, on one thread.

    python benchmarks/speed.py                       # the table, and results/speed.csv
    python benchmarks/speed.py --repeats 5 --steps 50   # a quick look
    python benchmarks/speed.py --only SVG            # these rows of the table; the others stay as they are
    python benchmarks/speed.py --memory              # peak memory, and results/memory.csv
    python benchmarks/speed.py --episodes            # SVG(inf)'s gradient by the length of the episode, and svg_episodes.csv

The networks are equal, replay sampling is included, nothing is compiled. Times are the process's CPU time, so that a
busy machine disturbs little; only the ratios are worth quoting. ``learn()`` is timed too, with the environment's steps.
"""

import argparse
import csv
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch as th
from pendulum_prior import PRIOR
from report import embed
from stable_baselines3 import DDPG, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from studies import zoo
from torch import nn

import sb3_valuegrad.envs  # noqa: F401 (registers Hand-v0)
from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, SVG
from sb3_valuegrad.envs.hand import hand_is_over, hand_reward
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.layers import made_by_intel
from sb3_valuegrad.trajectories import Windows

RESULTS = Path(__file__).parent / "results"
ENV = "HalfCheetah-v5"
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

# SVG(1)-ER's world models, beside networks of 2x100; the most that an update may cost of SB3's SAC's (issue 5). HalfCheetah's
# model has 40/40 units a dimension in the paper, three times the multiplications of the default's 2x100; with 20/20, which the
# paper has for its smaller tasks, they are as many.
PER_DIMENSION = {
    units: {"world_model_class": "per-dimension", "world_model_kwargs": {"net_arch": [units, units]}} for units in (20, 40)
}
SVG_SYSTEMS: list[tuple[str, dict[str, Any], Any]] = [
    ("SVG(1)-ER", {}, 1.5),
    ("SVG(1)-ER, 20/20 a dimension", PER_DIMENSION[20], 1.5),
    ("SVG(1)-ER, 40/40 a dimension", PER_DIMENSION[40], ""),
    ("SVG(0)-ER", {"horizon": 0}, ""),
]
# SVG(inf)'s episodes, the paper's Hand among them, and the most that the gradient of one may cost of its forward pass
EPISODES, EPISODE_LIMIT = (250, 500, 1000, 2000), 4

# ours, SB3's, the most that ours may need of its memory
MEMORY: list[tuple[str, str, Any]] = [("DVPG(5)", "DDPG", 1.2), ("MAAC(3)", "SAC", ""), ("MBPO", "SAC", "")]


def paper_preset(algorithm: str, units: int, horizon: int) -> dict[str, Any]:
    """``hyperparams/paper`` with an actor and a critic of this size; the world model's is the paper's."""
    _, settings = zoo(algorithm, ENV, "paper/", horizon=horizon)
    return {**settings, "policy_kwargs": {**settings["policy_kwargs"], "net_arch": [units, units]}}


def ddpg(units: int, batch_size: int, buffer_size: int = 20_000) -> DDPG:
    kwargs = dict(net_arch=[units, units])
    noise = NormalActionNoise(th.zeros(6).numpy(), th.full((6,), 0.1).numpy())
    return DDPG("MlpPolicy", ENV, batch_size=batch_size, buffer_size=buffer_size, action_noise=noise, policy_kwargs=kwargs,
                learning_starts=1000, seed=0, device="cpu")  # fmt: skip


def sac(units: int = 256) -> SAC:
    kwargs = dict(net_arch=[units, units])
    return SAC("MlpPolicy", ENV, batch_size=256, buffer_size=20_000, policy_kwargs=kwargs, learning_starts=1000, seed=0,
               device="cpu")  # fmt: skip


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


def svg(horizon: int = 1, **networks: Any) -> SVG:
    """SVG(1)-ER with SB3's critics and policy of 2x100 and, unless told otherwise, a world model of 2x100. Its policy makes a
    step in every update, and never waits."""
    sizes = dict(net_arch=[100, 100], activation_fn=nn.ReLU, layer_norm=False, world_model_kwargs=dict(net_arch=[100, 100]))
    return SVG("MlpPolicy", ENV, horizon=horizon, batch_size=256, buffer_size=20_000, seed=0, device="cpu",
               min_overlap=0.0, policy_kwargs={**sizes, **networks})  # fmt: skip


def whole_episode(steps: int) -> tuple[SVG, Windows]:
    """SVG(inf) with the paper's networks for Hand (Table 1), and an episode of this length."""
    import gymnasium as gym

    known = dict(net_arch=[20, 20], reward_fn=hand_reward, termination=hand_is_over)
    networks = dict(net_arch=[100, 100], activation_fn=nn.Tanh, world_model_class="per-dimension", world_model_kwargs=known)
    model = SVG("MlpPolicy", gym.make("Hand-v0", steps=steps), horizon=None, policy_replay=False, gamma=1.0, seed=0,
                learning_starts=2 * steps, buffer_size=2 * steps, device="cpu", policy_kwargs=networks)  # fmt: skip
    model.learn(steps)
    return model, model.replay_buffer.windows(model.replay_buffer.episodes(steps))


def gradient(model: SVG, windows: Windows) -> None:
    """SVG(inf)'s policy gradient: forward along the episode, and back."""
    with frozen(model._other_parameters):
        model._policy_loss(windows)[0].backward()


def forward(model: SVG, windows: Windows) -> None:
    """The same way without the gradient."""
    with th.no_grad():
        model._policy_loss(windows)


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
        return DVPG("MlpPolicy", ENV, buffer_size=50_000, seed=0, device="cpu", **paper_preset("DVPG", 64, 5))
    if system == "SAC":
        return SAC("MlpPolicy", ENV, buffer_size=50_000, learning_starts=1000, seed=0, device="cpu")
    ours = {"MAAC(3)": MAAC, "MBPO": MBPO}[system]
    return ours("MlpPolicy", ENV, buffer_size=50_000, seed=0, device="cpu", model_fit_kwargs=dict(max_epochs=1))


def peak_memory(system: str) -> float:
    """Peak resident memory in MB of a process that fills its replay buffer and trains: a fit, imagining, updates."""
    return float(in_own_process(f"train_alone({system!r})"))


def train_alone(system: str) -> None:
    """Train one system in this process, and print the peak memory in MB."""
    th.set_num_threads(1)
    model = collect(alone(system), 50_000)
    model.train(50, model.batch_size)
    print(resident("VmHWM"))


def resident(field: str) -> float:
    """This process's memory in MB: VmRSS, what it has, or VmHWM, the most that it had. Not getrusage's: that includes what
    the process had from which this one was started."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure_episode(steps: int, repeats: int) -> None:
    """Print what the gradient of one episode costs: milliseconds forward alone, and with the gradient, and MB."""
    th.set_num_threads(1)
    model, windows = whole_episode(steps)
    forward(model, windows)
    before = resident("VmRSS")
    gradient(model, windows)
    needed = resident("VmHWM") - before
    ratios, alone, whole = [], [], []
    for _ in range(repeats):
        alone.append(1000 * cpu_time(lambda: forward(model, windows)))
        whole.append(1000 * cpu_time(lambda: gradient(model, windows)))
        ratios.append(whole[-1] / alone[-1])
    print(steps, f"{median(alone):.0f}", f"{median(whole):.0f}", f"{median(ratios):.2f}", f"{needed:.0f}")


def episodes(repeats: int) -> list[list[Any]]:
    """The table of SVG(inf)'s gradient, each length in a process of its own."""
    heads = ["steps of the episode", "forward in ms", "with the gradient in ms", "ratio", "its memory in MB"]
    rows: list[list[Any]] = [[*heads, "MB a step", "limit of the ratio"]]
    for steps in EPISODES:
        row = in_own_process(f"measure_episode({steps}, {repeats})").split()
        rows.append([*row, f"{float(row[-1]) / steps:.3f}", EPISODE_LIMIT if steps == 1000 else ""])
        print(*rows[-1], flush=True)
    return rows


def in_own_process(call: str) -> str:
    """The last line that a function of this module prints."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import speed; speed.{call}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1]


Row = list[Any]
HEAD = ["system", "units", "batch", "update", "learn", "limit"]


def dvpg_rows(repeats: int, steps: int) -> Iterator[Row]:
    for units, batch_size in ((64, 128), (256, 256)):
        reference = collect(ddpg(units, batch_size))
        common = dict(buffer_size=20_000, seed=0, device="cpu")
        systems: list[tuple[str, BaseAlgorithm, Any]] = []
        for algorithm, k in ((DVPG, 1), (DVPG, 2), (DVPG, 5), (DVG, 0)):
            settings = {**paper_preset(algorithm.__name__, units, k), "batch_size": batch_size}
            name = f"DVPG({k})" if k else "DVG(0) = DDPG"
            systems.append((name, algorithm("MlpPolicy", ENV, **common, **settings), LIMITS.get((units, batch_size, k), "")))
        if units == 256:
            systems.append(("DVPG(1) default preset", DVPG("MlpPolicy", ENV, batch_size=batch_size, **common), ""))
        for name, model, limit in systems:
            collect(model)
            update = update_ratio(model, reference, steps, repeats)
            learn = learn_ratio(model, reference, 2 * steps, max(repeats // 3, 1))
            yield [name, units, batch_size, f"{update:.2f}", f"{learn:.2f}", limit]


def mpg_rows(repeats: int, steps: int) -> Iterator[Row]:
    ratio = update_ratio(collect(mpg()), collect(ddpg(64, 128)), steps // 3, repeats)
    yield ["MPG(0, 25), analytic prior", 64, 256, f"{ratio:.2f}", "", MPG_LIMIT]


def maac_rows(repeats: int, steps: int) -> Iterator[Row]:
    reference = collect(sac())
    for name, changes, limit in MAAC_SYSTEMS:
        update = update_ratio(collect(maac(**changes)), reference, steps // 3, repeats)
        yield [name + ", to SAC", 256, 256, f"{update:.2f}", "", limit]


def svg_rows(repeats: int, steps: int) -> Iterator[Row]:
    reference = collect(sac(100))
    for name, changes, limit in SVG_SYSTEMS:
        model = collect(svg(**changes))
        update = update_ratio(model, reference, steps, repeats)
        learn = learn_ratio(model, reference, 2 * steps, max(repeats // 3, 1))
        yield [name + ", to SAC", 100, 256, f"{update:.2f}", f"{learn:.2f}", limit]


MEASURED = {"DVPG": dvpg_rows, "MPG": mpg_rows, "MAAC": maac_rows, "SVG": svg_rows}


def times(repeats: int, steps: int, only: list[str]) -> list[Row]:
    """The table of ratios; of the algorithms that are not measured now, the rows that are there."""
    rows = [HEAD]
    with (RESULTS / "speed.csv").open(newline="") as file:
        known = [row for row in csv.reader(file) if len(row) == len(HEAD)][1:]
    groups = {name: [row for row in known if group_of(row) == name] for name in MEASURED}
    for name, measure in MEASURED.items():
        for row in measure(repeats, steps) if name in only else groups[name]:
            rows.append(row)
            print(("{:<38}" + "{:>10}" * (len(row) - 1)).format(*row), flush=True)
    return rows


def group_of(row: Row) -> str:
    """Whose measurement a row of the table is: DVPG's are DVG's, too."""
    return next((name for name in MEASURED if row[0].startswith(name)), "DVPG")


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
    note += f", processor of {'Intel' if made_by_intel() else 'another maker'}"
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
    parser.add_argument("--only", nargs="+", choices=list(MEASURED), default=list(MEASURED), help="measure these algorithms")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--episodes", action="store_true", help="measure SVG(inf)'s gradient instead")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.memory:
        write("memory", memory(), "python benchmarks/speed.py --memory", args.embed)
    elif args.episodes:
        command = f"python benchmarks/speed.py --episodes --repeats {args.repeats}"
        write("svg_episodes", episodes(args.repeats), command, args.embed)
    else:
        command = f"python benchmarks/speed.py --repeats {args.repeats} --steps {args.steps}"
        if args.only != list(MEASURED):  # the other rows are of an earlier call
            command += f" --only {' '.join(args.only)}"
        write("speed", times(args.repeats, args.steps, args.only), command, args.embed)


if __name__ == "__main__":
    main()
