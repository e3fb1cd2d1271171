"""A three-link arm in a walled box, with targets that rest or move (Heess et al., *Stochastic Value Gradients*, sec. 6.2)."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch as th
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle

from sb3_valuegrad.envs.distances import distance
from sb3_valuegrad.envs.edited_model import EditedModelEnv, find

# The paper gives the numbers of states and actions, the walls, and how targets are drawn. Links, motors and the weight of the
# distance are those of Gymnasium's Reacher-v5; the other numbers are ours.
FRAME_SKIP = 2  # of 0.01 s each
LINKS = np.array([0.1, 0.1, 0.11])  # m, the last one to the fingertip
WALL, THICKNESS = 0.24, 0.02  # m, from the middle of the box to that of a wall; its radius
CORNER = 0.2  # m: targets, and at the start the arm, are in [-0.2, 0.2]^2
LARGEST_ANGLES = np.array([np.pi, 3.0, 3.0])  # rad
START_SPEED = 0.005  # rad/s, at most
TARGET_SPEED = (0.05, 0.2)  # m/s, least and largest
DISTANCE_WEIGHT, ACTION_WEIGHT = -1.0, -0.01  # of the distance (m) and |a|^2
CORNERS = CORNER * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
WALLS = {"sideS": "-{w} -{w} .01 {w} -{w} .01", "sideE": "{w} -{w} .01 {w} {w} .01"}
WALLS |= {"sideN": "-{w} {w} .01 {w} {w} .01", "sideW": "-{w} -{w} .01 -{w} {w} .01"}


class ReacherTargetsEnv(EditedModelEnv, EzPickle):
    """Bring the fingertip of an arm to a target.

    The arm's three links turn about the middle of a box, whose walls are solid. The target rests in one of the box's corners
    (4-Target Reacher), or moves in a straight line, at a speed and in a direction that are drawn at the start, until the walls
    reflect it (Moving-Target Reacher).

    Observation, the paper's eight numbers: three angles (rad), their rates (rad/s), the target's x and y (m); a moving
    target's velocity is not seen. Action: three torques, in [-1, 1]. Reward, of the next state:
    ``-|fingertip - target| - 0.01 |a|^2``. Nothing terminates; the registered tasks are cut after 100 steps, 2 s.

    :param moving_target: the target moves; False: it rests in a corner
    :param kwargs: Gymnasium's, of its MuJoCo environments: ``render_mode``, ``width``, ...
    """

    def __init__(self, moving_target: bool = False, **kwargs: Any):
        EzPickle.__init__(self, moving_target, **kwargs)
        self.moving_target = moving_target
        self.target_velocity = np.zeros(2)
        super().__init__("reacher.xml", FRAME_SKIP, Box(-np.inf, np.inf, (8,), np.float64), **kwargs)
        self.metadata = {**self.metadata, "render_fps": round(1 / self.dt)}

    def _edit(self, model: ElementTree.Element) -> None:
        """A third link, angles within limits, walls that stop the arm, and a target that nothing but us moves."""
        second, actuators = find(model, ".//body[@name='body1']"), find(model, "actuator")
        shape, joint, motor = find(second, "geom"), find(second, "joint"), find(actuators, "motor[@joint='joint1']")
        fingertip = find(second, "body")
        second.remove(fingertip)
        third = ElementTree.SubElement(second, "body", name="body2", pos="0.1 0 0")
        ElementTree.SubElement(third, "joint", {**joint.attrib, "name": "joint2"})
        ElementTree.SubElement(third, "geom", {**shape.attrib, "name": "link2"})
        third.append(fingertip)
        ElementTree.SubElement(actuators, "motor", {**motor.attrib, "joint": "joint2"})
        find(model, ".//joint[@name='joint0']").attrib.update(limited="true", range=f"{-np.pi} {np.pi}")
        for name, ends in WALLS.items():
            wall = {"fromto": ends.format(w=WALL), "size": str(THICKNESS), "conaffinity": "1"}
            find(model, f".//geom[@name='{name}']").attrib.update(wall)
        for name in ("link0", "link1", "link2", "fingertip"):
            find(model, f".//geom[@name='{name}']").attrib.update(contype="1", conaffinity="0")  # meet walls only
        target = find(model, ".//body[@name='target']")
        for slide in target.findall("joint"):
            target.remove(slide)
        target.attrib.update(mocap="true", pos="0 0 .01")

    def reset_model(self) -> np.ndarray:
        """Any configuration of the arm whose joints are well inside the box, nearly at rest; a target is drawn."""
        angles = self.np_random.uniform(-LARGEST_ANGLES, LARGEST_ANGLES)
        while np.abs(_joints(angles)).max() > CORNER:
            angles = self.np_random.uniform(-LARGEST_ANGLES, LARGEST_ANGLES)
        if self.moving_target:
            direction, speed = self.np_random.uniform(-np.pi, np.pi), self.np_random.uniform(*TARGET_SPEED)
            self.target_velocity = speed * np.array([np.cos(direction), np.sin(direction)])
            target = self.np_random.uniform(-CORNER, CORNER, 2)
        else:
            target = CORNERS[self.np_random.integers(len(CORNERS))]
        self.data.mocap_pos[0, :2] = target
        self.set_state(angles, self.np_random.uniform(-START_SPEED, START_SPEED, 3))
        return self._observe()

    def step(self, action: np.ndarray) -> Any:
        """0.02 s; ``info["distance"]`` is the fingertip's from the target, m."""
        action = np.clip(action, -1, 1).astype(np.float64)
        self._move_target()
        self.do_simulation(action, self.frame_skip)
        obs = self._observe()
        missed = float(np.linalg.norm(_joints(obs[:3])[-1] - obs[6:]))
        if self.render_mode == "human":
            self.render()
        reward = DISTANCE_WEIGHT * missed + ACTION_WEIGHT * action @ action
        return obs, float(reward), False, False, {"distance": missed}

    def _move_target(self) -> None:
        """Uniform motion, reflected at the walls."""
        place = self.data.mocap_pos[0, :2] + self.dt * self.target_velocity
        beyond = np.abs(place) > CORNER
        self.target_velocity = np.where(beyond, -self.target_velocity, self.target_velocity)
        self.data.mocap_pos[0, :2] = np.where(beyond, 2 * np.sign(place) * CORNER - place, place)

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel, self.data.mocap_pos[0, :2]])


def _joints(angles: np.ndarray) -> np.ndarray:
    """Where the three links end, the last one at the fingertip, (3, 2)."""
    directions = np.cumsum(angles)
    return np.cumsum(LINKS[:, None] * np.stack([np.cos(directions), np.sin(directions)], axis=1), axis=0)


def reacher_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """The reward as a torch function, ``reward_fn`` of the learned world models: (N, 8), (N, 3), (N, 8) to (N,)."""
    directions, lengths = next_obs[:, :3].cumsum(1), th.as_tensor(LINKS).to(next_obs)
    fingertip = th.stack([directions.cos() @ lengths, directions.sin() @ lengths], dim=1)
    return DISTANCE_WEIGHT * distance(fingertip - next_obs[:, 6:]) + ACTION_WEIGHT * actions.square().sum(1)
