"""Swimmers of any number of links that swim to a goal (Heess et al., *Stochastic Value Gradients*, sec. 6.1 and app. D)."""

from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
import torch as th
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle

from sb3_valuegrad.envs.edited_model import EditedModelEnv, find

# The paper prints the form of the reward and calls the starts random. The body is that of Gymnasium's Swimmer-v5; the other
# numbers are ours.
FRAME_SKIP = 20  # of 0.01 s each, 0.2 s: a stroke of this body takes seconds
VELOCITY_WEIGHT, ACTION_WEIGHT = 1.0, -1e-2  # alpha_1, alpha_2 of app. D
NOSE = np.array([1.5, 0.0])  # in the frame of the first link's body, m
CLOSE = 0.1  # m, where the direction of the goal begins to fade: at the goal there is none
FARTHEST = 4.0  # m, of the nose from the goal at the start
BEND = 0.5  # rad, at most, of each joint at the start
START_SPEED = 0.1  # at most, m/s and rad/s


class SwimmerGoalEnv(EditedModelEnv, EzPickle):
    """A chain of links in a fluid turns to a goal and swims there, by the torques of its joints.

    Observation, in the first link's own axes (ahead, to its left), 2n + 3 numbers for n links: the goal from the nose (m);
    the velocity of the centre of mass (m/s); angles between the links (rad); the first link's angular velocity and those
    between the links (rad/s). Nothing else matters to a body in a plane without borders; the paper's state has one number
    more, probably a heading. Action: n - 1 torques, in [-1, 1].

    Reward (app. D), of the next state: ``alpha_1 r_goal . v + alpha_2 |a|^2``, with ``v`` the velocity of the centre of mass
    and ``r_goal`` the direction of the goal from the nose, a unit vector but within centimetres of the goal. Nothing
    terminates; the registered tasks are cut after 100 steps, 20 s.

    With three links the body is that of Gymnasium's Swimmer-v5.

    :param links: n
    :param kwargs: Gymnasium's, of its MuJoCo environments: ``render_mode``, ``width``, ...
    :raises ValueError: for fewer than three links, which cannot swim
    """

    def __init__(self, links: int = 3, **kwargs: Any):
        if links < 3:
            raise ValueError(f"links={links} must be at least 3: what has one joint moves to and fro on the spot")
        EzPickle.__init__(self, links, **kwargs)
        self.links = links
        space = Box(-np.inf, np.inf, (2 * links + 3,), np.float64)
        super().__init__("swimmer.xml", FRAME_SKIP, space, **kwargs)
        self.metadata = {**self.metadata, "render_fps": round(1 / self.dt)}

    def _edit(self, model: ElementTree.Element) -> None:
        """Hang further links, each like the last one, behind it. The goal is a mark, for pictures only."""
        ElementTree.SubElement(find(model, "worldbody"), "site", name="goal", size="0.1", rgba="0.9 0.2 0.2 1")
        body, actuators = find(model, ".//body[@name='back']"), find(model, "actuator")
        shape, joint, motor = find(body, "geom"), find(body, "joint"), find(actuators, "motor[@joint='motor2_rot']")
        for number in range(4, self.links + 1):
            name = f"motor{number - 1}_rot"
            body = ElementTree.SubElement(body, "body", name=f"link{number}", pos="-1 0 0")
            ElementTree.SubElement(body, "geom", shape.attrib)
            ElementTree.SubElement(body, "joint", {**joint.attrib, "name": name})
            ElementTree.SubElement(actuators, "motor", {**motor.attrib, "joint": name})

    def reset_model(self) -> np.ndarray:
        """Anywhere around the goal, which is the origin, in any direction, slightly bent and nearly at rest."""
        bends = self.np_random.uniform(-BEND, BEND, self.links - 1)
        heading, direction = self.np_random.uniform(-np.pi, np.pi, 2)
        distance = FARTHEST * np.sqrt(self.np_random.uniform())  # uniform in the disc
        nose = distance * np.array([np.cos(direction), np.sin(direction)])
        place = nose - _rotation(heading) @ NOSE
        speeds = self.np_random.uniform(-START_SPEED, START_SPEED, self.links + 2)
        self.set_state(np.concatenate([place, [heading], bends]), speeds)
        return self._observe()

    def step(self, action: np.ndarray) -> Any:
        """0.2 s; ``info["distance"]`` is the nose's from the goal, m."""
        action = np.clip(action, -1, 1).astype(np.float64)
        self.do_simulation(action, self.frame_skip)
        obs = self._observe()
        goal, velocity = obs[:2], obs[2:4]
        forward = goal @ velocity / np.sqrt(goal @ goal + CLOSE**2)
        if self.render_mode == "human":
            self.render()
        reward = VELOCITY_WEIGHT * forward + ACTION_WEIGHT * action @ action
        return obs, float(reward), False, False, {"distance": float(np.linalg.norm(goal))}

    def _observe(self) -> np.ndarray:
        # MuJoCo's velocity of a subtree is that of the state before its last step, and is computed only if asked for.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_comVel(self.model, self.data)
        mujoco.mj_subtreeVel(self.model, self.data)
        velocity = self.data.subtree_linvel[self.model.body("torso").id][:2]
        place, heading, bends = self.data.qpos[:2], self.data.qpos[2], self.data.qpos[3:]
        to_own_axes = _rotation(-heading)
        return np.concatenate([to_own_axes @ -place - NOSE, to_own_axes @ velocity, bends, self.data.qvel[2:]])


def swimmer_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """App. D's as a torch function, ``reward_fn`` of the learned world models: (N, 2n+3), (N, n-1), (N, 2n+3) to (N,)."""
    goal, velocity = next_obs[:, :2], next_obs[:, 2:4]
    forward = (goal * velocity).sum(1) / (goal.square().sum(1) + CLOSE**2).sqrt()
    return VELOCITY_WEIGHT * forward + ACTION_WEIGHT * actions.square().sum(1)


def _rotation(angle: float) -> np.ndarray:
    """Turns vectors of the plane: (2, 2)."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
