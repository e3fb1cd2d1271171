"""Run Stable-Baselines3's own test suite with our class in TD3's place.

    pip download --no-deps --no-binary stable_baselines3 --no-build-isolation stable_baselines3==2.9.2
    tar xzf stable_baselines3-2.9.2.tar.gz
    python benchmarks/sb3_suite.py stable_baselines3-2.9.2

``stable_baselines3.TD3`` is replaced before a test module is imported, so the tests are SB3's files, unchanged. Of them
run those that meet the substituted class: in a parameter, or by a name their code uses. The SB3 that is imported is
the installed one, not the checkout's. Further arguments go to pytest. The outcome is recorded in ``docs/sb3_suite.md``.
"""

import argparse
import importlib.metadata
import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3

import sb3_valuegrad

PIXELS = "needs pixels, which are refused with a ValueError: the world model predicts the observation itself"
DISCRETE = "needs discrete observations, which are refused with a ValueError: no gradient passes through a category"

# Start of a test's id -> why it cannot hold for any class but TD3, or not for a value gradient.
DESELECTED = {
    "test_cnn.py::test_cnn": PIXELS,
    "test_cnn.py::test_features_extractor_target_net": PIXELS,
    "test_cnn.py::test_image_like_input": PIXELS,
    "test_dict_env.py::test_dict_vec_framestack": PIXELS,
    "test_her.py::test_her[True-": PIXELS,
    "test_her.py::test_multiprocessing[True-": PIXELS,
    "test_save_load.py::test_save_load_env_cnn": PIXELS,
    "test_save_load.py::test_save_load_policy[False-CnnPolicy": PIXELS,
    "test_save_load.py::test_save_load_policy[True-CnnPolicy": PIXELS,
    "test_dict_env.py::test_dict_spaces": DISCRETE + " (one part of the Dict)",
    "test_dict_env.py::test_vec_normalize": DISCRETE + " (one part of the Dict)",
    "test_spaces.py::test_identity_spaces[env0-": DISCRETE + " (MultiDiscrete)",
    "test_tensorboard.py::test_tensorboard[td3]": "hard-codes the log folder's name, TD3_1; ours is the class's",
}
# SB3's tests train for a few hundred steps and count on TD3's default here; ours is longer.
LEARNING_STARTS = 100


class Substitute:
    """Pytest plugin: puts ``algorithm`` where TD3 was, and keeps the tests that meet it.

    :param algorithm: the class to test
    """

    def __init__(self, algorithm: type):
        self.algorithm = algorithm
        self.used: set[str] = set()
        self.not_concerned = 0
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        stable_baselines3.TD3 = algorithm  # type: ignore[misc, assignment]

    def _meets(self, value: Any, depth: int = 2) -> bool:
        """Whether the value is the class, or a container with it."""
        if value is self.algorithm:
            return True
        if depth and isinstance(value, (list, tuple, set, dict)):
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            return any(self._meets(part, depth - 1) for part in parts)
        return False

    def _concerned(self, item: pytest.Item) -> bool:
        """A parametrised class decides by its value; otherwise the names in the test's code do."""
        if not isinstance(item, pytest.Function):
            return False
        parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
        if any(self._meets(value) for value in parameters):
            return True
        if any(inspect.isclass(value) for value in parameters):
            return False
        code, names = item.function.__code__, item.function.__globals__
        for value in (names.get(name) for name in _names_in(code)):
            # A table of classes by name, where a parameter is the name.
            keys = [key for key in parameters if isinstance(value, dict) and isinstance(key, str) and key in value]
            if any(self._meets(part) for part in ([value[key] for key in keys] if keys else [value])):
                return True
        return False

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = []
        for item in items:
            if not self._concerned(item):
                self.not_concerned += 1
                continue
            reason = next((part for part in DESELECTED if f"/{part}" in item.nodeid), None)
            if reason is None:
                kept.append(item)
            else:
                self.used.add(reason)
                self.outcomes["deselected"] += 1
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
            if report.failed:
                self.failed.append(report.nodeid)

    def summary(self) -> Iterator[str]:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("stable_baselines3", "torch", "gymnasium")]
        yield f"\n{self.algorithm.__name__} for TD3 in SB3's tests ({', '.join(versions)})"
        yield ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        yield f"{self.not_concerned} tests do not meet TD3 and were not run"
        yield from (f"FAILED {name}" for name in self.failed)
        yield from (f"deselected {part}: {reason}" for part, reason in DESELECTED.items() if part in self.used)
        yield from (f"STALE exclusion, matches no test: {part}" for part in DESELECTED.keys() - self.used)


def with_early_start(algorithm: type) -> type:
    """The class with TD3's default of ``learning_starts``, so that SB3's short tests do train it."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) < 5:
            kwargs.setdefault("learning_starts", LEARNING_STARTS)
        algorithm.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return type(algorithm.__name__, (algorithm,), {"__init__": __init__, "__module__": __name__})


def _names_in(code: Any) -> Iterator[str]:
    """Global names a function uses, its inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_in(constant)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="folder of an SB3 source distribution or checkout")
    parser.add_argument("--algo", default="DVPG", choices=["DVG", "DVPG"], help="what takes TD3's place")
    arguments, pytest_arguments = parser.parse_known_args()
    tests = [str(path) for path in (arguments.checkout / "tests").glob("test_*.py") if "TD3" in path.read_text()]
    if not tests:
        raise ValueError(f"checkout={arguments.checkout} has no tests in `tests`; give the root of an SB3 checkout")
    plugin = Substitute(with_early_start(getattr(sb3_valuegrad, arguments.algo)))
    # importlib mode: the checkout's own stable_baselines3 must not shadow the installed one.
    options = [
        *sorted(tests),
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-q",
        "-W",
        "ignore",
        *pytest_arguments,
    ]
    status = pytest.main(options, plugins=[plugin])
    print("\n".join(plugin.summary()))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
