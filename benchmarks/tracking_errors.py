"""Errors in the evaluations of a study that keeps them (Guan et al., *Mixed Policy Gradient*, Fig. 7): root mean squares over
all states of an evaluation, from ``results/<study>-errors.csv``.

    python benchmarks/tracking_errors.py pathtracking

Writes ``results/<study>-errors.png``, and prints the errors at the last step that all runs of a system have.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from report import RESULTS, interquartile_mean

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Errors = dict[str, dict[str, dict[int, list[float]]]]
"""quantity -> system -> step -> error of each seed that was evaluated there"""


def read(path: Path) -> Errors:
    """:raises ValueError: if there is nothing in the file"""
    errors: Errors = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no evaluations: run benchmarks/learning.py first")
    for row in rows:
        for quantity in row.keys() - {"system", "seed", "step", "versions"}:
            errors[quantity][row["system"]][int(row["step"])].append(float(row[quantity]))
    return errors


def draw(study: str, errors: Errors, path: Path) -> None:
    """One panel a quantity: the interquartile mean over the seeds of each system, and what lies between the extremes."""
    figure, panels = plt.subplots(1, len(errors), figsize=(5 * len(errors), 4.5), squeeze=False)
    for axes, (quantity, systems) in zip(panels[0], sorted(errors.items()), strict=True):
        for index, (system, curve) in enumerate(systems.items()):
            steps = sorted(curve)
            color, dashes = f"C{index % 10}", "--" if index >= 10 else "-"
            means = [interquartile_mean(curve[step])[0] for step in steps]
            axes.plot(steps, means, dashes, color=color, label=system)
            lows, highs = (np.array([end(curve[step]) for step in steps]) for end in (min, max))
            axes.fill_between(steps, lows, highs, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="iterations", ylabel=f"error of {quantity}", yscale="log")
        axes.grid(alpha=0.3)
    panels[0, -1].legend(fontsize=8)
    figure.suptitle(f"{study}: root mean square errors; interquartile mean over seeds, and their range")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(errors: Errors) -> str:
    """The last errors as a Markdown table, interquartile means over seeds."""
    quantities = sorted(errors)
    lines = ["| System | Step | " + " | ".join(quantities) + " |", "|---" * (len(quantities) + 2) + "|"]
    for system in errors[quantities[0]]:
        last = max(errors[quantities[0]][system])
        found = [f"{interquartile_mean(errors[quantity][system][last])[0]:.3g}" for quantity in quantities]
        lines.append(f"| {system} | {last:,} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a learning study that keeps errors")
    study = parser.parse_args().study
    try:
        errors = read(RESULTS / f"{study}-errors.csv")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    draw(study, errors, RESULTS / f"{study}-errors.png")
    print(table(errors))


if __name__ == "__main__":
    main()
