"""World models: ``s', r, done = f(s, a)``, learned or given."""

from sb3_valuegrad.world_models.analytic import AnalyticWorldModel
from sb3_valuegrad.world_models.base import Step, Transitions, WorldModel
from sb3_valuegrad.world_models.ensemble import GaussianEnsemble
from sb3_valuegrad.world_models.mlp import MlpWorldModel
from sb3_valuegrad.world_models.oracle import Oracle
from sb3_valuegrad.world_models.per_dimension import PerDimensionGaussian

WORLD_MODEL_ALIASES: dict[str, type[WorldModel]] = {
    "mlp": MlpWorldModel,
    "ensemble": GaussianEnsemble,
    "per-dimension": PerDimensionGaussian,
    "oracle": Oracle,
    "analytic": AnalyticWorldModel,
}


def get_world_model_class(name: str | type[WorldModel], argument: str = "world_model_class") -> type[WorldModel]:
    """A world model's class from its alias or from itself.

    :param argument: that it was given as
    :raises ValueError: for an unknown alias, or a class that is no :class:`WorldModel`
    """
    if isinstance(name, str):
        if name not in WORLD_MODEL_ALIASES:
            raise ValueError(f"{argument}={name!r} is unknown; use one of {list(WORLD_MODEL_ALIASES)} or a class")
        return WORLD_MODEL_ALIASES[name]
    if not (isinstance(name, type) and issubclass(name, WorldModel)):
        raise ValueError(f"{argument}={name!r} must be an alias or a subclass of sb3_valuegrad's WorldModel")
    return name


__all__ = [
    "WORLD_MODEL_ALIASES",
    "AnalyticWorldModel",
    "GaussianEnsemble",
    "MlpWorldModel",
    "Oracle",
    "PerDimensionGaussian",
    "Step",
    "Transitions",
    "WorldModel",
    "get_world_model_class",
]
