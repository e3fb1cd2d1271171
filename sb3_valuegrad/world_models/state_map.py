"""From an observation back to the simulator's state."""

from collections.abc import Callable

import mujoco
import numpy as np

PROBES = 16


class StateMap:
    """Finds out where an observation shows each coordinate of ``(qpos, qvel)``, by looking at made-up states.

    A coordinate may be shown as it is; the angle of a hinge that turns freely also by its sine and cosine.

    :param model: the simulator's model
    :param observe: a state (nq + nv,) to the observation (S,)
    :raises ValueError: if the observation does not determine the state; it names what is missing or cut off
    """

    def __init__(self, model: mujoco.MjModel, observe: Callable[[np.ndarray], np.ndarray]):
        states = np.random.default_rng(0).uniform(-1, 1, (PROBES, model.nq + model.nv))
        shown = np.stack([observe(state) for state in states])
        self.plain = _columns(shown, states)
        self.sines, self.cosines = _columns(shown, np.sin(states)), _columns(shown, np.cos(states))
        self.is_turn = (self.plain < 0) & (self.sines >= 0) & (self.cosines >= 0) & _turns_freely(model)
        problems = _hidden_parts(model)
        missing = np.flatnonzero((self.plain < 0) & ~self.is_turn)
        if len(missing):
            problems.append(f"{_names(model, missing)}: not in the observation")
        # Far from the origin a cut shows.
        large = 1000 * states
        far = np.stack([observe(state) for state in large])
        is_cut = (self.plain >= 0) & ~np.isclose(far[:, self.plain], large, rtol=1e-5).all(0)
        if is_cut.any():
            bounds = sorted({f"{bound:g}" for bound in np.abs(far[:, self.plain[is_cut]]).max(0)})
            problems.append(f"{_names(model, np.flatnonzero(is_cut))}: cut off at {', '.join(bounds)}")
        if problems:
            raise ValueError("; ".join(problems))

    def restore(self, obs: np.ndarray) -> np.ndarray:
        """Observations (N, S) to states (N, nq + nv)."""
        states = obs[:, self.plain]
        turns = self.is_turn
        states[:, turns] = np.arctan2(obs[:, self.sines[turns]], obs[:, self.cosines[turns]])
        return states


def _columns(shown: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which column of the observations (K, S) equals each column of the values (K, n) in all probes, (n,); -1: none."""
    equal = np.isclose(shown[:, :, None], values[:, None, :], rtol=1e-6).all(0)
    return np.where(equal.any(0), equal.argmax(0), -1)


def _turns_freely(model: mujoco.MjModel) -> np.ndarray:
    """Of each coordinate (nq + nv,), whether a full turn changes nothing: a hinge without limit and spring."""
    is_free = (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE) & (model.jnt_limited == 0) & (model.jnt_stiffness == 0)
    turns = np.zeros(model.nq + model.nv, dtype=bool)
    turns[model.jnt_qposadr[is_free]] = True
    return turns


def _hidden_parts(model: mujoco.MjModel) -> list[str]:
    """State of the simulator beside positions and velocities."""
    parts = {"activations of actuators": model.na, "poses of mocap bodies": model.nmocap, "plugins": model.npluginstate}
    return [f"{part}: state that no observation shows" for part, size in parts.items() if size]


def _names(model: mujoco.MjModel, coordinates: np.ndarray) -> str:
    """ "position of joint rootx, velocities of joints rootx, rootz"."""
    of_qpos = [_joint(model, model.jnt_qposadr, index) for index in coordinates if index < model.nq]
    of_qvel = [_joint(model, model.jnt_dofadr, index - model.nq) for index in coordinates if index >= model.nq]
    parts = []
    for kind, kinds, joints in (("position", "positions", of_qpos), ("velocity", "velocities", of_qvel)):
        unique = list(dict.fromkeys(joints))
        if unique:
            parts.append(f"{kind} of joint {unique[0]}" if len(unique) == 1 else f"{kinds} of joints {', '.join(unique)}")
    return " and ".join(parts)


def _joint(model: mujoco.MjModel, addresses: np.ndarray, coordinate: int) -> str:
    """Name of the joint that a coordinate belongs to."""
    joint = int(np.searchsorted(addresses, coordinate, side="right")) - 1
    return model.joint(joint).name or f"number {joint}"
