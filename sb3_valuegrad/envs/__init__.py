"""The papers' tasks as Gymnasium environments; importing this package registers them.

Fully observable versions of Gymnasium's MuJoCo tasks (Feinberg et al. 2018, Table 2): the observation determines the
simulator's state, so that reward and termination are functions of it, and a world model may be the simulator itself.
They need MuJoCo (``pip install "sb3-valuegrad[mujoco]"``) when one is made, not for this import.
"""

from sb3_valuegrad.envs.registration import OBSERVABLE, register_observable

__all__ = ["OBSERVABLE"]

register_observable()
