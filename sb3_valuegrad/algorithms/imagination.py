"""Imagined experience: short model rollouts from real states, kept in a buffer and mixed into the minibatches."""

from abc import abstractmethod
from typing import Any

import torch as th

from sb3_valuegrad.algorithms.arguments import check_share
from sb3_valuegrad.algorithms.model_based import ModelBasedAlgorithm
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.replay import Batch
from sb3_valuegrad.rollouts import Policy
from sb3_valuegrad.world_models import WorldModel

# Rows in one imagined batch: small enough for the caches (measured, benchmarks/ensemble_speed.py).
CHUNK = 4000


class ImaginedBuffer:
    """A ring of imagined transitions, rows ``[s, a, r, done, s']``. It is saved like a network, what is in it alone.

    :param capacity: rows
    :param obs_dim: S
    :param action_dim: A
    :param device: where the rows are kept
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, device: th.device | str = "cpu"):
        self.capacity, self.widths = capacity, [obs_dim, action_dim, 1, 1, obs_dim]
        self.rows = th.zeros(capacity, sum(self.widths), device=device)
        # Rows stored so far, those that have been overwritten included.
        self.total = 0

    def __len__(self) -> int:
        return min(self.total, self.capacity)

    def add(self, rows: th.Tensor) -> None:
        """Keep rows (N, 2 S + A + 2), in the place of the oldest where full."""
        rows = rows[-self.capacity :]
        places = th.arange(self.total, self.total + len(rows), device=rows.device) % self.capacity
        self.rows[places] = rows
        self.total += len(rows)

    def sample(self, count: int) -> list[th.Tensor]:
        """Random rows as s (N, S), a (N, A), r (N, 1), done (N, 1), s' (N, S)."""
        chosen = th.randint(len(self), (count,), device=self.rows.device)
        return list(self.rows.index_select(0, chosen).split(self.widths, dim=1))

    def state_dict(self) -> dict[str, th.Tensor]:
        """What is in it; ``stored`` is a float, like every number that we save."""
        return {"rows": self.rows[: len(self)], "stored": th.tensor(self.total, dtype=th.float64)}

    def load_state_dict(self, state: dict[str, th.Tensor], strict: bool = True) -> None:
        """:raises ValueError: for rows of another width, or more than there is room for"""
        rows = state["rows"]
        if rows.shape[1] != self.rows.shape[1] or len(rows) > self.capacity:
            raise ValueError(
                f"The imagined transitions {tuple(rows.shape)} do not fit into {tuple(self.rows.shape)}: build the model "
                "with the imagined_buffer_size and the spaces it was saved with"
            )
        self.rows[: len(rows)] = rows.to(self.rows.device)
        self.total = int(state["stored"])


