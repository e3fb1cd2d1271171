"""Planning at test time: the cross-entropy method over action sequences, from a trained policy (MAAC+MPC)."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm
from sb3_valuegrad.errors import check_count
from sb3_valuegrad.planning.cross_entropy import best, cross_entropy, seeded
from sb3_valuegrad.planning.imagined_plans import ImaginedPlans
from sb3_valuegrad.policies import StochasticPolicy

# The first search around a policy that has no spread of its own; actions are in [-1, 1].
DETERMINISTIC_STD = 0.3


class CrossEntropyPlanner:
    """Model-predictive control with a trained model of this package (MAAC sec. 5.4 and Table 1: MAAC+MPC).

    In every step it searches the open-loop action sequence that is worth most in the world model, and acts its first:

    ``J_H = E[ sum_{t<H} gamma^t c_t r_t + gamma^H c_H min_i Q_i(s_H, pi(s_H)) ]``

    over the members of an ensemble; the smallest critic, as in the critics' own targets, because a search finds whatever
    a single one overrates. The paper's initial distribution is the policy; so is ours: its actions along its own rollout,
    and its spread there. The paper is silent about earlier plans. Here the one of the step before, shifted by a step and
    completed by the policy, takes the policy's place where its J_H is larger. What the search finds is taken only if its
    J_H is larger than that of both, so in a world model without noise a plan is never worth less than the policy's actions.

    It stands wherever SB3 wants something with ``predict``: ``evaluate_policy(CrossEntropyPlanner(model), env)``.

    :param model: a trained algorithm of this package
    :param horizon: H, actions in a sequence; 0: the policy acts
    :param n_samples: sequences tried in an iteration, for each environment
    :param n_elites: the best of them, which the next iteration is drawn around
    :param n_iterations: iterations of the search
    :param n_particles: rollouts that each sequence is scored by in each member of an ensemble; more than 1 is of use only
        where the model draws noise
    :param initial_std: standard deviation of the first iteration, on actions scaled to [-1, 1]; None: the policy's own,
        and 0.3 where it has none
    :param min_std: below which no iteration's standard deviation falls
    :param momentum: share of an iteration's mean and standard deviation that is kept in the next, in [0, 1)
    :param seed: of the planner's random numbers, a stream of their own: planners with one seed, asked the same questions
        in the same order, answer the same, and torch's global generator is left where it was; None: another in every run
    :param env: environment to compare with the model's spaces
    :raises ValueError: for arguments out of range, a model that is not of this package, or whose world model has learned
        nothing, and an environment with other spaces than the model's
    """

    def __init__(
        self,
        model: ValueGradientAlgorithm,
        horizon: int = 5,
        n_samples: int = 200,
        n_elites: int = 20,
        n_iterations: int = 5,
        n_particles: int = 1,
        initial_std: float | None = None,
        min_std: float = 0.05,
        momentum: float = 0.1,
        seed: int | None = None,
        env: GymEnv | None = None,
    ):
        self.model = model
        self.horizon = horizon
        self.n_samples = n_samples
        self.n_elites = n_elites
        self.n_iterations = n_iterations
        self.n_particles = n_particles
        self.initial_std = initial_std
        self.min_std = min_std
        self.momentum = momentum
        self.seed = seed
        self._check_arguments()
        self._check_model(env)
        self._random = np.random.default_rng(seed)
        self._plans = ImaginedPlans(model, horizon, n_particles)
        if initial_std is None and not isinstance(model.policy, StochasticPolicy):
            self.initial_std = DETERMINISTIC_STD

    def _check_arguments(self) -> None:
        counts = {"horizon": 0, "n_samples": 1, "n_elites": 1, "n_iterations": 1, "n_particles": 1}
        for name, least in counts.items():
            check_count(name, getattr(self, name), least)
        if self.seed is not None:
            check_count("seed", self.seed, 0)
        if self.n_elites > self.n_samples:
            raise ValueError(f"n_elites={self.n_elites} must not be more than n_samples={self.n_samples}")
        if self.initial_std is not None and not 0 < self.initial_std < math.inf:
            raise ValueError(f"initial_std={self.initial_std} must be positive; None takes the policy's own")
        if not 0 <= self.min_std < math.inf:
            raise ValueError(f"min_std={self.min_std} must not be negative; 0 lets the search close in on a point")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be in [0, 1); 0 forgets the iteration before")

    def _check_model(self, env: GymEnv | None) -> None:
        model = self.model
        if not isinstance(model, ValueGradientAlgorithm):
            raise ValueError(f"model={model!r} must be an algorithm of sb3_valuegrad, because planning needs a world model")
        if self.horizon > 0 and not model._model_is_ready:
            raise ValueError(
                f"horizon={self.horizon}: the world model of model={model!r} has learned nothing. Call learn() first (it "
                "trains the world model only where the algorithm uses it), or plan with horizon=0, which needs none"
            )
        if env is None:
            return
        try:
            check_for_correct_spaces(env, model.observation_space, model.action_space)
        except ValueError as error:
            raise ValueError(f"env={env!r} is not what the model was trained in; plan in one like that. {error}") from None

    # ---------------------------------------------------------------- SB3's interface

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The first actions of the plans, like the ``predict`` of SB3's algorithms.

        :param observation: of one environment, or of B of them, which are planned for together
        :param state: what the step before returned; None: there was none
        :param episode_start: (B,), whether an environment's plan is out of date because its episode begins
        :param deterministic: the plan's first action; False: a draw around it, from the search's last distribution
        :return: actions in the environment's bounds, (B, ...), without B for a single observation; and the rest of the
            plans, scaled to [-1, 1], (B, H - 1, A)
        :raises ValueError: for observations or a state that do not fit the model
        """
        flat, is_batch = self._flat(observation)
        shifted, begins = self._warm_start(state, episode_start, len(flat))
        policy = self.model.policy
        # World models and policies draw from torch's global generators.
        with th.no_grad(), seeded(int(self._random.integers(2**63)), self.model.device):
            if self.horizon == 0:
                return self.model.predict(observation, deterministic=deterministic)[0], None
            policy.set_training_mode(False)
            plans, std = self._plan(flat, shifted, begins)
            first = plans[0] if deterministic else th.normal(plans[0], std[0]).clamp(-1, 1)
        scaled = first.cpu().numpy().reshape(-1, *policy.action_space.shape)  # type: ignore[misc]
        actions = policy.unscale_action(scaled)
        return actions if is_batch else actions[0], (plans[1:].transpose(0, 1).cpu().numpy(),)

    def _flat(self, observation: Any) -> tuple[th.Tensor, bool]:
        """Observations as the world model takes them, (B, S), and whether they are a batch."""
        policy = self.model.policy
        try:
            tensors, is_batch = policy.obs_to_tensor(observation)
            flat = policy.flat_observations.flatten(tensors)
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"observation={observation!r} does not fit the model's {policy.observation_space}") from error
        if not th.isfinite(flat).all():
            raise ValueError(f"observation={observation!r} is not finite; check the environment")
        return flat, is_batch

    def _warm_start(
        self, state: tuple[np.ndarray, ...] | None, episode_start: Any, count: int
    ) -> tuple[th.Tensor | None, th.Tensor]:
        """The rest of the earlier plans (H - 1, B, A), and which environments have none (B,)."""
        device = self.model.device
        begins = np.zeros(count, bool) if episode_start is None else np.reshape(episode_start, -1).astype(bool)
        if begins.shape != (count,):
            raise ValueError(f"episode_start={episode_start!r} must have one entry for each of {count} observations")
        if state is None or self.horizon == 0:
            return None, th.from_numpy(begins).to(device)
        shape = (count, self.horizon - 1, self.model.world_model.action_dim)
        if np.shape(state[0]) != shape:
            raise ValueError(
                f"state holds plans of shape {np.shape(state[0])}, not {shape}: pass what predict() returned last"
            )
        return th.tensor(state[0], device=device).transpose(0, 1), th.from_numpy(begins).to(device)

    # ---------------------------------------------------------------- the search

    def _plan(self, obs: th.Tensor, shifted: th.Tensor | None, begins: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Plans for states (B, S), and the standard deviations that the search ended with, (H, B, A) each."""
        own, states = self._plans.completed(obs, obs.new_empty(0, len(obs), self.model.world_model.action_dim))
        starts = own[None]
        if shifted is not None:
            earlier, _ = self._plans.completed(obs, shifted)
            starts = th.stack([own, th.where(begins[:, None], own, earlier)])
        std = self._plans.spread(states) if self.initial_std is None else th.full_like(own, self.initial_std)
        score = partial(self._plans.worth, obs)
        start = best(starts, score(starts), 1)[0]
        settings = (self.n_samples, self.n_elites, self.n_iterations, self.min_std, self.momentum)
        mean, std = cross_entropy(score, start, std, *settings)
        rivals = th.cat([starts, mean[None]])
        return best(rivals, score(rivals), 1)[0], std
