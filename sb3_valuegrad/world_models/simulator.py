"""A Gymnasium MuJoCo task as a function of states and actions, for many rows at once."""

from typing import Any, cast

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from mujoco.rollout import Rollout

from sb3_valuegrad.world_models.state_map import StateMap
from sb3_valuegrad.world_models.tasks import CHECKED_STEPS, differences, make_task, unscaled

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS


class Simulator:
    """Steps a task from the states that observations show.

    MuJoCo simulates all rows in native threads. Then the task's own ``step`` makes observation, reward and termination
    of each: its call of ``do_simulation`` is answered by the state that was simulated, so no task's formula is written
    twice. MuJoCo leaves what it derives from a state (places of bodies, forces) as it was before the last substep; a
    task that reads it gets that substep simulated again, in turn.

    :param env_id: of the task, as for ``gymnasium.make``
    :param env_kwargs: of the task
    :param n_threads: threads that simulate
    :raises ValueError: if the id is unknown, the task is not a MuJoCo task, its observation does not determine its state,
        or a trial shows that its next observation, reward or termination depends on anything else
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], n_threads: int):
        self.arguments = (env_id, env_kwargs, n_threads)
        env = make_task(env_id, env_kwargs)
        self.env = cast(Any, env.unwrapped)
        if not _is_steppable(env):
            raise ValueError(
                f"env_id={env_id!r} is not one of Gymnasium's MuJoCo tasks (a MujocoEnv with vector observations, made by its "
                "_get_obs), and its environment has no method step_from(observations, actions): the oracle cannot put it into "
                "an observation's state. Write that method, or use a learned world model."
            )
        self.model, self.data = self.env.model, self.env.data
        self.obs_dim, self.action_dim = int(np.prod(self.env.observation_space.shape)), self.model.nu
        self.env.reset(seed=0)
        try:
            self.state_map = StateMap(self.model, self._observe)
        except ValueError as error:
            raise ValueError(
                f"env_id={env_id!r} with env_kwargs={env_kwargs}: the observation does not determine the simulator's "
                f"state. {error}. Use a task that shows them (import sb3_valuegrad.envs: HalfCheetahObservable-v5 and "
                "others), or a learned world model."
            ) from None
        self._pool = Rollout(nthread=n_threads if n_threads > 1 else 0)
        self._workers = [mujoco.MjData(self.model) for _ in range(n_threads)]
        self._start = np.zeros(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, self._start, STATE)
        self._end = self._start
        self._repeats_substep = False
        self.env.do_simulation = self._answer
        self._check()

    def __reduce__(self) -> tuple[type["Simulator"], tuple[Any, ...]]:
        """A copy, or what is unpickled, is made afresh: threads cannot be carried over."""
        return Simulator, self.arguments

    def step(self, obs: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One step of the task for N rows; a row that is not finite stays so.

        :param obs: (N, S)
        :param actions: (N, A), scaled to [-1, 1]
        :return: next observations (N, S), rewards (N,), and whether the episode terminated (N,)
        """
        actions = unscaled(actions, self.env.action_space)
        finite = np.isfinite(obs).all(1) & np.isfinite(actions).all(1)
        starts = np.tile(self._start, (int(finite.sum()), 1))
        # The time goes first.
        starts[:, 1 : 1 + self.model.nq + self.model.nv] = self.state_map.restore(obs[finite].astype(np.float64))
        ends = self._simulate(starts, actions[finite])
        outcomes = np.full((len(obs), self.obs_dim + 2), np.nan)
        for outcome, *row in zip(np.flatnonzero(finite), starts, actions[finite], ends, strict=True):
            outcomes[outcome] = self._outcome(*row)
        return outcomes[:, :-2], outcomes[:, -2], outcomes[:, -1]

    def _simulate(self, starts: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """States (N, n) after the substeps, but for a last one that is to be repeated."""
        substeps = self.env.frame_skip - self._repeats_substep
        if substeps == 0 or len(starts) == 0:
            return starts
        control = np.repeat(actions[:, None].astype(np.float64), substeps, axis=1)
        return self._pool.rollout(self.model, self._workers, starts, control)[0][:, -1]

    def _outcome(self, start: np.ndarray, action: np.ndarray, end: np.ndarray) -> np.ndarray:
        """What the task says of one row: observation, reward, termination (S + 2,)."""
        mujoco.mj_setState(self.model, self.data, start, STATE)
        self._end = end
        obs, reward, terminated, _, _ = self.env.step(action)
        return np.concatenate([np.ravel(obs), [reward, terminated]])

    def _answer(self, control: np.ndarray, _n_frames: int) -> None:
        """In place of ``MujocoEnv.do_simulation``."""
        mujoco.mj_setState(self.model, self.data, self._end, STATE)
        self.data.ctrl[:] = control
        if self._repeats_substep:
            # What the solver starts from, or a row would depend on the one before it.
            self.data.qacc_warmstart[:] = 0
            mujoco.mj_step(self.model, self.data)
            mujoco.mj_rnePostConstraint(self.model, self.data)

    def _observe(self, state: np.ndarray) -> np.ndarray:
        """The observation (S,) of positions and velocities (nq + nv,)."""
        self.data.qpos[:], self.data.qvel[:] = np.split(state, [self.model.nq])
        return np.ravel(self.env._get_obs())

    def _check(self) -> None:
        """Compare with the task itself, and find out whether it reads what is left over from a substep.

        :raises ValueError: naming what came out different
        """
        differing: list[str] = []
        for repeats in (False, True):
            self._repeats_substep = repeats
            differing = differences(self.step, *self.arguments[:2], tolerance=1e-6)
            if not differing:
                return
        raise ValueError(
            f"env_id={self.arguments[0]!r}: the {' and the '.join(differing)} of {CHECKED_STEPS} steps did not come out as in "
            "the task: there is more to it than positions, velocities and action (the task's own memory, randomness, or "
            "forces and places that MuJoCo keeps from the step before). Use a learned world model."
        )


def _is_steppable(env: gym.Env) -> bool:
    task, space = env.unwrapped, env.observation_space
    is_task = isinstance(task, MujocoEnv) and hasattr(task, "_get_obs")
    return is_task and isinstance(space, spaces.Box) and space.shape == task.observation_space.shape
