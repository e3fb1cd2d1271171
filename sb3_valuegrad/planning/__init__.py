"""Planning with a trained model: a room above the algorithms, which nothing imports."""

from sb3_valuegrad.planning.planner import CrossEntropyPlanner

__all__ = ["CrossEntropyPlanner"]
