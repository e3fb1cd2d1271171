"""``sb3-valuegrad <script> ...``: RL Zoo's scripts, with its flags, knowing our algorithms."""

import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sb3_valuegrad.zoo import register

FUNCTIONS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot_train": "rl_zoo3.plots",
    "plot_from_file": "rl_zoo3.plots",
    "all_plots": "rl_zoo3.plots",
    "report": "sb3_valuegrad.zoo.report",
}
"""Scripts that are functions of the same name, and their modules."""

MODULES = ("record_video", "record_training", "benchmark", "load_from_hub", "push_to_hub")
"""Scripts of RL Zoo that are modules to be run."""

CUSTOM_ENVS = "import sb3_valuegrad.zoo; sb3_valuegrad.zoo.register()"


def init() -> None:
    """Write the ``custom_envs.py`` with which RL Zoo's own commands know our algorithms in this folder."""
    path = Path("custom_envs.py")
    if not path.exists():
        path.write_text(CUSTOM_ENVS + "\n")
        print(f"Wrote {path.absolute()}: here, `python -m rl_zoo3.train --algo dvpg` now works.")
    elif CUSTOM_ENVS in path.read_text().splitlines():
        print(f"{path.absolute()} registers our algorithms already.")
    else:
        sys.exit(f"{path.absolute()} exists and is left as it is. Add this line to it:\n{CUSTOM_ENVS}")


def _ours(command: list[str]) -> list[str]:
    """The command that knows our algorithms, instead of one with which RL Zoo starts itself."""
    if command[:2] == ["python", "-m"] and command[2].startswith("rl_zoo3."):
        script, arguments = command[2].removeprefix("rl_zoo3."), command[3:]
    elif command[:2] == ["python", "enjoy.py"]:
        # benchmark takes it from the working folder, where only RL Zoo's checkout has it.
        script, arguments = "enjoy", command[2:]
    else:
        return command
    return [sys.executable, "-m", "sb3_valuegrad.zoo", script, *arguments]


@contextmanager
def children_register() -> Iterator[None]:
    """``record_training`` and ``benchmark`` start RL Zoo's scripts as new processes, which would not know us."""
    call: Callable[..., int] = subprocess.call

    def call_ours(command: Any, *args: Any, **kwargs: Any) -> int:
        return call(_ours(command) if isinstance(command, list) else command, *args, **kwargs)

    with mock.patch.object(subprocess, "call", call_ours):
        yield


def main() -> None:
    """Entry point of the command."""
    scripts = ["init", *FUNCTIONS, *MODULES]
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if script not in scripts:
        usage = f"usage: sb3-valuegrad {{{','.join(scripts)}}} ...\n`sb3-valuegrad train --help` lists the flags of train."
        if script in ("-h", "--help"):
            print(usage)
            return
        sys.exit(usage)
    # What remains is what RL Zoo's script sees; the name stays in the usage lines that argparse prints.
    sys.argv[:2] = [f"sb3-valuegrad {script}"]
    if script == "init":
        init()
        return
    register()
    if script in FUNCTIONS:
        getattr(importlib.import_module(FUNCTIONS[script]), script)()
        return
    with children_register():
        runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=False)
