"""The study report: figures worked out by hand, missing seeds, and what the files say."""

import csv
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "report.py"
FIELDS = ["system", "seed", "step", "return_mean", "return_std", "return_min", "episode_length", "hours", "versions"]


@pytest.fixture(scope="module")
def report() -> ModuleType:
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("benchmark_report", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """ "A" has five seeds; of "B" one seed is done and one is under way; "C" has negative returns."""
    finals: dict[str, list[float]] = {"A": [1000, 200, 400, 900, 300], "B": [150], "C": [-200.0, -100.0]}
    path = tmp_path / "synthetic.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for system, returns in finals.items():
            for seed, final in enumerate(returns):
                note = "torch=2.0 commit=aaa" if system == "A" else "torch=2.0 commit=bbb"
                best = 500 if system == "A" else final
                writer.writerow([system, seed, 100, best, 0, 0, 10, 0.1, note])
                writer.writerow([system, seed, 200, final, 0, 0, 10, 0.2, note])
        writer.writerow(["B", 1, 100, 77, 0, 0, 10, 0.1, "torch=2.0 commit=bbb"])
    return path


def test_interquartile_mean_by_hand(report: ModuleType) -> None:
    # Of five seeds the lowest and the highest are dropped: (300 + 400 + 900) / 3.
    mean, low, high = report.interquartile_mean([1000, 200, 400, 900, 300])
    assert mean == pytest.approx(1600 / 3)
    assert 200 <= low < mean < high <= 1000
    # Of eight, two on each side: (3 + 4 + 5 + 6) / 4.
    assert report.interquartile_mean([8, 1, 2, 3, 4, 5, 6, 70])[0] == pytest.approx(4.5)
    # Seeds that agree leave no doubt.
    assert report.interquartile_mean([5.0] * 4) == pytest.approx((5.0, 5.0, 5.0))


def test_interquartile_mean_of_few_seeds(report: ModuleType) -> None:
    mean, low, high = report.interquartile_mean([7.0])
    assert mean == 7 and math.isnan(low) and math.isnan(high)
    assert math.isnan(report.interquartile_mean([])[0])


def test_interval_repeats(report: ModuleType) -> None:
    values = [1.0, 5.0, 2.0, 8.0, 3.0]
    assert report.interquartile_mean(values) == report.interquartile_mean(values)


def test_worst_ratio(report: ModuleType, study: Path) -> None:
    returns, _ = report.read(study)
    # Seed 1 of A ends at 200 after 500.
    assert report.worst_ratio(returns["A"], 200) == pytest.approx(0.4)
    assert math.isnan(report.worst_ratio(returns["C"], 200))


def test_table(report: ModuleType, study: Path) -> None:
    returns, versions = report.read(study)
    assert versions == "torch=2.0 commit=aaa|bbb"
    rows = report.table(returns, [100, 200]).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| A", "| B", "| C"]
    cells = rows[2].split(" | ")
    assert cells[1] == "5"
    assert cells[2].startswith("533 [") and cells[3] == "500 [500, 500]"
    assert cells[4] == "1,000 (0), 200 (1), 400 (2), 900 (3), 300 (4)"
    # One finished seed: no interval. At 100 steps both seeds count.
    assert rows[3].split(" | ")[1:4] == ["1", "150", "114 [77.0, 150]"]
    assert report.unfinished(returns, 200).endswith("B seed 1 (at 100).")


def test_steps_to_a_goal(report: ModuleType, study: Path) -> None:
    """At 100 steps all seeds of A have 500; 900 is reached by two of them, at 200."""
    returns, _ = report.read(study)
    assert report.reached(returns["A"], 500) == "100"
    assert report.reached(returns["A"], 900) == "200 (2 of 5 seeds)"
    assert report.reached(returns["A"], 1001) == "never"
    rows = report.table(returns, [200], [-150.0]).splitlines()
    assert " | Steps to -150 | " in rows[0] and rows[4].split(" | ")[3] == "100 (1 of 2 seeds)"


def test_command(report: ModuleType, study: Path) -> None:
    call = [sys.executable, str(SCRIPT), "synthetic", "--steps", "100", "--goals", "-5", "1e3", "--results", str(study.parent)]
    printed = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    text = study.with_suffix(".md").read_text()
    assert text.strip() == printed.strip()
    assert text.splitlines()[0] == (
        "<!-- made by: python benchmarks/report.py synthetic --steps 100 --goals -5 1000 | rows of synthetic.csv: "
        "torch=2.0 commit=aaa|bbb -->"
    )
    assert study.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_seeds_without_a_common_step_are_drawn(report: ModuleType, tmp_path: Path) -> None:
    report.draw("odd", {"A": {0: {100: 1.0}, 1: {200: 2.0}}}, tmp_path / "odd.png")
    assert (tmp_path / "odd.png").exists()


def test_bad_input_says_the_way_out(report: ModuleType, study: Path) -> None:
    call = [sys.executable, str(SCRIPT), "synthetic", "--steps", "150", "--results", str(study.parent)]
    result = subprocess.run(call, capture_output=True, text=True)
    assert result.returncode == 1 and "choose from [100, 200]" in result.stderr
    empty = study.with_name("empty.csv")
    empty.write_text(",".join(FIELDS) + "\n")
    with pytest.raises(ValueError, match=r"learning\.py empty"):
        report.read(empty)
