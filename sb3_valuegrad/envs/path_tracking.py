"""Path tracking (Guan et al., *Mixed Policy Gradient*, App. B-A): one vehicle, or hundreds side by side."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_valuegrad.envs.picture import draw_vehicle
from sb3_valuegrad.envs.vehicle import (
    ACCELERATION_LIMIT,
    CONTROL_FREQUENCY,
    DESIRED_SPEED,
    PATH_PERIOD,
    STEERING_LIMIT,
    SYSTEM_FREQUENCY,
    Motion,
    drive,
    path,
    tracking_reward,
)

# The unit of x in the observation: networks do not take 1200 m well.
X_UNIT = 100.0
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (6,), np.float32)
ACTION_LIMITS = np.array([STEERING_LIMIT, ACCELERATION_LIMIT], dtype=np.float32)
ACTION_SPACE = spaces.Box(-ACTION_LIMITS, ACTION_LIMITS)
# Where vehicles start, uniformly: the paper says "randomly". (u - u_ref, v, r, y - y_ref, phi - phi_ref, x)
START_LOW = np.array([-5.0, -0.5, -0.2, -2.0, -np.pi / 9, 0.0])
START_HIGH = np.array([5.0, 0.5, 0.2, 2.0, np.pi / 9, PATH_PERIOD])
# The bicycle model does not describe a vehicle that stands still, and its equations have a pole there.
LOWEST_SPEED = 1.0


class Vehicles:
    """The simulator: N vehicles, 200 Hz inside each step of 0.1 s.

    :param count: N
    """

    def __init__(self, count: int):
        self.motion = Motion(*np.zeros((6, count)))

    def place(self, chosen: np.ndarray, random: np.random.Generator) -> None:
        """Put some vehicles, a mask (N,), at random starts."""
        start = _motion(random.uniform(START_LOW, START_HIGH, (int(chosen.sum()), 6)))
        for column, values in zip(self.motion, start, strict=True):
            column[chosen] = values

    def restore(self, obs: np.ndarray) -> None:
        """Put all where observations (N, 6) show them. Laps and turns, which they do not show, make no difference."""
        errors = obs.astype(np.float64)
        errors[:, 5] *= X_UNIT
        self.motion = _motion(errors)

    def errors(self) -> np.ndarray:
        """(N, 6): u - u_ref, v, r, y - y_ref, phi - phi_ref (in [-pi, pi)), x within the path's period; SI units."""
        u, v, r, y, phi, x = self.motion
        y_ref, phi_ref = path(x)
        heading = (phi - phi_ref + np.pi) % (2 * np.pi) - np.pi
        return np.stack([u - DESIRED_SPEED, v, r, y - y_ref, heading, x % PATH_PERIOD], axis=1)

    def observe(self) -> np.ndarray:
        """(N, 6), float32: the errors, x in units of 100 m."""
        errors = self.errors()
        errors[:, 5] /= X_UNIT
        return errors.astype(np.float32)

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Drive for 0.1 s; rewards (N,).

        :param actions: steering angle (rad) and acceleration (m/s^2), (N, 2); what is beyond the actuator's limits is cut off
        """
        steering, acceleration = np.clip(actions, -ACTION_LIMITS, ACTION_LIMITS).astype(np.float64).T
        speed, _, yaw_rate, lateral, heading, _ = self.errors().T
        rewards = tracking_reward(speed, yaw_rate, lateral, heading, steering, acceleration)
        for _ in range(SYSTEM_FREQUENCY // CONTROL_FREQUENCY):
            motion = drive(self.motion, steering, acceleration, 1 / SYSTEM_FREQUENCY, np)
            self.motion = motion._replace(u=np.maximum(motion.u, LOWEST_SPEED))
        return rewards

    def off_track(self) -> np.ndarray:
        """The paper's set of states at which a simulation is reset, (N,); of signed quantities the size counts."""
        speed, _, yaw_rate, lateral, heading, _ = self.errors().T
        lost = (np.abs(lateral) > 3) | (np.abs(heading) > np.pi / 4)
        return lost | (speed + DESIRED_SPEED < 2) | (np.abs(yaw_rate) > 0.8)


def _motion(errors: np.ndarray) -> Motion:
    """The states of vehicles with these errors, (N, 6), see :meth:`Vehicles.errors`."""
    speed, v, r, lateral, heading, x = errors.T
    y_ref, phi_ref = path(x)
    return Motion(speed + DESIRED_SPEED, v, r, lateral + y_ref, heading + phi_ref, x)


