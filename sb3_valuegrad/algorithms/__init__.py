"""The algorithms, one final class a file, over one ``train()``."""

from sb3_valuegrad.algorithms.dvg import DVG
from sb3_valuegrad.algorithms.dvpg import DVPG

__all__ = ["DVG", "DVPG"]