class ImaginingAlgorithm(ModelBasedAlgorithm):
    """Learns from imagined transitions beside real ones (MBPO; MAAC Alg. 1 lines 6-7; MVE's baseline IB).

    :param real_ratio: share of real transitions in a minibatch; 1: nothing is imagined
    :param rollout_length: k, steps of an imagined rollout, which starts from a replayed state; or [k0, k1, t0, t1]: from
        k0 to k1 steps, linearly between environment steps t0 and t1
    :param rollouts_per_step: rollouts per environment step, all at once after a fit, or before the updates where the model
        learns in step with the critic or is given
    :param imagined_buffer_size: transitions kept; the oldest go first

    The other parameters are those of :class:`~sb3_valuegrad.algorithms.model_based.ModelBasedAlgorithm`.
    """

    def __init__(
        self,
        *args: Any,
        real_ratio: float = 1.0,
        rollout_length: int | list[int] = 1,
        rollouts_per_step: int = 40,
        imagined_buffer_size: int = 100_000,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.real_ratio = real_ratio
        self.rollout_length = rollout_length
        self.rollouts_per_step = rollouts_per_step
        self.imagined_buffer_size = imagined_buffer_size

    @abstractmethod
    def _behaviour(self) -> Policy:
        """The policy that imagines, on flat states: the one that acts, its exploration included."""

    def _check_model_arguments(self) -> None:
        super()._check_model_arguments()
        check_share("real_ratio", self.real_ratio)
        check_count("rollouts_per_step", self.rollouts_per_step, 1)
        check_count("imagined_buffer_size", self.imagined_buffer_size, 1)
        is_schedule = isinstance(self.rollout_length, (list, tuple)) and len(self.rollout_length) == 4
        if is_schedule and self.rollout_length[2] >= self.rollout_length[3]:  # type: ignore[index]
            raise ValueError(f"rollout_length={self.rollout_length}: [k0, k1, t0, t1] needs t0 < t1")
        for length in self.rollout_length[:2] if is_schedule else [self.rollout_length]:  # type: ignore[index]
            check_count("rollout_length", length, 1)

    def _setup_model(self) -> None:
        super()._setup_model()
        model = self.world_model
        self.imagined = ImaginedBuffer(self.imagined_buffer_size, model.obs_dim, model.action_dim, self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "imagined"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "imagined"] if self.real_ratio < 1 else names, variables

    def _needs_model(self) -> bool:
        return super()._needs_model() or self.real_ratio < 1

    # ---------------------------------------------------------------- imagining

    def _rollout_length_now(self) -> int:
        if isinstance(self.rollout_length, int):
            return self.rollout_length
        first, last, start, end = self.rollout_length
        progress = min(max((self.num_timesteps - start) / (end - start), 0.0), 1.0)
        return int(first + progress * (last - first))

    def _on_model_fit(self) -> None:
        super()._on_model_fit()
        if self.real_ratio < 1 and self._model_is_ready and self.model_fit_freq is not None:
            self._imagine(self.rollouts_per_step * self.model_fit_freq)

    def _prepare_model(self, batch_size: int, losses: Any) -> None:
        super()._prepare_model(batch_size, losses)
        # A model that is given is never fitted, whatever the schedule says.
        after_fits = self.model_fit_freq is not None and self.world_model.is_learned
        if self.real_ratio < 1 and self._model_is_ready and not after_fits:
            self._imagine(self.rollouts_per_step)

    @th.no_grad()
    def _imagine(self, rollouts: int) -> None:
        """Roll the policy out from replayed states, and keep what was seen."""
        for start in range(0, rollouts, CHUNK):
            obs = self._flat.flatten(super()._sample(min(CHUNK, rollouts - start)).observations)
            for rows in imagined_transitions(self.world_model, self._behaviour(), obs, self._rollout_length_now()):
                self.imagined.add(rows)

    def _sample(self, batch_size: int) -> Batch:
        """A minibatch: the first rows are real, the others imagined; the world model's rows are real."""
        batch = super()._sample(batch_size)
        imagined = batch_size - round(self.real_ratio * batch_size)
        if imagined == 0 or len(self.imagined) == 0:
            return batch
        obs, actions, rewards, dones, next_obs = self.imagined.sample(imagined)
        real = batch_size - imagined
        discounts = batch.discounts
        if discounts is not None:
            discounts = th.cat([discounts[:real], th.full_like(rewards, self.gamma)])
        return Batch(
            self._flat.unflatten(th.cat([self._flat.flatten(batch.observations)[:real], obs])),
            th.cat([batch.actions[:real], actions]),
            self._flat.unflatten(th.cat([self._flat.flatten(batch.next_observations)[:real], next_obs])),
            th.cat([batch.dones[:real], dones]),
            th.cat([batch.rewards[:real], rewards]),
            discounts,
            batch.transitions,
        )


def imagined_transitions(model: WorldModel, policy: Policy, obs: th.Tensor, length: int) -> list[th.Tensor]:
    """``length`` steps from each state (N, S), as rows ``[s, a, r, done, s']``, one block a step.

    Whether an imagined episode ends is drawn from the model's chance of it; then its row says done, and it goes no
    further.
    """
    blocks = []
    for _ in range(length):
        action = policy(obs)
        action = action[0] if isinstance(action, tuple) else action
        next_obs, reward, done = model.step(obs, action)
        ended = th.bernoulli(done.clamp(0, 1))
        blocks.append(th.cat([obs, action, reward[:, None], ended[:, None], next_obs], dim=1))
        obs = next_obs[ended == 0]
        if len(obs) == 0:
            break
    return blocks
