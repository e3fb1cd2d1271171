"""The prior models of the MPG paper's tasks, as torch functions for :class:`~sb3_valuegrad.world_models.AnalyticWorldModel`.

They are wrong on purpose (Guan et al., sec. V-A, App. B): the vehicle tracks a straight line, with steps of 0.1 s where the
simulator takes 0.005 s, and is blown aside; the pendulum has neither damping nor MuJoCo's integrator, another reward, and
drifts. ``N(a, b)`` is read as mean and standard deviation, as in the paper's Table VI.
"""

from typing import Any

import torch as th

from sb3_valuegrad.envs.path_tracking import X_UNIT
from sb3_valuegrad.envs.vehicle import CONTROL_FREQUENCY, DESIRED_SPEED, Motion, drive, tracking_reward

# Table IV, and the gear of MuJoCo's motor.
CART_MASS, POLE_MASS, POLE_LENGTH, GRAVITY = 9.42, 4.89, 0.6, 9.81  # kg, kg, m, m/s^2
PENDULUM_STEP, FORCE = 1 / 25, 100.0  # s, N for each unit of action


def vehicle_step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """Eq. 17 without its noise: (N, 6), (N, 2) to (N, 6), in the units of PathTracking-v0."""
    speed, v, r, y, phi, x = obs.unbind(1)
    steering, acceleration = actions.unbind(1)
    motion = Motion(speed + DESIRED_SPEED, v, r, y, phi, x * X_UNIT)
    u, *others, x = drive(motion, steering, acceleration, 1 / CONTROL_FREQUENCY, th)
    return th.stack([u - DESIRED_SPEED, *others, x / X_UNIT], dim=1)


def vehicle_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """Eq. 16, the simulator's own, of the state before the step: to (N,)."""
    speed, _, yaw_rate, lateral, heading, _ = obs.unbind(1)
    return tracking_reward(speed, yaw_rate, lateral, heading, *actions.unbind(1))


def pendulum_step(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """Rigid-body dynamics by forward Euler, ``D y_ddot = z``: (N, 4), (N, 1) to (N, 4).

    The paper's D and z have the cart's mass in the place of the rod's, and l / 2 in the place of l^2; this is a uniform rod:
    ``D = [[m1 + m2, m2 l/2 cos], [m2 l/2 cos, m2 l^2/3]]``, ``z = [m2 l/2 theta_dot^2 sin + F, m2 l/2 g sin]``.
    """
    _, theta, x_dot, theta_dot = obs.unbind(1)
    sin, cos = th.sin(theta), th.cos(theta)
    half = 0.5 * POLE_MASS * POLE_LENGTH
    inertia = POLE_MASS * POLE_LENGTH**2 / 3
    push = half * theta_dot.square() * sin + FORCE * actions[:, 0]
    fall = half * GRAVITY * sin
    determinant = (CART_MASS + POLE_MASS) * inertia - (half * cos).square()
    x_ddot = (inertia * push - half * cos * fall) / determinant
    theta_ddot = ((CART_MASS + POLE_MASS) * fall - half * cos * push) / determinant
    moved = [x_dot, theta_dot, x_ddot, theta_ddot]
    return th.stack([part + PENDULUM_STEP * rate for part, rate in zip(obs.unbind(1), moved, strict=True)], dim=1)


def pendulum_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """The prior's own, which hardly minds speeds: to (N,)."""
    x, theta, x_dot, theta_dot = next_obs.unbind(1)
    return -(0.01 * x.square() + theta.square() + 0.001 * x_dot.square() + 0.001 * theta_dot.square())


PRIORS: dict[str, dict[str, Any]] = {
    "PathTracking-v0": {
        "transition_fn": f"{__name__}:vehicle_step",
        "reward_fn": f"{__name__}:vehicle_reward",
        "noise_mean": [0.0, 0.0, 0.0, 0.5, 0.0, 0.0],
        "noise_std": [0.0, 0.0, 0.0, 0.01, 0.0, 0.0],
    },
    "InvertedPendulumExplicit-v5": {
        "transition_fn": f"{__name__}:pendulum_step",
        "reward_fn": f"{__name__}:pendulum_reward",
        "noise_mean": [0.1, 0.0, 0.0, 0.0],
        "noise_std": [0.5, 0.0, 0.0, 0.0],
    },
}
"""``world_model_kwargs`` of each task's prior, for ``world_model_class="analytic"``."""
