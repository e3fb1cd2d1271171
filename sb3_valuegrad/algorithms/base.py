"""What all value-gradient algorithms share: a world model in the policy, and the package's only ``train()``."""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, get_parameters_by_name, update_learning_rate
from stable_baselines3.sac.policies import Actor as SquashedActor
from stable_baselines3.td3.policies import Actor
from torch import nn

from sb3_valuegrad.algorithms.arguments import check_action_noise, check_choice, check_learning_rate, check_share
from sb3_valuegrad.algorithms.model_based import Losses, ModelBasedAlgorithm, append
from sb3_valuegrad.algorithms.targets import ESTIMATES, ESTIMATORS, Evaluation, td_k_examples
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.gradients import frozen, guarded_step
from sb3_valuegrad.layers import squared_error
from sb3_valuegrad.observations import FlatObservations, check_spaces
from sb3_valuegrad.policies import QCritic, ValueGradientPolicy
from sb3_valuegrad.replay import Batch, PackedReplayBuffer
from sb3_valuegrad.world_models import WorldModel


class ValueGradientAlgorithm(ModelBasedAlgorithm):
    """Base of all algorithms: trains critic and world model on minibatches, then the policy through the model.

    A family gives :meth:`_state_value` and :meth:`_evaluation` (whom the critic evaluates), a leaf states what its paper
    changes: :meth:`_actor_loss`, :meth:`_critic_loss`, :meth:`_on_episode_end`. Parameters not listed are SB3's
    (:class:`~stable_baselines3.TD3`).

    :param learning_rate: the actor's; a float or a schedule of the remaining progress
    :param qf_learning_rate: the critics', float or schedule; None: ``learning_rate``
    :param model_learning_rate: the world model's, float or schedule; None: ``learning_rate``
    :param action_noise: exploration noise on actions scaled to [-1, 1]: a float is the standard deviation of Gaussian
        noise; None: no noise
    :param policy_delay: critic updates per actor and target update
    :param horizon: imagined steps in the policy's objective; 0: none
    :param target_estimator: what the critic's target takes the next state to be worth: "td", the target critic's word;
        "mve", the value expansion J_H (Feinberg et al. 2018); "td-k", that, and the critic learns on the imagined
        states, too; "steve", all of J_0 .. J_H weighted by their certainty over the ensemble's members and the critics
        (Buckman et al. 2018); "steve-crossed", also over all pairs of members for states and rewards, which is slow
    :param target_horizon: H, the imagined steps in the critic's target. Where ``policy_kwargs`` names a ``simulator_class``,
        they are the simulator's
    :param batch_reuse: updates in a row that one minibatch serves, with the critic's targets of its first use (MPG, sec. IV-B:
        where targets cost much)
    :param model_learning_starts: environment steps before the world model learns. It then first makes one update for
        each step that is stored, so that the policy never meets an untrained model; until then the policy follows the critic
        alone
    :param model_gradient_steps: world-model updates per critic update
    :param model_validation_fraction: share of the replay buffer that the model is not fitted to, for its logged
        prediction errors, and to end a fit by; 0: none
    :param model_fit_freq: environment steps from one fit to convergence to the next, on everything stored (MBPO, MAAC);
        None: the model learns in step with the critic, from the same minibatches
    :param model_fit_kwargs: of :func:`~sb3_valuegrad.world_models.fitting.fit`: patience, max_epochs, batch_size
    :param on_fit_error: what a fit that diverges does: "raise" a ``ValueError``, or "keep" the last good model and go on
    :param max_grad_norm: clip each network's gradient to this norm; None: do not
    :raises ValueError: for arguments out of range, and spaces that value gradients cannot pass through
    """

    # SAC halves the critics' squared errors, DDPG and TD3 do not.
    critic_loss_scale: ClassVar[float] = 1.0
    # What an update reads and writes beside networks and optimizers, and what is saved with them.
    update_memory: ClassVar[tuple[str, ...]] = ()
    # What keeps the experience where nothing else is asked for and observations are a Box.
    buffer_class: ClassVar[type[PackedReplayBuffer]] = PackedReplayBuffer

    actor: Actor | SquashedActor
    critic: QCritic
    critic_target: QCritic

    def __init__(
        self,
        policy: str | type[ValueGradientPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | float | None = 0.1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        policy_delay: int = 1,
        *,
        horizon: int = 1,
        target_estimator: str = "td",
        target_horizon: int = 0,
        batch_reuse: int = 1,
        qf_learning_rate: float | Schedule | None = 1e-3,
        model_learning_rate: float | Schedule | None = 1e-3,
        model_learning_starts: int = 0,
        model_gradient_steps: int = 1,
        model_validation_fraction: float = 0.05,
        model_fit_freq: int | None = None,
        model_fit_kwargs: dict[str, Any] | None = None,
        on_fit_error: str = "raise",
        max_grad_norm: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
    ):
        if env is not None:
            # SB3 asserts; our users get the way out. (env is None where a saved model is loaded without one.)
            env = maybe_make_env(env, verbose)
            check_spaces(env.observation_space, env.action_space)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            model_learning_starts=model_learning_starts,
            model_gradient_steps=model_gradient_steps,
            model_validation_fraction=model_validation_fraction,
            model_fit_freq=model_fit_freq,
            model_fit_kwargs=model_fit_kwargs,
            on_fit_error=on_fit_error,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
        )
        self.policy_delay = policy_delay
        self.horizon = horizon
        self.target_estimator = target_estimator
        self.target_horizon = target_horizon
        self.batch_reuse = batch_reuse
        self.qf_learning_rate = qf_learning_rate
        self.model_learning_rate = model_learning_rate
        self.max_grad_norm = max_grad_norm
        self._episodes_ended = 0
        self._reused: Batch | None = None

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument, its value and the way out"""
        self._check_horizon()
        counts = {"policy_delay": 1, "batch_reuse": 1, "batch_size": 1, "buffer_size": 1, "learning_starts": 0, "n_steps": 1}
        for name, least in {**counts, "gradient_steps": -1, "target_horizon": 0}.items():
            check_count(name, getattr(self, name), least)
        check_choice("target_estimator", self.target_estimator, ESTIMATORS)
        if self.target_estimator == "td" and self.target_horizon > 0:
            raise ValueError(
                f'target_horizon={self.target_horizon} has no meaning with target_estimator="td", whose target imagines '
                'nothing; use "mve", "td-k" or "steve"'
            )
        if self.target_estimator == "td-k" and self.batch_reuse > 1:
            raise ValueError(
                f'batch_reuse={self.batch_reuse} with target_estimator="td-k": its targets are of states that are imagined '
                'anew in each update; use batch_reuse=1, or target_estimator="mve"'
            )
        self._check_model_arguments()
        check_share("gamma", self.gamma)
        check_share("tau", self.tau)
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be positive; None does not clip")
        if self.n_steps > 1 and self.replay_buffer_class is None and isinstance(self.observation_space, spaces.Dict):
            raise ValueError(
                f"n_steps={self.n_steps} does not work with Dict observations yet; use n_steps=1, or flatten them with "
                "gymnasium.wrappers.FlattenObservation"
            )
        check_action_noise(self.action_noise)
        for name in ("learning_rate", "qf_learning_rate", "model_learning_rate"):
            check_learning_rate(name, getattr(self, name), optional=name != "learning_rate")

    def _check_horizon(self) -> None:
        check_count("horizon", self.horizon, 0)

    def _setup_model(self) -> None:
        self._check_arguments()
        check_spaces(self.observation_space, self.action_space)
        if self.replay_buffer_class in (None, self.buffer_class):
            # Chosen afresh each time: a loaded model may come with other arguments than it was saved with.
            self.replay_buffer_class = self.buffer_class if self._can_pack() else None
        super()._setup_model()
        if self.policy.simulator is not None and self.target_estimator == "td":
            raise ValueError(
                f'simulator_class={self.policy.simulator_class!r} with target_estimator="td", which never steps it. For '
                'n-step targets under the current policy use target_estimator="mve", target_horizon=n - 1'
            )
        if isinstance(self.action_noise, Real):
            shape = self.action_space.shape
            self.action_noise = NormalActionNoise(np.zeros(shape), np.full(shape, float(self.action_noise)))
        self.qf_lr_schedule = self._schedule(self.qf_learning_rate)
        self.model_lr_schedule = self._schedule(self.model_learning_rate)
        self._create_aliases()

    def _can_pack(self) -> bool:
        is_box = isinstance(self.observation_space, spaces.Box)
        return is_box and self.n_steps == 1 and not self.optimize_memory_usage

    def _schedule(self, learning_rate: float | Schedule | None) -> Schedule:
        return FloatSchedule(self.learning_rate if learning_rate is None else learning_rate)

    def _create_aliases(self) -> None:
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self.world_model, self.simulator = self.policy.world_model, self.policy.simulator
        self._flat: FlatObservations = self.policy.flat_observations
        # What the actor's loss must leave alone: a features extractor shared with the critic is the actor's.
        self._actor_parameters = list(self.actor.parameters())
        own = set(self._actor_parameters)
        others = [*self.critic.parameters(), *self.world_model.parameters()]
        self._other_parameters = [parameter for parameter in others if parameter not in own]
        online, targets = zip(*self._target_networks(), strict=True)
        self._online: list[th.Tensor] = [parameter for net in online for parameter in net.parameters()]
        self._targets: list[th.Tensor] = [parameter for net in targets for parameter in net.parameters()]
        # Running statistics (batch norm) are copied, not averaged, see SB3's issue 996.
        self._online_statistics = [stat for net in online for stat in get_parameters_by_name(net, ["running_"])]
        self._target_statistics = [stat for net in targets for stat in get_parameters_by_name(net, ["running_"])]

    def _target_networks(self) -> list[tuple[nn.Module, nn.Module]]:
        """Networks that have a target, and it."""
        return [(self.critic, self.critic_target)]

    # ---------------------------------------------------------------- hooks

    @abstractmethod
    def _state_value(self, obs: PyTorchObs) -> th.Tensor:
        """What the target critics and the target policy take a state to be worth, (N, 1)."""

    def _values(self, critic: QCritic, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q(s, a) by each of L critics, (L, N); flat states."""
        return th.cat(critic(self._flat.unflatten(obs), actions), dim=1).T

    @abstractmethod
    def _evaluation(self) -> Evaluation:
        """The same target policy and critics, for value expansions."""

    @abstractmethod
    def _actor_loss(self, batch: Batch) -> tuple[th.Tensor | None, dict[str, th.Tensor]]:
        """The policy's loss, and what else to log by name; only the actor's parameters may be in its graph. None: the policy
        makes no step now."""

    def _needs_model(self) -> bool:
        return self.target_estimator != "td" and self.simulator is None

    def _learns_policy_in_step(self) -> bool:
        """Whether the policy takes its steps beside the critic's."""
        return True

    def _on_episode_end(self, losses: Losses) -> None:
        """After the updates that follow the end of at least one episode."""

    # ---------------------------------------------------------------- critic

    def _critic_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """The critics' loss, and what else to log by name."""
        model = self._target_model()
        if self.target_estimator == "td-k" and self.target_horizon > 0 and model is not None:
            return self._td_k_loss(batch, model)
        target = self._critic_target(batch)
        values = self.critic(batch.observations, batch.actions)
        losses = [squared_error(value, target) for value in values]
        return self._sum_of_critics(losses), {"q_abs_mean": values[0].detach().abs().mean()}

    def _sum_of_critics(self, losses: list[th.Tensor]) -> th.Tensor:
        total = sum(losses[1:], start=losses[0])
        return total if self.critic_loss_scale == 1 else self.critic_loss_scale * total

    def _target_model(self) -> WorldModel | None:
        """By what the critic's target imagines: the simulator where there is one; None while the world model is untrained."""
        if self.simulator is not None:
            return self.simulator
        return self.world_model if self._model_is_ready else None

    @th.no_grad()
    def _critic_target(self, batch: Batch) -> th.Tensor:
        """What the critic learns, (N, 1)."""
        return self._backup(batch, self._next_value(batch)) if batch.targets is None else batch.targets

    def _backup(self, batch: Batch, next_value: th.Tensor) -> th.Tensor:
        """``r + (1 - d) gamma V(s')``, (N, 1)."""
        discounts = self.gamma if batch.discounts is None else batch.discounts
        return th.addcmul(batch.rewards, 1 - batch.dones, discounts * next_value)

    def _next_value(self, batch: Batch) -> th.Tensor:
        """What the critic's target takes the next state to be worth, (N, 1)."""
        model = self._target_model()
        if self.target_estimator == "td" or model is None:
            return self._state_value(batch.next_observations)
        estimate, obs = ESTIMATES[self.target_estimator], self._flat.flatten(batch.next_observations)
        return estimate(model, self._evaluation(), obs, self.target_horizon, self.gamma)[:, None]

    def _td_k_loss(self, batch: Batch, model: WorldModel) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """MVE's loss (Alg. 1): the squared error averaged over the real transition and the H imagined states after it.

        An imagined state weighs as much as the chance that the real and the imagined episode got there.
        """
        steps = self.target_horizon
        with th.no_grad():
            next_obs = self._flat.flatten(batch.next_observations)
            rollout, targets = td_k_examples(model, self._evaluation(), next_obs, steps, self.gamma)
            target = th.cat([self._backup(batch, targets[0][:, None])[:, 0], targets[:-1].flatten()])
            reached = (1 - batch.dones.T) * rollout.alive[:-1]
            weights = th.cat([th.ones_like(next_obs[:, 0]), reached.flatten()]) / (len(next_obs) * (steps + 1))
        obs = th.cat([self._flat.flatten(batch.observations), rollout.obs[:-1].flatten(0, 1)])
        actions = th.cat([batch.actions, rollout.actions[:-1].flatten(0, 1)])
        values = self.critic(self._flat.unflatten(obs), actions)
        losses = [weights @ (value[:, 0] - target).square() for value in values]
        return self._sum_of_critics(losses), {"q_abs_mean": values[0].detach().abs().mean()}

    # ---------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Sample the replay buffer and update all networks ``gradient_steps`` times.

        :raises ValueError: if a loss or gradient was not finite; the update was withheld, so the parameters are good
        """
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        losses: Losses = defaultdict(list)
        self._prepare_model(batch_size, losses)
        for _ in range(gradient_steps):
            self._n_updates += 1
            self._gradient_step(batch_size, losses)
        if self._episode_num > self._episodes_ended:
            self._episodes_ended = self._episode_num
            self._on_episode_end(losses)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record(losses)

    def _gradient_step(self, batch_size: int, losses: Losses) -> None:
        """One step of critics and world model, and, every ``policy_delay`` steps, of the actor and the targets."""
        batch = self._minibatch(batch_size)
        loss, logged = self._critic_loss(batch)
        norm, withheld = self._update_with_model(batch, loss, self.critic.optimizer, losses)
        append(losses, {**logged, "critic_loss": loss, "critic_grad_norm": norm})
        if self._is_policys_turn():
            if self._learns_policy_in_step():
                append(losses, self._update_actor(lambda: self._actor_loss(batch), after=withheld))
            self._update_targets()

    def _minibatch(self, batch_size: int) -> Batch:
        """A new one, or the last one with its targets, which then serves ``batch_reuse`` updates in a row."""
        if self.batch_reuse == 1:
            return self._sample(batch_size)
        if self._reused is None or (self._n_updates - 1) % self.batch_reuse == 0:
            batch = self._sample(batch_size)
            self._reused = batch._replace(targets=self._critic_target(batch))
        return self._reused

    def _is_policys_turn(self) -> bool:
        """Whether this update is one of policy and targets, too."""
        return self._n_updates % self.policy_delay == 0

    def _update_actor(
        self, loss_of: Callable[[], tuple[th.Tensor | None, dict[str, th.Tensor]]], after: th.Tensor | None = None
    ) -> dict[str, th.Tensor]:
        """The only policy step: critic and world model are frozen while the loss is built.

        :param loss_of: as :meth:`_actor_loss`
        :param after: whether an earlier step on the same data was withheld
        :return: what to log, with "actor_loss" if there was a step
        """
        with frozen(self._other_parameters):
            loss, logged = loss_of()
        if loss is None:
            return logged
        (norm,), _ = guarded_step(loss, [self.actor.optimizer], self.max_grad_norm, after=after)
        return {**logged, "actor_loss": loss, "actor_grad_norm": norm}

    @th.no_grad()
    def _update_targets(self) -> None:
        th._foreach_lerp_(self._targets, self._online, self.tau)
        if self._target_statistics:
            th._foreach_copy_(self._target_statistics, self._online_statistics)

    def _optimizers(self) -> dict[str, tuple[th.optim.Optimizer, Schedule]]:
        """What is trained, and at which rate, by the rate's argument."""
        optimizers = {
            "learning_rate": (self.actor.optimizer, self.lr_schedule),
            "qf_learning_rate": (self.critic.optimizer, self.qf_lr_schedule),
        }
        if self.world_model.is_learned:
            optimizers["model_learning_rate"] = (self.world_model.optimizer, self.model_lr_schedule)
        return optimizers

    def _update_learning_rates(self) -> None:
        for name, (optimizer, schedule) in self._optimizers().items():
            rate = schedule(self._current_progress_remaining)
            update_learning_rate(optimizer, rate)
            self.logger.record(f"train/{name}", rate)

    def _record(self, losses: Losses) -> None:
        """Read the losses, once; stop if any is not finite."""
        means = th.stack([values[0] if len(values) == 1 else th.stack(values).mean() for values in losses.values()]).tolist()
        for name, mean in zip(losses, means, strict=True):
            if not math.isfinite(mean):
                raise ValueError(
                    f"{name} is {mean} after {self.num_timesteps} steps and {self._n_updates} updates: training has "
                    "diverged, or rewards are out of range. The bad update was not applied, so the model can be saved. "
                    "Lower learning_rate or horizon, set max_grad_norm, or check the environment's rewards."
                )
            self.logger.record(f"train/{name}", mean)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._setup_learn(total_timesteps, *args, **kwargs)
        self._episodes_ended = min(self._episodes_ended, self._episode_num)  # SB3 counts afresh in a fresh learn()
        return prepared

    # ---------------------------------------------------------------- saving and loading

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "critic", "critic_target", "world_model", "simulator"]
        derived = ["_flat", "_reused", "_actor_parameters", "_other_parameters", "_online", "_targets"]
        return [*super()._excluded_save_params(), *networks, *derived, "_online_statistics", "_target_statistics"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "actor.optimizer", "critic.optimizer"]
        return [*names, "world_model.optimizer"] if self.world_model.is_learned else names, []
