"""DVPG with a reward function that is known: only the dynamics are learned.

    python examples/known_reward.py

A given reward is exact wherever the imagined rollout goes. Its units are the point to get right:

- observations as the environment returns them (as VecNormalize returns them, if you use it), one flat row each;
- actions in [-1, 1], whatever the environment's own bounds are: here the torque is 2 times the action;
- the reward as the environment returns it (scaled, if VecNormalize scales it).
"""

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_valuegrad import DVPG


def pendulum_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    """obs (N, 3), actions (N, 1) in [-1, 1], next_obs (N, 3) to rewards (N,), in differentiable torch operations."""
    angle, velocity, torque = th.atan2(obs[:, 1], obs[:, 0]), obs[:, 2], 2.0 * actions[:, 0]
    return -(angle.square() + 0.1 * velocity.square() + 0.001 * torque.square())


def largest_difference(steps: int = 500) -> float:
    """Between our function and the environment: always check this before training with a reward of your own."""
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    differences = []
    for step in range(steps):
        action = env.action_space.sample()
        next_obs, reward, _, truncated, _ = env.step(action)
        rows = [th.as_tensor(np.asarray(part, dtype=np.float32))[None] for part in (obs, action / 2.0, next_obs)]
        differences.append(abs(pendulum_reward(*rows).item() - float(reward)))
        obs = env.reset(seed=step)[0] if truncated else next_obs
    return max(differences)


def main() -> None:
    th.set_num_threads(1)
    print(f"largest difference from the environment's reward: {largest_difference():.1e}")
    policy_kwargs = {"world_model_kwargs": {"reward_fn": pendulum_reward, "termination": "none"}}
    model = DVPG("MlpPolicy", "Pendulum-v1", horizon=2, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    model.learn(3000)
    mean, std = evaluate_policy(model, Monitor(gym.make("Pendulum-v1")), n_eval_episodes=10)
    print(f"return after 3000 steps: {mean:.0f} +- {std:.0f}")


if __name__ == "__main__":
    main()
