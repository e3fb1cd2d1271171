"""The papers' tasks as Gymnasium environments; importing this package registers them.

Fully observable versions of Gymnasium's MuJoCo tasks (Feinberg et al. 2018, Table 2): the observation determines the
simulator's state, so that reward and termination are functions of it, and a world model may be the simulator itself.
They need MuJoCo (``pip install "sb3-valuegrad[mujoco]"``) when one is made, not for this import.

The tasks of Guan et al. (MPG): ``PathTracking-v0``, which needs nothing else and comes as a native vector environment, too,
and ``InvertedPendulumExplicit-v5`` (MuJoCo); their prior models are :data:`~sb3_valuegrad.envs.priors.PRIORS`.

The tasks of Heess et al. (SVG): ``Hand-v0``, ``CartPoleSwingUp-v0`` and ``CartPoleBalance-v0``, which need nothing else;
``Swimmer3-v0``, ``Swimmer5-v0``, ``Swimmer7-v0``, ``Reacher4Targets-v0``, ``ReacherMovingTarget-v0`` and ``Monoped-v0``
(MuJoCo).
"""

from sb3_valuegrad.envs.registration import OBSERVABLE, register_mpg_tasks, register_observable, register_svg_tasks

__all__ = ["OBSERVABLE"]

register_observable()
register_mpg_tasks()
register_svg_tasks()
