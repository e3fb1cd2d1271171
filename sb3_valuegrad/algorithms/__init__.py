"""The algorithms, one final class a file, over one ``train()``."""

from sb3_valuegrad.algorithms.dvg import DVG
from sb3_valuegrad.algorithms.dvpg import DVPG
from sb3_valuegrad.algorithms.maac import MAAC
from sb3_valuegrad.algorithms.mbpo import MBPO
from sb3_valuegrad.algorithms.mpg import MPG
from sb3_valuegrad.algorithms.mve import MVE
from sb3_valuegrad.algorithms.svg import SVG

__all__ = ["DVG", "DVPG", "MAAC", "MBPO", "MPG", "MVE", "SVG"]
