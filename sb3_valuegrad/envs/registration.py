"""The papers' tasks by their Gymnasium ids."""

from typing import Any

import gymnasium as gym

ROOT_SHOWN: dict[str, Any] = {"exclude_current_positions_from_observation": False}
UNCLIPPED = "sb3_valuegrad.envs.unclipped"

# The id it is made from, its class (None: Gymnasium's own is enough), and its arguments.
TASKS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("HalfCheetah-v4", None, ROOT_SHOWN),
    ("HalfCheetah-v5", None, ROOT_SHOWN),
    ("Swimmer-v4", None, ROOT_SHOWN),
    ("Swimmer-v5", None, ROOT_SHOWN),
    ("Walker2d-v4", f"{UNCLIPPED}:Walker2dObservableV4", ROOT_SHOWN),
    ("Walker2d-v5", f"{UNCLIPPED}:Walker2dObservableV5", ROOT_SHOWN),
    ("Hopper-v4", f"{UNCLIPPED}:HopperObservableV4", ROOT_SHOWN),
    ("Hopper-v5", f"{UNCLIPPED}:HopperObservableV5", ROOT_SHOWN),
    ("InvertedDoublePendulum-v5", f"{UNCLIPPED}:InvertedDoublePendulumObservable", {}),
]


def observable_id(gym_id: str) -> str:
    """ "HalfCheetah-v5" to "HalfCheetahObservable-v5"."""
    return gym_id.replace("-", "Observable-")


OBSERVABLE: list[str] = [observable_id(gym_id) for gym_id, _, _ in TASKS]
"""Ids of the fully observable tasks: Gymnasium's, with "Observable" after the name."""


def register_observable() -> None:
    """Register :data:`OBSERVABLE` with the time limits and reward thresholds of the tasks they are made from."""
    for gym_id, entry_point, kwargs in TASKS:
        spec = gym.spec(gym_id)
        gym.register(
            observable_id(gym_id),
            entry_point=spec.entry_point if entry_point is None else entry_point,
            max_episode_steps=spec.max_episode_steps,
            reward_threshold=spec.reward_threshold,
            kwargs=kwargs,
        )


def register_mpg_tasks() -> None:
    """Register the MPG paper's tasks (Guan et al., App. B), with the least returns that it says work as thresholds."""
    tracking = "sb3_valuegrad.envs.path_tracking"
    gym.register(
        "PathTracking-v0",
        entry_point=f"{tracking}:PathTrackingEnv",
        vector_entry_point=f"{tracking}:PathTrackingVectorEnv",
        max_episode_steps=200,
        reward_threshold=-30.0,
    )
    gym.register(
        "InvertedPendulumExplicit-v5",
        entry_point="sb3_valuegrad.envs.explicit_pendulum:ExplicitInvertedPendulum",
        max_episode_steps=100,
        reward_threshold=-2.0,
    )


# Heess et al.: id, entry point, time limit and arguments. The hand's episodes end by themselves.
SVG_TASKS: list[tuple[str, str, int | None, dict[str, Any]]] = [
    ("Hand-v0", "hand:HandEnv", None, {}),
    ("CartPoleSwingUp-v0", "cart_pole:CartPoleEnv", 200, {}),
    ("CartPoleBalance-v0", "cart_pole:CartPoleEnv", 200, {"upright": True}),
    ("Swimmer3-v0", "swimmer:SwimmerGoalEnv", 100, {"links": 3}),
    ("Swimmer5-v0", "swimmer:SwimmerGoalEnv", 100, {"links": 5}),
    ("Swimmer7-v0", "swimmer:SwimmerGoalEnv", 100, {"links": 7}),
    ("Reacher4Targets-v0", "reacher:ReacherTargetsEnv", 100, {}),
    ("ReacherMovingTarget-v0", "reacher:ReacherTargetsEnv", 100, {"moving_target": True}),
    ("Monoped-v0", "monoped:MonopedEnv", 200, {}),
]


def register_svg_tasks() -> None:
    """Register the SVG paper's tasks that are not Gymnasium's (Heess et al., sec. 6)."""
    for task, entry_point, limit, kwargs in SVG_TASKS:
        gym.register(task, entry_point=f"sb3_valuegrad.envs.{entry_point}", max_episode_steps=limit, kwargs=kwargs)
