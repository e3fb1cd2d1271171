"""SVG(0), SVG(1), SVG(k), SVG(infinity), with and without replay, and their planner."""

import copy
from functools import partial
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule

from sb3_valuegrad.algorithms.arguments import check_choice
from sb3_valuegrad.algorithms.model_based import Losses, append
from sb3_valuegrad.algorithms.svg_arguments import check_svg, check_train_freq
from sb3_valuegrad.algorithms.targets import Evaluation
from sb3_valuegrad.algorithms.weighted_replay import WeightedReplayAlgorithm
from sb3_valuegrad.gaussian_policies import GaussianActor, GaussianPolicy, gaussian_kl
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.returns import value_expansions
from sb3_valuegrad.rollouts import Rollout, Trajectory, follow, imagine
from sb3_valuegrad.trajectories import Windows
from sb3_valuegrad.weights import overlap


class SVG(WeightedReplayAlgorithm):
    """Stochastic value gradients (Heess et al., NIPS 2015).

    The policy ascends J_k along trajectories that really happened, through the model and along every action, under the
    noise of policy and environment that explains them (eqs. 11-13). Its critic is fitted policy evaluation (Alg. 4).

    - SVG(1) with replay (Alg. 2), the default; SVG(k): ``horizon=k``;
    - SVG(0) (Alg. 3): ``horizon=0``, a critic Q(s, a) and no model;
    - SVG(inf) (Alg. 1): ``horizon=None, policy_replay=False``: whole episodes under one policy, no critic, one policy step
      after each;
    - without replay for the policy: ``policy_replay=False``;
    - the planner (sec. 6.1): ``trajectories="imagined"``.

    It explores by its own noise from the first step on; until ``learning_starts`` it only does not learn.

    A policy that leaves its data behind has nothing left to learn from: all weights vanish, and Adam makes steps of full size
    of whatever remains. So it learns from the newest experience, and waits for more where it has gone too far (not in the
    paper, whose policy makes few steps: ``policy_window=None, min_overlap=0.0, policy_gradient_steps=K``).

    :param policy: "MlpPolicy" or a subclass of :class:`~sb3_valuegrad.gaussian_policies.GaussianPolicy`, whose
        ``policy_kwargs`` ``squash``, ``noise_std`` and ``learn_noise`` say what its noise is like
    :param env: Gymnasium environment, its id, or a vector environment
    :param learning_rate: the policy's; SVG(inf), with a step an episode, needs a larger one
    :param horizon: k, real steps in the policy's objective, fewer where an episode ends; None: the whole episode
    :param policy_replay: the policy learns from all stored experience; False: from what is new since it last did
    :param policy_window: with replay the policy learns from the newest so many steps; None: from all
    :param min_overlap: the policy makes no step while today's and those that acted overlap by less, the mean of ``min(w, 1)``
        over its minibatch (1 minus their total variation), in [0, 1); 0: it never waits
    :param policy_gradient_steps: most policy steps after each episode (SVG(1)-ER of the paper); None: one with every
        ``policy_delay`` updates of the critic (SVG(inf) has none: one after each episode)
    :param kl_coef: weight of the KL divergence from the policy before the ``policy_gradient_steps`` after an episode (app. D)
    :param trajectories: "real", or "imagined": the model's own from the same start states, under sampled noise (planner)
    :param target_update_interval: critic updates from one update of its target to the next (C of Alg. 4); with ``tau=1.0`` the
        target becomes a copy

    The other parameters are those of :class:`~sb3_valuegrad.algorithms.weighted_replay.WeightedReplayAlgorithm` and
    :class:`~sb3_valuegrad.algorithms.base.ValueGradientAlgorithm`.

    :raises ValueError: for arguments that contradict each other
    """

    critic_loss_scale: ClassVar[float] = 0.5
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": GaussianPolicy,
        "MultiInputPolicy": GaussianPolicy,  # to be told that Dict observations do not work
    }

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-5,
        *args: Any,
        horizon: int | None = 1,
        policy_replay: bool = True,
        policy_window: int | None = 5000,
        min_overlap: float = 0.25,
        policy_gradient_steps: int | None = None,
        kl_coef: float = 0.0,
        trajectories: str = "real",
        target_update_interval: int = 50,
        tau: float = 1.0,
        action_noise: ActionNoise | float | None = None,
        max_grad_norm: float | None = 10.0,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        # A dictionary, because mypy cannot see that *args end before these.
        own: dict[str, Any] = {"horizon": horizon, "tau": tau, "action_noise": action_noise, "max_grad_norm": max_grad_norm}
        super().__init__(policy, env, learning_rate, *args, **{**kwargs, **own})
        self.policy_replay = policy_replay
        self.policy_window = policy_window
        self.min_overlap = min_overlap
        self.policy_gradient_steps = policy_gradient_steps
        self.kl_coef = kl_coef
        self.trajectories = trajectories
        self.target_update_interval = target_update_interval
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_choice("trajectories", self.trajectories, ("real", "imagined"))
        check_svg(self)

    def _check_horizon(self) -> None:
        if self.horizon is not None:
            super()._check_horizon()

    def _setup_model(self) -> None:
        # The horizon decides what the critic is a function of.
        self.policy_kwargs = {**self.policy_kwargs, "state_values": self.horizon != 0}
        super()._setup_model()
        check_train_freq(self)

    def _needs_model(self) -> bool:
        return super()._needs_model() or self.horizon != 0

    # ---------------------------------------------------------------- experience

    def _experience(self) -> Windows | None:
        """What the next policy step learns from; None while there is nothing: no episode is over."""
        buffer = self.replay_buffer
        if self.horizon is None:
            places = buffer.episodes(buffer.fresh)
        else:
            places = buffer.draw(self.batch_size, max(self.horizon, 1), self._newest())
        return buffer.windows(places, self._vec_normalize_env) if len(places.steps) else None

    def _newest(self) -> int | None:
        """How many of the newest steps the policy learns from; None: all."""
        if not self.policy_replay:
            return self.replay_buffer.fresh
        return None if self.policy_window is None else max(self.policy_window // self.n_envs, 1)

    # ---------------------------------------------------------------- critic

    def _policy(self, obs: th.Tensor) -> th.Tensor:
        """A sample of pi_theta on flat states."""
        return self.actor(self._flat.unflatten(obs))

    def _state_value(self, obs: PyTorchObs) -> th.Tensor:
        """The smallest target critic's V(s), or with horizon 0 Q(s, a), ``a ~ pi``; (N, 1)."""
        values = self.critic_target(obs, self.actor(obs) if self.horizon == 0 else None)
        return th.cat(values, dim=1).amin(dim=1, keepdim=True)

    def _evaluation(self) -> Evaluation:
        return Evaluation(self._policy, partial(self._values, self.critic_target))

    def _critic_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """Fitted policy evaluation: ``w/2 (y - V(s))^2``, ``y = r + gamma V_target(s')`` (Alg. 4). Q needs no weights: its
        target asks today's policy."""
        if self.horizon == 0:
            return super()._critic_loss(batch)
        target, weights = self._critic_target(batch), self._weights_of_rows(batch)
        values = self.critic(batch.observations, batch.actions)
        losses = [(weights * (value - target)[:, 0].square()).mean() for value in values]
        return self._sum_of_critics(losses), {"v_abs_mean": values[0].detach().abs().mean()}

    def _update_targets(self) -> None:
        if self._n_updates % self.target_update_interval == 0:
            super()._update_targets()

    # ---------------------------------------------------------------- actor

    def _renoised_policy(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.actor.renoised(self._flat.unflatten(obs), actions)

    def _rollout(self, real: Trajectory) -> Rollout:
        if self.trajectories == "real":
            return follow(self.world_model, self._renoised_policy, real)
        return imagine(self.world_model, self._policy, real.obs[0], len(real.rewards))

    def _last_value(self, rollout: Rollout, lengths: list[int]) -> th.Tensor:
        """V(s_k) of each rollout, k its length; Q(s_0, a_0) with horizon 0; nothing beyond a whole episode. (N,)"""
        if self.horizon is None:
            return th.zeros_like(rollout.alive[0])
        ends = th.tensor(lengths, device=rollout.obs.device), th.arange(len(lengths), device=rollout.obs.device)
        actions = rollout.actions[0]  # V does not look at it
        return self._values(self.critic, rollout.obs[ends], actions).amin(0)

    def _expansions(self, windows: Windows) -> th.Tensor:
        """J_k of each stretch, k its length: at most ``horizon``, and the whole where that is None. (N,)"""
        real, lengths = windows.trajectory, windows.lengths
        if self.horizon == 0:
            real = Trajectory(real.obs[:1], real.actions[:1], real.rewards[:0], real.dones[:0])
            lengths = [0] * len(lengths)
        rollout, horizons = self._rollout(real), sorted(set(lengths))
        values = self._last_value(rollout, lengths).expand(len(horizons), -1)
        expansions = value_expansions(rollout.rewards, rollout.alive, values, self.gamma, horizons)
        if len(horizons) == 1:
            return expansions[0]
        rows = th.tensor([horizons.index(length) for length in lengths], device=expansions.device)
        return expansions.gather(0, rows[None])[0]

    def _policy_weights(self, windows: Windows) -> th.Tensor:
        """Importance weights of the stretches, (N,). What the model imagines, and whole episodes, are of today's policy."""
        if self.horizon is None or self.trajectories == "imagined":
            return th.ones_like(windows.within[0])
        return self._weights_of_windows(windows)

    def _policy_loss(
        self, windows: Windows, before: GaussianActor | None = None
    ) -> tuple[th.Tensor | None, dict[str, th.Tensor]]:
        """``-mean(w J_k)`` (eq. 13), plus ``kl_coef`` times the divergence from the policy as it was ``before``. None
        where the policy has left this experience behind."""
        weights = self._policy_weights(windows)
        logged = {"importance_weight": weights.mean(), "policy_overlap": overlap(weights)}
        if self.min_overlap > 0 and logged["policy_overlap"] < self.min_overlap:
            return None, logged
        loss = -(weights * self._expansions(windows)).mean()
        if before is not None:
            obs = self._flat.unflatten(windows.trajectory.obs[0])
            with th.no_grad():
                old_mean, old_log_std, _ = before.get_action_dist_params(obs)
            mean, log_std, _ = self.actor.get_action_dist_params(obs)
            divergence = gaussian_kl(mean, log_std, old_mean, old_log_std).mean()
            loss, logged["kl"] = loss + self.kl_coef * divergence, divergence
        return loss, logged

    def _actor_loss(self, batch: Batch) -> tuple[th.Tensor | None, dict[str, th.Tensor]]:
        windows = self._experience()
        assert windows is not None
        self.replay_buffer.fresh = 0  # without replay, experience serves once
        return self._policy_loss(windows)

    # ---------------------------------------------------------------- when

    def _policy_can_step(self) -> bool:
        """A critic of states says nothing about actions without a model."""
        return self.horizon == 0 or self._model_is_ready

    def _learns_policy_in_step(self) -> bool:
        in_step = self.policy_gradient_steps is None and self._policy_can_step()
        return in_step and (self.policy_replay or self.replay_buffer.fresh > 0)

    def _gradient_step(self, batch_size: int, losses: Losses) -> None:
        """SVG(inf) has no critic: the model learns alone."""
        if self.horizon is not None:
            super()._gradient_step(batch_size, losses)
            return
        self.replay_buffer.check_holds(self.replay_buffer.fresh)
        if self._trains_model():
            for _ in range(self.model_gradient_steps):
                append(losses, self._update_model(self._sample(batch_size)))

    def _on_episode_end(self, losses: Losses) -> None:
        """The policy's steps after an episode: Alg. 1 lines 8-15, and app. D's replay."""
        steps = 1 if self.horizon is None else self.policy_gradient_steps
        if steps is None or not self._policy_can_step():
            return
        if self.horizon is None and not self.replay_buffer.is_between_episodes:
            return  # the one that ended did so before learning began, and this one must stay one policy's
        before = copy.deepcopy(self.actor) if self.kl_coef > 0 else None
        for _ in range(steps):
            windows = self._experience()
            if windows is None:
                return
            logged = self._update_actor(lambda: self._policy_loss(windows, before))  # noqa: B023 (called at once)
            append(losses, logged)
            if "actor_loss" not in logged:
                break
        self.replay_buffer.fresh = 0
