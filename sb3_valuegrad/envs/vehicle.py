"""The bicycle model of a vehicle, its path and its reward (Guan et al., *Mixed Policy Gradient*, App. B-A).

Written once for the simulator and for the prior model: the functions take columns, and with them the module that computes,
``numpy`` or ``torch``.
"""

from typing import Any, NamedTuple

import numpy as np

# Table III. (The authors' code has other numbers.) The friction coefficient, 1, is in none of the equations.
FRONT_STIFFNESS, REAR_STIFFNESS = -88_000.0, -94_000.0  # N/rad
FRONT_LENGTH, REAR_LENGTH = 1.14, 1.40  # m, from the centre of gravity to the axles
MASS, INERTIA = 1500.0, 2420.0  # kg, kg m^2
CONTROL_FREQUENCY, SYSTEM_FREQUENCY = 10, 200  # Hz

STEERING_LIMIT, ACCELERATION_LIMIT = 0.4, 3.0  # rad, m/s^2
DESIRED_SPEED = 20.0  # m/s

# The path: amplitude and period of each sine, m. It repeats after the periods' least common multiple.
SINES = ((7.5, 200.0), (2.5, 300.0), (-5.0, 400.0))
PATH_PERIOD = 1200.0


class Motion(NamedTuple):
    """States of vehicles, one column each (N,) (Table II)."""

    u: Any
    """longitudinal speed, m/s"""
    v: Any
    """lateral speed, m/s"""
    r: Any
    """yaw rate, rad/s"""
    y: Any
    """m"""
    phi: Any
    """yaw angle, rad"""
    x: Any
    """m"""


def drive(motion: Motion, steering: Any, acceleration: Any, step: float, xp: Any) -> Motion:
    """One step of the bicycle model with linear tyres, backward Euler in v and r (eq. 15).

    :param motion: states, columns (N,)
    :param steering: delta, rad, (N,)
    :param acceleration: m/s^2, (N,)
    :param step: T, s
    :param xp: ``numpy`` or ``torch``
    """
    u, v, r, y, phi, x = motion
    moment = FRONT_LENGTH * FRONT_STIFFNESS - REAR_LENGTH * REAR_STIFFNESS
    stiffness = FRONT_STIFFNESS + REAR_STIFFNESS
    turning = FRONT_LENGTH**2 * FRONT_STIFFNESS + REAR_LENGTH**2 * REAR_STIFFNESS
    lateral = MASS * v * u + step * (moment * r - FRONT_STIFFNESS * steering * u - MASS * u**2 * r)
    yaw = -INERTIA * r * u - step * (moment * v - FRONT_LENGTH * FRONT_STIFFNESS * steering * u)
    return Motion(
        u + step * (acceleration + v * r),
        lateral / (MASS * u - step * stiffness),
        yaw / (step * turning - INERTIA * u),
        y + step * (u * xp.sin(phi) + v * xp.cos(phi)),
        phi + step * r,
        x + step * (u * xp.cos(phi) - v * xp.sin(phi)),
    )


def path(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference: lateral position y_ref (m) and direction phi_ref (rad) at x (m), (N,) each."""
    y, slope = np.zeros_like(x), np.zeros_like(x)
    for amplitude, period in SINES:
        angle = 2 * np.pi * x / period
        y += amplitude * np.sin(angle)
        slope += amplitude * 2 * np.pi / period * np.cos(angle)
    return y, np.arctan(slope)


def tracking_reward(speed: Any, yaw_rate: Any, lateral: Any, heading: Any, steering: Any, acceleration: Any) -> Any:
    """Eq. 16, of the state before the step and the action; columns (N,).

    :param speed: u - u_ref, m/s
    :param yaw_rate: r, rad/s
    :param lateral: y - y_ref, m
    :param heading: phi - phi_ref, rad
    :param steering: delta, rad
    :param acceleration: m/s^2
    """
    of_state = 0.01 * speed**2 + 0.04 * lateral**2 + 0.1 * heading**2 + 0.02 * yaw_rate**2
    return -(of_state + 5 * steering**2 + 0.05 * acceleration**2)
