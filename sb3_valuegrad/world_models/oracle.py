"""The task itself as its world model."""

from typing import Any

import numpy as np
import torch as th

from sb3_valuegrad.errors import check_count
from sb3_valuegrad.world_models.base import Transitions, WorldModel
from sb3_valuegrad.world_models.tasks import RestoredTask, make_task


class Oracle(WorldModel):
    """The task itself, put into the state that an observation shows and stepped: the "ideal, oracle" model of Feinberg et al.
    2018 (MVE), Fig. 6; and the simulator that MPG-v1's targets are of (Guan et al., sec. IV-B).

    Nothing is learned and nothing can be differentiated: it serves where a model is only looked at (MVE, imagined
    experience as in IB and MBPO, ``target_estimator`` "mve", "td-k" and "steve"). Observations are restored from float32,
    so a prediction is as exact as they are; rewards are of the states before rounding. ``VecNormalize`` would show
    it other observations than the task's, and is refused. The logged ``train/model_error_1`` should be about 0.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param env_id: the task that is learned, as for ``gymnasium.make``: one of MuJoCo's, whose observation must determine the
        simulator's state (:data:`sb3_valuegrad.envs.OBSERVABLE` lists tasks that do, InvertedPendulum is another); or one
        whose environment has a method ``step_from(observations (N, S), actions (N, A))``, in its own units, that returns the
        next observations (N, S), rewards (N,) and terminations (N,), as PathTracking-v0 does. If either truncates episodes by
        their state, a method ``cuts_off(observations (N, S))`` of the environment says where, (N,) bool; targets of "mve" then
        go no further than experience does
    :param env_kwargs: arguments it is made with
    :param n_threads: threads in which MuJoCo simulates; None: as many as PyTorch uses
    :raises ValueError: for a task that cannot be restored from its observation (saying which part is missing), one that
        the simulator does not reproduce, or one with other spaces
    :raises ImportError: if MuJoCo is not installed
    """

    takes_raw_data = True

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        env_id: str,
        env_kwargs: dict[str, Any] | None = None,
        n_threads: int | None = None,
    ):
        super().__init__(obs_dim, action_dim)
        n_threads = th.get_num_threads() if n_threads is None else n_threads
        check_count("n_threads", n_threads, 1)
        self.simulator = _simulator(env_id, dict(env_kwargs or {}), n_threads)
        found, wanted = (self.simulator.obs_dim, self.simulator.action_dim), (obs_dim, action_dim)
        if found != wanted:
            raise ValueError(
                f"env_id={env_id!r} has observations and actions of length {found}, the environment that is learned has "
                f"{wanted}: give the oracle the same id, and its arguments as env_kwargs"
            )

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Next states (N, S), and rewards and terminations (N, 2).

        :raises ValueError: if a gradient is asked for
        """
        if th.is_grad_enabled() and (obs.requires_grad or actions.requires_grad):
            raise ValueError(
                'world_model_class="oracle" has no gradient, and this algorithm climbs one through the model. Use the '
                "oracle with MVE (any horizon), with imagined experience (real_ratio < 1), or in the critic's target "
                '(target_estimator="mve", "td-k" or "steve") of a policy with horizon=0. Where the policy climbs the '
                'model, learn one or give one, and let the oracle serve the target: simulator_class="oracle".'
            )
        next_obs, rewards, dones = self.simulator.step(obs.detach().cpu().numpy(), actions.detach().cpu().numpy())
        return obs.new_tensor(next_obs), obs.new_tensor(np.stack([rewards, dones], axis=1))

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor]:
        """Rewards (M,) and terminations (M,), 0 or 1."""
        if hint is None:
            hint = self.transition(obs, actions)[1]
        return hint[:, 0], hint[:, 1]

    def cuts_off(self, obs: th.Tensor) -> th.Tensor | None:
        """Whether the task's own ``cuts_off`` says so, (N,) bool; None: it has none."""
        cuts_off = getattr(self.simulator.env, "cuts_off", None)
        return None if cuts_off is None else th.as_tensor(cuts_off(obs.cpu().numpy()), device=obs.device)

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """None: there is nothing to learn."""
        return {}


def _simulator(env_id: str, env_kwargs: dict[str, Any], n_threads: int) -> Any:
    if hasattr(make_task(env_id, env_kwargs).unwrapped, "step_from"):
        return RestoredTask(env_id, env_kwargs)
    try:
        from sb3_valuegrad.world_models.simulator import Simulator
    except ImportError as error:
        raise ImportError('The oracle steps MuJoCo, which is missing: pip install "sb3-valuegrad[mujoco]"') from error
    return Simulator(env_id, env_kwargs, n_threads)
