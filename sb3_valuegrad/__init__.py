"""Value-gradient reinforcement learning for Stable-Baselines3."""

from sb3_valuegrad.algorithms import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.planning import CrossEntropyPlanner

__version__ = "0.1.0"

__all__ = ["DVG", "DVPG", "MAAC", "MBPO", "MPG", "MVE", "SVG", "CrossEntropyPlanner", "__version__"]
