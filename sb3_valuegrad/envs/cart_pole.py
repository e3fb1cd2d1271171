"""Cart-pole (Heess et al., *Stochastic Value Gradients*, sec. 6.1, Fig. 2): swing a pole up and keep it there."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_valuegrad.envs.picture import draw_cart_pole

# The paper names the task and prints none of its numbers. Masses, length and force are those of Gymnasium's CartPole-v1; the
# rest is ours.
CART_MASS, POLE_MASS, HALF_LENGTH, GRAVITY = 1.0, 0.1, 0.5, 9.8  # kg, kg, m, m/s^2
FORCE = 10.0  # N, of an action of 1
RAIL, BUFFER_STIFFNESS = 2.0, 200.0  # m to either side, where a spring of so many N/m pushes the cart back
TIME_STEP, SUBSTEPS = 0.05, 5  # s, and steps of Runge and Kutta in each
START_SPREAD = 0.1  # m, rad, m/s and rad/s to either side of where an episode starts
POSITION_WEIGHT, ACTION_WEIGHT = 0.1, 0.01  # of x^2 and a^2


def motion(state: np.ndarray, force: float) -> np.ndarray:
    """d/dt of (x, theta, x_dot, theta_dot) for a uniform rod on a cart without friction; theta = 0 is upright.

    :param state: (4,), m, rad, m/s, rad/s
    :param force: on the cart, N
    """
    x, theta, x_dot, theta_dot = state
    sine, cosine = np.sin(theta), np.cos(theta)
    force -= BUFFER_STIFFNESS * (x - np.clip(x, -RAIL, RAIL))
    # Lagrange's equations, solved for the accelerations:
    #   (M + m) x'' + m l cos(theta) theta'' = F + m l theta'^2 sin(theta)
    #   cos(theta) x'' + 4/3 l theta'' = g sin(theta)
    moment = POLE_MASS * HALF_LENGTH
    push = force + moment * theta_dot**2 * sine
    inertia = CART_MASS + POLE_MASS - 0.75 * POLE_MASS * cosine**2
    x_acceleration = (push - 0.75 * POLE_MASS * GRAVITY * sine * cosine) / inertia
    theta_acceleration = 0.75 / HALF_LENGTH * (GRAVITY * sine - cosine * x_acceleration)
    return np.array([x_dot, theta_dot, x_acceleration, theta_acceleration])


def integrate(state: np.ndarray, force: float, seconds: float) -> np.ndarray:
    """One step of Runge and Kutta's fourth-order method under a constant force: (4,) to (4,)."""
    first = motion(state, force)
    second = motion(state + seconds / 2 * first, force)
    third = motion(state + seconds / 2 * second, force)
    fourth = motion(state + seconds * third, force)
    return state + seconds / 6 * (first + 2 * second + 2 * third + fourth)


class CartPoleEnv(gym.Env):
    """Push a cart to and fro until the pole that hangs from it stands upright, and keep it there, in the middle of the rail.

    Observation: x (m), sine and cosine of the pole's angle from upright, x_dot (m/s), theta_dot (rad/s). Action: in [-1, 1],
    of which each unit is 10 N. Reward, of the next state: ``(1 + cos theta)/2 - 0.1 x^2 - 0.01 a^2``. Springs at 2 m to either
    side keep the cart on its rail. Nothing terminates; the registered tasks are cut after 200 steps, 10 s.

    The paper does not describe its cart-pole, not even whether the pole hangs at the start. Here that is a choice.

    :param upright: start with the pole upright, to be balanced; False: hanging, to be swung up first
    :param render_mode: "rgb_array": rail, cart and pole from the side
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / TIME_STEP)}  # noqa: RUF012 (Gymnasium's form)

    def __init__(self, upright: bool = False, render_mode: str | None = None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.upright, self.render_mode = upright, render_mode
        self.state = np.zeros(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Nearly at rest in the middle of the rail."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-START_SPREAD, START_SPREAD, 4)
        self.state[1] += 0.0 if self.upright else np.pi
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """0.05 s."""
        push = float(np.clip(action, -1, 1)[0])
        for _ in range(SUBSTEPS):
            self.state = integrate(self.state, FORCE * push, TIME_STEP / SUBSTEPS)
        x, theta, *_ = self.state
        reward = (1 + np.cos(theta)) / 2 - POSITION_WEIGHT * x**2 - ACTION_WEIGHT * push**2
        return self._observe(), float(reward), False, False, {}

    def _observe(self) -> np.ndarray:
        x, theta, x_dot, theta_dot = self.state
        return np.array([x, np.sin(theta), np.cos(theta), x_dot, theta_dot], dtype=np.float32)

    def render(self) -> np.ndarray | None:
        """(240, 640, 3), uint8, with ``render_mode="rgb_array"``."""
        x, theta, *_ = self.state
        return draw_cart_pole(x, theta, 2 * HALF_LENGTH, RAIL) if self.render_mode else None


def cart_pole_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """The reward as a torch function, ``reward_fn`` of the learned world models: (N, 5), (N, 1), (N, 5) to (N,)."""
    upright = (1 + next_obs[:, 2]) / 2
    return upright - POSITION_WEIGHT * next_obs[:, 0].square() - ACTION_WEIGHT * actions.square().sum(1)
