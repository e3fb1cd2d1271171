"""RL Zoo (``rl_zoo3``) with our algorithms: registration, hyperparameter search, and the ``sb3-valuegrad`` command."""

import importlib.util
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG

__all__ = ["ALGORITHMS", "register"]

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "dvg": DVG,
    "dvpg": DVPG,
    "mve": MVE,
    "maac": MAAC,
    "mbpo": MBPO,
    "mpg": MPG,
    "svg": SVG,
}
"""RL Zoo's name of each algorithm (its ``--algo``, its YAML's file name) and the class."""


def register() -> None:
    """Tell RL Zoo about our algorithms, their hyperparameters and how to search them, and register our environments.

    RL Zoo's dictionaries are changed in place, so it does not matter which of its modules were imported before.
    A second call changes nothing.

    :raises ImportError: if RL Zoo is not installed
    """
    try:
        from rl_zoo3 import hyperparams_opt, utils
    except ImportError as error:
        raise ImportError('RL Zoo is missing: pip install "sb3-valuegrad[zoo]"') from error
    from sb3_valuegrad.zoo.manager import teach_experiment_manager
    from sb3_valuegrad.zoo.search import SAMPLERS, convert_params

    utils.ALGOS.update(ALGORITHMS)
    hyperparams_opt.HYPERPARAMS_SAMPLER.update(SAMPLERS)
    converters: dict[str, Any] = hyperparams_opt.HYPERPARAMS_CONVERTER
    converters.update(dict.fromkeys(ALGORITHMS, convert_params))
    teach_experiment_manager()
    if importlib.util.find_spec("sb3_valuegrad.envs") is not None:
        importlib.import_module("sb3_valuegrad.envs")
