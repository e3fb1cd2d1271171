"""Pendulum-v1 as torch functions in its own units, with a rod that is a fifth too light: a prior model for studies."""

import torch as th


def swing(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """obs (N, 3) and actions (N, 1), the torque in [-2, 2], to the next obs (N, 3)."""
    cos, sin, speed = obs.unbind(1)
    mass = 0.8
    speed = speed + 0.05 * (15.0 * sin + 3.0 / mass * actions[:, 0])
    angle = th.atan2(sin, cos) + 0.05 * speed
    return th.stack([angle.cos(), angle.sin(), speed], dim=1)


def cost(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """The environment's own reward: to (N,)."""
    cos, sin, speed = obs.unbind(1)
    return -(th.atan2(sin, cos).square() + 0.1 * speed.square() + 0.001 * actions[:, 0].square())


PRIOR = dict(transition_fn="pendulum_prior:swing", reward_fn="pendulum_prior:cost")
