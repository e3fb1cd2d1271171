"""What RL Zoo's ``ExperimentManager`` must do differently for our algorithms: find our YAML, keep what it says.

Four of its methods are wrapped. For an algorithm that is not ours they do what they did. For ours,
``--conf-file paper`` means the paper's settings.
"""

import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule

import sb3_valuegrad
from sb3_valuegrad.exploration import AdaptiveParameterNoise
from sb3_valuegrad.zoo import ALGORITHMS, search

MARK = "_sb3_valuegrad"
PARAMETER_NOISE = "adaptive-param"
LEARNING_RATES = ("learning_rate", "qf_learning_rate", "model_learning_rate")


def hyperparams_file(algo: str) -> Path:
    """Our YAML: in the package where it was built into a wheel, beside it in a checkout.

    :param algo: "dvpg", or "paper/dvpg" for the paper's settings
    """
    package = Path(sb3_valuegrad.__file__).parent
    folder = package / "hyperparams"
    return (folder if folder.is_dir() else package.parent / "hyperparams") / f"{algo}.yml"


def _manager_class() -> Any:
    """RL Zoo's ``ExperimentManager``.

    RL Zoo imports the user's ``custom_envs.py`` in the middle of the module ``exp_manager``, before this class is
    defined. We then import the module afresh: Python hands what it finds in ``sys.modules``, the complete module, to
    the import that is under way.
    """
    name = "rl_zoo3.exp_manager"
    if not hasattr(sys.modules.get(name), "ExperimentManager"):
        sys.modules.pop(name, None)
    return importlib.import_module(name).ExperimentManager


def _zoo_file() -> Path:
    return Path(sys.modules["rl_zoo3"].__file__ or "")


def read_entry(path: Path, env: str) -> dict[str, Any]:
    """The environment's entry in a YAML of hyperparameters, its nested arguments evaluated as RL Zoo does."""
    entries = yaml.safe_load(path.read_text())
    entry = dict(entries.get(env, entries.get("default", {})))
    for key in search.NESTED:
        if isinstance(entry.get(key), str):
            entry[key] = eval(entry[key], vars(importlib.import_module("rl_zoo3.exp_manager")).copy())
    return entry


def _entry(manager: Any) -> dict[str, Any]:
    if not manager.config.endswith((".yml", ".yaml")):
        return {}
    return read_entry(Path(manager.config), manager.env_name.gym_id)


def _drop_empty_noise(hyperparams: dict[str, Any]) -> None:
    """Drop RL Zoo's noise keys where the type is null: it would hand them to the constructor."""
    if "noise_type" in hyperparams and hyperparams["noise_type"] is None:
        del hyperparams["noise_type"]
        hyperparams.pop("noise_std", None)


def _make_parameter_noise(hyperparams: dict[str, Any]) -> None:
    """``noise_type: adaptive-param``, which RL Zoo does not know; ``noise_std`` is the wanted distance of the actions."""
    if hyperparams.get("noise_type") == PARAMETER_NOISE:
        del hyperparams["noise_type"]
        hyperparams["action_noise"] = AdaptiveParameterNoise(delta=hyperparams.pop("noise_std"))


def make_schedules(hyperparams: dict[str, Any]) -> None:
    """Make schedules of the learning rates that are strings, in place.

    RL Zoo knows "lin_1e-3", which falls to 0, and in ``learning_rate`` only. Here it may stand in all of them, and
    "lin_3e-4_3e-6" says where to end.

    :raises ValueError: for another string, naming the argument
    """
    for key in LEARNING_RATES:
        if isinstance(hyperparams.get(key), str):
            hyperparams[key] = _linear_schedule(key, hyperparams[key])


def _linear_schedule(name: str, given: str) -> Schedule:
    from rl_zoo3.utils import SimpleLinearSchedule

    kind, *rates = given.split("_")
    try:
        first, *last = map(float, rates)
    except ValueError:
        kind = ""
    if kind != "lin" or len(rates) > 2:
        raise ValueError(
            f"{name}={given!r} must be a number (in YAML !!float 1e-3: a plain 1e-3 is a string there), lin_1e-3 (linearly "
            "to 0) or lin_3e-4_3e-6 (from one rate to the other)"
        )
    return LinearSchedule(first, last[0], 1.0) if last else SimpleLinearSchedule(first)


def _reads_our_yaml(original: Any) -> Any:
    @functools.wraps(original)
    def read_hyperparameters(self: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.algo not in ALGORITHMS:
            return original(self)
        config = Path(self.config)
        # Where RL Zoo looks if no --conf-file is given: in its package, or in its checkout.
        if config.parent in [folder / "hyperparams" for folder in _zoo_file().parents[:2]] and not config.is_file():
            self.config = str(hyperparams_file(self.algo))
        elif self.config == "paper":
            self.config = str(hyperparams_file(f"paper/{self.algo}"))
        hyperparams, saved = original(self)
        for part in (hyperparams, saved):
            _drop_empty_noise(part)
        _make_parameter_noise(hyperparams)
        make_schedules(hyperparams)
        return hyperparams, saved

    return read_hyperparameters


def _leaves_schedules(original: Any) -> Any:
    @functools.wraps(original)
    def preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        # RL Zoo refuses what is a schedule already.
        made = {key: hyperparams.pop(key) for key in LEARNING_RATES if callable(hyperparams.get(key))}
        return {**original(hyperparams), **made}

    return preprocess_schedules


def _keeps_yaml_of_trial(original: Any) -> Any:
    @functools.wraps(original)
    def load_trial(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        params = original(self, *args, **kwargs)
        if self.algo not in ALGORITHMS:
            return params
        if params.get("action_noise", "default") is None:
            params["noise_type"] = None  # overrides a type in the YAML
        return search.with_yaml(params, _entry(self))

    return load_trial


def _shows_yaml_to_sampler(original: Any) -> Any:
    @functools.wraps(original)
    def objective(self: Any, trial: Any) -> float:
        token = search.yaml_entry.set(self._hyperparams)
        try:
            return original(self, trial)
        finally:
            search.yaml_entry.reset(token)

    return objective


WRAPPERS = {
    "read_hyperparameters": _reads_our_yaml,
    "_preprocess_schedules": _leaves_schedules,
    "load_trial": _keeps_yaml_of_trial,
    "objective": _shows_yaml_to_sampler,
}


def teach_experiment_manager() -> None:
    """Wrap the methods, once."""
    manager = _manager_class()
    for name, wrap in WRAPPERS.items():
        method = getattr(manager, name)
        if not hasattr(method, MARK):
            wrapped = wrap(method)
            setattr(wrapped, MARK, True)
            is_static = isinstance(inspect.getattr_static(manager, name), staticmethod)
            setattr(manager, name, staticmethod(wrapped) if is_static else wrapped)
