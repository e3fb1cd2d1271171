"""Table and picture of a learning study, from the evaluations in ``results/<study>.csv``.

    python benchmarks/report.py halfcheetah                       # at the study's last step
    python benchmarks/report.py halfcheetah --steps 10000 30000   # and at these
    python benchmarks/report.py pathtracking --goals -100 -30     # and the steps it took to reach these returns

Prints the table; writes ``results/<study>.md`` and ``results/<study>.png``. Seeds are summarised by the interquartile
mean (the mean of the middle half, Agarwal et al. 2021) with a 95% bootstrap confidence interval over seeds.
"""

import argparse
import csv
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import bootstrap, trim_mean

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 5000

Returns = dict[str, dict[int, dict[int, float]]]
"""system -> seed -> step -> mean return of that evaluation"""


def read(path: Path) -> tuple[Returns, str]:
    """A study's returns, and the versions that its rows name: ``torch=2.13.0 commit=b941151|e817070``."""
    returns: Returns = defaultdict(lambda: defaultdict(dict))
    versions: dict[str, list[str]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            returns[row["system"]][int(row["seed"])][int(row["step"])] = float(row["return_mean"])
            for pair in row["versions"].split():
                name, _, value = pair.partition("=")
                if value not in versions[name]:
                    versions[name].append(value)
    if not returns:
        raise ValueError(f"{path} holds no evaluations: run benchmarks/learning.py {path.stem} first")
    return returns, " ".join(f"{name}={'|'.join(values)}" for name, values in versions.items())


def interquartile_mean(values: list[float]) -> tuple[float, float, float]:
    """Mean without the lowest and highest quarter of the seeds (whole seeds, rounded down), and its 95% interval.

    :return: mean, low, high; the interval is nan for fewer than two seeds, everything is nan for none
    """
    if len(values) < 2:
        return (values[0] if values else np.nan), np.nan, np.nan
    interval = bootstrap(
        (np.array(values),),
        lambda sample, axis: trim_mean(sample, 0.25, axis=axis),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(trim_mean(values, 0.25)), float(interval.low), float(interval.high)


def at_step(curves: dict[int, dict[int, float]], step: int) -> dict[int, float]:
    """Return by seed, of the seeds that were evaluated at this step."""
    return {seed: curve[step] for seed, curve in sorted(curves.items()) if step in curve}


def worst_ratio(curves: dict[int, dict[int, float]], last: int) -> float:
    """Smallest share of its own best evaluation that a seed ends with; nan where no seed's best is positive."""
    bests = {seed: max(curves[seed].values()) for seed in at_step(curves, last)}
    return min((curves[seed][last] / best for seed, best in bests.items() if best > 0), default=np.nan)


def reached(curves: dict[int, dict[int, float]], goal: float) -> str:
    """Mean over seeds of the first evaluated step at which the return was at least ``goal``; how many seeds, if not all."""
    firsts = [min((step for step, value in curve.items() if value >= goal), default=None) for curve in curves.values()]
    found = [step for step in firsts if step is not None]
    if not found:
        return "never"
    return f"{np.mean(found):,.0f}" + ("" if len(found) == len(firsts) else f" ({len(found)} of {len(firsts)} seeds)")


def table(returns: Returns, steps: list[int], goals: Sequence[float] = ()) -> str:
    """The study as a Markdown table, systems in the order of their final interquartile mean.

    :param steps: the steps to report, the study's last step at the end
    :param goals: returns; the steps to reach each are reported
    """
    last = steps[-1]
    heads = [f"IQM at {step:,} steps [95% CI]" for step in reversed(steps)]
    heads += [f"Steps to {goal:g}" for goal in goals]
    lines = ["| " + " | ".join(["System", "Seeds", *heads, "Final return of each seed", "Worst final/best"]) + " |"]
    lines.append("|---" * (len(heads) + 4) + "|")
    rows = []
    for system, curves in returns.items():
        found = [interquartile_mean(list(at_step(curves, step).values())) for step in reversed(steps)]
        finals = at_step(curves, last)
        seeds = ", ".join(f"{number(value)} ({seed})" for seed, value in finals.items()) or "none yet"
        ratio = worst_ratio(curves, last)
        cells = [
            system,
            str(len(finals)),
            *map(with_interval, found),
            *(reached(curves, goal) for goal in goals),
            seeds,
            "n/a" if np.isnan(ratio) else f"{ratio:.2f}",
        ]
        rows.append((found[0][0], "| " + " | ".join(cells) + " |"))
    rows.sort(key=lambda row: -np.inf if np.isnan(row[0]) else row[0], reverse=True)
    return "\n".join([*lines, *(line for _, line in rows)])


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def with_interval(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    if np.isnan(mean):
        return "n/a"
    return number(mean) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")


def unfinished(returns: Returns, last: int) -> str:
    """Which runs have not reached the last step, in words; empty where all have."""
    runs = [
        f"{system} seed {seed} (at {max(curve):,})"
        for system, curves in returns.items()
        for seed, curve in sorted(curves.items())
        if last not in curve
    ]
    return f"Not in the last step's figures, because unfinished: {', '.join(runs)}." if runs else ""


def markdown(study: str, returns: Returns, versions: str, steps: list[int], goals: list[float], command: str) -> str:
    """The whole report: where it comes from, the table, and how to read it."""
    explained = (
        "IQM: interquartile mean over seeds of the evaluation return (deterministic policy), with a 95% bootstrap "
        "confidence interval over seeds. In brackets behind a final return: the seed. Worst final/best: the smallest "
        "share of its own best evaluation that a seed ends with; below 0.5 the seed has collapsed; n/a where the best "
        "return is not positive."
    )
    parts = [f"<!-- made by: {command} | rows of {study}.csv: {versions} -->", table(returns, steps, goals)]
    parts += [unfinished(returns, steps[-1]), explained, f"![Learning curves of {study}]({study}.png)"]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(study: str, returns: Returns, path: Path) -> None:
    """Learning curves: the interquartile mean where all of a system's seeds were evaluated, its interval, each seed."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for index, (system, curves) in enumerate(returns.items()):
        color = f"C{index % 10}"
        for curve in curves.values():
            steps = sorted(curve)
            axes.plot(steps, [curve[step] for step in steps], color=color, linewidth=0.6, alpha=0.4)
        shared = sorted(set.intersection(*(set(curve) for curve in curves.values())))
        summary = [interquartile_mean(list(at_step(curves, step).values())) for step in shared]
        means, lows, highs = np.array(summary).reshape(-1, 3).T
        label = f"{system} ({len(curves)} seed{'s' * (len(curves) > 1)})"
        axes.plot(shared, means, color=color, linewidth=2, label=label, linestyle="--" if index >= 10 else "-")
        axes.fill_between(shared, lows, highs, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="environment steps", ylabel="evaluation return", title=f"{study}: interquartile mean, 95% interval")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def embed(page: Path, study: str, text: str) -> None:
    """Replace what stands between the page's ``<!-- results:study -->`` and ``<!-- /results:study -->``."""
    start, end = f"<!-- results:{study} -->", f"<!-- /results:{study} -->"
    before, found, rest = page.read_text().partition(start)
    if not found or end not in rest:
        raise SystemExit(f"{page} has no {start} ... {end} to fill")
    folder = os.path.relpath(RESULTS, page.resolve().parent)
    text = text.replace(f"]({study}.png)", f"]({folder}/{study}.png)")
    page.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a CSV file in the results folder, without its ending")
    parser.add_argument("--steps", nargs="+", type=int, default=[], help="environment steps to report beside the last")
    parser.add_argument("--goals", nargs="+", type=float, default=[], help="returns: after how many steps were they reached?")
    parser.add_argument("--embed", type=Path, help="put table and picture into this page, at its <!-- results:study -->")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder (default: benchmarks/results)")
    args = parser.parse_args()
    try:
        returns, versions = read(args.results / f"{args.study}.csv")
        steps_known = {step for curves in returns.values() for curve in curves.values() for step in curve}
        if unknown := set(args.steps) - steps_known:
            raise ValueError(f"--steps {sorted(unknown)}: nothing was evaluated there; choose from {sorted(steps_known)}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    steps = sorted({*args.steps, max(steps_known)})
    # The folder is left out: results of any folder are committed under benchmarks/results.
    options = [("--steps", map(str, args.steps)), ("--goals", (f"{goal:g}" for goal in args.goals))]
    words = [word for name, values in options for word in (name, *values) if getattr(args, name.strip("-"))]
    command = shlex.join(["python", "benchmarks/report.py", args.study, *words])
    text = markdown(args.study, returns, versions, steps, args.goals, command)
    (args.results / f"{args.study}.md").write_text(text)
    draw(args.study, returns, args.results / f"{args.study}.png")
    if args.embed:
        embed(args.embed, args.study, text)
    print(text)


if __name__ == "__main__":
    main()
