"""Does a critic know which way the action should go, and what lies beyond the edge of its data? As a system learns.

    python benchmarks/critic_slopes.py pathtracking "MPG-v1, on-policy" --seeds 0 --steps 6000

Trains a system of a study and evaluates it every ``--every`` steps. In states of these evaluations, at the policy's actions,
d Q/d a is compared with central differences of the return over ``HORIZON`` simulated steps (where the task truncates an
episode, as the critic's targets have it). In the newest states where an episode was truncated, from which nothing was ever
learned, Q is compared with the return of going on. Appends to ``results/critic_slopes.csv``.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from learning import RESULTS, append, revision, versions
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from studies import Study, make_model, studies

from sb3_valuegrad.algorithms.targets import Evaluation, longest_expansion, mve_value
from sb3_valuegrad.diagnostics.isolation import undisturbed
from sb3_valuegrad.world_models import Oracle

HORIZON = 100
STATES = 256
CHANGE = 0.02  # of an action in [-1, 1], to either side
NEWEST = 1000  # stored steps
FIELDS = ["study", "system", "seed", "step", "return", "cosine", "share_uphill", "critic_slope", "true_slope", "value_error",
          "share_truncated", "q_truncated", "simulated_truncated", "versions"]  # fmt: skip


class Slopes:
    """The critic's and the simulator's slopes in the first action, under the agent's policy."""

    def __init__(self, agent: Any, env_id: str):
        model = agent.world_model
        self.agent, self.simulator = agent, Oracle(model.obs_dim, model.action_dim, env_id=env_id)
        self.evaluation = Evaluation(agent.actor, self.critic)

    def critic(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """By each critic, (L, N)."""
        return th.cat(self.agent.critic(obs, actions), dim=1).t()

    def simulated_return(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The return of these first actions, (N,)."""
        step = self.simulator.step(obs, actions)
        value = mve_value(self.simulator, self.evaluation, step.next_obs, HORIZON - 1, self.agent.gamma)
        return step.reward + self.agent.gamma * (1 - step.done) * value

    def measure(self, obs: th.Tensor) -> list[float]:
        """Cosine of both slopes, share of states in which the critic's leads uphill, medians of their lengths, and the median
        error of Q."""
        with th.no_grad():
            actions = self.agent.actor(obs)
            values = self.critic(obs, actions).amin(0)
            true = th.stack([self._difference(obs, actions, index) for index in range(actions.shape[1])], dim=1)
            error = (values - self.simulated_return(obs, actions)).abs().median()
        varied = actions.clone().requires_grad_()
        (slope,) = th.autograd.grad(self.critic(obs, varied).amin(0).sum(), varied)
        cosine = th.nn.functional.cosine_similarity(slope, true, dim=1)
        lengths = [part.norm(dim=1).median() for part in (slope, true)]
        return [round(float(number), 3) for number in (cosine.mean(), (cosine > 0).float().mean(), *lengths, error)]

    @th.no_grad()
    def beyond(self) -> list[float]:
        """Share of the newest stored steps that ended in a state where the task truncates an episode; medians of Q there, and
        of the return of going on."""
        buffer = self.agent.replay_buffer
        newest = buffer.next_observations[max(buffer.pos - NEWEST, 0) : buffer.pos, 0]
        obs = th.as_tensor(newest, dtype=th.float32)
        truncates = self.simulator.cuts_off(obs)
        if truncates is None or not truncates.any():
            return [0.0, float("nan"), float("nan")]
        cut = obs[truncates]
        values = self.critic(cut, self.agent.actor(cut)).amin(0).median()
        simulated = longest_expansion(self.simulator, self.evaluation, cut, HORIZON, self.agent.gamma)[0].median()
        return [round(float(number), 3) for number in (len(cut) / len(obs), values, simulated)]

    def _difference(self, obs: th.Tensor, actions: th.Tensor, index: int) -> th.Tensor:
        """Central differences in one dimension of the action, (N,)."""
        change = th.zeros_like(actions)
        change[:, index] = CHANGE
        ahead, behind = (self.simulated_return(obs, actions + sign * change) for sign in (1, -1))
        return (ahead - behind) / (2 * CHANGE)


class Measure(BaseCallback):
    """Appends a row every ``every`` steps."""

    def __init__(self, study: Study, row: list[Any], every: int):
        super().__init__()
        self.study, self.row, self.every = study, row, every
        self.eval_env = Monitor(gym.make(study.env, **study.eval_env_kwargs))

    def _init_callback(self) -> None:
        self.slopes = Slopes(self.model, self.study.env)

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            with undisturbed(seed=0):
                self._measure()
        return True

    def _measure(self) -> None:
        seen: list[np.ndarray] = []
        self.eval_env.reset(seed=10_000)
        returns: Any
        returns, _ = evaluate_policy(
            self.model,
            self.eval_env,
            3,
            return_episode_rewards=True,
            callback=lambda scope, _: seen.append(scope["new_observations"][0]),
        )
        obs = th.as_tensor(np.array(seen), dtype=th.float32)
        found = self.slopes.measure(obs[th.randperm(len(obs))[:STATES]]) + self.slopes.beyond()
        row = [*self.row, self.num_timesteps, round(np.mean(returns), 2), *found]
        append(RESULTS / "critic_slopes.csv", [*row, f"{versions()} {revision()}"])
        print(*(f"{name} {value}" for name, value in zip(FIELDS, row, strict=False)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(studies()))
    parser.add_argument("system")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=1000)
    args = parser.parse_args()
    th.set_num_threads(1)
    if not (RESULTS / "critic_slopes.csv").exists():
        append(RESULTS / "critic_slopes.csv", FIELDS)
    study = studies()[args.study]
    for seed in args.seeds:
        model: Any = make_model(study, args.system, seed)
        model.learn(args.steps, callback=Measure(study, [args.study, args.system, seed], args.every), log_interval=None)


if __name__ == "__main__":
    main()
