"""What all value-gradient algorithms share: a world model in the policy, and the package's only ``train()``."""

import copy
import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import FloatSchedule, get_parameters_by_name, update_learning_rate
from stable_baselines3.td3.policies import Actor

from sb3_valuegrad.algorithms.gradients import frozen, guarded_step
from sb3_valuegrad.diagnostics.model_error import open_loop_errors
from sb3_valuegrad.errors import MismatchError
from sb3_valuegrad.held_out import BLOCK, held_out_segments
from sb3_valuegrad.observations import FlatObservations, check_spaces
from sb3_valuegrad.policies import MlpPolicy, MultiInputPolicy, QCritic, ValueGradientPolicy
from sb3_valuegrad.replay import Batch, PackedReplayBuffer, sample_batch
from sb3_valuegrad.world_models import WorldModel

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="ValueGradientAlgorithm")
Losses = dict[str, list[th.Tensor]]


class ValueGradientAlgorithm(OffPolicyAlgorithm):
    """Base of all algorithms: trains critic and world model on minibatches, then the policy through the model.

    A leaf states what its paper changes in three hooks: :meth:`_critic_loss`, :meth:`_actor_loss`, and
    :meth:`_on_episode_end`. Parameters not listed are SB3's (:class:`~stable_baselines3.TD3`).

    :param learning_rate: the actor's; a float or a schedule of the remaining progress
    :param qf_learning_rate: the critics', float or schedule; None: ``learning_rate``
    :param model_learning_rate: the world model's, float or schedule; None: ``learning_rate``
    :param action_noise: exploration noise on actions scaled to [-1, 1]: a float is the standard deviation of Gaussian
        noise; None: no noise
    :param policy_delay: critic updates per actor and target update
    :param horizon: imagined steps; 0 never uses the model
    :param model_learning_starts: environment steps before the world model learns. It then first makes one update for
        each step that is stored, so that the policy never meets an untrained model; until then the policy follows the critic
        alone
    :param model_gradient_steps: world-model updates per critic update
    :param model_validation_fraction: share of the replay buffer that the model is not fitted to, for its logged
        prediction errors; 0: none
    :param max_grad_norm: clip each network's gradient to this norm; None: do not
    :raises ValueError: for arguments out of range, and spaces that value gradients cannot pass through
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: ValueGradientPolicy
    actor: Actor
    actor_target: Actor
    critic: QCritic
    critic_target: QCritic
    world_model: WorldModel
    replay_buffer: ReplayBuffer

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
        qf_learning_rate: float | Schedule | None = 1e-3,
        model_learning_rate: float | Schedule | None = 1e-3,
        model_learning_starts: int = 0,
        model_gradient_steps: int = 1,
        model_validation_fraction: float = 0.05,
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
            env,  # type: ignore[arg-type]
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,  # type: ignore[arg-type]
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
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
        self.qf_learning_rate = qf_learning_rate
        self.model_learning_rate = model_learning_rate
        self.model_learning_starts = model_learning_starts
        self.model_gradient_steps = model_gradient_steps
        self.model_validation_fraction = model_validation_fraction
        self.max_grad_norm = max_grad_norm
        self._n_model_updates = 0
        self._episodes_ended = 0

    # ---------------------------------------------------------------- set-up

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(
                f"policy={policy_name!r} is unknown; use one of {list(self.policy_aliases)}. Pixels (CnnPolicy) are not "
                "supported: the world model predicts the observation itself."
            )
        return super()._get_policy_from_name(policy_name)

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument, its value and the way out"""
        counts = {"horizon": 0, "policy_delay": 1, "batch_size": 1, "buffer_size": 1, "learning_starts": 0, "n_steps": 1}
        counts.update(gradient_steps=-1, model_learning_starts=0, model_gradient_steps=1)
        for name, least in counts.items():
            check_count(name, getattr(self, name), least)
        for name, most in {"gamma": 1.0, "tau": 1.0, "model_validation_fraction": 0.5}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, {most:g}]")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} must be positive; None does not clip")
        if self.n_steps > 1 and self.replay_buffer_class is None and isinstance(self.observation_space, spaces.Dict):
            raise ValueError(
                f"n_steps={self.n_steps} does not work with Dict observations yet; use n_steps=1, or flatten them with "
                "gymnasium.wrappers.FlattenObservation"
            )
        self._check_rates_and_noise()

    def _check_rates_and_noise(self) -> None:
        noise = self.action_noise
        is_deviation = isinstance(noise, Real) and not isinstance(noise, bool) and noise >= 0
        if not (is_deviation or noise is None or isinstance(noise, ActionNoise)):
            raise ValueError(
                f"action_noise={noise!r} must be a standard deviation >= 0, one of SB3's ActionNoise objects, or None to "
                "explore without noise"
            )
        for name in ("learning_rate", "qf_learning_rate", "model_learning_rate"):
            rate = getattr(self, name)
            if not (callable(rate) or isinstance(rate, Real) or (rate is None and name != "learning_rate")):
                raise ValueError(
                    f"{name}={rate!r} must be a number or a schedule (a function of the remaining progress). In YAML write "
                    "!!float 1e-3: a plain 1e-3 is a string there"
                )

    def _setup_model(self) -> None:
        self._check_arguments()
        check_spaces(self.observation_space, self.action_space)
        if self.replay_buffer_class in (None, PackedReplayBuffer):
            # Chosen afresh each time: a loaded model may come with other arguments than it was saved with.
            self.replay_buffer_class = PackedReplayBuffer if self._can_pack() else None
        super()._setup_model()
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
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        self.world_model = self.policy.world_model
        self._flat: FlatObservations = self.policy.flat_observations
        # What the actor's loss must leave alone: a features extractor shared with the critic is the actor's.
        self._actor_parameters = list(self.actor.parameters())
        own = set(self._actor_parameters)
        others = [*self.critic.parameters(), *self.world_model.parameters()]
        self._other_parameters = [parameter for parameter in others if parameter not in own]
        self._online: list[th.Tensor] = [*self.critic.parameters(), *self._actor_parameters]
        self._targets: list[th.Tensor] = [*self.critic_target.parameters(), *self.actor_target.parameters()]
        # Running statistics (batch norm) are copied, not averaged, see SB3's issue 996.
        online, target = (self.critic, self.actor), (self.critic_target, self.actor_target)
        self._online_statistics = [stat for net in online for stat in get_parameters_by_name(net, ["running_"])]
        self._target_statistics = [stat for net in target for stat in get_parameters_by_name(net, ["running_"])]

    # ---------------------------------------------------------------- hooks

    @abstractmethod
    def _critic_loss(self, batch: Batch) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """The critics' loss, and what else to log by name."""

    @abstractmethod
    def _actor_loss(self, batch: Batch) -> th.Tensor:
        """The policy's loss; only the actor's parameters may be in its graph."""

    def _needs_model(self) -> bool:
        """Whether anything would use the world model; it is not trained otherwise."""
        return self.horizon > 0

    def _on_episode_end(self, losses: Losses) -> None:
        """After the updates that follow the end of at least one episode."""

    # ---------------------------------------------------------------- training

    @property
    def _model_is_ready(self) -> bool:
        return not self.world_model.is_learned or self._n_model_updates > 0

    def _trains_model(self) -> bool:
        has_begun = self._n_model_updates > 0 or self.num_timesteps > self.model_learning_starts
        return has_begun and self.world_model.is_learned and self._needs_model()

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Sample the replay buffer and update all networks ``gradient_steps`` times.

        :raises ValueError: if a loss or gradient was not finite; the update was withheld, so the parameters are good
        """
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        losses: Losses = defaultdict(list)
        self._warm_up_model(batch_size)
        for _ in range(gradient_steps):
            self._n_updates += 1
            self._gradient_step(batch_size, losses)
        if self._episode_num > self._episodes_ended:
            self._episodes_ended = self._episode_num
            self._on_episode_end(losses)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._record(losses)

    def _sample(self, batch_size: int) -> Batch:
        env, held_out = self._vec_normalize_env, self.model_validation_fraction
        return sample_batch(self.replay_buffer, batch_size, self._flat, held_out, env)

    def _gradient_step(self, batch_size: int, losses: Losses) -> None:
        """One step of critics and world model, and, every ``policy_delay`` steps, of the actor and the targets."""
        batch = self._sample(batch_size)
        if self._trains_model():
            withheld = self._update_critic_and_model(batch, losses)
            for _ in range(self.model_gradient_steps - 1):
                _append(losses, self._update_model(self._sample(batch_size)))
        else:
            withheld = self._update_critic(batch, losses)
        if self._n_updates % self.policy_delay == 0:
            _append(losses, self._update_actor(lambda: self._actor_loss(batch), after=withheld))
            self._update_targets()

    def _update_critic(self, batch: Batch, losses: Losses) -> th.Tensor:
        """:return: whether the update was withheld"""
        loss, logged = self._critic_loss(batch)
        (norm,), withheld = guarded_step(loss, [self.critic.optimizer], self.max_grad_norm)
        _append(losses, {**logged, "critic_loss": loss, "critic_grad_norm": norm})
        return withheld

    def _update_critic_and_model(self, batch: Batch, losses: Losses) -> th.Tensor:
        """Both learn from the same minibatch and share no parameter: one backward pass serves both.

        :return: whether the update was withheld
        """
        loss, logged = self._critic_loss(batch)
        model_losses = self._model_losses(batch)
        optimizers = [self.critic.optimizer, self.world_model.optimizer]
        norms, withheld = guarded_step(loss + model_losses["model_loss"], optimizers, self.max_grad_norm)
        _append(losses, {**logged, "critic_loss": loss, "critic_grad_norm": norms[0]})
        _append(losses, {**model_losses, "model_grad_norm": norms[1]})
        self._n_model_updates += 1
        return withheld

    def _update_actor(self, loss_of: Callable[[], th.Tensor], after: th.Tensor | None = None) -> dict[str, th.Tensor]:
        """The only policy step: critic and world model are frozen while the loss is built.

        :param after: whether an earlier step on the same data was withheld
        """
        with frozen(self._other_parameters):
            loss = loss_of()
        (norm,), _ = guarded_step(loss, [self.actor.optimizer], self.max_grad_norm, after=after)
        return {"actor_loss": loss, "actor_grad_norm": norm}

    def _model_losses(self, batch: Batch) -> dict[str, th.Tensor]:
        with th.no_grad():
            self.world_model.observe(batch.transitions)
            self.world_model.updates += 1
        parts = self.world_model.losses(batch.transitions)
        first, *others = parts.values()
        return {**parts, "model_loss": sum(others, start=first)}

    def _update_model(self, batch: Batch) -> dict[str, th.Tensor]:
        """One step of the world model alone."""
        logged = self._model_losses(batch)
        (norm,), _ = guarded_step(logged["model_loss"], [self.world_model.optimizer], self.max_grad_norm)
        self._n_model_updates += 1
        return {**logged, "model_grad_norm": norm}

    def _warm_up_model(self, batch_size: int) -> None:
        """Before its first use the world model makes one update for each step that is stored."""
        if self._n_model_updates == 0 and self._trains_model():
            for _ in range(self.replay_buffer.size() * self.model_gradient_steps):
                self._update_model(self._sample(batch_size))

    @th.no_grad()
    def _update_targets(self) -> None:
        th._foreach_lerp_(self._targets, self._online, self.tau)
        if self._target_statistics:
            th._foreach_copy_(self._target_statistics, self._online_statistics)

    def _update_learning_rates(self) -> None:
        progress = self._current_progress_remaining
        rates = {
            "learning_rate": (self.actor.optimizer, self.lr_schedule(progress)),
            "qf_learning_rate": (self.critic.optimizer, self.qf_lr_schedule(progress)),
        }
        if self.world_model.is_learned:
            rates["model_learning_rate"] = (self.world_model.optimizer, self.model_lr_schedule(progress))
        for name, (optimizer, rate) in rates.items():
            update_learning_rate(optimizer, rate)
            self.logger.record(f"train/{name}", rate)

    # ---------------------------------------------------------------- what the user sees

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

    def dump_logs(self) -> None:
        """Write the log, with the world model's prediction error on held-out data."""
        if self._needs_model() and self._model_is_ready:
            for name, value in self.model_errors().items():
                self.logger.record(f"train/{name}", value)
        super().dump_logs()

    def model_errors(self, steps: int = 5, most: int = 512) -> dict[str, float]:
        """Prediction error of the world model on held-out transitions: one step, and ``steps`` steps open loop.

        :param steps: length of the open-loop prediction, 1 to 32
        :param most: at most so many stretches of experience, the newest
        :return: see :func:`~sb3_valuegrad.diagnostics.open_loop_errors`; empty while nothing has been held out
        """
        if not 1 <= steps <= BLOCK:
            raise ValueError(f"steps={steps} must be between 1 and {BLOCK}, the length of a held-out stretch")
        held_out = held_out_segments(
            self.replay_buffer, self._flat, self.model_validation_fraction, steps, most, self._vec_normalize_env
        )
        if held_out is None:
            return {}
        state, reward = open_loop_errors(self.world_model, *held_out)
        names = {"model_error_1": state[0], f"model_error_{steps}": state[-1], "model_reward_error": reward[0]}
        return {name: value.item() for name, value in names.items()}

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Refuse experience that would poison the buffer and the world model's statistics, then store it."""
        self._check_finite({"reward": reward})
        self._check_finite(new_obs)
        for index in np.flatnonzero(dones):
            # There new_obs is the next episode's first; the last of this one is what will be stored.
            if infos[index].get("terminal_observation") is not None:
                self._check_finite(infos[index]["terminal_observation"])
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _check_finite(self, values: np.ndarray | dict[str, np.ndarray]) -> None:
        """:param values: an observation, or numbers by name"""
        for name, value in (values if isinstance(values, dict) else {"observation": values}).items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"The environment returned a non-finite {name} at step {self.num_timesteps}: {value}. Nothing was "
                    "learned from it; check the environment (stable_baselines3.common.vec_env.VecCheckNan finds the place)."
                )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """SB3's, which resets the environment; its first observation must be finite as well."""
        prepared = super()._setup_learn(*args, **kwargs)
        self._check_finite(self._last_obs)  # type: ignore[arg-type]
        return prepared

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """SB3's ``learn``; the TensorBoard run is named after the class."""
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        if reset_num_timesteps:
            self._episodes_ended = 0
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    # ---------------------------------------------------------------- saving and loading

    def _excluded_save_params(self) -> list[str]:
        networks = ["actor", "actor_target", "critic", "critic_target", "world_model"]
        derived = ["_flat", "_actor_parameters", "_other_parameters", "_online", "_targets"]
        return [*super()._excluded_save_params(), *networks, *derived, "_online_statistics", "_target_statistics"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "actor.optimizer", "critic.optimizer"]
        return [*names, "world_model.optimizer"] if self.world_model.is_learned else names, []

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """SB3's ``set_parameters``.

        :raises MismatchError: a ``ValueError``, if the parameters belong to other networks (say, another world model)
        """
        before = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(load_path_or_dict, exact_match, device)
        except (RuntimeError, ValueError) as error:
            # PyTorch has copied by now what did fit.
            super().set_parameters(before, device=device)  # type: ignore[arg-type]
            part = "world model" if "world_model" in str(error) else "policy"
            raise MismatchError(
                f"load_path_or_dict does not fit this model's {part}: build the model with the policy_kwargs it was saved "
                f"with (world_model_class and world_model_kwargs are among them). The cause: {error}"
            ) from error
        self._n_model_updates = int(self.world_model.updates)


def _append(losses: Losses, values: dict[str, th.Tensor]) -> None:
    for name, value in values.items():
        losses[name].append(value.detach())


def check_count(name: str, value: Any, least: int) -> None:
    """:raises ValueError: if ``value`` is not a whole number of at least ``least``"""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
