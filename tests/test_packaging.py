"""What is installed: version, types, the YAML files in the wheel, the make targets."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sb3_valuegrad

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_valuegrad"


def test_one_version_everywhere() -> None:
    assert f"version: {sb3_valuegrad.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    try:
        assert importlib.metadata.version("sb3-valuegrad") == sb3_valuegrad.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed, used from its checkout")


def test_wheel_has_types_and_hyperparameters(tmp_path: Path) -> None:
    """Built from a copy, so that a checkout stays as it is; the files are found where it is unpacked."""
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    source.mkdir()
    for folder in ("sb3_valuegrad", "hyperparams"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, source)
    (source / "README.md").touch()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    yamls = {f"sb3_valuegrad/{path.relative_to(ROOT)}" for path in (ROOT / "hyperparams").rglob("*.yml")}
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert {"sb3_valuegrad/py.typed", *modules, *yamls} <= found
    assert not [name for name in found if name.startswith(("tests", "hyperparams", "benchmarks"))]
    code = "from sb3_valuegrad.zoo.manager import hyperparams_file as f; print(f('dvpg')); print(f('paper/dvg'))"
    lines = subprocess.run([sys.executable, "-c", code], cwd=site, check=True, capture_output=True, text=True).stdout
    for line, name in zip(lines.split(), ("dvpg.yml", "paper/dvg.yml"), strict=True):
        assert Path(line).is_file() and Path(line) == site / "sb3_valuegrad/hyperparams" / name


def test_constraints_are_for_everybody() -> None:
    """Plain pins: no build of one machine, no address; and the stack is there."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z0-9-]+==[0-9a-z.]+(; python_version (>=|<) "3\.11")?', line) for line in lines)
    named = {line.split("==")[0] for line in lines}
    assert {"torch", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "mujoco", "optuna", "numpy"} <= named


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_targets() -> None:
    """Both commands as make would run them in a fresh clone, without running them."""
    command = ["make", "--dry-run", "--always-make", f"PYTHON={sys.executable}", "N_TIMESTEPS=123"]
    train = subprocess.run([*command, "train"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "pip install" in train and "-c constraints.txt" in train
    assert "sb3-valuegrad train --algo dvpg --env HalfCheetah-v5 -n 123" in train
    assert "sb3-valuegrad report" in train
    baseline = "benchmarks/results/halfcheetah.csv"
    assert (f"--baseline {baseline}" in train) == (ROOT / baseline).is_file()
    test = subprocess.run([*command, "test"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "-m pytest" in test