class PathTrackingEnv(gym.Env):
    """Keep a vehicle on a winding path at 20 m/s, by steering and accelerating ten times a second.

    Observation: u - u_ref (m/s), v (m/s), r (rad/s), y - y_ref (m), phi - phi_ref (rad), x (100 m, within the path's period
    of 1200 m). Action: steering angle in [-0.4, 0.4] rad, acceleration in [-3, 3] m/s^2. Reward: eq. 16, minus squared
    errors and controls; the paper calls a return of -30 in 200 steps the least that works.

    Nothing terminates. A vehicle that leaves the path (by 3 m, pi/4 or 0.8 rad/s, or slower than 2 m/s) is taken back: its
    episode is *truncated*. Were it terminated, its value there would be 0, the best there is among negative rewards.

    :param render_mode: "rgb_array": the path and the vehicle from above
    :param early_reset: take back a vehicle that leaves the path, as in training; False: all episodes have the same length, as
        in the paper's evaluations
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_FREQUENCY}  # noqa: RUF012 (Gymnasium's form)

    def __init__(self, render_mode: str | None = None, early_reset: bool = True):
        self.observation_space, self.action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.render_mode, self.early_reset = render_mode, early_reset
        self.vehicles = Vehicles(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A random start."""
        super().reset(seed=seed)
        self.vehicles.place(np.ones(1, dtype=bool), self.np_random)
        return self.vehicles.observe()[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """0.1 s; ``info["off_track"]`` says whether the vehicle has left the path."""
        reward = float(self.vehicles.step(np.asarray(action)[None])[0])
        off_track = bool(self.vehicles.off_track()[0])
        return self.vehicles.observe()[0], reward, False, self.early_reset and off_track, {"off_track": off_track}

    @staticmethod
    def step_from(observations: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """0.1 s from states that observations (N, 6) show, for the oracle: next observations (N, 6), rewards (N,) and
        terminations (N,), which there are none of."""
        vehicles = Vehicles(len(observations))
        vehicles.restore(observations)
        rewards = vehicles.step(actions)
        return vehicles.observe(), rewards, np.zeros(len(rewards), dtype=bool)

    def cuts_off(self, observations: np.ndarray) -> np.ndarray:
        """Whether an episode is truncated where observations (N, 6) show it, (N,) bool, for the oracle."""
        vehicles = Vehicles(len(observations))
        vehicles.restore(observations)
        return vehicles.off_track() & self.early_reset

    def render(self) -> np.ndarray | None:
        """(240, 640, 3), uint8, with ``render_mode="rgb_array"``."""
        return draw_vehicle(*(float(column[0]) for column in self.vehicles.motion[3:])) if self.render_mode else None


class PathTrackingVectorEnv(VectorEnv):
    """Many vehicles on one path, each as in :class:`PathTrackingEnv`, simulated together.

    An episode that ends begins anew in the same step: ``info["final_obs"]`` has its last observation where
    ``info["_final_obs"]`` is true.

    :param num_envs: vehicles
    :param max_episode_steps: time limit
    :param render_mode: "rgb_array": a picture for each vehicle
    :param early_reset: as there
    """

    metadata = {**PathTrackingEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int = 200, render_mode: str | None = None, early_reset: bool = True
    ):
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = OBSERVATION_SPACE, ACTION_SPACE
        self.observation_space = batch_space(OBSERVATION_SPACE, num_envs)
        self.action_space = batch_space(ACTION_SPACE, num_envs)
        self.render_mode, self.early_reset = render_mode, early_reset
        self.vehicles = Vehicles(num_envs)
        self.steps = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Random starts for all."""
        super().reset(seed=seed)
        self._place(np.ones(self.num_envs, dtype=bool))
        return self.vehicles.observe(), {}

    def _place(self, chosen: np.ndarray) -> None:
        self.vehicles.place(chosen, self.np_random)
        self.steps[chosen] = 0

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """0.1 s for all."""
        rewards = self.vehicles.step(np.asarray(actions))
        self.steps += 1
        off_track = self.vehicles.off_track()
        truncated = (self.steps >= self.max_episode_steps) | (off_track & self.early_reset)
        obs, info = self.vehicles.observe(), {"off_track": off_track}
        if truncated.any():
            info |= {"final_obs": obs, "_final_obs": truncated}
            self._place(truncated)
            obs = self.vehicles.observe()
        return obs, rewards, np.zeros(self.num_envs, dtype=bool), truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """A picture for each vehicle, with ``render_mode="rgb_array"``."""
        places = np.stack(self.vehicles.motion[3:], axis=1)
        return tuple(draw_vehicle(*place) for place in places.tolist()) if self.render_mode else None
