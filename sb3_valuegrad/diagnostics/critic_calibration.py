"""Does the critic know what the policy earns?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_valuegrad.diagnostics.experience import NothingToMeasureError
from sb3_valuegrad.diagnostics.figures import axes
from sb3_valuegrad.diagnostics.isolation import evaluation_mode
from sb3_valuegrad.errors import check_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CriticCalibration(NamedTuple):
    """The critic's word at each step of some episodes, and what was then earned, see :func:`critic_calibration`."""

    q: np.ndarray
    """(N,): Q(s_t, a_t), the smallest of the critics'"""
    returns: np.ndarray
    """(N,): discounted returns observed from t on, entropy included where :attr:`soft`"""
    bootstrap: np.ndarray
    """(N,): what the critic's own word at a time limit counts for in the return, gamma^(T - t); 0: nothing"""
    soft: bool
    """whether these are soft values and soft returns (SAC's family)"""
    steps_left: np.ndarray
    """(N,): steps until the episode terminated, 1 at its last step; infinite where it did not"""

    @property
    def bias(self) -> float:
        """Mean of Q less the return, in units of the return: above 0 the critic overestimates."""
        return float(np.mean(self.q - self.returns))

    @property
    def error(self) -> float:
        """Root mean square of Q less the return, in units of the return."""
        return float(np.sqrt(np.mean(np.square(self.q - self.returns))))

    @property
    def correlation(self) -> float:
        """Pearson's, between Q and the returns; NaN where one of them does not vary."""
        if len(self.q) < 2 or np.ptp(self.q) == 0 or np.ptp(self.returns) == 0:
            return float("nan")
        return float(np.corrcoef(self.q, self.returns)[0, 1])

    def bias_before_termination(self, steps: int = 5) -> np.ndarray:
        """Mean of Q less the return by the steps left until an episode terminated, (steps,), 1 first; NaN where none did.

        A critic, or a world model in its target, that does not see an end coming looks beyond it: then these are far above
        :attr:`bias`.

        :raises ValueError: if ``steps`` is not a positive integer
        """
        check_count("steps", steps, 1)
        excess = [(self.q - self.returns)[self.steps_left == left] for left in range(1, steps + 1)]
        return np.array([part.mean() if len(part) else np.nan for part in excess])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Q over observed returns: an ideal critic lies on the dotted line (Feinberg et al. 2018 (MVE), Fig. 5).

        :param ax: where to draw; None: a new figure
        :raises ImportError: without matplotlib
        """
        kind = "soft " if self.soft else ""
        title = f"Critic: bias {self.bias:.3g}, correlation {self.correlation:.2f}"
        ax = axes(ax, title, f"observed {kind}discounted return", f"predicted {kind}Q(s, a)")
        ax.scatter(self.returns, self.q, s=6, alpha=0.5, linewidths=0)
        ends = [min(self.returns.min(), self.q.min()), max(self.returns.max(), self.q.max())]
        ax.plot(ends, ends, color="black", linestyle=":")
        return ax


def critic_calibration(
    agent: Any, env: gym.Env | VecEnv, n_episodes: int = 10, max_bootstrap: float = 0.5
) -> CriticCalibration:
    """Q(s_t, a_t) along episodes of the agent's own policy against the discounted returns observed from there.

    What is compared is what the critic estimates. A deterministic policy acts without noise. A stochastic one is sampled,
    and its critic is soft: the return is ``r_t + sum_{l>t} gamma^(l-t) (r_l - alpha log pi(a_l|s_l))``, at the present
    temperature. Observations and rewards are normalised as in training (``VecNormalize``).

    An episode that a time limit ends is continued by the critic's word at its last observation, as in training. Steps so
    close to the limit that this word makes up more than ``max_bootstrap`` of the return's discount are left out.

    :param agent: an algorithm of this package, or SB3's DDPG, TD3 or SAC
    :param env: a Gymnasium environment or a ``VecEnv`` of the task; not the one that is trained in, since it is reset.
        A ``VecNormalize`` around it is taken off, the agent's own statistics count
    :param n_episodes: how many episodes, shared among the environments
    :param max_bootstrap: leave steps out whose gamma^(T - t) is more, in [0, 1]; 0: only episodes that terminate count
    :return: predictions and observations, with ``bias``, ``error``, ``correlation``
    :raises ValueError: for agents whose critic is of another kind, an environment with other spaces, arguments out of
        range
    :raises NothingToMeasureError: a ``ValueError``, if no step is left
    """
    check_count("n_episodes", n_episodes, 1)
    if not 0 <= max_bootstrap <= 1:
        raise ValueError(f"max_bootstrap={max_bootstrap} must be in [0, 1]")
    vec_env = _checked_env(agent, env)
    with evaluation_mode(agent.policy):
        episodes = _play(_Evaluator(agent), vec_env, n_episodes)
    q, returns, bootstrap, left = np.concatenate(episodes).T
    counts = bootstrap <= max_bootstrap
    if not counts.any():
        raise NothingToMeasureError(
            f"max_bootstrap={max_bootstrap} leaves none of the {len(q)} steps: the time limit is too close for "
            f"gamma={agent.gamma}. Use an env with longer episodes, or raise max_bootstrap (1 keeps every step)"
        )
    soft = hasattr(agent.actor, "action_log_prob")
    return CriticCalibration(q[counts], returns[counts], bootstrap[counts], soft, left[counts])


def _checked_env(agent: Any, env: gym.Env | VecEnv) -> VecEnv:
    """The environment as SB3 steps it, without normalisation."""
    if not isinstance(getattr(agent, "critic", None), ContinuousCritic):
        raise ValueError(
            f"agent={type(agent).__name__} has no critic Q(s, a) of SB3's kind; use an algorithm of sb3_valuegrad, or DDPG, "
            "TD3 or SAC"
        )
    vec_env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
    vec_env = vec_env.venv if isinstance(vec_env, VecNormalize) else vec_env
    if unwrap_vec_normalize(vec_env) is not None:
        raise ValueError(f"env={env} has a VecNormalize inside another wrapper; pass the environment without it")
    for name in ("observation_space", "action_space"):
        mine, its = getattr(agent, name), getattr(vec_env, name)
        if mine != its:
            raise ValueError(f"env has {name}={its}, the agent was trained with {mine}; pass an environment of its task")
    return vec_env


class _Evaluator:
    """An agent's policy and critic on raw observations of several environments."""

    def __init__(self, agent: Any):
        self.agent, self.gamma = agent, float(agent.gamma)
        self.soft = hasattr(agent.actor, "action_log_prob")
        self.normalizer: VecNormalize | None = agent.get_vec_normalize_env()

    def rewards(self, rewards: np.ndarray) -> np.ndarray:
        """As the critic learned them."""
        return rewards if self.normalizer is None else self.normalizer.normalize_reward(rewards)

    def _alpha(self) -> th.Tensor:
        log_ent_coef = self.agent.log_ent_coef
        return self.agent.ent_coef_tensor if log_ent_coef is None else log_ent_coef.exp()

    @th.no_grad()
    def act(self, obs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions for the environments, and by environment Q(s, a) and the entropy's bonus ``-alpha log pi(a|s)``."""
        obs = obs if self.normalizer is None else self.normalizer.normalize_obs(obs)
        tensors, _ = self.agent.policy.obs_to_tensor(obs)
        if self.soft:
            actions, log_probs = self.agent.actor.action_log_prob(tensors)
            bonus = -self._alpha() * log_probs
        else:
            actions = self.agent.actor(tensors)
            bonus = actions.new_zeros(len(actions))
        q = th.cat(self.agent.critic(tensors, actions), dim=1).amin(1)
        return self.agent.policy.unscale_action(actions.cpu().numpy()), q.cpu().numpy(), bonus.cpu().numpy()

    def value(self, obs: Any) -> float:
        """What the critic takes one last observation to be worth, its entropy's bonus included."""
        batch = {key: part[None] for key, part in obs.items()} if isinstance(obs, dict) else obs[None]
        _, q, bonus = self.act(batch)
        return float(q[0] + bonus[0])


def _play(evaluator: _Evaluator, env: VecEnv, n_episodes: int) -> list[np.ndarray]:
    """Rows (Q, return, share of the bootstrap, steps left) of each step, (T, 4) an episode."""
    # Shared evenly beforehand: the first to end would be the shorter ones (SB3's evaluate_policy does the same).
    wanted = [(n_episodes + index) // env.num_envs for index in range(env.num_envs)]
    steps: list[list[tuple[float, float, float]]] = [[] for _ in wanted]
    episodes: list[np.ndarray] = []
    obs = env.reset()
    while any(wanted):
        actions, q, bonus = evaluator.act(obs)
        obs, rewards, dones, infos = env.step(actions)
        rewards = evaluator.rewards(rewards)
        for index in np.flatnonzero(wanted):
            steps[index].append((q[index], rewards[index], bonus[index]))
            if dones[index]:
                last = infos[index]["terminal_observation"]
                truncated = infos[index].get("TimeLimit.truncated", False)
                tail = evaluator.value(last) if truncated else None
                episodes.append(_observed(steps[index], tail, evaluator.gamma))
                steps[index], wanted[index] = [], wanted[index] - 1
    return episodes


def _observed(steps: list[tuple[float, float, float]], tail: float | None, gamma: float) -> np.ndarray:
    """``G_t = r_t + gamma (b_{t+1} + G_{t+1})`` backwards through an episode.

    :param steps: (Q, reward, entropy's bonus b) of each
    :param tail: what the time limit cut off; None: the episode terminated
    :return: (Q, G_t, share of the tail in it, steps left until it terminated), (T, 4)
    """
    following, share, left = (0.0, 0.0, 0.0) if tail is None else (tail, 1.0, np.inf)
    rows = []
    for q, reward, bonus in reversed(steps):
        value, share, left = reward + gamma * following, gamma * share, left + 1
        rows.append((q, value, share, left))
        following = value + bonus
    return np.array(rows[::-1], dtype=np.float64)
